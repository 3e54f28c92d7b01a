"""The functions of the expression language on tensors; generated code sees these names and no others."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from physnet.layout import units

if TYPE_CHECKING:
    from physnet.connections import Linked

aten = torch.ops.aten
sin, cos, tan, exp, log, sqrt, sign = (
    torch.sin, torch.cos, torch.tan, torch.exp, torch.log, torch.sqrt, torch.sign,
)  # fmt: skip
tanh, asinh, atanh, erf = torch.tanh, torch.asinh, torch.atanh, torch.erf
relu, sigmoid, atan2 = torch.relu, torch.sigmoid, torch.atan2
softplus = torch.nn.functional.softplus


def magnitude(x: Tensor) -> Tensor:
    """|x|"""
    return x.abs()


def log_cosh(x: Tensor) -> Tensor:
    """log(cosh(x)), without overflow."""
    return torch.logaddexp(x, -x) - math.log(2)


def step(x: Tensor) -> Tensor:
    """1 where x > 0, else 0."""
    return (x > 0).to(x.dtype)


def through_relu(v: Tensor, x: Tensor) -> Tensor:
    """step(x) v, in one pass."""
    return aten.threshold_backward(v, x, 0)


def through_clip(v: Tensor, x: Tensor, lo: float, hi: float) -> Tensor:
    """v where lo < x < hi, else 0, in one pass."""
    return aten.hardtanh_backward(v, x, lo, hi)


def minimum(first: Tensor | float, *others: Tensor | float) -> Tensor | float:
    """The smallest of several tensors or numbers, elementwise."""
    for other in others:
        first = _pick(first, other, torch.minimum, torch.clamp_max, min)
    return first


def maximum(first: Tensor | float, *others: Tensor | float) -> Tensor | float:
    """The largest of several tensors or numbers, elementwise."""
    for other in others:
        first = _pick(first, other, torch.maximum, torch.clamp_min, max)
    return first


def _pick(a, b, of_tensors, of_tensor_and_number, of_numbers):
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return of_tensors(a, b)
    if isinstance(a, Tensor):
        return of_tensor_and_number(a, b)
    return of_tensor_and_number(b, a) if isinstance(b, Tensor) else of_numbers(a, b)


def clip(x: Tensor, lo: Tensor | float, hi: Tensor | float) -> Tensor | float:
    """min(max(x, lo), hi)"""
    return minimum(maximum(x, lo), hi)


def total(x: Tensor) -> Tensor:
    """Sum over all units: [rows, *node] -> [rows]."""
    return units(x).sum(1)


def spread(beta: Tensor | float, axes: int) -> Tensor | float:
    """The nudge of every row, shaped to broadcast over states of so many axes."""
    return beta if not isinstance(beta, Tensor) else beta.reshape(-1, *(1,) * axes)


def onto(values: Tensor, parameter: Tensor) -> Tensor:
    """Sum values that a parameter was broadcast to over everything that shares one of its entries."""
    if parameter.dim() == 0:
        return values.sum()
    return values.flatten(parameter.dim()).sum(-1) if values.dim() > parameter.dim() else values


def rows_onto(values: Tensor, parameter: Tensor) -> Tensor:
    """`onto` of the sum over rows, in one pass; one row counts once."""
    shared = [0, *range(1 + parameter.dim(), values.dim())]
    return values.sum(shared if parameter.dim() else list(range(values.dim())))


def squared_norm(edge: Linked, w: Tensor) -> Tensor:
    """A bound on the largest eigenvalue of W W^T, W being the linear map of an edge: its largest absolute row sum."""
    units = math.prod(edge.post)
    rows = torch.eye(units, dtype=w.dtype, device=w.device).view(units, *edge.post)
    return edge.apply(edge.adjoint(rows, w), w).flatten(1).abs().sum(1).max()


def ones(shape: tuple[int, ...], s: Mapping[str, Tensor]) -> Tensor:
    """One row of ones for a node of that shape, like the states."""
    like = next(iter(s.values()))
    return torch.ones((1, *shape), dtype=like.dtype, device=like.device)


def number(value: float, s: Mapping[str, Tensor]) -> Tensor:
    """A scalar weight, like the states."""
    like = next(iter(s.values()))
    return torch.tensor(value, dtype=like.dtype, device=like.device)
