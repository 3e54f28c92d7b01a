"""Phases of a protocol around a free equilibrium, in coordinates of their own.

    gradient = Re sum_k c_k dF/dtheta(s_k)

A nudged state differs from the free one by about beta, so that coordinates in which nothing nearly equal is subtracted
are worth having. Which these are depends on the energy; integrators see a `Problem` like any other.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from physnet.contrast import Phases
from physnet.problem import Problem, State


@dataclass(frozen=True)
class Ended:
    """Where the phases of a protocol have ended, and how they combine.

    Arguments:
        free: the free problem.
        displacement: the ends, in the coordinates of the phases.
        states: the same in states.
        coefficients: c_k.
        scale: a factor for all.
    """

    free: Problem
    displacement: State
    states: State
    coefficients: Sequence[complex]
    scale: Tensor | float

    def phases(self, **slopes: State) -> Phases:
        """How quantities of all phases become one gradient; `slopes` are those of predictions."""
        return Phases(self.coefficients, self.free.rows, self.scale, **slopes)


class Nudged(Problem):
    """The phases of a protocol, stacked along the rows.

    Arguments:
        problem: those phases in states, as `Problem.nudged` makes them.
        free: the free problem.
    """

    branches = True
    """Whether phases end at equilibria, so that they can be asked whether they are on the branch of the free one."""

    def __init__(self, problem: Problem, free: Problem) -> None:
        super().__init__(
            problem.model,
            problem.clamped,
            problem.rows,
            problem.fixed,
            problem.targets,
            problem.beta,
            problem.parameters,
        )
        self.plain = problem
        self.phases = problem.rows // free.rows

    @abstractmethod
    def states(self, displacement: Mapping[str, Tensor]) -> State:
        """The states themselves."""

    @abstractmethod
    def contrasts(self, ended: Ended, needed: Iterable[str]) -> dict[str, Tensor]:
        """Re sum_k c_k dF/dtheta(s_k), summed over rows, of the parameters and encoded inputs that are needed."""

    def _parameter(
        self, name: str, free: Problem, origin: State, displacement: State, states: State, phases: Phases
    ) -> Tensor:
        """The contrast of one parameter, by the function that the compiler wrote for it."""
        owner, key = name.split(".")
        contrast = self.model.functions[f"contrast_{owner}__{key}"]
        beta = self.beta_for(owner) if owner in self.model.plan.nodes else self.beta
        return contrast(free.parameters, origin, displacement, states, self.targets, beta, phases)


__all__ = ["Ended", "Nudged"]
