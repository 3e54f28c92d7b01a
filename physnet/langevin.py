"""Noisy dynamics in true time.

    dx = -(1/tau) dF/dx dt + strength dW        within the domain

Steps are those of Leimkuhler and Matthews (2013, doi 10.1093/amrx/abs010), one force each:

    x <- project(x + step v(x) + strength sqrt(step) (xi + xi')/2),        v = -(1/tau) dF/dx

where the xi' of a step is the xi of the next one. In a quadratic well they have the exact variance
strength^2 tau/(2 curvature) whatever the step, as long as they are stable, where plain Euler steps have too much.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from physnet.problem import Problem, State
from physnet.rows import Share
from physnet.vectors import Vector, Vectors

ROUNDS = 12
"""Products with the Hessian that are made to find its largest eigenvalue."""
CAREFUL = 0.4
"""The step as a multiple of the fastest relaxation time; from 2 on steps are unstable."""


def walk(
    x: Vector,
    velocity: Callable[[Vector], Vector],
    project: Callable[[Vector], Vector],
    step: float,
    strength: float,
    draws: Iterator[Vector],
) -> Iterator[Vector]:
    """States after one step, two steps, ...

    Arguments:
        x: where to begin, [rows, units].
        velocity: v(x), by unit of time.
        project: the nearest states inside the domains.
        step: of time.
        strength: of the noise, in states per square root of time.
        draws: standard normal numbers like x, as many as asked for.
    """
    size, last = strength * math.sqrt(step) / 2, next(draws)
    while True:
        new = next(draws)
        x, last = project(x + step * velocity(x) + size * (last + new)), new
        yield x


def time_constants(problem: Problem, vectors: Vectors) -> Float[Tensor, "1 units"]:
    """tau of every unit of a vector."""
    sizes = zip(vectors.shapes, vectors.sizes, strict=True)
    taus = [torch.full((1, size), problem.model.graph.node(name).tau) for name, size in sizes]
    return torch.cat(taus, 1).to(problem.like)


def careful_step(problem: Problem, state: State) -> float:
    """A step of time that resolves the fastest mode around a state, and is at most a tenth of the least tau."""
    vectors = Vectors(problem, state)
    s, tau = vectors.pack(state), time_constants(problem, vectors)
    rates, direction = torch.zeros(len(s)).to(s), torch.linspace(1, 2, s.shape[1]).to(s).expand_as(s)
    for _ in range(ROUNDS):  # power iteration on the symmetric form of (1/tau) Hessian
        direction = direction / direction.norm(dim=1, keepdim=True).clamp_min(torch.finfo(s.dtype).tiny)
        direction = vectors.bend(s, direction * tau.rsqrt()) * tau.rsqrt()
        rates = direction.norm(dim=1)
    fastest = float(rates.max())
    return min(0.1 * float(tau.min()), CAREFUL / fastest if fastest else math.inf)


def normal_numbers(generator: torch.Generator, like: Vector, share: Share | None = None) -> Iterator[Vector]:
    """Standard normal numbers like the rows of all phases; of a share, the same as they are in the whole batch."""
    total, kept = (len(like), slice(None)) if share is None else (share.total, share.rows)
    parts = len(like) // len(range(total)[kept])  # phases are stacked along the rows
    while True:  # drawn on the CPU, so that a seed means the same on every device
        drawn = torch.randn((parts, total, like.shape[1]), generator=generator, dtype=torch.float64)
        yield drawn[:, kept].reshape(like.shape).to(like)
