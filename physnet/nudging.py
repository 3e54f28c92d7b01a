"""From a free equilibrium to the phases of a protocol, in the coordinates that fit the energy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import sympy as sp
from torch import Tensor

from physnet.continued import Continued
from physnet.displaced import Displaced
from physnet.errors import RelaxationError
from physnet.expressions import clip, log_cosh, relu, softplus, step
from physnet.layout import repeat
from physnet.nudged import Nudged
from physnet.predicted import InErrors, InStates
from physnet.problem import Problem, State

ROUGH = (sp.Abs, sp.erf, sp.sign, sp.Max, sp.Min, relu, step, clip, softplus, log_cosh)
"""Functions that are not holomorphic, or that torch has no complex form of."""


def nudge(
    free: Problem,
    state: State,
    targets: Mapping[str, Tensor],
    betas: Sequence[complex],
    clamps: bool = False,
    coordinates: str = "states",
) -> Nudged:
    """The phases of a protocol around a free equilibrium.

    Arguments:
        free: the free problem of a batch.
        state: its equilibrium.
        targets: by name.
        betas: one nudge per phase; where `clamps`, the fraction of the way to the target at which outputs are held.
        coordinates: where states are predicted: their `errors`, or `states`, which are then worked out in float64, or
            `plain states` in the dtype of the model; for couplings also `continued`.
    """
    problem = free.nudged(targets, betas)
    if problem.beta is not None and problem.beta.is_complex():
        refuse_complex(problem)
    held = None
    if clamps:
        problem, held = hold(problem, free, state, len(betas))
    if coordinates == "continued":
        return Continued(problem, free, state, held)
    if not free.model.plan.predictive:
        return Displaced(problem, free, state, held)
    if coordinates == "errors" and not held:
        return InErrors(problem, free, state)
    return InStates(problem, free, state, held, wide=coordinates != "plain states")


def hold(problem: Problem, free: Problem, state: State, phases: int) -> tuple[Problem, State]:
    """The problem of outputs that are held, and their displacements."""
    if free.model.plan.external:
        raise RelaxationError("readouts are no part of the network and can't be clamped: use the protocol centered")
    held = {}
    for target, wanted in free.model.targets.items():
        here = repeat(state[wanted.node], phases)
        way = free.domain(wanted.node).difference(problem.targets[target], here)
        held[wanted.node] = problem.beta_for(wanted.node) * way
    still = Problem(
        problem.model, problem.clamped, problem.rows, problem.fixed, problem.targets, parameters=problem.parameters
    )
    return still, held


def refuse_complex(problem: Problem) -> None:
    """Raise `RelaxationError` for a problem whose energy can't be continued to complex states."""
    plan = problem.model.plan
    fix = "use the protocol centered, or an energy that is smooth everywhere on an unbounded domain"
    for name in problem.model.free:
        if problem.domain(name).edges:
            raise RelaxationError(f"a complex nudge needs holomorphic energies, but '{name}' lives in a box: {fix}")
    if plan.external:
        raise RelaxationError(f"a complex nudge needs a cost that is a sum over units, without a readout: {fix}")
    for name, edge in plan.edges.items():
        if edge.selects:
            raise RelaxationError(f"a complex nudge needs holomorphic energies, but edge '{name}' takes maxima: {fix}")
    terms = {f"node '{name}'": node.node.term + node.cost for name, node in plan.nodes.items()}
    if plan.predictive:
        raise RelaxationError(f"a complex nudge is not for energies with predictions: {fix}")
    terms |= {f"edge '{name}'": edge.edge.term for name, edge in plan.edges.items()}
    for where, term in terms.items():
        rough = sorted(kind.__name__ for kind in ROUGH if term.has(kind))
        if rough:
            raise RelaxationError(f"a complex nudge needs holomorphic energies, but {where} uses {rough[0]}: {fix}")
