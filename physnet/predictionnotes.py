"""What `explain` says about predictions: the drive, what comes back through it, and the local learning rule.

    a_i = b_i + sum_j w_ij message(x_j)
    -dF/dx_j = -dT/dx_j - beta dC/dx_j + back_j,      back_j = -message'(x_j) sum_i w_ij dT_i/da_i
    dF/dw_ij = dT_i/da_i message(x_j)

Source: arXiv 2606.03584.
"""

from __future__ import annotations

from typing import Any, cast

import sympy as sp

from physnet.connections import Identity
from physnet.elements import Edge, Node
from physnet.explanation import Case, Sum, Update
from physnet.expressions import derivative, symbol
from physnet.external import BETA, at_current_state
from physnet.graph import EnergyGraph
from physnet.imagenotes import correlate, members, through
from physnet.naming import Names, influence, pair, renamed, tidy, unit, whole
from physnet.plans import A, NodePlan
from physnet.predictions import Prediction, prediction
from physnet.separation import POST, PRE, X


def drive(graph: EnergyGraph, plan: NodePlan) -> dict[sp.Symbol, tuple[Sum, ...]]:
    """What the drive of a node stands for; nothing, if it has none."""
    if plan.drive is None:
        return {}
    bias = [Sum("", cast(sp.Expr, symbol("b")))] if "b" in plan.node.parameters else []
    sources = (*plan.drive.fixed, *plan.drive.live)
    terms = (influence(graph.edge(s.edge), False, s.kernel, s.function, s.neighbour) for s in sources)
    return {A: (*bias, *terms)}


def onward(graph: EnergyGraph, node: Node) -> tuple[tuple[Sum, ...], tuple[Sum, ...]]:
    """The energies of what a node predicts, and the force on one of its units that comes back through them."""
    edges = [edge for edge in graph.edges() if edge.message is not None and edge.pre == node.name]
    return tuple(_energy(graph, edge) for edge in edges), tuple(_back(graph, edge) for edge in edges)


def _energy(graph: EnergyGraph, edge: Edge) -> Sum:
    index = "i" if isinstance(edge.connection, Identity) else "j"
    post = graph.node(edge.post)
    return Sum("" if index == "i" else index, renamed(post.term, _unit(post, index)))


def _back(graph: EnergyGraph, edge: Edge) -> Sum:
    """-message'(x) sum_j w[j,i] dT_j/da_j"""
    post, slope = graph.node(edge.post), derivative(cast(sp.Expr, edge.message), PRE).subs(PRE, X)
    signal = -derivative(post.term, A)
    if members(edge.connection):
        kernel = renamed(symbol("w"), whole(edge))
        return Sum("", slope * through(edge.connection, True, kernel, tidy(renamed(signal, _unit(post)))))
    index = "i" if isinstance(edge.connection, Identity) else "j"
    body = renamed(symbol("w"), pair(edge, adjoint=True)) * tidy(renamed(signal, _unit(post, index)))
    return Sum("" if index == "i" else index, cast(sp.Expr, slope * body))


def updates(plan: NodePlan, table: Names, back: sp.Expr) -> dict[str, Update]:
    """What a round of the integrator `errors` makes of a unit: f(a) + e, where e is what comes back."""
    form = prediction(plan.node)
    assert isinstance(form, Prediction)
    slope = renamed(at_current_state(derivative(BETA * plan.cost, X)), table)
    nudged = cast(sp.Expr, form.activation + tidy(back - slope) / form.precision)
    return {
        "free": Update("forward pass", (Case(form.activation),)),
        "nudged": Update("rounds backwards and forwards", (Case(nudged),)),
    }


def bias_slope(plan: NodePlan, key: str) -> sp.Expr:
    """dF/db by way of the drive; 0 for other parameters."""
    return derivative(plan.node.term, A) if plan.drive is not None and key == "b" else sp.Integer(0)


def weight_rule(graph: EnergyGraph, edge: Edge, shared: str) -> tuple[sp.Expr, Sum]:
    """dF/dw = dT/da message(pre), in the symbols of the declaration and by the states at both ends."""
    post, message = graph.node(edge.post), cast(sp.Expr, edge.message)
    signal = derivative(post.term, A)
    slope = cast(sp.Expr, signal.subs(X, POST) * message)
    if members(edge.connection):
        here = tidy(renamed(signal, _unit(post)))
        return slope, Sum(shared, correlate(edge.connection, message.subs(PRE, sp.Symbol(edge.pre)), here))
    index = "i" if isinstance(edge.connection, Identity) else "j"
    there = renamed(message, {PRE: sp.Symbol(f"{edge.pre}[{index}]")})
    return slope, Sum(shared, cast(sp.Expr, tidy(renamed(signal, _unit(post, "i"))) * there))


def _unit(node: Node, index: str = "") -> Names:
    """The state, the drive and the parameters of unit i or j of a node, or of the whole node."""

    def at(name: sp.Symbol) -> sp.Symbol:
        plain = name.name.removesuffix("[i]").removesuffix("[c]")
        per_unit = name.name.endswith("[i]") and index
        return sp.Symbol(f"{plain}[{index}]" if per_unit else plain if not index else name.name)

    names: dict[Any, Any] = {**unit(node), A: sp.Symbol(f"{node.name}.a[i]")}
    return {key: at(value) for key, value in names.items()}


__all__ = ["bias_slope", "drive", "onward", "updates", "weight_rule"]
