"""Several random starts of every sample, for energies with many minima.

    L = mean over samples and starts of C(s*(start))

Which minimum a free phase ends in depends on where it starts. All starts of a sample are rows of one batch, so that
costs and gradients are those of the average; classes are told by the average of their scores. Source: arXiv 2402.08579.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from physnet.equilibrium import Equilibrium
from physnet.errors import DeclarationError, Fault
from physnet.layout import repeat
from physnet.learning import EquilibriumPropagation
from physnet.model import EnergyModel
from physnet.problem import Problem, State
from physnet.randomness import stream
from physnet.reading import check_starts
from physnet.relaxation import initial_state


class MultiStart(EquilibriumPropagation):
    """Equilibrium propagation from several random starts of every sample.

    Start number k of a batch is a pure function of seed, batch and k; the first one is that of a single start.

    Arguments:
        model: the compiled energy.
        arguments, options: of `EquilibriumPropagation`.
        starts: how many there are, at least 1. States have to start at random: `relaxation.initial` is `random`, or a
            node declares a random initial state.

    Raises:
        DeclarationError: if all starts would be alike, and what `EquilibriumPropagation` raises.
    """

    def __init__(self, model: EnergyModel, *arguments: Any, starts: int, **options: Any) -> None:
        super().__init__(model, *arguments, **options)
        if isinstance(starts, bool) or not isinstance(starts, int) or starts < 1:
            raise DeclarationError(Fault(f"starts is {starts!r}", "a whole number, at least 1", ("starts",)))
        check_starts(model.graph, starts, self.relaxation.initial)
        self.starts = starts

    def forward(self, *, step: int | None = None, **batch: Tensor) -> Tensor:
        """Relax all phases of a batch from all starts; the mean cost, differentiable once."""
        return super().forward(step=step, **self.repeated(batch))

    def settle(self, inputs: Mapping[str, Tensor], rows: int | None = None) -> Equilibrium:
        """The free equilibria of a batch, one start after the other stacked along the rows."""
        return self.free_phase(self.repeated(inputs), None if rows is None else rows * self.starts)

    def begin(self, problem: Problem) -> State:
        once = problem.select(torch.arange(problem.rows // self.starts, device=problem.like.device))
        states = [self._start(once, number) for number in range(self.starts)]
        return {name: torch.cat([state[name] for state in states]) for name in states[0]}

    def _start(self, problem: Problem, number: int) -> State:
        keys = (number,) if number else ()  # the first is drawn like a single one
        generator = stream(self.seed, "initial", self.batches, *keys)
        return initial_state(problem, self.relaxation.initial, generator, self.previous, self.share)

    def repeated(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: repeat(torch.as_tensor(value), self.starts) for name, value in batch.items()}

    @property
    def rows_per_sample(self) -> int:
        return self.starts

    def per_sample(self, values: Tensor) -> Tensor:
        return values.unflatten(0, (self.starts, -1)).mean(0)
