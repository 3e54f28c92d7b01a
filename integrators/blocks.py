"""Exact coordinate descent over blocks.

    s_B <- argmin over the domain of F(s_B, all else fixed),    block after block

A block is a set of nodes that don't interact, so that each of its units has a scalar energy of its own, which is
minimised in closed form. The energy never rises. Source: arXiv 2312.15103 (asynchronous updates), arXiv 2402.11674
(resistive).
"""

from __future__ import annotations

import math

import torch

from physnet.problem import Problem, State
from physnet.relaxation import Equilibrium, Integrator, StoppingRule, integrator
from physnet.separation import GradientOnly


@integrator
class Blocks(Integrator):
    """Sweeps over the blocks until no unit of a sample would move any more."""

    name = "blocks"
    idea = "every unit has an exact update, given the others"

    @classmethod
    def refusal(cls, problem: Problem) -> str | None:
        for node in problem.model.free:
            solver = problem.solver(node)
            if isinstance(solver, GradientOnly):
                return f"'{node}' has no exact update, since {solver.reason}"
        return None

    def relax(self, problem: Problem, state: State, rule: StoppingRule) -> Equilibrium:
        state = dict(state)
        sweeps = torch.ones(problem.rows, dtype=torch.int64, device=problem.like.device)
        pace = _Pace(rule.tolerance)
        residual = sweeps * torch.inf
        for sweep in range(1, rule.max_sweeps + 1):
            checked = sweep == pace.next_check or sweep == rule.max_sweeps
            worst = torch.zeros(problem.rows, dtype=problem.like.dtype, device=problem.like.device) if checked else None
            for block in problem.blocks:
                for node, new in problem.minimise(block, state).items():
                    if worst is not None:
                        worst = torch.maximum(worst, rule.relative(node, state[node], new))
                    state[node] = new
            if worst is not None:
                residual = worst
                if pace.arrived(sweep, float(residual.max())):  # the one point where the host waits
                    break
                sweeps = torch.where(residual > rule.tolerance, min(pace.next_check, rule.max_sweeps), sweeps)
        return Equilibrium(state, residual, sweeps, residual <= rule.tolerance, self.name, problem)


class _Pace:
    """When to measure the residual, which costs as much as a sweep of a small net.

    The residual falls by about the same factor in every sweep, so after two measurements the number of sweeps that are
    still needed can be foreseen; the next measurement comes half-way there.
    """

    def __init__(self, tolerance: float) -> None:
        self.tolerance, self.next_check = tolerance, 1
        self.seen: tuple[int, float] | None = None

    def arrived(self, sweep: int, worst: float) -> bool:
        """Take note of a measurement; true if nothing moves any more, or if a state is not a number."""
        if not worst > self.tolerance:
            return True
        ahead = 1
        if self.seen is not None and 0 < worst < self.seen[1] < math.inf:
            rate = math.log(worst / self.seen[1]) / (sweep - self.seen[0])
            ahead = max(1, int(0.5 * math.log(self.tolerance / worst) / rate))
        self.seen, self.next_check = (sweep, worst), sweep + ahead
        return False
