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

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from physnet.displaced import Displaced
from physnet.errors import DeclarationError, Fault
from physnet.problem import Problem, State
from physnet.relaxation import Equilibrium, Integrator, StoppingRule, integrator
from physnet.separation import GradientOnly, Scalar

SLOWEST = 0.999
"""Slowest decay per sweep that is told apart from standing still."""
SLOWEST_PLAIN = 0.99
"""Slowest decay of plain sweeps that over-relaxation is chosen for: 1.82. A rate is measured among transients that look
slower than they are, and of too much over-relaxation the decay doesn't tell; `omega` can be given."""
SAVING = 3
"""Sweeps of the whole batch that must be saved for it to pay that samples leave: to set up a smaller one costs two."""
GUESS = 0.99
"""The decay that is taken for granted before one has been measured."""
PATIENCE = 10
"""Sweeps still to come from which on it pays to over-relax."""

TINY = np.finfo(np.float64).tiny
BARELY = 1.1
"""Over-relaxation that isn't worth its additions, as for two layers, which mostly settle within a few sweeps."""
RESOLVED = 1e-6
"""The smallest relative change of an energy that tells of progress."""
STUCK = 60
"""Sweeps without progress after which over-relaxation is given up."""
SCHEDULES = ("coloured", "parity")
PRODUCTS = {None: None, "float32": None, "bfloat16": torch.bfloat16}

Numbers = np.ndarray
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
        report, active, state = _Report(), problem, dict(state)
        plain = self.sweep is not _sweep or not any(stretchable(problem, node) for node in state)
        progress = _Progress(rule.tolerance, problem, 1.0 if plain else self.omega)
        for sweep in range(1, rule.max_sweeps + 1):
            checked = sweep == progress.next_check or sweep == rule.max_sweeps
            residual = self.sweep(active, state, progress.omega, rule if checked else None)
            if residual is None:
                continue
            if progress.arrived(sweep, residual):
                break
            if progress.stuck(sweep):
                progress.judge(sweep, float(active.energy(state).real.sum()))
            if progress.few_left:
                report.note(state, progress)
                samples = torch.from_numpy(progress.moving()).to(problem.like.device)
                rows = active.rows_of(samples)
                active, state = active.select(samples), {node: value[rows] for node, value in state.items()}
                report.narrow(rows)
                progress.narrow(rows.cpu().numpy())
        np.minimum(progress.sweeps, rule.max_sweeps, out=progress.sweeps)
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
    plan = problem.model.plan
    chosen = any(edge.selects and edge.edge.pre in plan.nodes for edge in plan.edges.values())
    return not (chosen and isinstance(problem, Displaced))


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


class _Report:
    """Where every row ended, while samples leave the batch one after the other."""

    states: State
    residual: Numbers
    sweeps: Numbers
    settled: Numbers

    def __init__(self) -> None:
        self.rows: Tensor | None = None

    def note(self, state: State, progress: _Progress) -> None:
        """Take down the rows that are in the batch now."""
        if self.rows is None:
            self.states = state
            self.residual, self.sweeps, self.settled = progress.residual, progress.sweeps, progress.settled
            return
        for node, value in state.items():
            self.states[node][self.rows] = value
        rows = self.rows.cpu().numpy()
        self.residual[rows], self.sweeps[rows] = progress.residual, progress.sweeps
        self.settled[rows] = progress.settled

    def narrow(self, rows: Tensor) -> None:
        """From now on only these rows of the batch go on."""
        if self.rows is None:
            self.states = {node: value.clone() for node, value in self.states.items()}
            self.residual, self.sweeps, self.settled = self.residual.copy(), self.sweeps.copy(), self.settled.copy()
        self.rows = rows if self.rows is None else self.rows[rows]


