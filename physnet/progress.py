"""How far a relaxation by sweeps has come, and where every row of it ended."""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor

from physnet.displaced import Displaced
from physnet.problem import Problem, State

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
STUCK_ROUNDED = 25
"""Sweeps without progress after which the residual is taken for the noise of rounded products."""

Numbers = np.ndarray


class Report:
    """Where every row ended, while samples leave the batch one after the other."""

    states: State
    residual: Numbers
    sweeps: Numbers
    settled: Numbers

    def __init__(self) -> None:
        self.rows: Tensor | None = None

    def note(self, state: State, progress: Progress) -> None:
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


class Progress:
    """How far each sample still is from its equilibrium, and when to measure that again.

    The residual of a sample falls by about the same factor q in every sweep, so the steps that are still to come add
    up to residual q / (1 - q), and a sample has settled when that is below the tolerance: a slow mode is not mistaken
    for standing still. From q also follows when that will be; since a measurement costs as much as a sweep of a small
    net, the next one comes most of the way there. And from q follows by how much to over-relax.

    This is bookkeeping on a few numbers per sample, so it is done on the host.
    """

    def __init__(self, tolerance: float, problem: Problem, omega: float | None) -> None:
        self.tolerance, self.phases, self.next_check, self.last_check = tolerance, problem.phases, 1, 0
        self.nudged, self.rounded = isinstance(problem, Displaced), problem.weights is not problem.parameters
        self.omega, self.adapts = omega or chain_omega(depth(problem)), omega is None
        self.nearest, self.nearest_at, self.energy, self.foreseen = math.inf, 0, math.inf, math.inf
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
        self.energy = math.inf  # that of fewer samples can't be compared with it

    def arrived(self, sweep: int, measured: Tensor) -> bool:
        """Take note of a measurement; true if every sample has settled, or if a state is not a number."""
        residual = measured.cpu().numpy().astype(np.float64)  # the one point where the host waits
        residual = residual if self.phases == 1 else np.concatenate([residual] * self.phases)
        rate = self.rate(sweep, residual)
        with np.errstate(over="ignore"):  # of a state that was zero, everything is infinitely far
            distance = residual * rate / (1 - rate)
        self.settled = distance <= self.tolerance
        slowest = int(distance.argmax())
        self.residual, self.last_check, self.next_check = residual, sweep, sweep + 1
        if not distance[slowest] > self.tolerance:
            return True
        self.plan(sweep, float(distance[slowest]), float(rate[slowest]))
        waiting = ~self.settled
        self.adapt(sweep, rate[waiting])
        self.few_left = self.next_check - sweep >= SAVING and self.pays(self.next_check - sweep)
        self.sweeps[waiting] = self.next_check
        return False

    def pays(self, sweeps: int) -> bool:
        """Whether so many sweeps without those that have settled save more than their leaving costs."""
        settled = 1 - len(self.moving()) / (len(self.settled) // self.phases)
        return settled >= 0.5 and settled * sweeps >= SAVING

    def plan(self, sweep: int, distance: float, rate: float) -> None:
        """When to measure again."""
        if not (0 < rate < 1 and math.isfinite(distance)):
            self.foreseen = math.inf
            return
        # while a signal still travels the residual hardly falls, which foretells nothing: never go far beyond what has
        # been swept already
        self.foreseen = math.log(self.tolerance / distance) / math.log(rate)
        self.next_check = sweep + max(1, int(min(0.8 * self.foreseen, 1 + sweep // 2)))
        if distance < 0.9 * self.nearest:
            self.nearest, self.nearest_at = distance, sweep

    def adapt(self, sweep: int, rates: Numbers) -> None:
        """Over-relax as is best for the typical sample: one that is slow beyond measure would set the pace of all.

        A residual that doesn't fall at all tells of a saddle, which large steps leave faster, or, of a nudge, that it
        still travels.
        """
        if self.adapts and sweep > 2 and self.foreseen > PATIENCE:
            rate = middle(rates)
            if not (self.nudged and rate >= SLOWEST):
                self.omega = best_omega(rate, self.omega)

    def stuck(self, sweep: int) -> bool:
        """Whether over-relaxed sweeps have brought the slowest sample no nearer for long."""
        return self.adapts and self.omega > 1 and sweep - self.nearest_at >= STUCK

    def on_the_floor(self, sweep: int) -> bool:
        """Whether what still moves is the noise of rounded products."""
        return self.rounded and sweep - self.nearest_at >= STUCK_ROUNDED

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


def middle(values: Numbers) -> float:
    """The median; `np.median` takes ten times as long for a few numbers, which is as long as a small product."""
    ordered = np.sort(values)
    return float(ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2


def best_omega(rate: float, omega: float) -> float:
    """The over-relaxation under which the mode that decays by `rate` at `omega` decays fastest.

    With mu^2 the decay of plain sweeps,  (rate + omega - 1)^2 = rate omega^2 mu^2,  and the best omega is
    2/(1 + sqrt(1 - mu^2)).
    """
    plain = min((rate + omega - 1) ** 2 / (rate * omega**2), SLOWEST_PLAIN)
    return 2 / (1 + math.sqrt(1 - plain))


def chain_omega(depth: int) -> float:
    """The over-relaxation that is best for a chain as long as the network is deep:  2/(1 + sin(pi/(L + 1))).

    Neighbours in a long chain couple at most half as strongly as a unit holds itself, or its energy has no minimum; at
    that strength the iteration matrix of simultaneous updates of L nodes has the radius cos(pi/(L + 1)).
    """
    omega = 2 / (1 + math.sin(math.pi / (1 + depth)))
    return omega if omega > BARELY else 1.0


def depth(problem: Problem) -> int:
    """Free nodes on the longest way of a signal along the edges."""
    found: dict[str, int] = {}
    edges = list(problem.model.graph.edges())
    for node in problem.model.free:
        found[node] = 1 + max((found.get(edge.pre, 0) for edge in edges if edge.post == node), default=0)
    return max(found.values(), default=1)
