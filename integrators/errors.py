"""Passes forwards and backwards in the errors of predictions.

    x <- f(a) + e,       e <- -(1/precision) (beta dC/dx + sum over children of connection^T(f'(a) g))

Forwards from the inputs the states of some errors, backwards from the costs the errors at which these states would be
stationary: the two phases of backpropagation, repeated until they agree. For a small nudge this contracts by a factor
of the order of beta, so that one or two rounds reach the nudged equilibrium of any depth. A free equilibrium has no
errors and is one pass forwards. Source: arXiv 2505.20137 (errors as coordinates).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.linalg import vector_norm as norm

from physnet.layout import units
from physnet.nudged import Nudged
from physnet.predicted import InErrors, Passes, forward
from physnet.problem import Problem, State
from physnet.relaxation import Equilibrium, Integrator, StoppingRule, integrator
from physnet.rows import some_rows

TINY = 1e-30
LEAST = 0.01
"""The smallest rate."""
PATIENCE = 5
"""Rounds in which the mean residual may fail to fall by a tenth."""


@integrator
class Errors(Integrator):
    """Rounds of both passes, until the errors of a sample stay as they are.

    A round at unit rate multiplies what is still wrong by -beta J^T C'' J, with J = dx/de. That is small for a small
    nudge, but not for any weights: those of a fresh or a confident network may amplify errors. So from the third
    round on each sample has a rate of its own, the inverse of the curvature of F that its last step met (arXiv
    2505.20137; rate: Barzilai and Borwein, 1988), at most 1.

    Minima may lie on the kink of a rectifier, where F has no slope: such samples end when the residual falls no more,
    and count as not converged.

    The errors change by about the same factor q from round to round, so that what is still to come adds up to
    residual q/(1 - q): a sample has settled when that is below the tolerance. Once half of those at work have settled
    they leave the batch.
    """

    name = "errors"
    idea = "every state is predicted, and errors are coordinates"
    coordinates = "errors"

    @classmethod
    def concerns(cls, problem: Problem) -> bool:
        return problem.model.plan.predictive

    @classmethod
    def refusal(cls, problem: Problem) -> str | None:
        if isinstance(problem, Nudged) and not isinstance(problem, InErrors):
            return "its nudged phases are not in errors"
        return unpredicted(problem)

    def relax(self, problem: Problem, state: State, rule: StoppingRule) -> Equilibrium:
        if not isinstance(problem, InErrors):
            return free_pass(problem, self.name)
        work, rows, ends = Rounds.begin(problem, state), torch.arange(problem.rows, device=problem.like.device), None
        sweeps, least, since = 1, float("inf"), 0
        while sweeps < rule.max_sweeps and since < PATIENCE and bool((work.distance > rule.tolerance).any()):
            mean, sweeps = work.go_on(rule), sweeps + 1
            least, since = (mean, 0) if mean < 0.9 * least else (least, since + 1)
            moving = (work.distance > rule.tolerance).view(problem.phases, -1).any(0)
            if sweeps < rule.max_sweeps and 0 < 2 * int(moving.sum()) <= len(moving):
                ends = Ends.after(work, sweeps, rows, ends)
                keep = work.problem.rows_of(moving.nonzero().squeeze(1))
                work, rows, least = work.narrowed(moving, keep), rows[keep], float("inf")
        ends = Ends.after(work, sweeps, rows, ends)
        settled = ends.distance <= rule.tolerance
        return Equilibrium(problem.settled(ends.found), ends.residual, ends.sweeps, settled, self.name, problem)

    def path(self, problem: Problem, state: State, rule: StoppingRule) -> Iterator[State]:
        """The errors after every round: rounds remember those before them, and can't be made one by one."""
        if not isinstance(problem, InErrors):
            yield free_pass(problem, self.name).states
            return
        work, sweeps = Rounds.begin(problem, state), 1
        yield work.found.back.errors
        while sweeps < rule.max_sweeps and not rule.met(work.found.back.errors):
            work.go_on(rule)
            sweeps += 1
            yield work.found.back.errors


