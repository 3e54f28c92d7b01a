"""Passes forwards and backwards in the errors of predictions.

    x <- f(a) + e,       e <- -(1/precision) (beta dC/dx + sum over children of connection^T(f'(a) g))

Forwards from the inputs the states of some errors, backwards from the costs the errors at which these states would be
stationary: the two phases of backpropagation, repeated until they agree. For a small nudge this contracts by a factor
of the order of beta, so that one or two rounds reach the nudged equilibrium of any depth. A free equilibrium has no
errors and is one pass forwards. Source: arXiv 2505.20137 (errors as coordinates).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.linalg import vector_norm as norm

from physnet.layout import units
from physnet.predicted import InErrors, forward
from physnet.problem import Problem, State
from physnet.relaxation import Equilibrium, Integrator, StoppingRule, integrator

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
    residual q/(1 - q): a sample has settled when that is below the tolerance.
    """

    name = "errors"
    idea = "every state is predicted, and errors are coordinates"
    coordinates = "errors"

    @classmethod
    def concerns(cls, problem: Problem) -> bool:
        return problem.model.plan.predictive

    @classmethod
    def refusal(cls, problem: Problem) -> str | None:
        if not problem.model.plan.predictive:
            return "its energy makes no predictions"
        layers = problem.model.predictions
        return layers if isinstance(layers, str) else None

    def relax(self, problem: Problem, state: State, rule: StoppingRule) -> Equilibrium:
        if not isinstance(problem, InErrors):
            return free_pass(problem, self.name)
        found, here = problem.passes(), state
        residual = torch.ones(problem.rows, dtype=problem.like.dtype, device=problem.like.device)
        distance, sweeps, rate = torch.full_like(residual, torch.inf), 1, torch.ones_like(residual)
        step: State | None = None
        least, since = float("inf"), 0
        while sweeps < rule.max_sweeps and since < PATIENCE and bool((distance > rule.tolerance).any()):
            if sweeps > 1:
                before = here if step is None else step
                step = difference(found.back.errors, here)
                rate = inverse_curvature(before, step, rate)
            here = found.back.errors if step is None else moved(here, step, rate)
            found, sweeps = problem.passes(here), sweeps + 1
            measured = residual_of(rule, here, found.back.errors)
            fall = (measured / residual.clamp_min(TINY)).clamp(max=1 - 1e-6)
            residual, distance = measured, measured * fall / (1 - fall)
            mean = float(measured.mean())
            least, since = (mean, 0) if mean < 0.9 * least else (least, since + 1)
        rounds = torch.full((problem.rows,), sweeps, dtype=torch.long, device=problem.like.device)
        errors = problem.settled(found)
        return Equilibrium(errors, residual, rounds, distance <= rule.tolerance, self.name, problem)


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
