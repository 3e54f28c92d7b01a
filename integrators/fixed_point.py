"""The synchronous map with Anderson mixing.

    s <- (1 - damping) s + damping argmin_i F(s_i, all else fixed),    every unit i at once

Mixing combines the last `depth` steps into the one that would have left the smallest remainder, least squares per
sample. The plain map (depth 0) converges where it is a contraction; with mixing it reaches more, but saddles too
(deep Hopfield nets near zero): what has converged is therefore tested, and a sample at a saddle goes on from below it
by exact coordinate descent. Sources: J. ACM 12 (1965) 547 (mixing), arXiv 1905.13633 (the map).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from physnet.errors import DeclarationError, Fault
from physnet.integrators.blocks import Blocks
from physnet.problem import Problem, State
from physnet.relaxation import Equilibrium, Integrator, StoppingRule, integrator
from physnet.stability import leave_saddles
from physnet.vectors import Vector, Vectors, dot, not_real

GROWTH = 2.0
"""A sample whose step grows by more than this forgets its past steps."""


@integrator
class FixedPoint(Integrator):
    """Arguments:
    depth: number of past steps that are combined; 0 is the plain map.
    damping: fraction of every step that is made, in (0, 1].
    """

    name = "fixed_point"
    idea = "every unit has an exact update, and all are made at once"

    def __init__(self, depth: int = 5, damping: float = 1.0) -> None:
        if not depth >= 0:
            raise DeclarationError(Fault(f"the depth is {depth}", "at least 0, the plain map", ("options", "depth")))
        if not 0 < damping <= 1:
            raise DeclarationError(
                Fault(f"the damping is {damping}", "the fraction of a step, in (0, 1]", ("options", "damping"))
            )
        self.depth, self.damping = depth, damping

    @classmethod
    def refusal(cls, problem: Problem) -> str | None:
        return not_real(problem) or Blocks.refusal(problem)

    def relax(self, problem: Problem, state: State, rule: StoppingRule) -> Equilibrium:
        result = self._iterate(problem, state, rule)
        return leave_saddles(result, state, lambda below: Blocks().relax(problem, below, rule))

    def _iterate(self, problem: Problem, state: State, rule: StoppingRule) -> Equilibrium:
        vectors = Vectors(problem, state)
        start = s = vectors.pack(state)
        mixing = _Mixing(self.depth, self.damping)
        sweeps = torch.zeros(problem.rows, dtype=torch.int64, device=s.device)
        step, residual = _synchronous(vectors, s, rule)
        for _ in range(rule.max_sweeps):
            # a relative residual never calls a point at zero reached, but steps as faint as this are running into it
            active = ~(residual <= rule.tolerance) & (step.abs().amax(1) > torch.finfo(s.dtype).eps ** 2)
            active &= ~vectors.drifting(start, s)
            if not bool(active.any()) or not bool(torch.isfinite(residual).all()):
                break
            s = torch.where(active[:, None], vectors.project(s + mixing(s, step)), s)
            sweeps += active
            step, residual = _synchronous(vectors, s, rule)
        return Equilibrium(vectors.unpack(s), residual, sweeps, residual <= rule.tolerance, self.name, problem)


def _synchronous(vectors: Vectors, s: Vector, rule: StoppingRule) -> tuple[Vector, Float[Tensor, " rows"]]:
    """The step to every unit's own minimum, all from the same state, and the residual."""
    problem, state = vectors.problem, vectors.unpack(s)
    steps = {name: torch.zeros_like(value) for name, value in state.items()}
    residual = torch.zeros_like(s[:, 0])
    for block in problem.blocks:
        for node, new in problem.minimise(block, state).items():
            steps[node] = steps[node] + problem.domain(node).difference(new, state[node])
            residual = torch.maximum(residual, rule.relative(node, state[node], new))
    return vectors.pack(steps), residual


class _Mixing:
    """Anderson mixing, per row: the history holds differences of successive states and of their steps."""

    def __init__(self, depth: int, damping: float) -> None:
        self.depth, self.damping = depth, damping
        self.states: list[Tensor] = []
        self.steps: list[Tensor] = []
        self.last: tuple[Tensor, Tensor] | None = None

    def __call__(self, s: Vector, step: Vector) -> Vector:
        """The move from a state, given the step that the plain map would make there."""
        if self.last is not None and self.depth:
            self._remember(s - self.last[0], step - self.last[1], self._grown(step))
        self.last = s, step
        if not self.steps:
            return self.damping * step
        moves, changes = torch.stack(self.states, 1), torch.stack(self.steps, 1)
        size = torch.linalg.vector_norm(changes, dim=2)
        scaled = changes / torch.where(size > 0, size, 1.0)[:, :, None]
        # regularised normal equations of unit columns: a forgotten column is zero and gets no weight
        gram = scaled @ scaled.mT + 1e2 * torch.finfo(s.dtype).eps * torch.eye(len(self.steps)).to(s)
        weights = torch.linalg.solve(gram, torch.einsum("rku,ru->rk", scaled, step)[:, :, None])[:, :, 0]
        weights = weights / torch.where(size > 0, size, 1.0)
        return self.damping * step - torch.einsum("rk,rku->ru", weights, moves + self.damping * changes)

    def _grown(self, step: Vector) -> Tensor:
        assert self.last is not None
        return dot(step, step) > GROWTH**2 * dot(self.last[1], self.last[1])

    def _remember(self, move: Vector, change: Vector, forget: Tensor) -> None:
        self.states = [torch.where(forget[:, None], 0, old) for old in [*self.states, move]][-self.depth :]
        self.steps = [torch.where(forget[:, None], 0, old) for old in [*self.steps, change]][-self.depth :]
