"""Nudged phases of prediction energies: in errors, where these are coordinates, or in states.

    x = f(a) + e,      F = sum of precision/2 e^2 + beta C

Errors are zero at the free equilibrium, which is a forward pass, so that those of a nudged phase are displacements to
the last digit. One pass forwards gives the states of some errors, one pass backwards the errors at which these states
would be stationary:

    g = beta dC/dx + sum over children of message'(x) connection^T(f'(a) g),      e = -g/precision

The gradient is made of what both passes found: dF/da = f'(a) g. Source: arXiv 2606.03584, 2505.20137.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from physnet.displaced import Around, around
from physnet.domains import REAL, Domain
from physnet.layout import repeat
from physnet.nudged import Ended, Nudged
from physnet.problem import Problem, State
from physnet.rows import some_rows


@dataclass(frozen=True)
class Forward:
    """What a pass forwards has found: states x = f(a) + e, and their drives a."""

    states: State
    drives: State

    def of(self, rows: Tensor, count: int) -> Forward:
        """The same for some of the rows, of which there are so many."""
        return Forward(some_rows(self.states, rows, count), some_rows(self.drives, rows, count))


@dataclass(frozen=True)
class Backward:
    """What a pass backwards has found: errors e = -g/precision, and signals f'(a) g, which are dF/da."""

    errors: State
    signals: State


def forward(problem: Problem, errors: Mapping[str, Tensor] | None = None) -> Forward:
    """The states that have these errors: none, for a free equilibrium."""
    functions, parameters, fixed = problem.model.functions, problem.parameters, problem.fixed
    states: State = {}
    drives: State = {}
    for name in order(problem):
        drive = drives[name] = functions[f"drive_{name}"](parameters, states, fixed)
        predicted = functions[f"activation_{name}"](parameters, drive)
        states[name] = predicted if errors is None else predicted + errors[name]
    return Forward(states, drives)


def backward(problem: Problem, found: Forward) -> Backward:
    """The errors at which the states of a pass forwards would be stationary."""
    functions, parameters = problem.model.functions, problem.parameters
    full = {**problem.clamped, **found.states}
    errors: State = {}
    signals: State = {}
    for name in reversed(order(problem)):
        slope = None
        if problem.model.plan.nodes[name].cost != 0 and problem.beta is not None:
            slope = functions[f"nudge_{name}"](parameters, full, problem.targets, problem.beta_for(name))
        if f"feedback_{name}" in functions:
            back = functions[f"feedback_{name}"](parameters, full, signals)
            slope = back if slope is None else slope + back
        if slope is None:  # nothing depends on this node
            slope = torch.zeros_like(found.states[name])
        errors[name] = functions[f"error_{name}"](parameters, slope)
        signals[name] = functions[f"through_{name}"](parameters, found.drives[name], slope)
    return Backward(errors, signals)


def order(problem: Problem) -> tuple[str, ...]:
    """The free nodes, each behind those that predict it."""
    layers = problem.model.predictions
    assert not isinstance(layers, str)
    return tuple(layers.nodes)


