"""All free states of a sample as one vector, for integrators that treat every unit alike."""

from __future__ import annotations

import math
from functools import cached_property

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from physnet.errors import RelaxationError
from physnet.problem import Problem, State
from physnet.stopping import angles, drifting

Vector = Float[Tensor, "rows units"]
FAR, LOST = 1e2, 1e6
"""Growth of a state at which an undiminished force means that there is no minimum: at rest, and on the way."""


class Vectors:
    """A problem over vectors [rows, units]: what `Problem` offers over states by node.

    Arguments:
        problem: what is relaxed.
        state: any of its states, for names and shapes.
    """

    def __init__(self, problem: Problem, state: State) -> None:
        self.problem = problem
        self.shapes = {name: value.shape for name, value in state.items()}
        self.sizes = [value[0].numel() for value in state.values()]
        self.units = sum(self.sizes)

    @cached_property
    def on_line(self) -> Vector:
        """1 for every unit that is no angle, else 0: [1, units]."""
        turning = angles(self.problem)
        sizes = zip(self.shapes, self.sizes, strict=True)
        return torch.cat([torch.full((1, size), float(name not in turning)) for name, size in sizes], 1)

    def drifting(self, start: Vector, s: Vector) -> Bool[Tensor, " rows"]:
        """Rows in which an angle has turned too often since the start to be on its way to an equilibrium."""
        return drifting(self.problem, self.unpack(start), self.unpack(s))

    def turned(self, start: Vector, s: Vector) -> Bool[Tensor, " rows"]:
        """Rows in which an angle has turned by half a turn or more."""
        return ((s - start).abs() * (1 - self.on_line.to(s)) >= math.pi).any(1)

    @cached_property
    def rotations(self) -> Vector:
        """The common rotations that leave the energy as it is, as orthonormal rows: [rotations, units]."""
        number = dict(zip(self.shapes, range(len(self.sizes)), strict=True))
        node = torch.cat([torch.full((size,), place) for place, size in enumerate(self.sizes)])
        parts = self.problem.model.plan.rotations
        found = [torch.isin(node, torch.tensor([number[name] for name in part])).double() for part in parts]
        return torch.stack([row / row.norm() for row in found]) if found else torch.zeros(0, self.units)

    def unrotated(self, s: Vector) -> Vector:
        """A move without what it has of common rotations."""
        turns = self.rotations.to(s)
        return s - (s @ turns.mT) @ turns

    def short(self, move: Vector) -> Vector:
        """A move, shortened where it would turn an angle by more than a quarter turn, which is beyond any well."""
        if not angles(self.problem):
            return move
        turn = (move * (1 - self.on_line.to(move))).abs().amax(1, keepdim=True)
        return move / (turn / (math.pi / 2)).clamp_min(1.0)

    def pack(self, state: State) -> Vector:
        return torch.cat([state[name].flatten(1) for name in self.shapes], 1)

    def unpack(self, s: Vector) -> State:
        pieces = s.split(self.sizes, 1)
        return {name: piece.reshape(shape) for (name, shape), piece in zip(self.shapes.items(), pieces, strict=True)}

    def energy(self, s: Vector) -> Float[Tensor, " rows"]:
        """F of every row."""
        return self.problem.energy(self.unpack(s))

    def force(self, s: Vector) -> Vector:
        """-dF/ds."""
        return self.pack(self.problem.force(self.unpack(s)))

    def project(self, s: Vector) -> Vector:
        """The nearest states inside the domains."""
        return self.pack(self.problem.project(self.unpack(s)))

    def size(self, s: Vector) -> Float[Tensor, " rows"]:
        """What a small move of a unit is compared with: the mean magnitude of the states, or 1 if that is larger."""
        magnitude = {name: self.problem.domain(name).magnitude(value) for name, value in self.unpack(s).items()}
        return self.pack(magnitude).square().mean(1).sqrt().clamp_min(1.0)

    def held(self, s: Vector, step: Vector) -> Bool[Tensor, "rows units"]:
        """Units that a bound would stop on this step."""
        return self.project(s + step) != s + step

    def bend(self, s: Vector, direction: Vector) -> Vector:
        """The product of the Hessian of F and a direction whose entries are at most about 1, by central differences."""
        stride = (torch.finfo(s.dtype).eps ** (1 / 3) * self.size(s))[:, None]
        return (self.force(s - stride * direction) - self.force(s + stride * direction)) / (2 * stride)

    def check_bounded(self, start: Vector, s: Vector, growth: float) -> None:
        """Raise `RelaxationError` if a row is far away from its start and still pulled as strongly as there.

        Residuals are relative, so that a state that runs away along a constant force would pass for settled. An angle
        that keeps turning is no worse than at its start; `drifting` tells of it.
        """
        on_line = self.on_line.to(s)
        norm = torch.linalg.vector_norm(s * on_line, dim=1)
        far = norm > growth * (1 + torch.linalg.vector_norm(start * on_line, dim=1))
        if not bool(far.any()):
            return
        forces = {x: self.force(x) for x in (s, start)}
        here, there = (torch.where(self.held(x, force), 0, force).norm(dim=1) for x, force in forces.items())
        if bool((far & (here >= 0.9 * there)).any()):
            reach = {name: float(value.abs().max()) for name, value in self.unpack(s * on_line).items()}
            name = max(reach, key=lambda name: reach[name])
            raise RelaxationError(
                f"the state of '{name}' has run away to {reach[name]:.2g}, as the energy falls without bound: "
                "add a term that confines it, reduce |beta|, or give the node a bounded domain"
            )


def dot(a: Vector, b: Vector) -> Float[Tensor, " rows"]:
    """The inner product of every row."""
    return (a * b).sum(1)


def falls(
    before: Float[Tensor, " rows"],
    after: Float[Tensor, " rows"],
    force: Vector,
    new_force: Vector,
    moved: Vector,
) -> Bool[Tensor, " rows"]:
    """Whether a move lowers the energy.

    A difference of energies is blind to moves that change the energy by less than its rounding error; there the work
    of the force decides, (f + f')/2 . moved, which is exact for quadratics and small without cancellation.
    """
    noise = 16 * torch.finfo(before.dtype).eps * (1 + before.abs())
    drop = before - after
    return (drop > noise) | ((drop >= -noise) & (dot(force + new_force, moved) >= 0))


def not_real(problem: Problem) -> str | None:
    """Why methods for minima on the real line refuse complex states."""
    nudged = problem.beta is not None and problem.beta.is_complex()
    return "its states are complex, so that the energy has no minimum" if nudged else None


__all__ = ["FAR", "LOST", "Vector", "Vectors", "dot", "falls", "not_real"]
