"""Differentiable maps of the state whose fixed points are the equilibria.

    sweep         s_B <- argmin F(s_B, all else fixed), block after block
    synchronous   s_i <- argmin F(s_i, all else fixed), all units from the same old state
    descent       s <- project(s - rate dF/ds)

Autograd sees parameters, clamped states and the old state through a step. What relaxes a network elsewhere is not
involved: a map is for references and tests. Source: arXiv 1905.13633.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from physnet.plans import Part
from physnet.problem import Problem, State
from physnet.separation import GradientOnly, Scalar

Push = Mapping[str, Tensor]
Map = Callable[..., State]
"""`step(problem, state, push=None)`: the next state. A push is an additional force on each unit, in that step alone."""

POWER_ITERATIONS = 50


def has_exact_updates(problem: Problem) -> bool:
    """Whether every unit has an exact update, given the others."""
    return not any(isinstance(problem.solver(node), GradientOnly) for node in problem.model.free)


def sweep(problem: Problem, state: Mapping[str, Tensor], push: Push | None = None) -> State:
    """One sweep of exact updates over the blocks."""
    new = dict(state)
    for block in problem.blocks:
        new |= {part.node: update(problem, part, new, push) for part in block}
    return new


def synchronous(problem: Problem, state: Mapping[str, Tensor], push: Push | None = None) -> State:
    """The prototypical map: exact updates of all units at once."""
    new = dict(state)
    for node in state:
        for part in problem.model.plan.nodes[node].parts:
            moved, units = update(problem, part, state, push), problem.units(part)
            new[node] = moved if units is None else torch.where(units, moved, new[node])
    return new


def descent(rate: float) -> Map:
    """The energy-based map: a projected Euler step of ds/dt = -dF/ds over the time `rate`."""

    def step(problem: Problem, state: Mapping[str, Tensor], push: Push | None = None) -> State:
        force = problem.force(state)
        if push is not None:
            force = {node: value + push[node] for node, value in force.items()}
        return problem.project({node: value + rate * force[node] for node, value in state.items()})

    return step


def safe_rate(problem: Problem, state: Mapping[str, Tensor]) -> float:
    """A rate at which `descent` converges near an equilibrium: 1 / the largest curvature of any row.

    The curvature is found by power iteration with products of the Hessian, and rounded up, since that comes from below.
    """
    with torch.enable_grad():
        variables = [value.detach().requires_grad_() for value in state.values()]
        force = problem.force(dict(zip(state, variables, strict=True)))
        slopes = [force[node] for node in state]
    vector = [torch.ones_like(value) for value in variables]
    largest = 0.0
    for _ in range(POWER_ITERATIONS):
        norm = torch.stack([v.flatten(1).square().sum(1) for v in vector]).sum(0).sqrt()
        vector = [v / norm.clamp_min(1e-30).view(-1, *(1,) * (v.dim() - 1)) for v in vector]
        product = torch.autograd.grad(slopes, variables, vector, retain_graph=True, materialize_grads=True)
        vector = [-value for value in product]
        largest = float(torch.stack([v.flatten(1).square().sum(1) for v in vector]).sum(0).sqrt().max())
    return 1 / (1.2 * largest) if largest > 0 else 1.0


def fitting_map(problem: Problem, state: Mapping[str, Tensor]) -> Map:
    """A sweep where every unit has an exact update, else descent at a safe rate."""
    return sweep if has_exact_updates(problem) else descent(safe_rate(problem, state))


def unheld(problem: Problem, node: str, x: Tensor, force: Tensor) -> Tensor:
    """1 where a unit follows a small change of its force, 0 where a bound holds it."""
    lo, hi = problem.domain(node).bounds(x)
    # by where the force leads and not by where the unit is: integrators may end a rounding error away from a bound
    held = ((x + force <= lo) & (force < 0)) | ((x + force >= hi) & (force > 0))
    return (~held).to(x.dtype)


def update(problem: Problem, part: Part, state: Mapping[str, Tensor], push: Push | None = None) -> Tensor:
    """The exact update of some units of a node; its others stay.

    Closed forms are differentiated as they are. A minimum that Newton's method found moves by  -d(dF/dx) / (d2F/dx2)
    with whatever it depends on, so it gets this derivative from one more Newton step; so do pushed units.
    """
    node = part.node
    if push is None and not isinstance(problem.solver(node), Scalar):
        return problem.minimise((part,), state)[node]
    with torch.no_grad():
        settled = problem.minimise((part,), state)[node]
    if not torch.is_grad_enabled() and push is None:
        return settled
    chosen = problem.units(part)
    units = torch.ones_like(settled) if chosen is None else chosen.to(settled).expand_as(settled)
    with torch.enable_grad():
        x = settled.detach().requires_grad_()
        there = torch.where(units > 0, x, state[node])  # the other units of the node keep what they depend on
        force = problem.force({**state, node: there}, [node])[node]
        # of the units of one part no two interact, so that each slope is that of a force in its own unit
        (slope,) = torch.autograd.grad((units * force).sum(), x, retain_graph=True, materialize_grads=True)
    response = units * unheld(problem, node, settled, force.detach()) / torch.where(slope == 0, 1.0, -slope)
    if push is not None:
        force = force + push[node]
    return torch.where(units > 0, settled, state[node]) + response * force