class InErrors(Nudged):
    """The phases of a protocol, whose states are errors.

    Arguments:
        problem: those phases in states.
        free: the free problem.
        state: its equilibrium.
    """

    def __init__(self, problem: Problem, free: Problem, state: State) -> None:
        super().__init__(problem, free)
        found = free.passed if free.passed is not None and free.passed.states is state else forward(free)
        self.origin = Forward(repeated(found.states, self.phases), repeated(found.drives, self.phases))
        self.last: Passes | None = None

    def select(self, samples: Tensor) -> InErrors:
        rows, part = self.rows_of(samples), super().select(samples)
        assert isinstance(part, InErrors)
        part.plain, part.last = self.plain.select(rows), None
        part.origin = self.origin.of(rows, self.rows)
        return part

    def domain(self, node: str) -> Domain:
        return REAL

    def zero(self) -> State:
        """No errors, at no cost: integrators replace errors and never write to them."""
        return {name: value.new_zeros(()).expand_as(value) for name, value in self.origin.states.items()}

    def passes(self, errors: Mapping[str, Tensor] | None = None) -> Passes:
        """A pass forwards, with these errors or, from the free equilibrium, with none; and a pass backwards."""
        there = self.origin if errors is None else forward(self, errors)
        return Passes(there, backward(self, there))

    def settled(self, found: Passes) -> State:
        """The errors that a relaxation ends with; what led to them is kept, since the gradient is made of it."""
        self.last = found
        return found.back.errors

    def found(self, errors: Mapping[str, Tensor]) -> Passes:
        """The passes that led to these errors, or those that lead on from them."""
        return self.last if self.last is not None and self.last.back.errors is errors else self.passes(errors)

    def states(self, displacement: Mapping[str, Tensor]) -> State:
        return self.found(displacement).there.states

    def energy(self, state: Mapping[str, Tensor]) -> Tensor:
        return self.plain.energy(forward(self, state).states)

    def cost(self, state: Mapping[str, Tensor]) -> Tensor:
        return self.plain.cost(forward(self, state).states)

    def step(self, state: Mapping[str, Tensor], nodes: Iterable[str] | None = None) -> State:
        new = self.passes(state).back.errors
        return {name: new[name] - state[name] for name in (new if nodes is None else nodes)}

    def force(self, state: Mapping[str, Tensor], nodes: Iterable[str] | None = None) -> State:
        """-dF/de of the free nodes; of a clamped node -dF/dx."""
        wanted = list(self.model.free if nodes is None else nodes)
        steps = self.step(state, [name for name in wanted if name not in self.clamped])
        functions = self.model.functions
        result = {name: functions[f"weighed_{name}"](self.parameters, step) for name, step in steps.items()}
        return result | {name: -self._at_input(name, self.found(state)) for name in wanted if name in self.clamped}

    def _at_input(self, name: str, found: Passes) -> Tensor:
        """dF/dx of a clamped node."""
        full = {**self.clamped, **found.there.states}
        return self.model.functions[f"feedback_{name}"](self.parameters, full, found.back.signals)

    def contrasts(self, ended: Ended, needed: Iterable[str]) -> dict[str, Tensor]:
        free, found = ended.free, self.found(ended.displacement)
        phases = ended.phases(signals=found.back.signals, drives=found.there.drives, errors=found.back.errors)
        moved = Changes(found.there.states, self.origin.states)
        full = {**free.clamped, **found.there.states}
        return {
            name: phases.whole(self._at_input(name, found))
            if name in self.clamped
            else self._parameter(name, free, self.origin.states, moved, full, phases)
            for name in needed
        }


