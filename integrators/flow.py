"""Adaptive integration of the projected gradient flow.

    ds/dt = project(s - dF/ds) - s

It has the equilibria of F within the domains, and inside them the dynamics ds/dt = -dF/ds. The integration stops by an
event on the vector field itself, never on the change of the state. Methods are those of torchdiffeq.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor
from torchdiffeq import odeint_event

from physnet.errors import DeclarationError, Fault, RelaxationError
from physnet.problem import Problem, State
from physnet.relaxation import Equilibrium, Integrator, StoppingRule, integrator

METHODS = ("dopri5", "bosh3", "adaptive_heun", "dopri8", "fehlberg2")
EVALUATIONS = 20
"""Evaluations of the force that one sweep of `max_sweeps` stands for."""
STAGE = 400
"""Evaluations after which a stage that has not met its goal goes on with smaller errors."""


class _Leave(Exception):
    """Raised inside the vector field to leave torchdiffeq: on arrival, or when the budget is spent."""


@integrator
class Flow(Integrator):
    """Arguments:
    method: one of dopri5, bosh3, adaptive_heun, dopri8, fehlberg2 (torchdiffeq).
    rtol, atol: error bounds of a step; `None` derives them from the tolerance.
    """

    name = "flow"
    idea = "every energy has a gradient flow"

    def __init__(self, method: str = "dopri5", rtol: float | None = None, atol: float | None = None) -> None:
        if method not in METHODS:
            raise DeclarationError(
                Fault(f"unknown method '{method}'", f"use {', '.join(METHODS)}", ("options", "method"))
            )
        self.method, self.rtol, self.atol = method, rtol, atol

    @classmethod
    def refusal(cls, problem: Problem) -> str | None:
        return None

    def relax(self, problem: Problem, state: State, rule: StoppingRule) -> Equilibrium:
        field = _VectorField(problem, state, rule)
        failure = None
        while not field.finished():
            try:
                self._integrate(field)
            except _Leave:
                field.next_stage()
            except AssertionError as problem_of_torchdiffeq:
                failure = str(problem_of_torchdiffeq)
                break
        states = problem.project(field.unpack(field.current))
        residual = rule.residual(states)
        converged = residual <= rule.tolerance
        if failure is not None and not bool(converged.all()):
            raise RelaxationError(
                f"flow with {self.method} stopped after {field.evaluations} evaluations of the force: {failure}; "
                "the energy is stiff or not smooth here: try method='adaptive_heun', a larger tolerance, float64, "
                "or integrator='blocks'"
            )
        sweeps = torch.full((problem.rows,), field.evaluations, dtype=torch.int64, device=residual.device)
        return Equilibrium(states, residual, sweeps, converged, self.name, problem)

    def _integrate(self, field: _VectorField) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            odeint_event(
                field,
                field.current,
                torch.zeros((), dtype=field.current.dtype, device=field.current.device),
                event_fn=field.event,
                method=self.method,
                rtol=self.rtol or field.error,
                atol=self.atol or field.error * field.scale,
            )


class _VectorField(torch.nn.Module):
    """The right-hand side over one vector that holds all free states, and the stages of its integration.

    Far from equilibrium coarse steps will do. But the error that a step is allowed bounds how still the state can
    become, so the goal for the residual falls by stages down to the tolerance, and the allowed error with it.
    """

    def __init__(self, problem: Problem, state: State, rule: StoppingRule) -> None:
        super().__init__()
        self.problem, self.rule = problem, rule
        self.shapes = {name: value.shape for name, value in state.items()}
        self.sizes = [value[0].numel() for value in state.values()]
        self.evaluations, self.budget = 0, EVALUATIONS * rule.max_sweeps
        self.current = self.pack(state)
        self.goal = max(rule.tolerance, 1e-2)
        self.error, self.stage_end, self.met = 0.1 * self.goal, STAGE, False
        self.smallest = torch.finfo(self.current.dtype).eps
        # lengths are judged by the state; at a start from zero, by the force that will move it
        reach = [float(problem.domain(name).magnitude(value).abs().max()) for name, value in state.items()]
        push = [float(force.abs().max()) for force in problem.force(state).values()]
        self.scale = max(*reach, *push, self.smallest)

    def pack(self, state: State) -> Tensor:
        return torch.cat([value.flatten(1) for value in state.values()], 1)

    def unpack(self, s: Tensor) -> State:
        pieces = s.split(self.sizes, 1)
        return {name: piece.reshape(shape) for (name, shape), piece in zip(self.shapes.items(), pieces, strict=True)}

    def forward(self, t: Tensor, s: Tensor) -> Tensor:
        self.evaluations += 1
        if self.evaluations > min(self.budget, self.stage_end):
            raise _Leave
        return self.field(s)

    def field(self, s: Tensor) -> Tensor:
        state = self.unpack(s)
        force = self.problem.force(state)
        return self.pack(self.problem.project({name: state[name] + force[name] for name in state})) - s

    def event(self, t: Tensor, s: Tensor) -> Tensor:
        """The steady-state event: leaves once the field of every sample meets the goal of this stage."""
        self.current = s
        if self.still(s):
            self.met = True
            raise _Leave
        return torch.ones((), dtype=s.dtype, device=s.device)

    def still(self, s: Tensor) -> bool:
        state, field = self.unpack(s), self.unpack(self.field(s))
        moving = [self.rule.relative(name, state[name], state[name] + field[name]) > self.goal for name in state]
        return not bool(torch.stack(moving).any())

    def next_stage(self) -> None:
        if self.met:
            floor = self.rule.tolerance if self.goal > self.rule.tolerance else 0.0
            self.goal = max(floor, 1e-2 * self.goal)
            self.error = min(self.error, 0.1 * self.goal)
        else:
            self.error *= 0.1
        self.error = max(self.error, self.smallest)
        self.met, self.stage_end = False, self.evaluations + STAGE

    def finished(self) -> bool:
        """Whether there is nothing left to do: arrived, out of budget, or lost."""
        residual = self.rule.residual(self.problem.project(self.unpack(self.current)))
        arrived = bool((residual <= self.rule.tolerance).all())
        return arrived or self.evaluations >= self.budget or not bool(torch.isfinite(residual).all())
