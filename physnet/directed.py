"""The directed plan of an energy: what comes back along an edge left out, nodes in topological order.

It is what a feed-forward net computes. Nothing imports torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import cast

import networkx as nx
import sympy as sp

from physnet.errors import DeclarationError, Fault
from physnet.expressions import symbol
from physnet.plans import A, Field, NodePlan, Part, Plan, conditional
from physnet.separation import GradientOnly, Linear, classify

Objection = Callable[[Plan, NodePlan], str | None]
"""Why the update of a node can't be its activation, or `None`."""


def feed_forward(plan: Plan, objection: Objection) -> Plan:
    """The plan with what flows against an edge left out, nodes in topological order.

    Raises:
        DeclarationError: with a cycle, and every node that has no such update.
    """
    faults: list[Fault] = []
    try:
        order = topological_order(plan)
    except DeclarationError as error:
        faults, order = list(error.faults), list(plan.nodes)
    nodes = {}
    for name in order:
        node = _forward_only(plan, plan.nodes[name])
        nodes[name] = node
        reason = objection(plan, node)
        if reason is not None:
            fix = "change the network, or train it by a protocol such as centered"
            faults.append(Fault(f"'{name}' has no feed-forward activation: {reason}", fix, ("nodes", name)))
    if faults:
        raise DeclarationError(faults)
    blocks = tuple((Part(name),) for name in nodes)
    return replace(plan, nodes=nodes, blocks=blocks, nudged_blocks=blocks)


def topological_order(plan: Plan) -> list[str]:
    """The free nodes, each behind all from which an edge leads to it.

    Raises:
        DeclarationError: if edges run in a cycle.
    """
    network = nx.DiGraph(plan.graph.network)
    declared = list(network)
    try:
        order = list(nx.lexicographical_topological_sort(network, key=declared.index))
    except nx.NetworkXUnfeasible:
        cycle = [pre for pre, _ in nx.find_cycle(network)]
        around = " -> ".join([*cycle, cycle[0]])
        fix = "turn an edge around; energies with cycles learn by a protocol such as centered"
        raise DeclarationError(Fault(f"a feed-forward net has no cycle, found {around}", fix, ("edges",))) from None
    return [name for name in order if name in plan.nodes]


def _forward_only(plan: Plan, node: NodePlan) -> NodePlan:
    node = _with_drive_as_field(node)
    fields = tuple(
        Field(
            field.index,
            field.basis,
            fixed=tuple(source for source in field.fixed if not source.adjoint),
            live=tuple(source for source in field.live if not source.adjoint),
        )
        for field in node.fields
    )
    fields = tuple(field for field in fields if field.fixed or field.live)
    mixed = tuple(name for name in node.mixed if plan.edges[name].edge.post == node.node.name)
    domain = node.node.domain
    solver = classify(conditional(node.node.term, sp.Integer(0), fields), domain.bounded, domain.edges)
    return replace(node, fields=fields, free=solver, nudged=solver, mixed=mixed, cost=sp.Integer(0), colouring=None)


def _with_drive_as_field(node: NodePlan) -> NodePlan:
    """The node with the field that its drive is made of in the place of the drive."""
    if node.drive is None:
        return node
    bias = symbol("b") if "b" in node.node.parameters else sp.Integer(0)
    term = cast(sp.Expr, node.node.term.subs(A, node.drive.value + bias))
    return replace(node, node=replace(node.node, term=term), fields=node.all_fields, drive=None)


def objection(plan: Plan, node: NodePlan) -> str | None:
    """Why the exact update of a node isn't an activation with a gradient, or `None` if it is one."""
    if node.mixed:
        return f"the coupling of '{node.mixed[0]}' doesn't separate"
    if not any(edge.post == node.node.name for edge in plan.graph.edges()):
        return "no edge leads to it"
    if isinstance(node.free, Linear):
        return "it is a step, which has no gradient"
    return node.free.reason if isinstance(node.free, GradientOnly) else None


__all__ = ["feed_forward", "objection", "topological_order"]