class Changes(dict[str, Tensor]):
    """new - old, worked out where it is asked for: predictions need it nowhere, readouts do."""

    def __init__(self, new: Mapping[str, Tensor], old: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.new, self.old = new, old

    def __missing__(self, name: str) -> Tensor:
        self[name] = self.new[name] - self.old[name]
        return self[name]


@dataclass(frozen=True)
class Passes:
    """A pass forwards and the pass backwards that followed."""

    there: Forward
    back: Backward

    def of(self, rows: Tensor, count: int) -> Passes:
        """The same for some of the rows, of which there are so many."""
        back = Backward(some_rows(self.back.errors, rows, count), some_rows(self.back.signals, rows, count))
        return Passes(self.there.of(rows, count), back)

    def with_rows(self, rows: Tensor, new: Passes) -> Passes:
        """The same, with other values in some of the rows."""
        there = Forward(put(self.there.states, rows, new.there.states), put(self.there.drives, rows, new.there.drives))
        back = Backward(put(self.back.errors, rows, new.back.errors), put(self.back.signals, rows, new.back.signals))
        return Passes(there, back)


def put(values: Mapping[str, Tensor], rows: Tensor, new: Mapping[str, Tensor]) -> State:
    """Values with others in some of the rows."""
    return {name: value.index_copy(0, rows, new[name]) for name, value in values.items()}


def repeated(values: Mapping[str, Tensor], phases: int) -> State:
    """The same rows for every phase."""
    return {name: repeat(value, phases) for name, value in values.items()}


class InStates(Nudged):
    """The phases of a protocol, whose states are displacements  d = x - x_0.

    Arguments:
        problem: those phases in states.
        free: the free problem.
        state: its equilibrium, [rows, *node].
        held: displacements of nodes that the protocol clamps, [phases * rows, *node].
        wide: whether all is worked out in float64, since errors are differences of nearly equal states.
    """

    def __init__(
        self,
        problem: Problem,
        free: Problem,
        state: State,
        held: Mapping[str, Tensor] | None = None,
        wide: bool = True,
    ) -> None:
        start = dict(state)
        if wide:
            passed = free.passed is not None and free.passed.states is state
            problem, free = widened(problem, free)
            start = {name: value.double() for name, value in state.items()}
            if passed and not isinstance(free.model.predictions, str):
                start = forward(free).states  # to the last digit of float64
        super().__init__(problem, free)
        self.dtype = problem.like.dtype
        self.origin = repeated(start, self.phases)
        self.held = dict(held or {})

    def select(self, samples: Tensor) -> InStates:
        rows, part = self.rows_of(samples), super().select(samples)
        assert isinstance(part, InStates)
        part.plain = self.plain.select(rows)
        part.origin, part.held = (some_rows(values, rows, self.rows) for values in (self.origin, self.held))
        return part

    def domain(self, node: str) -> Domain:
        if node in self.held:
            held = self.held[node].to(self.dtype)
            return Around(held, held)
        return around(super().domain(node), self.origin[node])

    def zero(self) -> State:
        return {
            name: self.held[name].to(self.dtype) if name in self.held else torch.zeros_like(value)
            for name, value in self.origin.items()
        }

    def states(self, displacement: Mapping[str, Tensor]) -> State:
        return {name: self.origin[name] + value for name, value in displacement.items()}

    def energy(self, state: Mapping[str, Tensor]) -> Tensor:
        return self.plain.energy(self.states(state))

    def cost(self, state: Mapping[str, Tensor]) -> Tensor:
        return self.plain.cost(self.states(state))

    def force(self, state: Mapping[str, Tensor], nodes: Iterable[str] | None = None) -> State:
        return self.plain.force(self.states(state), nodes)

    def curvature(self, state: Mapping[str, Tensor], node: str) -> Tensor:
        return self.plain.curvature(self.states(state), node)

    def contrasts(self, ended: Ended, needed: Iterable[str]) -> dict[str, Tensor]:
        free, displacement = ended.free, ended.displacement
        full = {**self.clamped, **self.states(displacement)}
        found = slopes(self, full)
        phases = ended.phases(signals=found.back.signals, drives=found.there.drives, errors=found.back.errors)
        once = {name: value[: free.rows] if name in self.clamped else value for name, value in full.items()}
        result: dict[str, Tensor] = {}
        for name in needed:
            if name in self.clamped:
                result[name] = -phases.whole(self.plain.force(full, [name])[name])
            else:
                result[name] = self._parameter(name, self, self.origin, displacement, once, phases)
        return {name: value.to(free.like.dtype) for name, value in result.items()}


def slopes(problem: Problem, full: Mapping[str, Tensor]) -> Passes:
    """The drives, dF/da and errors of any states."""
    functions, parameters = problem.model.functions, problem.parameters
    drives: State = {}
    signals: State = {}
    errors: State = {}
    for name, plan in problem.model.plan.nodes.items():
        if plan.drive is not None:
            drive = drives[name] = functions[f"drive_{name}"](parameters, full, problem.fixed)
            signals[name] = functions[f"pull_{name}"](parameters, full, drive)
            if f"activation_{name}" in functions:
                errors[name] = full[name] - functions[f"activation_{name}"](parameters, drive)
    return Passes(Forward({name: full[name] for name in drives}, drives), Backward(errors, signals))


def widened(problem: Problem, free: Problem) -> tuple[Problem, Problem]:
    """The phases of a protocol and the free problem in float64."""
    parameters = {name: value.detach().double() for name, value in free.parameters.items()}
    clamped = {name: value.double() for name, value in free.clamped.items()}
    phases = Problem(
        free.model,
        repeated(clamped, problem.rows // free.rows),
        problem.rows,
        targets={name: value.double() for name, value in problem.targets.items()},
        beta=None if problem.beta is None else problem.beta.double(),
        parameters=parameters,
    )
    return phases, Problem(free.model, clamped, free.rows, parameters=parameters)
