"""Frequencies that spread the outputs of coupled oscillators apart from the start.

    H v_k = lambda_k v_k,        p = sum_k (v_k . d)/lambda_k v_k

H is the curvature of the energy where all states and inputs are 0: of coupled oscillators, the Laplacian of their
couplings. Phases answer small frequencies omega by H^-1 omega. So p, in which modes count by how far they separate the
outputs and by how soft they are, is the direction in which frequencies separate outputs most. Source: arXiv 2604.10272.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from physnet.errors import DeclarationError

if TYPE_CHECKING:
    from physnet.model import EnergyModel

MOST = 4096
"""Units of a network whose modes are worked out: they are those of a dense matrix."""


def separating(model: EnergyModel) -> dict[str, Tensor]:
    """The direction p by free node, its largest entry being 1; in float64.

    Arguments:
        model: whose couplings have been drawn.

    Raises:
        DeclarationError: for networks without an output, or with too many units.
    """
    shapes = {node.name: node.shape for node in model.graph.nodes() if node.free}
    sizes = [math.prod(shape) for shape in shapes.values()]
    if sum(sizes) > MOST:
        message = f"spectral is for at most {MOST} units, and the network has {sum(sizes)}"
        raise DeclarationError(message, "draw parameters otherwise, such as normal(0, 0.1)")
    curvature = _curvature(model, shapes, sizes)
    values, modes = torch.linalg.eigh(curvature)
    soft = values.abs() > 1e-9 * values.abs().max()  # along the others, such as a common rotation, nothing answers
    weights = torch.where(soft, (modes.T @ _outputs(model, shapes)) / torch.where(soft, values, 1.0), 0.0)
    direction = modes @ weights
    direction = direction / direction.abs().max().clamp_min(torch.finfo(torch.float64).tiny)
    return {name: part.view(shapes[name]) for name, part in zip(shapes, direction.split(sizes), strict=True)}


def _outputs(model: EnergyModel, shapes: dict[str, tuple[int, ...]]) -> Tensor:
    """d: evenly spaced from 1 to -1 over the units of every node that has a target, 0 elsewhere."""
    aimed = {target.node for target in model.targets.values()}
    if not aimed:
        raise DeclarationError("spectral separates outputs, and no node has a cost", "give the output node a cost")
    parts = [
        torch.linspace(1, -1, math.prod(shape), dtype=torch.float64) if name in aimed else torch.zeros(math.prod(shape))
        for name, shape in shapes.items()
    ]
    return torch.cat([part.double() for part in parts])


def _curvature(model: EnergyModel, shapes: dict[str, tuple[int, ...]], sizes: list[int]) -> Tensor:
    tensors = {name: value.detach().double() for name, value in model.tensors.items()}
    clamped = {name: torch.zeros(1, *node.shape, dtype=torch.float64) for name, node in model.inputs.items()}

    def energy(x: Tensor) -> Tensor:
        pieces = zip(shapes.items(), x.split(sizes), strict=True)
        states = {name: piece.view(1, *shape) for (name, shape), piece in pieces}
        return model.functions["energy"](tensors, {**clamped, **states}).sum()

    x = torch.zeros(sum(sizes), dtype=torch.float64)
    with torch.enable_grad():
        found = torch.autograd.functional.hessian(energy, x)
    assert isinstance(found, Tensor)
    return (found + found.T) / 2
