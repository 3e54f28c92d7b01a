"""The implicit gradient: exact, slow, and made without any of the machinery that it judges.

    dL/dtheta = dC/dtheta + d^2E/dtheta ds . delta,     (d^2E/ds^2) delta = -dC/ds     on the free coordinates

The implicit gradient of L = C(s*) at the equilibrium s*. Coordinates that a bound holds in place don't respond. Only
the energy and the cost are used, by double differentiation; the linear system is solved by conjugate gradients, per
sample.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from physnet.errors import RelaxationError
from physnet.maps import unheld
from physnet.problem import Problem

MAX_ITERATIONS = 5000


def gradient(
    problem: Problem, state: Mapping[str, Tensor], targets: Mapping[str, Tensor], tolerance: float | None = None
) -> dict[str, Tensor]:
    """The gradient of the mean cost at a free equilibrium, for every parameter and, under its name, every input.

    Arguments:
        problem: the free problem of a batch.
        state: its equilibrium, well converged.
        targets: by name.
        tolerance: relative residual of the linear solve; 1e-12 in float64, 1e-6 in float32.

    Raises:
        RelaxationError: if the state is not a minimum of the energy, or the linear solve doesn't converge.
    """
    model = problem.model
    wanted = model.as_targets(targets, problem.rows)
    force = problem.force(state)
    moving = {name: unheld(problem, name, value, force[name]) for name, value in state.items()}
    variables = {name: value.detach().requires_grad_() for name, value in state.items()}
    clamped = {name: value.detach().requires_grad_() for name, value in problem.clamped.items()}
    parameters = {name: value.detach().requires_grad_() for name, value in problem.parameters.items()}
    with torch.enable_grad():
        full = {**clamped, **variables}
        cost = model.functions["cost"](parameters, full, wanted).sum()
        energy = model.functions["energy"](parameters, full).sum()
        slopes = torch.autograd.grad(energy, list(variables.values()), create_graph=True, materialize_grads=True)
    downhill = torch.autograd.grad(cost, list(variables.values()), retain_graph=True, materialize_grads=True)
    masks = [moving[name] for name in variables]

    def hessian(vector: list[Tensor]) -> list[Tensor]:
        product = torch.autograd.grad(
            slopes, list(variables.values()), vector, retain_graph=True, materialize_grads=True
        )
        return [p * mask for p, mask in zip(product, masks, strict=True)]

    right = [-slope * mask for slope, mask in zip(downhill, masks, strict=True)]
    epsilon = tolerance or (1e-12 if problem.like.dtype == torch.float64 else 1e-6)
    delta = _conjugate_gradients(hessian, right, epsilon)
    names = [*parameters, *clamped]
    leaves = [*parameters.values(), *clamped.values()]
    response = torch.autograd.grad(slopes, leaves, delta, retain_graph=True, allow_unused=True, materialize_grads=True)
    direct = torch.autograd.grad(cost, leaves, allow_unused=True, materialize_grads=True)
    return {name: (a + b) / problem.rows for name, a, b in zip(names, response, direct, strict=True)}


def _dot(a: list[Tensor], b: list[Tensor]) -> Tensor:
    """The inner product of every row, over all nodes."""
    return sum((x * y).flatten(1).sum(1) for x, y in zip(a, b, strict=True))  # pyright: ignore[reportReturnType]


def _per_row(scale: Tensor, vector: list[Tensor]) -> list[Tensor]:
    return [scale.view(-1, *(1,) * (v.dim() - 1)) * v for v in vector]


def _conjugate_gradients(product, right: list[Tensor], tolerance: float) -> list[Tensor]:
    """Solve H x = right for every row at once."""
    x = [torch.zeros_like(v) for v in right]
    residual, direction = list(right), list(right)
    size = _dot(residual, residual)
    goal = tolerance**2 * size
    for _ in range(MAX_ITERATIONS):
        active = size > goal
        if not bool(active.any()):
            return x
        image = product(direction)
        bend = _dot(direction, image)
        if bool((bend[active] <= 0).any()):
            raise RelaxationError(
                "the free state is not a minimum of the energy, so it has no implicit gradient: "
                "relax to a lower tolerance, or from another initial state"
            )
        stride = torch.where(active, size / torch.where(active, bend, 1.0), 0.0)
        x = [a + b for a, b in zip(x, _per_row(stride, direction), strict=True)]
        residual = [a - b for a, b in zip(residual, _per_row(stride, image), strict=True)]
        new = _dot(residual, residual)
        ratio = torch.where(active, new / torch.where(active, size, 1.0), 0.0)
        direction = [a + b for a, b in zip(residual, _per_row(ratio, direction), strict=True)]
        size = torch.where(active, new, size)
    raise RelaxationError(
        f"the linear response did not converge in {MAX_ITERATIONS} iterations: the free state is close to a bifurcation"
    )
