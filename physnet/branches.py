"""Which samples left the branch of equilibria that starts at their free state.

    rho = |step(m, beta/2) - step(s_0, 0)/2| / |dstep(s_0, 0)/dbeta  beta/2|,    m = (s_0 + s_beta)/2

On a smooth branch s_beta - s_0 is nearly proportional to beta, so that half of it is an equilibrium at beta/2, but for
half of what the free phase left undone: rho vanishes with beta. Between two basins the forces have nothing to do with
the nudge, and rho grows as 1/beta. The price is about one sweep, whatever the protocol.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from physnet.equilibrium import Equilibrium
from physnet.errors import RelaxationWarning
from physnet.problem import Problem, State

LIMIT = 1.0
"""The largest rho of a smooth branch: there the change of the forces along the way is as large as the nudge itself. A
cost that adds to the curvature of its unit in proportion to beta gives about beta/2."""
SLIGHT = 16
"""What part of the nudge stands for an infinitesimal one."""


def jumped(
    problem: Problem, free: State, nudged: State, targets: Mapping[str, Tensor], betas: Sequence[float | complex]
) -> Bool[Tensor, " rows"]:
    """Per sample, whether one of its phases has left the branch of its free state: rho > 1.

    The estimate of such a sample is not a gradient. Phases with a complex nudge are not judged.

    Arguments:
        problem: the free problem of a batch.
        free: its equilibrium, [rows, *node].
        nudged: the nudged equilibria, phases stacked along the rows.
        targets: by name.
        betas: the nudge of each phase.
    """
    judged = [index for index, beta in enumerate(betas) if beta != 0 and not isinstance(beta, complex)]
    if not judged:
        return torch.zeros(problem.rows, dtype=torch.bool, device=problem.like.device)
    if len(judged) < len(betas):
        nudged = {node: torch.cat([value.split(problem.rows)[i] for i in judged]) for node, value in nudged.items()}
    rho = nonlinearity(problem, free, nudged, targets, [betas[index].real for index in judged])
    return ~(rho <= LIMIT).all(0)


def nonlinearity(
    problem: Problem, free: State, nudged: State, targets: Mapping[str, Tensor], betas: Sequence[float]
) -> Float[Tensor, "phases rows"]:
    """rho of every phase and sample.

    Arguments:
        problem: the free problem of a batch.
        free: its equilibrium, [rows, *node].
        nudged: the nudged equilibria, phases stacked along the rows.
        targets: by name.
        betas: the nudge of each phase, not 0.
    """
    half = problem.nudged(targets, [beta / 2 for beta in betas])
    slight = problem.nudged(targets, [betas[0] / SLIGHT])  # so little that a unit can't jump by its own update
    middle = {
        node: (value + problem.domain(node).difference(_phases(nudged[node], betas), value) / 2).flatten(0, 1)
        for node, value in free.items()
    }
    undone, there = problem.step(free), half.step(middle)
    here = slight.step(free, [cost.node for cost in problem.model.graph.costs])  # no other node feels it at once
    scale = torch.tensor([SLIGHT / 2 * abs(beta / betas[0]) for beta in betas]).to(problem.like)[:, None]
    nudge = scale * _norm((value - undone[node])[None] for node, value in here.items())
    defect = _norm(torch.sub(_phases(there[node], betas), undone[node], alpha=0.5) for node in free)
    noise = 16 * torch.finfo(nudge.dtype).eps * _norm(problem.domain(n).magnitude(v)[None] for n, v in free.items())
    return (defect - noise).clamp_min(0) / (nudge + noise)


def _phases(values: Tensor, betas: Sequence[float]) -> Tensor:
    return values.unflatten(0, (len(betas), -1))


def _norm(values: Iterable[Tensor]) -> Tensor:
    """The Euclidean norm over all nodes: [phases, rows, *node] -> [phases, rows]."""
    return torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(v.flatten(2), dim=2) for v in values]), dim=0)


def find_jumps(
    free: Equilibrium, nudged: Equilibrium, targets: Mapping[str, Tensor], betas: Sequence[float | complex]
) -> Bool[Tensor, " rows"]:
    """`jumped`, with a warning that says how many samples did."""
    with torch.no_grad():
        found = jumped(free.problem, free.states, nudged.states, targets, betas)
    count = int(found.sum())
    if count:
        warnings.warn(
            f"{count} of {len(found)} samples don't respond in proportion to a nudge of {max(map(abs, betas)):g}: "
            "they have left the branch of their free state or are close to its end, and their estimates are not "
            "gradients; use a smaller beta, or smaller weights",
            RelaxationWarning,
            stacklevel=2,
        )
    return found
