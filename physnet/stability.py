"""Is an equilibrium a minimum?

    saddle:  v . H v < 0  for a direction v of the units that no bound holds, and the energy falls along it

Methods that solve for a vanishing force find saddles as readily as minima. The lowest curvature of every row is found
by the Lanczos method on products with the Hessian.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from physnet.equilibrium import Equilibrium
from physnet.problem import State
from physnet.randomness import stream
from physnet.vectors import Vector, Vectors, dot

STEPS, CHECK_EVERY = 64, 8
ROUNDS = 4
STRIDES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)


def leave_saddles(result: Equilibrium, start: State, descend: Callable[[State], Equilibrium]) -> Equilibrium:
    """The result, with every row that is at a saddle moved to a minimum below it.

    Arguments:
        result: where a relaxation ended.
        start: where it began, which says on which side of a saddle to go down.
        descend: relaxes from a state and never raises the energy of a row.

    Returns:
        Rows that still are at a saddle after several descents are not marked as converged.
    """
    for _ in range(ROUNDS):
        saddle, below = below_saddles(result, start)
        if not bool(saddle.any()):
            return result
        lower = descend(below)
        result = replace(
            result,
            states={
                name: torch.where(_over(saddle, value), lower[name], value) for name, value in result.states.items()
            },
            residual=torch.where(saddle, lower.residual, result.residual),
            sweeps=result.sweeps + torch.where(saddle, lower.sweeps, 0),
            converged=torch.where(saddle, lower.converged, result.converged),
        )
    saddle, _ = below_saddles(result, start)
    return replace(result, converged=result.converged & ~saddle)


def below_saddles(result: Equilibrium, start: State) -> tuple[Bool[Tensor, " rows"], State]:
    """Which rows are at saddles, and states a little way down from those.

    A row is examined if it has converged or if hardly any force is left: residuals are relative, so that a row that
    runs into a saddle at zero never converges.
    """
    vectors = Vectors(result.problem, result.states)
    s = vectors.pack(result.states)
    unmoved = result.states
    if not bool(torch.isfinite(s).all()):
        return torch.zeros_like(result.converged), unmoved
    force = vectors.force(s)
    free = ~vectors.held(s, force)
    curvature, direction, largest = lowest_curvature(lambda v: torch.where(free, vectors.bend(s, v), 0), free, s)
    coarse, size = torch.finfo(s.dtype).eps ** 0.5, vectors.size(s)
    still = (vectors.project(s + force) - s).abs().amax(1) <= coarse * size
    suspect = (result.converged | still) & (curvature < -coarse * largest)
    saddle, below = torch.zeros_like(suspect), s
    if not bool(suspect.any()):
        return saddle, unmoved
    direction = direction / direction.abs().amax(1, keepdim=True).clamp_min(torch.finfo(s.dtype).tiny)
    backward = dot(direction, vectors.pack(start) - s) < 0
    direction = torch.where(backward[:, None], -direction, direction)
    before = vectors.energy(s)
    noise = 16 * torch.finfo(s.dtype).eps * (1 + before.abs())
    for stride in STRIDES:  # the shortest move that leads down: a long one might pass over a barrier
        for move in (stride * size[:, None] * direction, -stride * size[:, None] * direction):
            trial = vectors.project(s + move)
            found = suspect & ~saddle & (before - vectors.energy(trial) > noise)
            below, saddle = torch.where(found[:, None], trial, below), saddle | found
    return saddle, vectors.unpack(below)


def lowest_curvature(
    product: Callable[[Vector], Vector], free: Bool[Tensor, "rows units"], like: Vector
) -> tuple[Float[Tensor, " rows"], Vector, Float[Tensor, " rows"]]:
    """The lowest eigenvalue of every row's Hessian over its free units, its direction, and the largest |eigenvalue|.

    Lanczos with full orthogonalisation, until the bound on its error tells the sign of every row. With more than
    `STEPS` free units it is an estimate from above.

    Arguments:
        product: Hessian times a direction, zero on units that are not free.
        free: which units may move.
        like: a tensor with the shape and dtype of the states.
    """
    start = torch.randn(like.shape[1], generator=stream(0, "lanczos"), dtype=torch.float64).to(like)
    v = _unit(torch.where(free, start, 0), 0.0)
    basis = v[:, None]
    diagonal: list[Tensor] = []
    beside: list[Tensor] = []
    for step in range(1, min(STEPS, like.shape[1]) + 1):
        w = product(v)
        if step > 1:
            basis = torch.cat([basis, v[:, None]], 1)
        diagonal.append(dot(v, w))
        for _ in range(2):  # once is not enough in floating point
            w = w - torch.einsum("rk,rku->ru", torch.einsum("rku,ru->rk", basis, w), basis)
        beside.append(torch.linalg.vector_norm(w, dim=1))
        if step % CHECK_EVERY == 0:
            values, modes = _tridiagonal(diagonal, beside)
            error = (beside[-1] * modes[:, -1, 0]).abs()
            if bool((error < 0.1 * values[:, 0].abs()).all()):
                break
        scale = torch.stack(diagonal, 1).abs().amax(1)
        v = _unit(w, torch.finfo(w.dtype).eps ** 0.5 * scale)
    values, modes = _tridiagonal(diagonal, beside)
    return values[:, 0], torch.einsum("rk,rku->ru", modes[:, :, 0], basis), values.abs().amax(1)


def _tridiagonal(diagonal: list[Tensor], beside: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Eigenvalues and eigenvectors of the Hessian within the Krylov space, per row."""
    off = torch.diag_embed(torch.stack(beside, 1)[:, :-1], 1)
    values, modes = torch.linalg.eigh(torch.diag_embed(torch.stack(diagonal, 1)) + off + off.mT)
    return values, modes


def _unit(v: Vector, floor: Tensor | float) -> Vector:
    """v over its norm; zero where the norm is down to the floor, since the free space is exhausted then."""
    norm = torch.linalg.vector_norm(v, dim=1)
    return torch.where((norm > floor)[:, None], v / norm[:, None], 0)


def _over(rows: Tensor, value: Tensor) -> Tensor:
    """A mask of rows, shaped to broadcast over a state."""
    return rows.view(-1, *(1,) * (value.dim() - 1))


__all__ = ["below_saddles", "leave_saddles", "lowest_curvature"]
