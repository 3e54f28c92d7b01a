"""Newton's method with an active set, for reference equilibria.

    H d = f  on the units that no bound holds,    s <- project(s + t d),    f = -dF/ds, H = d2F/ds2

H is worked out per sample, column by column, and the absolute values of its eigenvalues are used, so that d leads down
wherever the energy curves the wrong way; t is halved until the energy falls. What it converges to is a minimum. No
angle is turned by more than a quarter turn in a step, nor all of them together where that changes nothing.
Sources: arXiv 1406.2572 (absolute eigenvalues), SIAM J. Control Optim. 20 (1982) 221 (active set).
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from physnet.problem import Problem, State
from physnet.relaxation import Equilibrium, Integrator, StoppingRule, integrator
from physnet.stability import leave_saddles
from physnet.vectors import FAR, Vector, Vectors, falls, not_real

LARGEST = 2000
"""Units of a sample up to which a dense Hessian is reasonable."""
HALVINGS = 40
FLATTEST = 1e-10
"""Smallest curvature that is divided by, relative to the largest."""


@integrator
class Newton(Integrator):
    """Newton steps on every sample, in float64. One sweep is one step: a Hessian and a few energies."""

    name = "newton"
    idea = "the Hessian is small enough to be solved with"

    @classmethod
    def refusal(cls, problem: Problem) -> str | None:
        if problem.like.dtype != torch.float64:
            return f"it is a reference in float64, and the model is in {str(problem.like.dtype).removeprefix('torch.')}"
        units = sum(value[0].numel() for value in problem.zero().values())
        if units > LARGEST:
            return f"a sample has {units} free units, and its dense Hessian is for at most {LARGEST}"
        return not_real(problem)

    def relax(self, problem: Problem, state: State, rule: StoppingRule) -> Equilibrium:
        return leave_saddles(self._solve(problem, rule, state), state, partial(self._solve, problem, rule))

    def _solve(self, problem: Problem, rule: StoppingRule, state: State) -> Equilibrium:
        vectors = Vectors(problem, state)
        start = s = vectors.pack(state)
        residual = rule.residual(state)
        sweeps = torch.zeros(problem.rows, dtype=torch.int64, device=s.device)
        for _ in range(rule.max_sweeps):
            active = ~(residual <= rule.tolerance) & ~vectors.drifting(start, s)
            new = torch.where(active[:, None], _downhill(vectors, s, *_direction(vectors, s)), s)
            sweeps += active
            stuck, s = bool((new == s).all()), new
            vectors.check_bounded(start, s, FAR)
            residual = torch.where(active, rule.residual(vectors.unpack(s)), residual)
            if stuck or not bool(torch.isfinite(residual).all()):
                break
        return Equilibrium(vectors.unpack(s), residual, sweeps, residual <= rule.tolerance, self.name, problem)


def _direction(vectors: Vectors, s: Vector) -> tuple[Vector, Vector]:
    """The force, and where Newton's method wants to go: on the free units by the Hessian, on held ones to the bound."""
    force, hessian = vectors.force(s), _hessian(vectors, s)
    if not bool(torch.isfinite(hessian).all() & torch.isfinite(force).all()):
        return force, force
    floor = (FLATTEST * hessian.abs().amax((1, 2))).clamp_min(1e-30)[:, None]
    steepest = force / torch.maximum(hessian.diagonal(dim1=1, dim2=2).abs(), floor)
    held = vectors.held(s, steepest)
    both = ~(held[:, :, None] | held[:, None, :])
    values, modes = torch.linalg.eigh(torch.where(both, hessian, 0) + torch.diag_embed(held.to(s)))
    wanted = torch.einsum("rui,ru->ri", modes, torch.where(held, 0, force)) / torch.maximum(values.abs(), floor)
    direction = torch.where(held, vectors.project(s + steepest) - s, torch.einsum("rui,ri->ru", modes, wanted))
    return force, vectors.short(vectors.unrotated(direction))


def _downhill(vectors: Vectors, s: Vector, force: Vector, direction: Vector) -> Vector:
    """The longest of the steps 1, 1/2, 1/4, ... along a direction that lowers the energy; none if none does."""
    energy, result = vectors.energy(s), s
    waiting = torch.ones_like(energy, dtype=torch.bool)
    for halving in range(HALVINGS):
        trial = vectors.project(s + 0.5**halving * direction)
        good = waiting & falls(energy, vectors.energy(trial), force, vectors.force(trial), trial - s)
        result, waiting = torch.where(good[:, None], trial, result), waiting & ~good
        if not bool(waiting.any()):
            break
    return result


def _hessian(vectors: Vectors, s: Vector) -> Tensor:
    """d2F/ds2 of every row, [rows, units, units]."""
    columns = [vectors.bend(s, unit.expand_as(s)) for unit in torch.eye(vectors.units, dtype=s.dtype, device=s.device)]
    hessian = torch.stack(columns, 2)
    return (hessian + hessian.mT) / 2
