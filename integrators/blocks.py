"""Exact coordinate descent over blocks.

    s_B <- argmin over the domain of F(s_B, all else fixed),    block after block

A block is a set of nodes that don't interact, so that each of its units has a scalar energy of its own, which is minimised
in closed form. The energy never rises. Source: arXiv 2312.15103 (asynchronous updates), arXiv 2402.11674 (resistive).
"""

from __future__ import annotations

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
        residual = torch.full((problem.rows,), torch.inf, dtype=problem.like.dtype, device=problem.like.device)
        for _ in range(rule.max_sweeps):
            residual = torch.zeros_like(residual)
            for block in problem.blocks:
                for node, new in problem.minimise(block, state).items():
                    residual = torch.maximum(residual, rule.relative(node, state[node], new))
                    state[node] = new
            worst = float(residual.max())  # the one point per sweep at which the host waits
            if not worst > rule.tolerance:
                break
            sweeps += residual > rule.tolerance
        sweeps.clamp_max_(rule.max_sweeps)
        return Equilibrium(state, residual, sweeps, residual <= rule.tolerance, self.name, problem)
