"""f(a + d) - f(a) on tensors, without cancellation; complex where the function is holomorphic.

Each formula keeps the relative error of d. Those of exponentials take the side on which nothing overflows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Number = Tensor | float


def sin_difference(a: Tensor, d: Tensor) -> Tensor:
    return 2 * torch.cos(a + d / 2) * torch.sin(d / 2)


def cos_difference(a: Tensor, d: Tensor) -> Tensor:
    return -2 * torch.sin(a + d / 2) * torch.sin(d / 2)


def tan_difference(a: Tensor, d: Tensor) -> Tensor:
    return torch.sin(d) / (torch.cos(a) * torch.cos(a + d))


def exp_difference(a: Tensor, d: Tensor) -> Tensor:
    if d.is_complex():
        return torch.exp(a) * torch.expm1(d)
    return -torch.sign(d) * torch.exp(torch.maximum(a, a + d)) * torch.expm1(-d.abs())


def log_difference(a: Tensor, d: Tensor) -> Tensor:
    return torch.log1p(d / a)


def sqrt_difference(a: Tensor, d: Tensor) -> Tensor:
    roots = torch.sqrt(a) + torch.sqrt(a + d)
    return torch.where(roots == 0, 0.0, d / roots)


def sigmoid_difference(a: Tensor, d: Tensor) -> Tensor:
    b = a + d
    if d.is_complex():
        return torch.sigmoid(a) * torch.sigmoid(-b) * torch.expm1(d)
    larger, smaller = torch.maximum(a, b), torch.minimum(a, b)
    return -torch.sign(d) * torch.sigmoid(larger) * torch.sigmoid(-smaller) * torch.expm1(-d.abs())


def tanh_difference(a: Tensor, d: Tensor) -> Tensor:
    return 2 * sigmoid_difference(2 * a, 2 * d)  # tanh(x) = 2 sigmoid(2 x) - 1


def softplus_difference(a: Tensor, d: Tensor) -> Tensor:
    near = torch.log1p(torch.sigmoid(a) * torch.expm1(d.clamp(-1.0, 1.0)))
    softplus = torch.nn.functional.softplus
    return torch.where(d.abs() < 1, near, softplus(a + d) - softplus(a))


def log_cosh_difference(a: Tensor, d: Tensor) -> Tensor:
    b = a + d
    small = d.clamp(-1.0, 1.0)
    near = torch.log1p(2 * torch.sinh(small / 2) ** 2 + torch.tanh(a) * torch.sinh(small))
    return torch.where(d.abs() < 1, near, torch.logaddexp(b, -b) - torch.logaddexp(a, -a))


def relu_difference(a: Tensor, d: Tensor) -> Tensor:
    return torch.maximum(d, -a) + a.clamp_max(0)


def clip_difference(a: Tensor, d: Tensor, lo: float, hi: float) -> Tensor:
    return d.clamp(lo - a, hi - a) + (a - a.clamp(lo, hi))


def magnitude_difference(a: Tensor, d: Tensor) -> Tensor:
    return torch.where(a >= 0, torch.maximum(d, -2 * a - d), torch.maximum(-d, 2 * a + d))


def maximum_difference(a: Number, da: Number, b: Number, db: Number) -> Tensor:
    """max(a + da, b + db) - max(a, b)"""
    first, gained, second, caught_up = torch.broadcast_tensors(*_tensors(a, da, b, db))
    lead = first - second
    return torch.where(lead >= 0, torch.maximum(gained, caught_up - lead), torch.maximum(gained + lead, caught_up))


def minimum_difference(a: Number, da: Number, b: Number, db: Number) -> Tensor:
    """min(a + da, b + db) - min(a, b)"""
    first, change, second, other = _tensors(a, da, b, db)
    return -maximum_difference(-first, -change, -second, -other)


def wide_difference(function: Callable[..., Any], *pairs: Number) -> Tensor:
    """function(a + da, ...) - function(a, ...) in float64, for functions without a formula of their own."""
    tensors = _tensors(*pairs)
    dtype = next(tensor.dtype for tensor in tensors if tensor.dim())
    wide = [tensor.to(torch.complex128 if tensor.is_complex() else torch.float64) for tensor in tensors]
    old = wide[0::2]
    new = [a + d for a, d in zip(old, wide[1::2], strict=True)]
    return (function(*new) - function(*old)).to(dtype)


def _tensors(*values: Number) -> list[Tensor]:
    like = next((value for value in values if isinstance(value, Tensor)), torch.empty(()))
    return [value if isinstance(value, Tensor) else like.new_tensor(value) for value in values]
