"""The frame that turns with oscillators that nothing outside holds.

frequency = sum of drives / sum of tau
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from physnet.plans import Field, Plan

if TYPE_CHECKING:
    from physnet.problem import Problem


def turning_fields(plan: Plan, nodes: tuple[str, ...]) -> Iterator[tuple[str, Field]]:
    """The fields that take the drive of the frame away, with their nodes."""
    return ((node, field) for node in nodes for field in plan.nodes[node].fields if field.turns)


def frame_frequency(problem: Problem, nodes: tuple[str, ...], fixed: Mapping[str, Mapping[int, Tensor]]) -> Tensor:
    """The frequency at which coupled oscillators turn together, a scalar.

    Couplings exert no force on all of them together, so that this is the force at any state.

    Arguments:
        problem: gives forces.
        nodes: those whose energy a common rotation leaves as it is.
        fixed: their fixed fields, without those of the frame.
    """
    model, like = problem.model, problem.like
    still = {node: {**fixed[node]} for node in nodes}
    for node, field in turning_fields(model.plan, nodes):
        still[node][field.index] = like.new_zeros(())
    drive, inertia = like.new_zeros((), dtype=torch.float64), 0.0
    state = {**problem.clamped, **problem.zero()}
    for node in nodes:
        force = model.functions[f"force_{node}__free"](problem.parameters, state, still, {}, 0.0)
        drive = drive + force.expand_as(state[node])[0].double().sum()
        inertia += model.plan.nodes[node].node.tau * state[node][0].numel()
    return (drive / inertia).to(like.dtype)
