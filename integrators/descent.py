"""Explicit projected gradient descent.

    s_{k+1} = project(s_k + rate f(s_k) + momentum (s_k - s_{k-1}) + noise xi_k),    f = -dF/ds, xi normal

With a rate it is the projected Euler method of published codes (arXiv 1602.05179). Without one every sample has a rate
of its own, the inverse of the curvature met by its last step (Barzilai and Borwein), and a step that would raise the
energy is not made. Noise samples the Boltzmann distribution exp(-F/T) at T = noise^2/(2 rate), for small rates: in a
quadratic well of curvature c the variance is noise^2 / (rate c (2 - rate c)).
"""

from __future__ import annotations

import torch

from physnet.errors import DeclarationError, Fault
from physnet.problem import Problem, State
from physnet.randomness import stream
from physnet.relaxation import Equilibrium, Integrator, StoppingRule, integrator
from physnet.vectors import FAR, LOST, Vector, Vectors, dot, falls, not_real

FIRST_RATE = 1e-2
CHANGE = 10.0
"""The largest factor by which a rate grows in a step."""
EVERY = 10
"""Steps between measurements of the residual, once many have been made."""


@integrator
class Descent(Integrator):
    """Arguments:
    rate: step per unit of force; `None` finds one for every sample.
    momentum: fraction of the last move that is added, in [0, 1); dropped when it points uphill.
    noise: standard deviation of a random kick to every unit in every step; needs a rate.
    annealing: steps over which the noise falls linearly to zero. `None`: it never does, `max_sweeps` steps are made,
        and the result is their last state, a sample; it counts as converged only if its residual happens to.
    seed: of the kicks, which are the same in every relaxation.
    """

    name = "descent"
    idea = "every energy has a force"

    def __init__(
        self,
        rate: float | None = None,
        momentum: float = 0.0,
        noise: float = 0.0,
        annealing: int | None = None,
        seed: int = 0,
    ) -> None:
        for key, value, valid, fix in (
            ("rate", rate, rate is None or rate > 0, "a positive number, or leave it out"),
            ("momentum", momentum, 0 <= momentum < 1, "in [0, 1)"),
            ("noise", noise, noise >= 0, "a standard deviation, at least 0"),
            ("annealing", annealing, annealing is None or annealing >= 1, "a number of steps"),
        ):
            if not valid:
                raise DeclarationError(Fault(f"{key} is {value}", fix, ("options", key)))
        if noise and rate is None:
            raise DeclarationError(
                Fault("noise without a rate has no temperature", "give the rate as well", ("options", "noise"))
            )
        self.rate, self.momentum, self.noise, self.annealing, self.seed = rate, momentum, noise, annealing, seed

    @classmethod
    def refusal(cls, problem: Problem) -> str | None:
        return not_real(problem)

    def relax(self, problem: Problem, state: State, rule: StoppingRule) -> Equilibrium:
        vectors = Vectors(problem, state)
        start = s = vectors.pack(state)
        rate = self.rate
        walk = _Adaptive(vectors, s) if rate is None else _Euler(vectors, rate, self._kicks(s))
        noisy = (self.annealing or rule.max_sweeps) if self.noise else 0
        sweeps = torch.zeros(problem.rows, dtype=torch.int64, device=s.device)
        residual = torch.full_like(s[:, 0], torch.inf)
        active, last, next_check = torch.ones_like(sweeps, dtype=torch.bool), s, 1
        for sweep in range(1, rule.max_sweeps + 1):
            new = walk(s, self.momentum * (s - last))
            last, s = s, torch.where(active[:, None], new, s)
            sweeps += active
            if sweep == rule.max_sweeps or (sweep >= next_check and sweep > noisy):
                residual = torch.where(active, rule.residual(vectors.unpack(s)), residual)
                active = ~(residual <= rule.tolerance)
                if not noisy:
                    active &= ~vectors.drifting(start, s)
                vectors.check_bounded(start, s, LOST if bool(active.any()) else FAR)
                next_check = sweep + min(EVERY, 1 + sweep // EVERY)
                if not bool(active.any()) or not bool(torch.isfinite(residual).all()):
                    break
        return Equilibrium(vectors.unpack(s), residual, sweeps, residual <= rule.tolerance, self.name, problem)

    def _kicks(self, like: Vector):
        """The kick of every step, drawn on the CPU so that a seed means the same on every device."""
        generator, step = stream(self.seed, "descent"), 0
        while self.noise and (self.annealing is None or step < self.annealing):
            strength = self.noise if self.annealing is None else self.noise * (1 - step / self.annealing)
            yield strength * torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like)
            step += 1


class _Euler:
    """Steps of a given rate."""

    def __init__(self, vectors: Vectors, rate: float, kicks) -> None:
        self.vectors, self.rate, self.kicks = vectors, rate, kicks

    def __call__(self, s: Vector, momentum: Vector) -> Vector:
        force = self.vectors.force(s)
        momentum = torch.where((dot(force, momentum) < 0)[:, None], 0, momentum)
        return self.vectors.project(s + self.rate * force + momentum + next(self.kicks, 0))


class _Adaptive:
    """Steps of every sample's own rate; none where the energy would rise. One force and one energy per step."""

    def __init__(self, vectors: Vectors, s: Vector) -> None:
        self.vectors = vectors
        self.force, self.energy = vectors.force(s), vectors.energy(s)
        self.rate = torch.full_like(self.energy, FIRST_RATE)

    def __call__(self, s: Vector, momentum: Vector) -> Vector:
        momentum = torch.where((dot(self.force, momentum) < 0)[:, None], 0, momentum)
        trial = self.vectors.project(s + self.vectors.short(self.rate[:, None] * self.force + momentum))
        force, energy, moved = self.vectors.force(trial), self.vectors.energy(trial), trial - s
        good = falls(self.energy, energy, self.force, force, moved)
        good &= torch.isfinite(force).all(1)
        bending = dot(moved, self.force - force)
        inverse = dot(moved, moved) / torch.where(bending > 0, bending, torch.nan)
        longer = torch.fmin(inverse, CHANGE * self.rate)  # without a curvature, as long as may be
        shorter = torch.fmin(inverse / 2, self.rate / 2)
        self.rate = torch.where(good, longer, torch.maximum(shorter, self.rate / CHANGE))
        self.force = torch.where(good[:, None], force, self.force)
        self.energy = torch.where(good, energy, self.energy)
        return torch.where(good[:, None], trial, s)
