"""Exact coordinate descent over blocks.

    s_B <- argmin over the domain of F(s_B, all else fixed),    block after block

A block is a set of nodes that don't interact, so that each of its units has a scalar energy of its own, which is
minimised in closed form. The energy never rises. Source: arXiv 2312.15103 (asynchronous updates), arXiv 2402.11674
(resistive).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from physnet.problem import Problem, State
from physnet.relaxation import Equilibrium, Integrator, StoppingRule, integrator
from physnet.separation import GradientOnly

SLOWEST = 0.99
"""Slowest decay per sweep that is told apart from standing still."""


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
        progress = _Progress(rule.tolerance, problem.rows, problem.like)
        for sweep in range(1, rule.max_sweeps + 1):
            checked = sweep == progress.next_check or sweep == rule.max_sweeps
            residual = torch.zeros_like(progress.residual) if checked else None
            for block in problem.blocks:
                for node, new in problem.minimise(block, state).items():
                    if residual is not None:
                        residual = torch.maximum(residual, rule.relative(node, state[node], new))
                    state[node] = new
            if residual is not None and progress.arrived(sweep, residual):
                break
        progress.sweeps.clamp_max_(rule.max_sweeps)
        return Equilibrium(state, progress.residual, progress.sweeps, progress.settled, self.name, problem)


class _Progress:
    """How far each sample still is from its equilibrium, and when to measure that again.

    The residual of a sample falls by about the same factor q in every sweep, so the steps that are still to come add
    up to residual q / (1 - q), and a sample has settled when that is below the tolerance: a slow mode is not mistaken
    for standing still. From q also follows when that will be; since a measurement costs as much as a sweep of a small
    net, the next one comes most of the way there.
    """

    def __init__(self, tolerance: float, rows: int, like: Tensor) -> None:
        self.tolerance, self.next_check, self.last_check = tolerance, 1, 0
        self.residual = torch.full((rows,), torch.inf, dtype=like.dtype, device=like.device)
        self.sweeps = torch.ones(rows, dtype=torch.int64, device=like.device)
        self.settled = torch.zeros(rows, dtype=torch.bool, device=like.device)

    def arrived(self, sweep: int, residual: Tensor) -> bool:
        """Take note of a measurement; true if every sample has settled, or if a state is not a number."""
        rate = self.rate(sweep, residual)
        distance = residual * rate / (1 - rate)
        self.settled = distance <= self.tolerance
        worst, row = distance.max(0)
        worst, slowest = torch.stack([worst, rate[row]]).tolist()  # the one point where the host waits
        self.residual, self.last_check, self.next_check = residual, sweep, sweep + 1
        if not worst > self.tolerance:
            return True
        if 0 < slowest < SLOWEST:
            # while a signal still travels the residual hardly falls, which foretells nothing: never go far beyond what
            # has been swept already
            foreseen = 0.8 * math.log(self.tolerance / worst) / math.log(slowest)
            self.next_check = sweep + max(1, int(min(foreseen, 1 + sweep // 2)))
        self.sweeps = torch.where(self.settled, self.sweeps, self.next_check)
        return False

    def rate(self, sweep: int, residual: Tensor) -> Tensor:
        """q of every sample since the last measurement; the first tells nothing, so that it could be the slowest."""
        if not self.last_check:
            return torch.full_like(residual, SLOWEST)
        rate = residual / self.residual.clamp_min(torch.finfo(residual.dtype).tiny)
        if sweep - self.last_check > 1:
            rate = rate ** (1 / (sweep - self.last_check))
        return rate.clamp_max_(SLOWEST)
