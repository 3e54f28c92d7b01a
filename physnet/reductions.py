"""Costs of a whole node or readout: scalars C(z, y) of a row that are no sums over units.

A reduction is a class with a value, a gradient and a bound on its curvature. It plugs in by `@reduction`; declarations
then name it as the term of a cost. Nothing here imports torch before it is used.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    Units = Float[Tensor, " rows *unit"]


class Reduction(ABC):
    """C(z, y) of one row, where z is a state or a readout and y a target of the same shape.

    Attributes:
        name: what declarations call it.
        slope: dC/dz of one entry, for people.
        curvature: a bound on the largest eigenvalue, by magnitude, of d^2C/dz^2, whatever z and y are; `None` if there
            is none: nodes that carry it then have no exact update in nudged phases.
    """

    name: str
    slope: str
    curvature: float | None = None

    @abstractmethod
    def value(self, z: Units, y: Units) -> Float[Tensor, " rows"]:
        """C of every row, differentiable."""

    def gradient(self, z: Units, y: Units) -> Units:
        """dC/dz; by automatic differentiation unless overridden."""
        import torch

        with torch.enable_grad():
            variable = z.detach().requires_grad_()
            return torch.autograd.grad(self.value(variable, y).sum(), variable)[0]

    def scores(self, z: Units) -> Float[Tensor, " rows units"]:
        """C(z, 0) - C(z, e_i) for every unit i, where e_i is the one-hot target: the largest is the prediction."""
        import torch

        quiet = torch.zeros_like(z)
        before, columns = self.value(z, quiet), []
        for unit in range(z[0].numel()):
            lit = torch.zeros_like(z)
            lit.flatten(1)[:, unit] = 1
            columns.append(before - self.value(z, lit))
        return torch.stack(columns, 1)


REDUCTIONS: dict[str, type[Reduction]] = {}
"""Reductions by the name that declarations use."""

R = TypeVar("R", bound=type[Reduction])


def reduction(kind: R) -> R:
    """Register a reduction under its name."""
    REDUCTIONS[kind.name] = kind
    return kind


@reduction
class CrossEntropy(Reduction):
    """C = log sum_i exp(z_i) - sum_i y_i z_i,  the negative log-likelihood of softmax(z) under a distribution y.

    Its curvature diag(p) - p p^T, with p = softmax(z), has no eigenvalue above 1/2.
    """

    name = "cross_entropy"
    slope = "softmax(z) - y"
    curvature = 0.5

    def value(self, z: Tensor, y: Tensor) -> Tensor:
        return z.flatten(1).logsumexp(1) - (z * y).flatten(1).sum(1)

    def gradient(self, z: Tensor, y: Tensor) -> Tensor:
        return z.flatten(1).softmax(1).view_as(z) - y

    def scores(self, z: Tensor) -> Tensor:
        return z.flatten(1)


__all__ = ["REDUCTIONS", "CrossEntropy", "Reduction", "reduction"]
