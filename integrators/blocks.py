"""Exact coordinate descent over blocks, over-relaxed.

    s_B <- project(s_B + omega (argmin of F(s_B, all else fixed) - s_B)),    block after block

A block is a set of units that don't interact, so that each of them has a scalar energy of its own, which is minimised
in closed form. With 1 <= omega < 2 a quadratic or sinusoidal energy of a unit can't rise, since the state ends no
farther from the minimum than it began, on the other side; units with any other energy are not over-relaxed. Where an
edge takes maxima, the energy of a unit with the winners as they are is a quadratic that lies above the true one and
touches it, so that the true one can't rise either (where post >= 0).

omega begins with the best value for a chain as deep as the network (`chain_omega`); when a slow mode shows it becomes
the one that is best for that mode (D. M. Young, 1954: 2/(1 + sqrt(1 - q)) where plain sweeps decay by q).
Source: arXiv 2312.15103 (asynchronous updates), arXiv 2402.11674 (resistive).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from physnet.displaced import Displaced
from physnet.errors import DeclarationError, Fault
from physnet.problem import Problem, State
from physnet.progress import Progress, Report
from physnet.relaxation import Equilibrium, Integrator, StoppingRule, integrator
from physnet.separation import GradientOnly, Scalar
from physnet.stopping import angles, drifting

SCHEDULES = ("coloured", "parity")
PRODUCTS = {None: None, "float32": None, "bfloat16": torch.bfloat16}

Sweep = Callable[[Problem, State, float, StoppingRule | None], Tensor | None]


@integrator
class Blocks(Integrator):
    """Sweeps over the blocks until no unit of a sample would move any more.

    Arguments:
        omega: over-relaxation in [1, 2); `None` finds it from the depth of the network and the decay of the residual.
        schedule: `coloured` (blocks of units that don't interact), or `parity`, for comparison: the first, third, ...
            free node in the order of the signal, then the others, all of a half at once from the same state and never
            over-relaxed (arXiv 2312.15103, 2509.26003). Where nodes of one half interact, as they do along skip edges,
            its energy may rise.
        products: dtype in which weights and states are multiplied, `float32` or `bfloat16`; states keep theirs. In
            half precision a state comes within its resolution of the equilibrium and goes the rest of the way in full
            precision; displacements of nudged phases don't need to.

    Raises:
        DeclarationError: for an omega outside of [1, 2), an unknown schedule, dtype, or an omega along with `parity`.
    """

    name = "blocks"
    idea = "every unit has an exact update, given the others"

    def __init__(self, omega: float | None = None, schedule: str = "coloured", products: str | None = None) -> None:
        if omega is not None and not 1 <= omega < 2:
            raise DeclarationError(
                Fault(f"omega is {omega}, outside of [1, 2)", "1 is plain descent; leave it out", ("options", "omega"))
            )
        if schedule not in SCHEDULES:
            raise DeclarationError(
                Fault(f"unknown schedule {schedule!r}", f"use {' or '.join(SCHEDULES)}", ("options", "schedule"))
            )
        if schedule == "parity" and omega is not None:
            raise DeclarationError(
                Fault("parity sweeps are never over-relaxed", "leave omega out", ("options", "omega"), at_key=True)
            )
        if products not in PRODUCTS:
            known = " or ".join(filter(None, PRODUCTS))
            raise DeclarationError(Fault(f"unknown dtype {products!r}", f"use {known}", ("options", "products")))
        self.products = PRODUCTS[products]
        self.omega, self.sweep = omega, _sweep if schedule == "coloured" else _parity_sweep

    @classmethod
    def refusal(cls, problem: Problem) -> str | None:
        for node in problem.model.free:
            solver = problem.solver(node)
            if isinstance(solver, GradientOnly):
                return f"'{node}' has no exact update, since {solver.reason}"
        return None

    def relax(self, problem: Problem, state: State, rule: StoppingRule) -> Equilibrium:
        if self.products is None or self.products == problem.like.dtype:
            return self._settle(problem, state, rule)
        rounded = problem.rounded(self.products)
        rough = self._settle(rounded, state, StoppingRule(rounded, rule.tolerance, rule.max_sweeps))
        if isinstance(problem, Displaced):
            return replace(rough, problem=problem)
        fine = self._settle(problem, rough.states, rule)
        return replace(fine, sweeps=rough.sweeps + fine.sweeps)

    def _settle(self, problem: Problem, state: State, rule: StoppingRule) -> Equilibrium:
        report, active, start, state, sweep = Report(), problem, state, dict(state), 0
        plain = self.sweep is not _sweep or not any(stretchable(problem, node) for node in state)
        progress, turns = Progress(rule.tolerance, problem, 1.0 if plain else self.omega), bool(angles(problem))
        for sweep in range(1, rule.max_sweeps + 1):
            checked = sweep == progress.next_check or sweep == rule.max_sweeps
            residual = self.sweep(active, state, progress.omega, rule if checked else None)
            if residual is None:
                continue
            if progress.arrived(sweep, residual) or progress.on_the_floor(sweep):
                break
            if turns and bool((torch.from_numpy(progress.settled) | drifting(active, start, state).cpu()).all()):
                break
            if progress.stuck(sweep):
                progress.judge(sweep, float(active.energy(state).real.sum()))
            if progress.few_left:
                report.note(state, progress)
                samples = torch.from_numpy(progress.moving()).to(problem.like.device)
                rows = active.rows_of(samples)
                active = active.select(samples)
                start, state = ({node: value[rows] for node, value in item.items()} for item in (start, state))
                report.narrow(rows)
                progress.narrow(rows.cpu().numpy())
        np.minimum(progress.sweeps, sweep, out=progress.sweeps)
        report.note(state, progress)
        like = problem.like
        residual = torch.from_numpy(report.residual).to(like)
        sweeps, settled = (torch.from_numpy(item).to(like.device) for item in (report.sweeps, report.settled))
        return Equilibrium(report.states, residual, sweeps, settled, self.name, problem)


def stretchable(problem: Problem, node: str) -> bool:
    """Whether the step of a node may be stretched.

    Not where the energy of a unit is neither quadratic nor sinusoidal. Nor in a nudged phase in which winners can
    change: a unit that overshoots can become one, and a winner is held by what it wins. The phase then settles on
    another branch than that of the free state, and the gradient is wrong.
    """
    if isinstance(problem.solver(node), Scalar):
        return False
    return not (problem.model.plan.winners_move and isinstance(problem, Displaced))


def _sweep(problem: Problem, state: State, omega: float, rule: StoppingRule | None) -> Tensor | None:
    """Update every block of `state` in place; with a rule, measure the residual of every sample."""
    residual = None
    for block in problem.blocks:
        for node, new in problem.minimise(block, state).items():
            if omega != 1 and stretchable(problem, node):
                domain, old = problem.domain(node), state[node]
                new = domain.project(domain.between(old, new, omega))
            residual = _move(state, node, new, rule, residual)
    return None if residual is None else residual.clamp_min_(0)


def _parity_sweep(problem: Problem, state: State, omega: float, rule: StoppingRule | None) -> Tensor | None:
    """Update every second node of `state` in place, then the others; all of a half from the same state."""
    residual, order = None, tuple(problem.model.free)
    for half in (order[::2], order[1::2]):
        for node, new in problem.minimise(half, state).items():
            residual = _move(state, node, new, rule, residual)
    return None if residual is None else residual.clamp_min_(0)


def _move(state: State, node: str, new: Tensor, rule: StoppingRule | None, residual: Tensor | None) -> Tensor | None:
    """Give a node its new state; with a rule, the residual so far."""
    if rule is not None:
        step = rule.of_samples(node, state[node], new)
        residual = step if residual is None else torch.maximum(residual, step)
    state[node] = new
    return residual
