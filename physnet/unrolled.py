"""Backpropagation through relaxation: what equilibrium propagation is compared with.

    s_{t+1} = M(s_t, theta),    s* = M(s*, theta),    J = dM/ds(s*)

    recurrent backprop    lambda = dC/ds + J^T lambda,    dL/dtheta = dC/dtheta + lambda^T dM/dtheta
    truncated backprop    dL/dtheta = dC/dtheta + sum_{k<K} (dC/ds) J^k dM/dtheta

M is a sweep of exact updates, or a projected gradient step where there are none. The second is the first with K terms
of the series for lambda, and keeps K steps in memory. Source: Almeida 1987, Pineda 1987; arXiv 1803.06396.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from physnet.errors import RelaxationError
from physnet.maps import fitting_map
from physnet.problem import Problem, State

MAX_ITERATIONS = 20_000


@dataclass(frozen=True)
class Leaves:
    """A free problem as a function of parameters and clamped states that nothing else shares."""

    parameters: State
    clamped: State
    problem: Problem

    @property
    def names(self) -> list[str]:
        return [*self.parameters, *self.clamped]

    @property
    def tensors(self) -> list[Tensor]:
        return [*self.parameters.values(), *self.clamped.values()]


def leaves(problem: Problem) -> Leaves:
    """The free problem again, with leaves of a graph in place of its parameters and clamped states.

    Fixed fields are worked out inside the graph, so that gradients reach what they are made of.
    """
    parameters = {name: value.detach().requires_grad_() for name, value in problem.parameters.items()}
    clamped = {name: value.detach().requires_grad_() for name, value in problem.clamped.items()}
    with torch.enable_grad():
        return Leaves(parameters, clamped, Problem(problem.model, clamped, problem.rows, parameters=parameters))


def truncated_backprop(
    problem: Problem, state: Mapping[str, Tensor], targets: Mapping[str, Tensor], steps: int = 40
) -> dict[str, Tensor]:
    """Backpropagation through the last `steps` steps of the map, which start from the free equilibrium.

    Arguments:
        problem: the free problem of a batch.
        state: its equilibrium.
        targets: by name.
        steps: K; memory grows in proportion to it, the error falls geometrically.
    """
    copy = leaves(problem)
    step = fitting_map(copy.problem, state)
    with torch.enable_grad():
        current = {name: value.detach().requires_grad_() for name, value in state.items()}
        for _ in range(steps):
            current = step(copy.problem, current)
        cost = _cost(copy, current, problem, targets)
    found = torch.autograd.grad(cost, copy.tensors, allow_unused=True, materialize_grads=True)
    return {name: value / problem.rows for name, value in zip(copy.names, found, strict=True)}


def recurrent_backprop(
    problem: Problem, state: Mapping[str, Tensor], targets: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The converged adjoint of the map at the free equilibrium (Almeida-Pineda), in the memory of one step.

    Arguments:
        problem: the free problem of a batch.
        state: its equilibrium, well converged.
        targets: by name.

    Raises:
        RelaxationError: if the adjoint doesn't converge, because the free state is not a stable equilibrium.
    """
    copy = leaves(problem)
    step = fitting_map(copy.problem, state)
    with torch.enable_grad():
        old = {name: value.detach().requires_grad_() for name, value in state.items()}
        new = step(copy.problem, old)
        cost = _cost(copy, old, problem, targets)
    downhill = torch.autograd.grad(cost, list(old.values()), retain_graph=True, materialize_grads=True)
    direct = torch.autograd.grad(cost, copy.tensors, allow_unused=True, materialize_grads=True)
    images, sources = list(new.values()), [old[name] for name in old]
    tolerance = 1e-13 if problem.like.dtype == torch.float64 else 1e-6
    adjoint, change, size = list(downhill), torch.inf, 0.0
    for _ in range(MAX_ITERATIONS):
        pulled = torch.autograd.grad(images, sources, adjoint, retain_graph=True, materialize_grads=True)
        following = [a + b for a, b in zip(downhill, pulled, strict=True)]
        change, size = (
            sum(float(value.square().sum()) for value in values)
            for values in ([a - b for a, b in zip(following, adjoint, strict=True)], following)
        )
        adjoint = following
        if change <= tolerance**2 * size or not size < torch.inf:
            break
    if not change <= tolerance**2 * size < torch.inf:
        raise RelaxationError(
            "the adjoint of the relaxation did not converge: the free state is not a stable equilibrium, or close to a "
            "bifurcation; relax to a lower tolerance, or from another initial state"
        )
    found = torch.autograd.grad(images, copy.tensors, adjoint, allow_unused=True, materialize_grads=True)
    return {name: (a + b) / problem.rows for name, a, b in zip(copy.names, found, direct, strict=True)}


def _cost(copy: Leaves, state: State, problem: Problem, targets: Mapping[str, Tensor]) -> Tensor:
    """The summed cost of a state, as a function of the leaves."""
    wanted = problem.model.as_targets(targets, problem.rows)
    return problem.model.functions["cost"](copy.parameters, {**copy.clamped, **state}, wanted).sum()
