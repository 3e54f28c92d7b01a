"""When a sample has arrived at its equilibrium."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from physnet.layout import units
from physnet.problem import Problem, State

TURNS = 10
"""Turns, besides those by which locked oscillators can be apart, after which an angle that hasn't settled is not on its
way to an equilibrium any more."""


class StoppingRule:
    """When a sample has arrived.

    The residual of a row is  max over nodes of  |step| / |state|,  in Euclidean norms; in a nudged phase the state is
    the displacement from the free equilibrium. Where a sample has several phases, both are measured between phases:
    what they share, such as what the free phase left undone, cancels in the contrast. Steps below the resolution of the
    dtype count as zero.

    Arguments:
        problem: gives the domains.
        tolerance: bound on the residual.
        max_sweeps: where to give up.
    """

    def __init__(self, problem: Problem, tolerance: float, max_sweeps: int) -> None:
        self.problem, self.tolerance, self.max_sweeps = problem, tolerance, max_sweeps
        self.resolution = problem.resolution
        self.tiny = torch.finfo(problem.like.dtype).tiny

    def relative(self, node: str, old: Tensor, new: Tensor) -> Float[Tensor, " rows"]:
        """The relative size of the step of one node, per row; negative if it is below the resolution."""
        measured = self.of_samples(node, old, new)
        return measured if self.problem.phases == 1 else measured.repeat(self.problem.phases)

    def of_samples(self, node: str, old: Tensor, new: Tensor) -> Float[Tensor, " samples"]:
        """The same per sample, whose phases are judged together."""
        domain, phases = self.problem.domain(node), self.problem.phases
        step, length = domain.difference(new, old), domain.magnitude(new)
        if phases == 1:
            size, length = _norm(step), _norm(length)
        else:
            size, length = _apart(step, phases), _apart(length, phases)
        return size / (length + self.tiny) - self.resolution

    def met(self, state: Mapping[str, Tensor]) -> bool:
        """Whether all samples have arrived."""
        return not bool((self.residual(state) > self.tolerance).any())

    def residual(self, state: Mapping[str, Tensor]) -> Float[Tensor, " rows"]:
        """The residual of a state, whichever way it was reached."""
        worst = torch.zeros(self.problem.rows, dtype=self.problem.like.dtype, device=self.problem.like.device)
        for node, step in self.problem.step(state).items():
            worst = torch.maximum(worst, self.relative(node, state[node], state[node] + step))
        return worst


def drifting(problem: Problem, start: Mapping[str, Tensor], state: State) -> Bool[Tensor, " rows"]:
    """Rows in which an angle has turned round and round since the start, in the frame of the oscillators: their drives
    lie outside of the locking range, and no equilibrium holds them."""
    found = torch.zeros(problem.rows, dtype=torch.bool, device=problem.like.device)
    plan = problem.model.plan
    for node in angles(problem):
        turned = units((state[node] - start[node]).real.abs())
        found |= (turned > (TURNS + plan.winding) * plan.nodes[node].node.domain.period).any(1)
    return found


def angles(problem: Problem) -> tuple[str, ...]:
    """The free nodes whose states are angles."""
    return tuple(name for name in problem.model.free if problem.model.plan.nodes[name].node.domain.period)


def _norm(values: Tensor) -> Tensor:
    return torch.linalg.vector_norm(units(values), dim=1)


def _apart(values: Tensor, phases: int) -> Tensor:
    """How far the phases of each sample are apart, at most: [phases * rows, ...] -> [rows]."""
    first, *others = values.chunk(phases)
    distances = [_norm(other - first) for other in others]
    return distances[0] if len(distances) == 1 else torch.stack(distances).amax(0)
