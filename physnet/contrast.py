"""How the phases of a protocol combine into one gradient.

    gradient = sum_k c_k dF/dtheta(s_k)

Each dF/dtheta is a product u_k v_k^T of nearly equal states, so the sum is formed from differences, which floating
point keeps exactly, in as many rows as the plain sum would take:

    sum_k c_k u_k v_k^T = sum_{k>0} (u_k - u_0) c_k v_k^T + u_0 (sum_{k>0} c_k (v_k - v_0) + (sum_k c_k) v_0)^T
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

Rows = tuple[Tensor, Tensor]


class Phases:
    """The phases of one batch. Free states hold one block of `rows` rows per phase; clamped states hold it once.

    Arguments:
        coefficients: c_k.
        rows: samples in the batch.
        scale: a factor for the whole gradient, a number or a 0-dimensional tensor.
    """

    def __init__(self, coefficients: Sequence[float], rows: int, scale: Tensor | float = 1.0) -> None:
        self.coefficients, self.rows, self.scale = tuple(coefficients), rows, scale
        whole = sum(self.coefficients)
        self.sum = 0.0 if abs(whole) < 1e-9 * max(map(abs, self.coefficients)) else whole

    def difference(self, v: Float[Tensor, " phased *unit"], number: float = 1.0) -> Float[Tensor, " rows *unit"]:
        """number * scale * sum_k c_k v_k: [phases * rows, ...] -> [rows, ...]."""
        blocks = v.unflatten(0, (len(self.coefficients), self.rows))
        first = blocks[0]
        parts = [
            (block - first) * (coefficient * number * self.scale)
            for coefficient, block in zip(self.coefficients[1:], blocks[1:], strict=True)
        ]
        if self.sum:
            parts.append(first * (self.sum * number * self.scale))
        return sum(parts[1:], parts[0])

    def free_free(
        self, u: Float[Tensor, " phased *pre"], v: Float[Tensor, " phased *post"], number: float
    ) -> tuple[Float[Tensor, " phased *pre"], Float[Tensor, " phased *post"]]:
        """Rows U, V with U^T V = number * sum_k c_k u_k^T v_k, both ends being free."""
        if u.numel() < v.numel():  # the scaled copies are made of the smaller end
            right, left = self.free_free(v, u, number)
            return left, right
        blocks_u = u.unflatten(0, (len(self.coefficients), self.rows))
        blocks_v = v.unflatten(0, (len(self.coefficients), self.rows))
        left = [block - blocks_u[0] for block in blocks_u[1:]]
        right = [
            block * (coefficient * number * self.scale)
            for coefficient, block in zip(self.coefficients[1:], blocks_v[1:], strict=True)
        ]
        return torch.cat([*left, blocks_u[0]]), torch.cat([*right, self.difference(v, number)])

    def clamped_free(self, u: Tensor, v: Tensor, number: float) -> Rows:
        return u, self.difference(v, number)

    def free_clamped(self, u: Tensor, v: Tensor, number: float) -> Rows:
        return self.difference(u, number), v

    def constant_free(self, u: Tensor, v: Tensor, number: float) -> Rows:
        return u, self.difference(v, number).sum(0, keepdim=True)

    def free_constant(self, u: Tensor, v: Tensor, number: float) -> Rows:
        return self.difference(u, number).sum(0, keepdim=True), v

    def clamped_clamped(self, u: Tensor, v: Tensor, number: float) -> Rows:
        return u, v * (self.sum * number * self.scale)

    def clamped_constant(self, u: Tensor, v: Tensor, number: float) -> Rows:
        return u.sum(0, keepdim=True) * (self.sum * number * self.scale), v

    def constant_clamped(self, u: Tensor, v: Tensor, number: float) -> Rows:
        return u, v.sum(0, keepdim=True) * (self.sum * number * self.scale)

    @staticmethod
    def stack(*products: Rows) -> Rows:
        """Several products of one edge as one."""
        if len(products) == 1:
            return products[0]
        return torch.cat([u for u, _ in products]), torch.cat([v for _, v in products])

    def expand(self, s: dict[str, Tensor]) -> dict[str, Tensor]:
        """States with clamped nodes repeated for every phase."""
        full = len(self.coefficients) * self.rows
        return {
            name: value if value.shape[0] == full else value.repeat(len(self.coefficients), *(1,) * (value.dim() - 1))
            for name, value in s.items()
        }

    def reduce(self, values: Tensor, parameter: Tensor, number: float = 1.0) -> Tensor:
        """Combine per-row values, then sum over everything that shares one entry of the parameter."""
        combined = self.difference(values, number).sum(0)
        if parameter.dim() == 0:
            return combined.sum()
        return combined.flatten(parameter.dim()).sum(-1) if combined.dim() > parameter.dim() else combined
