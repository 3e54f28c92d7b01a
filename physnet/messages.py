"""What nodes tell each other: the plan of an energy in which fields are made of messages instead of states.

    h_m = sum over edges of connection(c_k, message of u_k(pre))    one way,    of v_k(post)    the other way

A coupling that separates into sum_k c_k u_k(pre) v_k(post) needs of a neighbour no more than functions of its state.
Each is a *channel*, and exact updates are derived anew with channels in place of states. Nothing here knows torch.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import cast

import sympy as sp

from physnet.expressions import write
from physnet.plans import EdgePlan, Field, NodePlan, Plan, Source, conditional
from physnet.separation import PRE, GradientOnly, Solver, X, classify
from physnet.vocabulary import Vocabulary


@dataclass(frozen=True)
class Channel:
    """A function of the state of a node, which the node keeps telling its neighbours.

    Arguments:
        node: who speaks.
        function: of what, an expression in `x`.
    """

    node: str
    function: sp.Expr

    @property
    def title(self) -> str:
        """Who speaks, and of what if that isn't just the state."""
        return self.node if self.function == X else self.decoded

    @cached_property
    def decoded(self) -> str:
        """The name of what neighbours have understood so far; no node can be called so."""
        return f"{self.node}: {write(self.function)}"

    @cached_property
    def raw(self) -> str:
        """The name of what is being said in this step."""
        return f"{self.node}, now: {write(self.function)}"


@dataclass(frozen=True)
class Hearing:
    """A part of a field, and how it is heard.

    Arguments:
        node: who listens.
        field: number of the field among those of the node, in the plan of messages.
        spoken: whose messages it is made of.
    """

    node: str
    field: int
    spoken: tuple[Channel, ...]

    @cached_property
    def function(self) -> str:
        """The name of the function that works it out."""
        return f"heard_{self.node}_{self.field}"


@dataclass(frozen=True)
class MessagePlan:
    """How the nodes of an energy communicate.

    Arguments:
        plan: exact updates, whose live fields are made of decoded messages of free nodes, and whose fixed fields are
            those below.
        channels: what free nodes tell neighbours over linear connections.
        constant: what doesn't change: parameters alone, or inputs that are told exactly.
        given: what comes from inputs, whose messages can be worked out beforehand.
        pooled: what passes a connection that selects the largest of several messages, so that it can't be decoded
            before; it is decoded where it arrives.
    """

    plan: Plan
    channels: tuple[Channel, ...]
    constant: tuple[Hearing, ...]
    given: tuple[Hearing, ...]
    pooled: tuple[Hearing, ...]

    @property
    def functions(self) -> str:
        """The torch source of what is heard, given states and messages by name."""
        names, lines = Vocabulary(self.plan), list[str]()
        for item in (*self.constant, *self.given, *self.pooled):
            sources = self.plan.nodes[item.node].fields[item.field].fixed
            lines += ["", "", f"def {item.function}(p, s):", f"    return {names.sum_of(sources)}"]
        return "\n".join(lines) + "\n"


def objection(plan: Plan) -> str | None:
    """Why nodes can't communicate by messages, if they can't."""
    if plan.predictive:
        return "what a prediction passes on isn't a sum of messages; use an energy of couplings"
    for name, edge in plan.edges.items():
        if edge.separated is None:
            return f"the coupling {edge.edge.term} of '{name}' isn't a sum of products of what pre and what post says"
    for nodes in plan.rotations:
        if any(field.turns for node in nodes for field in plan.nodes[node].fields):
            return f"the oscillators of '{nodes[0]}' turn in a frame of their own, and rest in no other"
    return None


def message_plan(plan: Plan, exact: frozenset[str] = frozenset()) -> MessagePlan:
    """The plan of messages of an energy.

    Arguments:
        plan: that of the energy, without objection.
        exact: the inputs that tell their values themselves; what comes from them stays hoisted.
    """
    return _Writer(plan, exact).written()


