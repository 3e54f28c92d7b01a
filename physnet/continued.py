"""Phases of a protocol that go on where the free phase is, in states: for dynamics that never quite come to rest.

What is left of a free phase that hasn't settled, such as the noise of spikes or a step size that still falls, is common
to all phases, and cancels in the contrast of phases that have gone on for the same time; a phase at beta = 0 is one of
them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from physnet.errors import RelaxationError
from physnet.layout import repeat
from physnet.nudged import Ended, Nudged
from physnet.problem import Problem, State


class Continued(Nudged):
    """The phases of a protocol, stacked along the rows; its states are states, and begin at those of the free phase.

    Arguments:
        problem: those phases, as `Problem.nudged` makes them.
        free: the free problem; `free.passed` is what its integrator left behind.
        state: where the free phase has ended, [rows, *node].
        held: displacements of nodes that the protocol clamps, [phases * rows, *node].

    Raises:
        RelaxationError: for a complex nudge.
    """

    branches = False

    def __init__(self, problem: Problem, free: Problem, state: State, held: Mapping[str, Tensor] | None = None) -> None:
        if problem.beta is not None and problem.beta.is_complex():
            raise RelaxationError("a complex nudge needs complex states, and messages are real: use centered")
        super().__init__(problem, free)
        self.free, self.origin = free, dict(state)
        self.held = {name: repeat(state[name], self.phases) + value for name, value in (held or {}).items()}

    def zero(self) -> State:
        return self.start | self.held

    @property
    def start(self) -> State:
        """The free states, for all phases."""
        return {name: repeat(value, self.phases) for name, value in self.origin.items()}

    def step(self, state: Mapping[str, Tensor], nodes: Iterable[str] | None = None) -> State:
        wanted = self.model.free if nodes is None else nodes
        steps = super().step(state, [name for name in wanted if name not in self.held])
        return steps | {name: torch.zeros_like(state[name]) for name in wanted if name in self.held}

    def states(self, displacement: Mapping[str, Tensor]) -> State:
        return dict(displacement)

    def contrasts(self, ended: Ended, needed: Iterable[str]) -> dict[str, Tensor]:
        phases, free, states = ended.phases(), ended.free, ended.states
        start = self.start
        moved = {name: value - start[name] for name, value in states.items()}
        origin, full = {**start, **free.clamped}, {**free.clamped, **states}
        result: dict[str, Tensor] = {}
        for name in needed:
            if name in self.clamped:
                there, here = (self.plain.force(values, [name])[name] for values in (states, start))
                result[name] = phases.difference(there - here, lambda there=there: there, -1.0)
            else:
                result[name] = self._parameter(name, free, origin, moved, full, phases)
        return result
