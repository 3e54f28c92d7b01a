"""Adaptive integration of the projected gradient flow.

    ds/dt = project(s - dF/ds) - s

It has the equilibria of F within the domains, and inside them the dynamics ds/dt = -dF/ds. The integration stops by an
event on the vector field itself, never on the change of the state. Explicit methods are those of torchdiffeq; the
implicit ones, for stiff energies, are SciPy's.
"""

from __future__ import annotations

import math
import warnings

import numpy as np
import torch
from scipy.integrate import BDF, LSODA, Radau
from scipy.sparse import block_diag
from torch import Tensor
from torchdiffeq import odeint_event

from physnet.errors import DeclarationError, Fault, RelaxationError
from physnet.problem import Problem, State
from physnet.relaxation import Equilibrium, Integrator, StoppingRule, integrator
from physnet.vectors import FAR, LOST, Vectors, not_real

EXPLICIT = ("dopri5", "bosh3", "adaptive_heun", "dopri8", "fehlberg2")
STIFF = {"Radau": Radau, "BDF": BDF, "LSODA": LSODA}
METHODS = (*EXPLICIT, *STIFF)
EVALUATIONS = 20
"""Evaluations of the force that one sweep of `max_sweeps` stands for."""
STAGE = 400
"""Evaluations after which a stage that has not met its goal goes on with smaller errors."""
RESTARTS = 5
"""How often an implicit method may give up, as where a unit meets its bound, before the relaxation does."""


FINEST = 1e-12
"""The smallest relative error of a step that SciPy's solvers can be asked for."""


class _Leave(Exception):
    """Raised inside the vector field to leave a solver: on arrival, or when the budget is spent."""


class _Failure(Exception):
    """What SciPy reports when it can't go on."""