class _Writer:
    """Divides the fields of all nodes by how they are heard."""

    def __init__(self, plan: Plan, exact: frozenset[str]) -> None:
        self.plan, self.exact = plan, exact
        self.channels: dict[Channel, None] = {}
        self.heard: dict[str, list[Hearing]] = {"constant": [], "given": [], "pooled": []}

    def written(self) -> MessagePlan:
        nodes = {name: self.node(name, plan) for name, plan in self.plan.nodes.items()}
        edges = {name: _choosing(edge) if edge.selects else edge for name, edge in self.plan.edges.items()}
        plan = replace(self.plan, nodes=nodes, edges=edges)
        return MessagePlan(plan, tuple(self.channels), *map(tuple, self.heard.values()))

    def kind(self, source: Source) -> str:
        """How a source is heard."""
        chosen = self.plan.edges[source.edge].selects
        if source.constant or (source.neighbour in self.exact and not (chosen and source.adjoint)):
            return "constant"
        if chosen:
            return "pooled"
        return "live" if source.neighbour in self.plan.nodes else "given"

    def node(self, name: str, plan: NodePlan) -> NodePlan:
        fields: list[Field] = []
        for field in plan.fields:
            parts: dict[tuple[str, int], list[Source]] = {}
            for number, source in enumerate((*field.fixed, *field.live)):
                kind = self.kind(source)  # behind maxima, each source is decoded for itself
                parts.setdefault((kind, number if kind == "pooled" else 0), []).append(source)
            for (kind, _), sources in parts.items():
                fields.append(self.field(name, len(fields), field.basis, kind, sources))
        return _derived(plan, tuple(fields))

    def field(self, node: str, index: int, basis: sp.Expr, kind: str, sources: list[Source]) -> Field:
        spoken = [Channel(source.neighbour, source.function) for source in sources]
        if kind == "live":
            self.channels.update(dict.fromkeys(spoken))
            return Field(index, basis, (), _renamed(sources, [channel.decoded for channel in spoken]))
        if kind == "constant":
            self.heard[kind].append(Hearing(node, index, ()))
            return Field(index, basis, tuple(sources), ())
        if kind == "given":
            self.heard[kind].append(Hearing(node, index, tuple(dict.fromkeys(spoken))))
            return Field(index, basis, _renamed(sources, [channel.decoded for channel in spoken]), ())
        edge = self.plan.edges[sources[0].edge]
        everybody = (*spoken, _chooser(edge)) if sources[0].adjoint else tuple(spoken)
        self.heard[kind].append(Hearing(node, index, everybody))
        return Field(index, basis, _renamed(sources, [channel.raw for channel in spoken]), ())


def _renamed(sources: Iterable[Source], names: Iterable[str]) -> tuple[Source, ...]:
    """The same sources, fed with messages."""
    return tuple(replace(source, neighbour=name, function=X) for source, name in zip(sources, names, strict=True))


def _chooser(edge: EdgePlan) -> Channel:
    """What decides the winners of an edge that selects."""
    return Channel(edge.edge.pre, cast(sp.Expr, edge.passed.subs(PRE, X)))


def _choosing(edge: EdgePlan) -> EdgePlan:
    """The same edge, whose winners are those of messages."""
    only = replace(edge.only, pre_factor=PRE)
    return EdgePlan(replace(edge.edge, pre=_chooser(edge).raw), (only,))


def _derived(plan: NodePlan, fields: tuple[Field, ...]) -> NodePlan:
    """The same node with other fields, given which its units never interact."""
    bounded, has_edges = plan.node.domain.bounded, plan.node.domain.edges

    def solver(cost: sp.Expr) -> Solver:
        return classify(conditional(plan.node.term, cost, fields), bounded, has_edges)

    nudged = next((GradientOnly(item.refusal) for item in plan.external if item.refusal), None) or solver(plan.cost)
    return replace(plan, fields=fields, free=solver(sp.Integer(0)), nudged=nudged, colouring=None)
