"""Feed-forward layers: what a graph without cycles computes in one pass from its inputs.

    x_i = f_i(a_i),      a_i = sum over edges j -> i of connection(message(x_j), weight) + bias_i

An energy has this form where, once whatever comes back along edges is left out, a unit minimises phi(x) - a x: then
f(a) = argmin phi(x) - a x over its domain. What runs on layers, such as dual propagation, needs to know no more of the
energy than this. Nothing here knows torch or prints code.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import cast

import sympy as sp

from physnet.directed import feed_forward, objection
from physnet.domains import REAL, Domain, Interval
from physnet.elements import Node
from physnet.errors import DeclarationError
from physnet.expressions import clip, derivative, relu, symbol, write
from physnet.plans import A, NodePlan, Plan, Source
from physnet.predictions import Prediction, prediction
from physnet.separation import Quadratic, X


@dataclass(frozen=True)
class Layer:
    """x = f(a),  a = sum over edges of connection(message(x_j)) + bias, of one free node.

    Arguments:
        fixed: what clamped nodes and parameters alone contribute to the drive: worked out once per batch.
        live: what free nodes contribute. No edge has two sources of the same weight.
        bias: an expression in parameters of the node.
        activation: f, an expression in `a` and parameters of the node.
    """

    node: Node
    fixed: tuple[Source, ...]
    live: tuple[Source, ...]
    bias: sp.Expr
    activation: sp.Expr

    @property
    def sources(self) -> tuple[Source, ...]:
        """All that contributes to its drive; the message is their `function`."""
        return (*self.fixed, *self.live)

    @cached_property
    def slope(self) -> sp.Expr:
        """df/da"""
        return derivative(self.activation, A)


@dataclass(frozen=True)
class Layers:
    """The layers of a graph.

    Arguments:
        plan: what they were made of, directed; costs, ties and the names of tensors are found there.
        nodes: the layers of the free nodes, by name, each behind all that it hears of.
    """

    plan: Plan
    nodes: dict[str, Layer]

    def children(self, name: str) -> list[tuple[Layer, Source]]:
        """The layers that hear of a node, clamped or free, each with what it hears."""
        return [
            (layer, source)
            for layer in self.nodes.values()
            for source in layer.sources
            if source.neighbour == name and not source.constant
        ]

    def shapes_activation(self, tensor: str) -> bool:
        """Whether the activation of a layer depends on a tensor."""
        return any(
            symbol(key) in layer.activation.free_symbols and self.plan.tensor_of(name, key) == tensor
            for name, layer in self.nodes.items()
            for key in layer.node.parameters
        )

    def bend(self, name: str) -> float | None:
        """d^2C/dx^2 of a node that passes on its drive, if it is a number: then nudged states have a closed form."""
        node = self.plan.nodes[name]
        second = sp.simplify(derivative(derivative(node.separable, X), X))
        plain = self.nodes[name].activation == A and not node.external
        return float(second) if plain and second.is_number and second >= 0 else None


def prediction_layers(plan: Plan) -> Layers | str:
    """The layers of an energy that is made of predictions alone, or why its errors are no coordinates of its states.

    With x_i = f_i(a_i) + e_i any errors give states, and E = sum of precision/2 e^2.
    """
    for name, node in plan.nodes.items():
        form = prediction(node.node)
        if isinstance(form, str):
            return f"of '{name}', {form}"
        if node.node.domain != REAL:
            return f"'{name}' doesn't live on the whole line, so that its error isn't free"
        if not _positive(plan, node, form.precision):
            written = write(form.precision)
            return f"nothing keeps the precision {written} of '{name}' positive, such as constraint: [0.1, 10]"
    try:
        return layers(plan)
    except DeclarationError as error:
        return error.faults[0].message


def layers(plan: Plan) -> Layers:
    """The layers of a plan.

    Raises:
        DeclarationError: with a cycle, and every node that is no layer.
    """
    directed = feed_forward(plan, _objection)
    return Layers(
        directed,
        {
            name: _of_energy(node) if plan.nodes[name].drive is None else _of_prediction(plan.nodes[name])
            for name, node in directed.nodes.items()
        },
    )


# --------------------------------------------------------------------------- from (x - f(a))^2


def _of_prediction(node: NodePlan) -> Layer:
    """The layer of a node whose state is predicted: the drive is that of its energy."""
    form = prediction(node.node)
    assert isinstance(form, Prediction) and node.drive is not None
    bias = symbol("b") if "b" in node.node.parameters else sp.Integer(0)
    domain = cast(Interval, node.node.domain)
    activation = _confined(form.activation, domain) if domain.edges else form.activation
    return Layer(node.node, node.drive.fixed, node.drive.live, bias, activation)


# --------------------------------------------------------------------------- from phi(x) - a x


def _of_energy(node: NodePlan) -> Layer:
    """The layer of a node whose energy, given its neighbours, is quadratic: f(a) = a/curvature, clipped."""
    assert isinstance(node.free, Quadratic)
    fields = {item for field in node.fields for item in (field.fixed_symbol, field.live_symbol)}
    return Layer(
        node.node,
        _messages(node, fixed=True),
        _messages(node, fixed=False),
        bias=cast(sp.Expr, node.free.drive.subs(dict.fromkeys(fields, 0))),
        activation=_confined(cast(sp.Expr, A / node.free.curvature), cast(Interval, node.node.domain)),
    )


def _messages(node: NodePlan, fixed: bool) -> tuple[Source, ...]:
    """-d(basis)/dx of every field goes into its messages; those over one edge and weight are one message."""
    found: dict[tuple[str, sp.Expr], Source] = {}
    for field in node.fields:
        factor = -derivative(field.basis, X)
        for source in field.fixed if fixed else field.live:
            # what is constant is a row of ones, so that its factor goes to the weight
            part = replace(source, kernel=factor * source.kernel) if source.constant else source
            part = part if source.constant else replace(source, function=factor * source.function)
            held = found.get((part.edge, part.kernel))
            if held is not None:
                part = replace(held, function=held.function + part.function)
            found[part.edge, part.kernel] = part
    return tuple(found.values())


def _confined(x: sp.Expr, domain: Interval) -> sp.Expr:
    """The nearest point of an interval."""
    lo, hi = (cast(sp.Expr, sp.nsimplify(bound, rational=True)) for bound in (domain.lo, domain.hi))
    if domain.bounded:
        return cast(sp.Expr, clip(x, lo, hi))
    if math.isfinite(domain.lo):
        return cast(sp.Expr, lo + relu(x - lo))
    return cast(sp.Expr, hi - relu(hi - x)) if math.isfinite(domain.hi) else x


def _objection(plan: Plan, node: NodePlan) -> str | None:
    """Why a node is no layer: its energy must be phi(x) - a x, with a minimum in closed form."""
    declared = plan.nodes[node.node.name]
    if declared.drive is not None:
        form = prediction(declared.node)
        if declared.fields or declared.mixed or isinstance(form, str):
            return form if isinstance(form, str) else "it has couplings beside its predictions"
        return _objection_to(node.node.domain)
    reason = objection(plan, node)
    if reason is not None:
        return reason
    if all(source.constant for field in node.fields for source in (*field.fixed, *field.live)):
        return "what leads to it passes on no state"
    curved = [write(field.basis) for field in node.fields if X in derivative(field.basis, X).free_symbols]
    if curved:
        return f"its neighbours multiply {_listed(curved)}, and a layer has one drive, which multiplies x alone"
    for field in node.fields:
        for source in (*field.fixed, *field.live):
            if plan.edges[source.edge].selects and not derivative(field.basis, X).is_negative:
                return f"'{source.edge}' gives it the largest of values that it then counts negatively"
    if not isinstance(node.free, Quadratic):
        return "phi(x) - a x has no minimum in closed form, which takes a quadratic phi"
    if not _positive(plan, node, node.free.curvature):
        return f"nothing keeps its curvature {write(node.free.curvature)} positive, such as constraint: [0.1, 10]"
    return _objection_to(node.node.domain)


def _objection_to(domain: Domain) -> str | None:
    return None if isinstance(domain, Interval) else "its units don't share one interval as their domain"


def _positive(plan: Plan, node: NodePlan, curvature: sp.Expr) -> bool:
    """Whether the constraints of its parameters keep a curvature positive."""
    tensors, known = plan.graph.tensors(), dict[sp.Basic, sp.Basic]()
    for key in node.node.parameters:
        constraint = tensors[plan.tensor_of(node.node.name, key)][0].constraint
        if constraint is not None and constraint.lo > 0:
            known[symbol(key)] = sp.Dummy(key, positive=True)
    return bool(cast(sp.Expr, curvature.xreplace(known)).is_positive)


def _listed(items: Iterable[str]) -> str:
    *head, last = dict.fromkeys(items)
    return f"{', '.join(head)} and {last}" if head else last


__all__ = ["A", "Layer", "Layers", "layers", "prediction_layers"]
