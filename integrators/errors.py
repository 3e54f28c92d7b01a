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
from physnet.predicted import InErrors, Passes, forward
from physnet.problem import Problem, State
from physnet.relaxation import Equilibrium, Integrator, StoppingRule, integrator

TINY = 1e-30


@integrator
class Errors(Integrator):
    """Rounds of both passes at unit rate, until the errors of a sample stay as they are.

    The errors change by about the same factor q from round to round, so that what is still to come adds up to
    residual q/(1 - q): a sample has settled when that is below the tolerance.
    """

    name = "errors"
    idea = "every state is predicted, and errors are coordinates"
    coordinates = "errors"

    @classmethod
    def refusal(cls, problem: Problem) -> str | None:
        if not problem.model.plan.predictive:
            return "its energy makes no predictions"
        layers = problem.model.predictions
        return layers if isinstance(layers, str) else None

    def relax(self, problem: Problem, state: State, rule: StoppingRule) -> Equilibrium:
        if not isinstance(problem, InErrors):
            return free_pass(problem, self.name)
        found = problem.passes()
        residual = torch.ones(problem.rows, dtype=problem.like.dtype, device=problem.like.device)
        distance, sweeps = torch.full_like(residual, torch.inf), 1
        while sweeps < rule.max_sweeps and bool((distance > rule.tolerance).any()):
            new = problem.passes(found.back.errors)
            measured = residual_of(rule, found, new)
            rate = (measured / residual.clamp_min(TINY)).clamp(max=1 - 1e-6)
            residual, distance, found, sweeps = measured, measured * rate / (1 - rate), new, sweeps + 1
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


def residual_of(rule: StoppingRule, old: Passes, new: Passes) -> Tensor:
    """By how much the errors of every row have changed, relative to their size; that of the worst node. Phases are
    judged apart, since what they share doesn't vanish from products of states and errors."""
    tiny = torch.finfo(rule.problem.like.dtype).tiny
    changes = [
        norm(units(value - old.back.errors[node]), dim=1) / (norm(units(value), dim=1) + tiny)
        for node, value in new.back.errors.items()
    ]
    return (torch.stack(changes).amax(0) - rule.resolution).clamp_min(0)
