"""Couplings over given pairs, as tensors: products with compressed sparse rows.

The three maps of a connection,

    apply(u, w)_i = sum over pairs p = (j, i) of w_p u_j          adjoint(v, w)_j = sum over p of w_p v_i
    correlate(u, v)_p = sum over rows of u_j v_i

are each differentiable by the other two, to any order, so that nothing of size [rows, pairs] is ever held.
"""

from __future__ import annotations

import math
import warnings
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from physnet.connections import Linked, Shape
from physnet.patterns import OnDevice, Pattern

COMPRESSED = (torch.float32, torch.float64)
"""What torch's sparse products take; other types (complex states) gather and add."""

with warnings.catch_warnings():  # torch says once that sparse rows are in beta
    warnings.simplefilter("ignore")
    torch.sparse_csr_tensor([0, 0], [], [], (1, 1))


class SparseLink(Linked):
    """The maps over the pairs of a pattern.

    Arguments:
        pre, post: shapes of the nodes.
        pattern: the pairs.
    """

    def __init__(self, pre: Shape, post: Shape, pattern: Pattern) -> None:
        super().__init__(pre, post)
        self.units = {"pre": math.prod(pre), "post": math.prod(post)}
        self.pattern = pattern

    @cached_property
    def index(self) -> OnDevice:
        """The pairs, and the rows and columns of the matrices that lead to either end."""
        pattern, order = self.pattern, self.pattern.transposed()
        return OnDevice(
            {
                "pre": pattern.pre,
                "post": pattern.post,
                "order": order,
                "rows to post": _compressed(pattern.post, self.units["post"]),
                "columns to post": pattern.pre.astype(np.int32),
                "rows to pre": _compressed(pattern.pre[order], self.units["pre"]),
                "columns to pre": pattern.post[order].astype(np.int32),
            }
        )

    def apply(self, u: Tensor, w: Tensor) -> Tensor:
        return _shaped(product(self, u.flatten(1), self.per_pair(w), "post"), self.post)

    def adjoint(self, v: Tensor, w: Tensor) -> Tensor:
        return _shaped(product(self, v.flatten(1), self.per_pair(w), "pre"), self.pre)

    def correlate(self, u: Tensor, v: Tensor, w: Tensor) -> Tensor:
        if w.dim() == 0:
            return (v * self.apply(u, torch.ones_like(w))).sum()
        return correlation(self, u.flatten(1), v.flatten(1))

    def pairs(self, pre: Tensor, post: Tensor) -> tuple[Tensor, Tensor]:
        return pre.flatten(1)[:, self.index["pre", pre.device]], post.flatten(1)[:, self.index["post", post.device]]

    def to_pre(self, values: Tensor) -> Tensor:
        return _shaped(self._sum(values, "pre"), self.pre)

    def to_post(self, values: Tensor) -> Tensor:
        return _shaped(self._sum(values, "post"), self.post)

    def _sum(self, values: Tensor, end: str) -> Tensor:
        zeros = values.new_zeros(len(values), self.units[end])
        return zeros.index_add(1, self.index[end, values.device], values)

    def per_pair(self, w: Tensor) -> Tensor:
        return w.expand(len(self.pattern)) if w.dim() == 0 else w

    def matrix(self, w: Tensor, end: str) -> Tensor:
        """The weights as a matrix in compressed rows, [units of `end`, units of the other end]."""
        rows, columns = self.index[f"rows to {end}", w.device], self.index[f"columns to {end}", w.device]
        values = w if end == "post" else w[self.index["order", w.device]]
        size = self.units[end], self.units[other(end)]
        return torch.sparse_csr_tensor(rows, columns, values.contiguous(), size, check_invariants=False)

    def product(self, x: Tensor, w: Tensor, end: str) -> Tensor:
        """The drive on one end from states of the other."""
        if x.dtype in COMPRESSED and x.dtype == w.dtype:
            return (self.matrix(w, end) @ x.mT).mT.contiguous()
        return self._sum(x[:, self.index[other(end), x.device]] * w, end)

    def correlation(self, u: Tensor, v: Tensor) -> Tensor:
        if u.dtype in COMPRESSED and u.dtype == v.dtype:
            zeros = self.matrix(u.new_zeros(len(self.pattern)), "post")
            return torch.sparse.sampled_addmm(zeros, v.mT, u, beta=0.0).values()
        first, second = self.pairs(u, v)
        return (first * second).sum(0)


