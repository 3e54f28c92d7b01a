"""A nudged problem seen from the free state: the same face as `Problem`, in displacements  d = s_beta - s_0.

A nudged state differs from the free one by about beta, so in float32 most digits of their difference are lost. In
displacements none are: fields are connections applied to changes, and the contrast is made of changes. Integrators
can't tell the difference. A unit that a protocol clamps is one whose domain is a single point.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from physnet.domains import Domain
from physnet.layout import repeat
from physnet.nudged import Ended, Nudged
from physnet.problem import Minimiser, Problem, State, laid_out
from physnet.rows import Repeated, some_rows


@dataclass(frozen=True, eq=False)
class Around(Domain):
    """A domain seen from points in it: the displacements that stay inside.

    Arguments:
        lo, hi: the lowest and highest displacement of every unit, [rows, *node], or infinite numbers.
    """

    lo: Tensor | float
    hi: Tensor | float

    def project(self, x: Tensor) -> Tensor:
        if not self.edges:
            return x
        return torch.clamp(x, self.lo, self.hi)  # pyright: ignore[reportCallIssue, reportArgumentType]

    def between(self, start: Tensor, end: Tensor, share: Tensor | float) -> Tensor:
        return start.lerp(end, share)

    def select(self, rows: Tensor) -> Around:
        """The same for some of the rows."""
        return Around(*(side[rows] if isinstance(side, Tensor) else side for side in (self.lo, self.hi)))

    def random(self, shape: tuple[int, ...], generator: torch.Generator, like: Tensor) -> Tensor:
        return self.project(torch.randn(shape, generator=generator, dtype=torch.float64).to(like))

    def bounds(self, x: Tensor) -> tuple[Tensor | float, Tensor | float]:
        return self.lo, self.hi

    @property
    def bounded(self) -> bool:
        return isinstance(self.lo, Tensor) and isinstance(self.hi, Tensor)

    @property
    def edges(self) -> bool:
        return isinstance(self.lo, Tensor)

    def declaration(self) -> Any:
        raise NotImplementedError("displacements are never declared")


def around(domain: Domain, origin: Tensor) -> Around:
    """A domain seen from points in it."""
    if not domain.edges:
        return Around(-torch.inf, torch.inf)
    lo, hi = domain.bounds(origin)
    return Around(lo - origin, hi - origin)


class Displaced(Nudged):
    """The phases of a protocol around a free equilibrium, stacked along the rows; its states are displacements.

    Arguments:
        problem: the problem of those phases in states, as `Problem.nudged` makes it.
        free: the free problem.
        state: its equilibrium, [rows, *node].
        held: displacements of nodes that the protocol clamps, [phases * rows, *node].
    """

    def __init__(self, problem: Problem, free: Problem, state: State, held: Mapping[str, Tensor] | None = None) -> None:
        super().__init__(problem, free)
        phases = self.phases
        full = {**state, **free.clamped}
        functions = self.model.functions
        self.origin: Mapping[str, Tensor] = Repeated(full, phases)
        self.held = dict(held or {})
        self.around: dict[str, dict[Any, Any]] = {}
        for name in self.model.free:
            seen = functions[f"origin_{name}"](free.parameters, full, free.fixed)
            self.around[name] = {key: repeat(value, phases) for key, value in seen.items()}
            self.around[name]["domain"] = self._domain(name)

    def select(self, samples: Tensor) -> Displaced:
        rows, part = self.rows_of(samples), super().select(samples)
        assert isinstance(part, Displaced)
        part.origin, part.held = some_rows(self.origin, rows, self.rows), some_rows(self.held, rows, self.rows)
        part.around = {
            node: {key: value.select(rows) if key == "domain" else value[rows] for key, value in seen.items()}
            for node, seen in self.around.items()
        }
        return part

    def _domain(self, node: str) -> Around:
        if node in self.held:
            return Around(self.held[node], self.held[node])
        return around(super().domain(node), self.origin[node])

    def domain(self, node: str) -> Domain:
        return self.around[node]["domain"]

    def zero(self) -> State:
        """No displacement, but where the protocol asks for one."""
        dtype = torch.result_type(self.beta, self.origin[self.model.free[0]]) if self.beta is not None else None
        return {
            name: self.held[name] if name in self.held else torch.zeros_like(self.origin[name], dtype=dtype)
            for name in self.model.free
        }

    def states(self, displacement: Mapping[str, Tensor]) -> State:
        """The states themselves."""
        return {name: self.origin[name] + value for name, value in displacement.items()}

    def contrasts(self, ended: Ended, needed: Iterable[str]) -> dict[str, Tensor]:
        phases, free, displacement, states = ended.phases(), ended.free, ended.displacement, ended.states
        origin = {name: self.origin[name] for name in self.model.free} | dict(free.clamped)  # these once, not per phase
        full = {**free.clamped, **states}
        result: dict[str, Tensor] = {}
        for name in needed:
            if name in self.clamped:
                change = self.force(displacement, [name])[name]
                result[name] = phases.difference(change, lambda name=name: self.plain.force(states, [name])[name], -1.0)
            else:
                result[name] = self._parameter(name, free, origin, displacement, full, phases)
        return result

    def energy(self, state: Mapping[str, Tensor]) -> Tensor:
        """F at the displaced state minus E at the free state, of every row."""
        change = self.model.functions["displaced_energy"](self.parameters, self.origin, state) + self.in_frame(state)
        return change if self.beta is None else change + self.beta * self.cost(state)

    def cost(self, state: Mapping[str, Tensor]) -> Tensor:
        return super().cost(self.states(state))

    def force(self, state: Mapping[str, Tensor], nodes: Iterable[str] | None = None) -> State:
        """-dF/ds of the free nodes; of a clamped node, how much it changed since the free phase."""
        functions, result = self.model.functions, State()
        for name in self.model.free if nodes is None else nodes:
            if name in self.clamped:
                result[name] = functions[f"displaced_force_{name}"](self.parameters, self.origin, state)
            else:
                force = functions[f"displaced_force_{name}__{self._phase(name)}"]
                around, fixed, beta = self.around[name], self.fixed, self.beta_for(name)
                result[name] = force(self.parameters, self.origin, state, around, fixed, self.targets, beta)
        return result

    def curvature(self, state: Mapping[str, Tensor], node: str) -> Tensor:
        return super().curvature(self.states(state), node)

    def _minimiser(self, name: str) -> Minimiser:
        functions, phase = self.model.functions, self._phase(name)
        parameters, origin, around, fixed = self.parameters, self.origin, self.around[name], self.fixed
        targets, beta, weights = self.targets, self.beta_for(name), self.weights
        made = functions[f"displaced_prepare_{name}__{phase}"](parameters, origin, around, fixed, targets, beta)
        prepared = laid_out(made)
        update = functions[f"displaced_{name}__{phase}"]
        return lambda state: update(weights, origin, state, around, fixed, prepared, targets, beta)