@integrator
class Flow(Integrator):
    """Arguments:
    method: one of dopri5, bosh3, adaptive_heun, dopri8, fehlberg2 (torchdiffeq), or Radau, BDF, LSODA (SciPy), where
        curvatures differ by orders of magnitude; these work out the Jacobian of every sample.
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
        return not_real(problem)

    def relax(self, problem: Problem, state: State, rule: StoppingRule) -> Equilibrium:
        field = _VectorField(problem, state, rule)
        failure, failures = None, 0
        while not field.finished():
            try:
                (self._integrate_stiff if self.method in STIFF else self._integrate)(field)
            except _Leave:
                field.next_stage()
            except (AssertionError, _Failure) as problem_of_solver:  # torchdiffeq raises the former
                failure, failures = str(problem_of_solver), failures + 1
                if failures > RESTARTS or isinstance(problem_of_solver, AssertionError):
                    break
                field.next_stage()
        states = problem.project(field.vectors.unpack(field.current))
        residual = rule.residual(states)
        converged = residual <= rule.tolerance
        if failure is not None and not bool(converged.all()):
            raise RelaxationError(
                f"flow with {self.method} stopped after {field.evaluations} evaluations of the force: {failure}; "
                "the energy is stiff or not smooth here: try method='Radau', a larger tolerance, float64, "
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

    def _integrate_stiff(self, field: _VectorField) -> None:
        current = field.current
        units = current.shape[1]

        def as_state(y: np.ndarray) -> Tensor:
            return torch.from_numpy(y.reshape(current.shape)).to(current)

        def derivative(t: float, y: np.ndarray) -> np.ndarray:
            return field(current, as_state(y)).double().cpu().numpy().ravel()

        def jacobian(t: float, y: np.ndarray):
            blocks = field.jacobian(as_state(y)).double().cpu().numpy()
            if self.method != "LSODA":
                return block_diag(blocks, format="csc")
            banded = np.zeros((2 * units - 1, y.size))  # a block lies inside the band of its width
            for row, column in np.ndindex(units, units):
                banded[row - column + units - 1, column::units] = blocks[:, row, column]
            return banded

        solver = STIFF[self.method](
            derivative,
            0.0,
            current.double().cpu().numpy().ravel(),
            math.inf,
            rtol=self.rtol or max(field.error, FINEST),
            atol=self.atol or field.error * field.scale,
            jac=jacobian,
            **({"lband": units - 1, "uband": units - 1} if self.method == "LSODA" else {}),
        )
        message = None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            while solver.status == "running":
                message = solver.step()
                field.event(current, as_state(solver.y))
        raise _Failure(message)


class _VectorField(torch.nn.Module):
    """The right-hand side over one vector that holds all free states, and the stages of its integration.

    Far from equilibrium coarse steps will do. But the error that a step is allowed bounds how still the state can
    become, so the goal for the residual falls by stages down to the tolerance, and the allowed error with it.
    """

    def __init__(self, problem: Problem, state: State, rule: StoppingRule) -> None:
        super().__init__()
        self.problem, self.rule = problem, rule
        self.vectors = Vectors(problem, state)
        self.evaluations, self.budget = 0, EVALUATIONS * rule.max_sweeps
        self.start = self.current = self.stage_start = self.vectors.pack(state)
        self.drifting = torch.zeros(problem.rows, dtype=torch.bool, device=self.start.device)
        self.goal = max(rule.tolerance, 1e-2)
        self.error, self.stage_end, self.met = 0.1 * self.goal, STAGE, False
        self.smallest = torch.finfo(self.current.dtype).eps
        # lengths are judged by the state; at a start from zero, by the force that will move it
        reach = [float(problem.domain(name).magnitude(value).abs().max()) for name, value in state.items()]
        push = [float(force.abs().max()) for force in problem.force(state).values()]
        self.scale = max(*reach, *push, self.smallest)

    def forward(self, t: Tensor, s: Tensor) -> Tensor:
        self.evaluations += 1
        if self.evaluations > min(self.budget, self.stage_end):
            raise _Leave
        return self.field(s)

    def field(self, s: Tensor) -> Tensor:
        field = self.vectors.project(s + self.vectors.force(s)) - s
        return torch.where(self.drifting[:, None], 0, field)  # what turns for ever needn't be followed

    def jacobian(self, s: Tensor) -> Tensor:
        """The derivative of the field, [rows, units, units], by central differences; not counted as part of a stage."""
        columns, stride = [], self.smallest ** (1 / 3) * self.vectors.size(s)[:, None]
        for unit in torch.eye(s.shape[1], dtype=s.dtype, device=s.device):
            columns.append((self.field(s + stride * unit) - self.field(s - stride * unit)) / (2 * stride))
        self.evaluations += 2 * len(columns)
        self.stage_end += 2 * len(columns)
        return torch.stack(columns, 2)

    def event(self, t: Tensor, s: Tensor) -> Tensor:
        """The steady-state event: leaves once the field of every sample meets the goal of this stage."""
        self.current = s
        self.drifting |= self.vectors.drifting(self.start, s)
        if self.still(s):
            self.met = True
            raise _Leave
        return torch.ones((), dtype=s.dtype, device=s.device)

    def still(self, s: Tensor) -> bool:
        state, field = self.vectors.unpack(s), self.vectors.unpack(self.field(s))
        moving = [self.rule.relative(name, state[name], state[name] + field[name]) > self.goal for name in state]
        return not bool(torch.stack(moving).any())

    def next_stage(self) -> None:
        if self.met:
            floor = self.rule.tolerance if self.goal > self.rule.tolerance else 0.0
            self.goal = max(floor, 1e-2 * self.goal)
            self.error = min(self.error, 0.1 * self.goal)
        elif not bool(self.vectors.turned(self.stage_start, self.current).any()):  # else it is on its way
            self.error *= 0.1
        self.error = max(self.error, self.smallest)
        self.met, self.stage_end, self.stage_start = False, self.evaluations + STAGE, self.current

    def finished(self) -> bool:
        """Whether there is nothing left to do: arrived, out of budget, or lost."""
        residual = self.rule.residual(self.problem.project(self.vectors.unpack(self.current)))
        arrived = bool(((residual <= self.rule.tolerance) | self.drifting).all())
        self.vectors.check_bounded(self.start, self.current, FAR if arrived else LOST)
        return arrived or self.evaluations >= self.budget or not bool(torch.isfinite(residual).all())