@dataclass
class Rounds:
    """The rows that are still at work.

    Arguments:
        problem: theirs alone.
        found: what the last round has found.
        here: the errors that it began with.
        step: what a unit rate would have changed in the round before; `None` in the first two.
        rate: of every row.
        residual: by how much the errors of a row have changed.
        distance: how far they still are from where they settle.
    """

    problem: InErrors
    found: Passes
    here: State
    step: State | None
    rate: Tensor
    residual: Tensor
    distance: Tensor
    first: bool = True

    @classmethod
    def begin(cls, problem: InErrors, state: State) -> Rounds:
        one = torch.ones(problem.rows, dtype=problem.like.dtype, device=problem.like.device)
        return cls(problem, problem.passes(), state, None, one, one, torch.full_like(one, torch.inf))

    def go_on(self, rule: StoppingRule) -> float:
        """One round; the mean residual."""
        if not self.first:
            before = self.here if self.step is None else self.step
            self.step = difference(self.found.back.errors, self.here)
            self.rate = inverse_curvature(before, self.step, self.rate)
        self.here = self.found.back.errors if self.step is None else moved(self.here, self.step, self.rate)
        self.found, self.first = self.problem.passes(self.here), False
        measured = residual_of(rule, self.here, self.found.back.errors)
        fall = (measured / self.residual.clamp_min(TINY)).clamp(max=1 - 1e-6)
        self.residual, self.distance = measured, measured * fall / (1 - fall)
        return float(measured.mean())

    def narrowed(self, samples: Tensor, rows: Tensor) -> Rounds:
        """The same for some of the samples, which are these rows."""
        part, count = self.problem.select(samples.nonzero().squeeze(1)), self.problem.rows
        return Rounds(
            part,
            self.found.of(rows, count),
            some_rows(self.here, rows, count),
            None if self.step is None else some_rows(self.step, rows, count),
            self.rate[rows],
            self.residual[rows],
            self.distance[rows],
            self.first,
        )


@dataclass(frozen=True)
class Ends:
    """Where every row has ended, and after how many rounds."""

    found: Passes
    residual: Tensor
    distance: Tensor
    sweeps: Tensor

    @classmethod
    def after(cls, work: Rounds, sweeps: int, rows: Tensor, before: Ends | None) -> Ends:
        """The ends of the rows at work; those of all others are as `before`."""
        rounds = torch.full((work.problem.rows,), sweeps, dtype=torch.long, device=work.residual.device)
        if before is None:
            return cls(work.found, work.residual, work.distance, rounds)
        return cls(
            before.found.with_rows(rows, work.found),
            before.residual.index_copy(0, rows, work.residual),
            before.distance.index_copy(0, rows, work.distance),
            before.sweeps.index_copy(0, rows, rounds),
        )


def unpredicted(problem: Problem) -> str | None:
    """Why the states of a problem are not all predicted; `None` if they are."""
    if not problem.model.plan.predictive:
        return "its energy makes no predictions"
    layers = problem.model.predictions
    return layers if isinstance(layers, str) else None


def free_pass(problem: Problem, integrator: str) -> Equilibrium:
    """The free equilibrium, in which nothing has an error: one pass forwards, which is kept."""
    found = forward(problem)
    problem.passed = found
    like = problem.like
    one = torch.ones(problem.rows, dtype=torch.long, device=like.device)
    nothing = torch.zeros(problem.rows, dtype=like.dtype, device=like.device)
    return Equilibrium(found.states, nothing, one, one.bool(), integrator, problem)


def difference(new: State, old: State) -> State:
    return {name: value - old[name] for name, value in new.items()}


def moved(errors: State, step: State, rate: Tensor) -> State:
    """Every row by its own share of a step."""
    return {name: value + step[name] * rate.view(-1, *(1,) * (value.dim() - 1)) for name, value in errors.items()}


def inverse_curvature(step: State, then: State, rate: Tensor) -> Tensor:
    """The rate at which the step of each row would have vanished, had the curvature been that which it met.

    Arguments:
        step: what a unit rate would have changed, of which `rate` was made.
        then: what it would change there.
    """
    own, both = torch.zeros_like(rate), torch.zeros_like(rate)
    for name, value in step.items():
        before, after = units(value), units(then[name])
        own += (before * before).sum(1)
        both += (before * after).sum(1)
    return torch.where(own > both, rate * own / (own - both).clamp_min(TINY), 1).clamp(LEAST, 1)


def residual_of(rule: StoppingRule, old: State, new: State) -> Tensor:
    """By how much the errors of every row have changed, relative to their size; that of the worst node. Phases are
    judged apart, since what they share doesn't vanish from products of states and errors."""
    changes = torch.stack([norm(units(value - old[node]), dim=1) for node, value in new.items()])
    sizes = torch.stack([norm(units(value), dim=1) for value in new.values()])
    change = (changes / (sizes + torch.finfo(sizes.dtype).tiny)).amax(0)
    return (change - rule.resolution).clamp_min(0)
