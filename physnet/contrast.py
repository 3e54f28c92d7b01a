"""How the phases of a protocol combine into one gradient.

    gradient = Re sum_k c_k dF/dtheta(s_k)

Each dF/dtheta is a product u_k v_k^T of states that differ little from the free one. What comes here is therefore how
much u and v have changed since the free phase, and the sum is formed from changes, in as many rows as the plain sum
would take:

    sum_k c_k u_k v_k^T = sum_{k>0} (u_k - u_0) c_k v_k^T + u_0 (sum_{k>0} c_k (v_k - v_0) + (sum_k c_k) v_0)^T
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Num
from torch import Tensor

from physnet.functions import onto
from physnet.layout import repeat

Rows = tuple[Tensor, Tensor]
Moved = tuple[Num[Tensor, " phased ..."], Num[Tensor, " phased ..."]]
"""A quantity in all phases, and how much it has changed since the free phase."""


class Phases:
    """The phases of one batch. Free states hold one block of `rows` rows per phase; clamped states hold it once.

    Arguments:
        coefficients: c_k; complex ones stand for themselves and their conjugates.
        rows: samples in the batch.
        scale: a factor for the whole gradient, a number or a 0-dimensional tensor.
        signals: dF/da of nodes whose energy has a drive, all phases; `drives` are these drives, and `errors` by how
            much states differ from what is predicted.
    """

    def __init__(
        self,
        coefficients: Sequence[complex],
        rows: int,
        scale: Tensor | float = 1.0,
        signals: Mapping[str, Tensor] | None = None,
        drives: Mapping[str, Tensor] | None = None,
        errors: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.signals, self.drives, self.errors = signals or {}, drives or {}, errors or {}
        self._each: dict[str, Tensor] = {}
        self.coefficients = tuple(complex(c) if complex(c).imag else complex(c).real for c in coefficients)
        self.rows, self.scale = rows, scale
        whole = sum(self.coefficients)
        self.sum = 0.0 if abs(whole) < 1e-9 * max(map(abs, self.coefficients)) else whole
        self.scaled = [coefficient * scale for coefficient in self.coefficients]

    def _blocks(self, v: Tensor) -> Tensor:
        return v.unflatten(0, (len(self.coefficients), self.rows))

    def _combine(self, change: Tensor, value: Callable[[], Tensor], number: float) -> Tensor:
        """number * scale * sum_k c_k v_k: [phases * rows, ...] -> [rows, ...]."""
        blocks = self._blocks(change)
        parts = [
            (block - blocks[0]) * (coefficient * number * self.scale)
            for coefficient, block in zip(self.coefficients[1:], blocks[1:], strict=True)
        ]
        if self.sum:
            parts.append(self._blocks(value())[0] * (self.sum * number * self.scale))
        return sum(parts[1:], parts[0])

    def difference(
        self, change: Tensor, value: Callable[[], Tensor], number: float = 1.0
    ) -> Num[Tensor, " rows *unit"]:
        """number * scale * Re sum_k c_k v_k, from how much each v_k has changed; `value` is called if it matters."""
        combined = self._combine(change, value, number)
        return combined.real if combined.is_complex() else combined

    def nudge(self, beta: Tensor | float) -> Tensor | float:
        """Re sum_k c_k beta_k, which is 1 for estimates of a gradient: what a cost that depends on no state is
        multiplied by."""
        if not isinstance(beta, Tensor):
            return self.rows * self.scale  # outputs are clamped; what no state changes still counts once
        rows = beta.reshape(-1)
        return self.difference(rows, lambda: rows).sum()

    # ---------------------------------------------------------------- products of both ends of an edge

    def free_free(self, u: Moved, v: Moved, number: float) -> Rows:
        """Rows U, V with U^T V = number * Re sum_k c_k u_k^T v_k, both ends being free."""
        if u[0].numel() < v[0].numel():  # the scaled copies are made of the smaller end
            right, left = self.free_free(v, u, number)
            return left, right
        values, changes = self._blocks(u[0]), self._blocks(u[1])
        left = torch.cat([*(change - changes[0] for change in changes[1:]), values[0]])
        scaled = [
            block * (coefficient * number * self.scale)
            for coefficient, block in zip(self.coefficients[1:], self._blocks(v[0])[1:], strict=True)
        ]
        right = torch.cat([*scaled, self._combine(v[1], lambda: v[0], number)])
        if not left.is_complex():
            return left, right
        return torch.cat([left.real, left.imag]), torch.cat([right.real, -right.imag])

    def clamped_free(self, u: Tensor, v: Moved, number: float) -> Rows:
        return u, self.difference(v[1], lambda: v[0], number)

    def free_clamped(self, u: Moved, v: Tensor, number: float) -> Rows:
        return self.difference(u[1], lambda: u[0], number), v

    def constant_free(self, u: Tensor, v: Moved, number: float) -> Rows:
        return u, self.clamped_free(u, v, number)[1].sum(0, keepdim=True)

    def free_constant(self, u: Moved, v: Tensor, number: float) -> Rows:
        return self.free_clamped(u, v, number)[0].sum(0, keepdim=True), v

    def clamped_clamped(self, u: Tensor, v: Tensor, number: float) -> Rows:
        return u, v * (self.sum.real * number * self.scale)

    def clamped_constant(self, u: Tensor, v: Tensor, number: float) -> Rows:
        return u.sum(0, keepdim=True) * (self.sum.real * number * self.scale), v

    def constant_clamped(self, u: Tensor, v: Tensor, number: float) -> Rows:
        return u, v.sum(0, keepdim=True) * (self.sum.real * number * self.scale)

    # ---------------------------------------------------------------- predictions

    def each(self, value: Tensor) -> Tensor:
        """scale * c_k v_k, phases stacked along the rows."""
        if len(self.coefficients) == 1:
            return value * self.scaled[0]
        return torch.cat([v * c for c, v in zip(self.scaled, self._blocks(value), strict=True)])

    def whole(self, value: Tensor) -> Tensor:
        """scale * sum_k c_k v_k: [phases * rows, ...] -> [rows, ...]."""
        parts = [v * c for c, v in zip(self.scaled, self._blocks(value), strict=True)]
        return sum(parts[1:], parts[0])

    def each_signal(self, node: str) -> Tensor:
        """scale * c_k dF/da, phases stacked along the rows; worked out once, as all that leads to a node needs it."""
        if node not in self._each:
            self._each[node] = self.each(self.signals[node])
        return self._each[node]

    def whole_signal(self, node: str) -> Tensor:
        """scale * sum_k c_k dF/da."""
        if len(self.coefficients) == 1:
            return self.each_signal(node)
        return self.whole(self.signals[node])

    @staticmethod
    def stack(*products: Rows) -> Rows:
        """Several products of one edge as one."""
        if len(products) == 1:
            return products[0]
        return torch.cat([u for u, _ in products]), torch.cat([v for _, v in products])

    def expand(self, s: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """States with clamped nodes repeated for every phase."""
        full = len(self.coefficients) * self.rows
        return {
            name: value if value.shape[0] == full else repeat(value, len(self.coefficients))
            for name, value in s.items()
        }

    def reduce(self, change: Tensor, value: Callable[[], Tensor], parameter: Tensor, number: float = 1.0) -> Tensor:
        """Combine per-row values, then sum over everything that shares one entry of the parameter."""
        return onto(self.difference(change, value, number).sum(0), parameter)