class AllPairsLink(SparseLink):
    """Every pair of different units of a node once. Pairs are listed only if there is a weight for each."""

    def __init__(self, pre: Shape, post: Shape) -> None:
        Linked.__init__(self, pre, post)
        self.units = {"pre": math.prod(pre), "post": math.prod(post)}

    @cached_property
    def pattern(self) -> Pattern:  # pyright: ignore[reportIncompatibleVariableOverride]
        units = self.units["pre"]
        post, pre = np.tril_indices(units, -1)
        return Pattern(pre, post, (units, units), undirected=True)

    def apply(self, u: Tensor, w: Tensor) -> Tensor:
        if w.dim():
            return super().apply(u, w)
        return w * _shaped(_sum_before(u.flatten(1)), self.post)

    def adjoint(self, v: Tensor, w: Tensor) -> Tensor:
        if w.dim():
            return super().adjoint(v, w)
        return w * _shaped(_sum_before(v.flatten(1).flip(1)).flip(1), self.pre)


def _sum_before(x: Tensor) -> Tensor:
    """The sum over the units before each: [rows, units]."""
    return x.cumsum(1) - x


def _shaped(x: Tensor, shape: Shape) -> Tensor:
    return x if len(shape) == 1 else x.unflatten(1, shape)


def _compressed(rows: np.ndarray, count: int) -> np.ndarray:
    """Where each row begins among sorted ones."""
    return np.concatenate([[0], np.bincount(rows, minlength=count).cumsum()]).astype(np.int32)


def other(end: str) -> str:
    """The other end of a pair."""
    return "pre" if end == "post" else "post"


def product(link: SparseLink, x: Tensor, w: Tensor, end: str) -> Tensor:
    """sum over pairs, differentiable: [rows, units of the other end] -> [rows, units of `end`]."""
    return _Product.apply(x, w, link, end) if torch.is_grad_enabled() else link.product(x, w, end)  # pyright: ignore


def correlation(link: SparseLink, u: Tensor, v: Tensor) -> Tensor:
    """sum over rows, differentiable: [rows, pre], [rows, post] -> [pairs]."""
    return _Correlation.apply(u, v, link) if torch.is_grad_enabled() else link.correlation(u, v)  # pyright: ignore


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, link: SparseLink, end: str) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.link, ctx.end = link, end
        return link.product(x, w, end)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (x, w), link, end, (slope,) = ctx.saved_tensors, ctx.link, ctx.end, grad_outputs
        to_x = product(link, slope, w.conj(), other(end)) if ctx.needs_input_grad[0] else None
        if not ctx.needs_input_grad[1]:
            return to_x, None, None, None
        ends = (x.conj(), slope) if end == "post" else (slope, x.conj())
        to_w = correlation(link, *ends)
        return to_x, to_w if w.is_complex() or not to_w.is_complex() else to_w.real, None, None


class _Correlation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor, v: Tensor, link: SparseLink) -> Tensor:
        ctx.save_for_backward(u, v)
        ctx.link = link
        return link.correlation(u, v)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (u, v), link, (slope,) = ctx.saved_tensors, ctx.link, grad_outputs
        to_u = product(link, v.conj(), slope, "pre") if ctx.needs_input_grad[0] else None
        to_v = product(link, u.conj(), slope, "post") if ctx.needs_input_grad[1] else None
        return to_u, to_v, None