class _Progress:
    """How far each sample still is from its equilibrium, and when to measure that again.

    The residual of a sample falls by about the same factor q in every sweep, so the steps that are still to come add
    up to residual q / (1 - q), and a sample has settled when that is below the tolerance: a slow mode is not mistaken
    for standing still. From q also follows when that will be; since a measurement costs as much as a sweep of a small
    net, the next one comes most of the way there. And from q follows by how much to over-relax.

    This is bookkeeping on a few numbers per sample, so it is done on the host.
    """

    def __init__(self, tolerance: float, problem: Problem, omega: float | None) -> None:
        self.tolerance, self.phases, self.next_check, self.last_check = tolerance, problem.phases, 1, 0
        self.nudged = isinstance(problem, Displaced)
        self.omega, self.adapts = omega or chain_omega(problem), omega is None
        self.nearest, self.nearest_at, self.energy = math.inf, 0, math.inf
        self.residual = np.full(problem.rows, np.inf)
        self.sweeps = np.ones(problem.rows, dtype=np.int64)
        self.settled = np.zeros(problem.rows, dtype=bool)
        self.few_left = False

    def moving(self) -> Numbers:
        """Samples of which a phase has not settled; the phases of a sample stay together, so that what they share
        cancels."""
        return np.flatnonzero(~self.settled.reshape(self.phases, -1).all(0))

    def narrow(self, rows: Numbers) -> None:
        """Go on with some of the rows."""
        self.residual, self.sweeps, self.settled = self.residual[rows], self.sweeps[rows], self.settled[rows]

    def arrived(self, sweep: int, measured: Tensor) -> bool:
        """Take note of a measurement; true if every sample has settled, or if a state is not a number."""
        residual = np.tile(measured.double().cpu().numpy(), self.phases)  # the one point where the host waits
        rate = self.rate(sweep, residual)
        with np.errstate(over="ignore"):  # of a state that was zero, everything is infinitely far
            distance = residual * rate / (1 - rate)
        self.settled = distance <= self.tolerance
        slowest = int(distance.argmax())
        self.residual, self.last_check, self.next_check = residual, sweep, sweep + 1
        if not distance[slowest] > self.tolerance:
            return True
        self.plan(sweep, float(distance[slowest]), float(rate[slowest]))
        settled = 1 - len(self.moving()) / (len(rate) // self.phases)
        self.few_left = settled >= 0.5 and settled * (self.next_check - sweep) >= SAVING
        self.sweeps[~self.settled] = self.next_check
        return False

    def plan(self, sweep: int, distance: float, rate: float) -> None:
        """When to measure again, and by how much to over-relax until then."""
        if not (0 < rate < 1 and math.isfinite(distance)):
            return
        # while a signal still travels the residual hardly falls, which foretells nothing: never go far beyond what has
        # been swept already
        foreseen = math.log(self.tolerance / distance) / math.log(rate)
        self.next_check = sweep + max(1, int(min(0.8 * foreseen, 1 + sweep // 2)))
        if distance < 0.9 * self.nearest:
            self.nearest, self.nearest_at = distance, sweep
        if not self.adapts:
            return
        # a residual that doesn't fall tells of a saddle, or, of a nudge, that it still travels
        if sweep > 2 and foreseen > PATIENCE and not (self.nudged and rate >= SLOWEST):
            self.omega = best_omega(rate, self.omega)

    def stuck(self, sweep: int) -> bool:
        """Whether over-relaxed sweeps have brought the slowest sample no nearer for long."""
        return self.adapts and self.omega > 1 and sweep - self.nearest_at >= STUCK

    def judge(self, sweep: int, energy: float) -> None:
        """Go on over-relaxing while the energy falls, as it does on the way out of a saddle; else sweep plainly.

        The energy can't fall for ever, and what it can't resolve any more is the floor of the dtype.
        """
        if energy < self.energy - RESOLVED * abs(energy):
            self.energy, self.nearest_at = energy, sweep
        else:
            self.omega, self.adapts = 1.0, False  # the safeguard

    def rate(self, sweep: int, residual: Numbers) -> Numbers:
        """q of every sample since the last measurement; the first tells nothing, so that it could be the slowest."""
        if not self.last_check:
            return np.full_like(residual, GUESS)
        rate = (residual / np.maximum(self.residual, TINY)) ** (1 / (sweep - self.last_check))
        # over-relaxed sweeps decay by omega - 1 at best, whatever a single measurement says
        return rate.clip(self.omega - 1, SLOWEST)


def best_omega(rate: float, omega: float) -> float:
    """The over-relaxation under which the mode that decays by `rate` at `omega` decays fastest.

    With mu^2 the decay of plain sweeps,  (rate + omega - 1)^2 = rate omega^2 mu^2,  and the best omega is
    2/(1 + sqrt(1 - mu^2)).
    """
    plain = min((rate + omega - 1) ** 2 / (rate * omega**2), SLOWEST_PLAIN)
    return 2 / (1 + math.sqrt(1 - plain))


def chain_omega(problem: Problem) -> float:
    """The over-relaxation that is best for a chain as long as the network is deep:  2/(1 + sin(pi/(L + 1))).

    Neighbours in a long chain couple at most half as strongly as a unit holds itself, or its energy has no minimum; at
    that strength the iteration matrix of simultaneous updates of L nodes has the radius cos(pi/(L + 1)).
    """
    depth: dict[str, int] = {}
    edges = list(problem.model.graph.edges())
    for node in problem.model.free:
        depth[node] = 1 + max((depth.get(edge.pre, 0) for edge in edges if edge.post == node), default=0)
    omega = 2 / (1 + math.sin(math.pi / (1 + max(depth.values(), default=1))))
    return omega if omega > BARELY else 1.0
