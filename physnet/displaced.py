"""A nudged problem seen from the free state: the same face as `Problem`, in displacements  d = s_beta - s_0.

A nudged state differs from the free one by about beta, so in float32 most digits of their difference are lost. In
displacements none are: fields are connections applied to changes, and the contrast is made of changes. Integrators
can't tell the difference. A unit that a protocol clamps is one whose domain is a single point.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sympy as sp
import torch
from torch import Tensor

from physnet.domains import Domain
from physnet.errors import RelaxationError
from physnet.expressions import clip, log_cosh, relu, softplus, step
from physnet.layout import repeat
from physnet.problem import Problem, Repeated, State, laid_out, some_rows
from physnet.separation import GradientOnly

ROUGH = (sp.Abs, sp.erf, sp.sign, sp.Max, sp.Min, relu, step, clip, softplus, log_cosh)
"""Functions that are not holomorphic, or that torch has no complex form of."""


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

    def between(self, start: Tensor, end: Tensor, share: float) -> Tensor:
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


class Displaced(Problem):
    """The phases of a protocol around a free equilibrium, stacked along the rows; its states are displacements.

    Arguments:
        problem: the problem of those phases in states, as `Problem.nudged` makes it.
        free: the free problem.
        state: its equilibrium, [rows, *node].
        held: displacements of nodes that the protocol clamps, [phases * rows, *node].
    """

    def __init__(self, problem: Problem, free: Problem, state: State, held: Mapping[str, Tensor] | None = None) -> None:
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
        self.phases = phases = problem.rows // free.rows
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
        base, origin = super().domain(node), self.origin[node]
        if not base.edges:
            return Around(-torch.inf, torch.inf)
        lo, hi = base.bounds(origin)
        return Around(lo - origin, hi - origin)

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

    def _minimiser(self, name: str) -> Callable[[Mapping[str, Tensor]], Tensor]:
        if isinstance(self.solver(name), GradientOnly):
            return lambda state: self.refuse_gradient_only(name)
        functions, phase = self.model.functions, self._phase(name)
        parameters, origin, around, fixed = self.parameters, self.origin, self.around[name], self.fixed
        targets, beta, weights = self.targets, self.beta_for(name), self.weights
        made = functions[f"displaced_prepare_{name}__{phase}"](parameters, origin, around, fixed, targets, beta)
        prepared = laid_out(made)
        update = functions[f"displaced_{name}__{phase}"]
        return lambda state: update(weights, origin, state, around, fixed, prepared, targets, beta)


def nudge(
    free: Problem, state: State, targets: Mapping[str, Tensor], betas: Sequence[complex], clamps: bool = False
) -> Displaced:
    """The phases of a protocol around a free equilibrium.

    Arguments:
        free: the free problem of a batch.
        state: its equilibrium.
        targets: by name.
        betas: one nudge per phase; where `clamps`, the fraction of the way to the target at which outputs are held.
    """
    problem = free.nudged(targets, betas)
    if problem.beta is not None and problem.beta.is_complex():
        refuse_complex(problem)
    if not clamps:
        return Displaced(problem, free, state)
    phases = len(betas)
    if free.model.plan.external:
        raise RelaxationError("readouts are no part of the network and can't be clamped: use the protocol centered")
    held = {}
    for target, wanted in free.model.targets.items():
        here = repeat(state[wanted.node], phases)
        way = free.domain(wanted.node).difference(problem.targets[target], here)
        held[wanted.node] = problem.beta_for(wanted.node) * way
    still = Problem(
        problem.model, problem.clamped, problem.rows, problem.fixed, problem.targets, parameters=problem.parameters
    )
    return Displaced(still, free, state, held)


def refuse_complex(problem: Problem) -> None:
    """Raise `RelaxationError` for a problem whose energy can't be continued to complex states."""
    plan = problem.model.plan
    fix = "use the protocol centered, or an energy that is smooth everywhere on an unbounded domain"
    for name in problem.model.free:
        if problem.domain(name).edges:
            raise RelaxationError(f"a complex nudge needs holomorphic energies, but '{name}' lives in a box: {fix}")
    if plan.external:
        raise RelaxationError(f"a complex nudge needs a cost that is a sum over units, without a readout: {fix}")
    for name, edge in plan.edges.items():
        if edge.selects:
            raise RelaxationError(f"a complex nudge needs holomorphic energies, but edge '{name}' takes maxima: {fix}")
    terms = {f"node '{name}'": node.node.term + node.cost for name, node in plan.nodes.items()}
    terms |= {f"edge '{name}'": edge.edge.term for name, edge in plan.edges.items()}
    for where, term in terms.items():
        rough = sorted(kind.__name__ for kind in ROUGH if term.has(kind))
        if rough:
            raise RelaxationError(f"a complex nudge needs holomorphic energies, but {where} uses {rough[0]}: {fix}")
