"""A plug-in: an integrator that physnet knows nothing of. All nodes move at once, half of the way."""

from __future__ import annotations

import torch

from physnet.problem import Problem, State
from physnet.relaxation import Equilibrium, Integrator, StoppingRule


class Jacobi(Integrator):
    """s <- s + damping (argmin F(s_i, all else fixed) - s), for all nodes i at once."""

    name = "jacobi"
    idea = "every node moves towards its minimum at once"

    def __init__(self, damping: float = 0.5) -> None:
        self.damping = damping

    @classmethod
    def refusal(cls, problem: Problem) -> str | None:
        return None

    def relax(self, problem: Problem, state: State, rule: StoppingRule) -> Equilibrium:
        sweep, residual = 0, rule.residual(state)
        while sweep < rule.max_sweeps and bool((residual > rule.tolerance).any()):
            sweep += 1
            step = problem.step(state)
            state = problem.project({name: state[name] + self.damping * step[name] for name in state})
            residual = rule.residual(state)
        sweeps = torch.full((problem.rows,), sweep, dtype=torch.int64)
        return Equilibrium(state, residual, sweeps, residual <= rule.tolerance, self.name, problem)
