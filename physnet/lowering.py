"""From a graph to what has to be computed: fields, exact updates, blocks and contrasts.

Nothing here knows torch or prints code.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import combinations, product
from typing import cast

import networkx as nx
import numpy as np
import sympy as sp

from physnet.costs import Cost
from physnet.elements import Edge, Node
from physnet.errors import DeclarationError, Fault, located
from physnet.expressions import symbol
from physnet.external import External, Y, target_symbol
from physnet.graph import EnergyGraph
from physnet.periodic import is_tilted, rotations
from physnet.plans import Block, EdgePlan, Field, NodePlan, Part, Plan, Source, conditional, roles_of
from physnet.separation import POST, PRE, GradientOnly, Separated, Solver, X, classify, separate
from physnet.topologies import MAX_COLOURS, Colouring, Within, colour


def lower(graph: EnergyGraph) -> Plan:
    """Validate a graph and work out everything that depends on the declaration alone.

    Raises:
        DeclarationError: with all faults of the graph.
    """
    graph.validate()
    edges = {edge.name: EdgePlan(edge, _separate(edge)) for edge in graph.edges()}
    order = _signal_order(graph, {node.name for node in graph.nodes() if not node.free})
    rotating = rotations(graph)
    turning = {name for part in rotating if any(is_tilted(graph.node(item)) for item in part) for name in part}
    nodes = {name: _plan_node(graph, graph.node(name), edges, name in turning) for name in order}
    blocks = _blocks(graph, [part for node in nodes.values() for part in node.parts])
    backward = _signal_order(graph, {cost.node for cost in graph.costs})
    nudged_blocks = tuple(sorted(blocks, key=lambda block: min(backward.index(part.node) for part in block)))
    return Plan(graph, nodes, edges, blocks, nudged_blocks, graph.ties(), tuple(graph.penalties()), rotating)


def _separate(edge: Edge) -> tuple[Separated, ...] | None:
    path = ("edges", f"{edge.pre} -> {edge.post}")
    if edge.predicts:
        return ()
    for summand in sp.Add.make_args(edge.term):
        if edge.term != 0 and not summand.has(PRE, POST):
            message = f"the summand {summand} of the coupling depends on no state, so that it has no effect"
            raise DeclarationError(Fault(message, f"if it is a regulariser, write costs: - {{term: {summand}}}", path))
    separated = located(path, lambda: separate(edge.term))
    if edge.connection.selects and edge.term != 0:
        _refuse_selection(separated, path)
    return separated


def _refuse_selection(separated: tuple[Separated, ...] | None, path: tuple[str, ...]) -> None:
    """Through max-pooling only  f(pre) * post  makes sense: the largest of sums isn't the sum of the largest."""
    if (
        separated is None
        or len(separated) != 1
        or separated[0].post_factor != POST
        or separated[0].pre_factor.is_number
    ):
        message = "through max_pool2d a coupling must be one product, of post and a function of pre"
        raise DeclarationError(Fault(message, "such as -w*pre*post; or use avg_pool2d", path))


def _plan_node(graph: EnergyGraph, node: Node, edges: dict[str, EdgePlan], turns: bool) -> NodePlan:
    fields = _fields(graph, node, edges)
    if turns:
        fields = (*fields, Field(len(fields), X, (), (), turns=True))
    mixed = tuple(
        name for name, plan in edges.items() if plan.separated is None and node.name in (plan.edge.pre, plan.edge.post)
    )
    external = tuple(External(i, c) for i, c in enumerate(graph.costs) if c.node == node.name and c.external)
    separable = _node_cost(graph.costs, node.name)
    cost = cast(sp.Expr, sp.Add(separable, *(item.majorant for item in external)))
    bounded, has_edges = node.domain.bounded, node.domain.edges
    reason = _predicts(graph, node)
    if reason:
        solver: Solver = GradientOnly(reason)
        drive = _drive(graph, node, len(fields)) if node.driven else None
        return NodePlan(node, cost, fields, solver, solver, mixed, separable, external, drive)
    if mixed:
        solver = GradientOnly(f"the coupling of '{mixed[0]}' doesn't separate")
        return NodePlan(node, cost, fields, solver, solver, mixed, separable, external)
    colouring = _colouring(graph, node)
    if isinstance(colouring, GradientOnly):
        return NodePlan(node, cost, fields, colouring, colouring, mixed, separable, external)
    free = classify(conditional(node.term, sp.Integer(0), fields), bounded, has_edges)
    nudged = free if cost == 0 else classify(conditional(node.term, cost, fields), bounded, has_edges)
    for reason in filter(None, (item.refusal for item in external)):
        nudged = GradientOnly(reason)
    return NodePlan(node, cost, fields, free, nudged, mixed, separable, external, colouring=colouring)


def _predicts(graph: EnergyGraph, node: Node) -> str:
    """Why the units of a node don't decouple, if predictions are the reason."""
    predicted = [edge.post for edge in graph.edges() if edge.predicts and edge.pre == node.name]
    if predicted:
        return f"it predicts '{predicted[0]}', through whose energy its units interact"
    return "its energy is written in its drive" if node.driven else ""


def _drive(graph: EnergyGraph, node: Node, index: int) -> Field:
    """The sum over the prediction edges that lead to a node."""
    sources = [
        Source(edge.name, False, symbol("w"), edge.pre, cast(sp.Expr, edge.message.subs(PRE, X)))
        for edge in graph.edges()
        if edge.message is not None and edge.post == node.name
    ]
    live = [source for source in sources if graph.node(source.neighbour).free and not source.constant]
    fixed = [source for source in sources if source not in live]
    return Field(index, sp.Integer(0), tuple(fixed), tuple(live))


def _colouring(graph: EnergyGraph, node: Node) -> Colouring | GradientOnly | None:
    """How the units of a node can be taken in turns, if they interact."""
    within = [edge.connection for edge in graph.edges() if edge.pre == edge.post == node.name]
    patterns = [item.pattern_of(node.shape) for item in within if isinstance(item, Within)]
    if not patterns:
        return None
    sparse = [pattern for pattern in patterns if pattern is not None]
    units = math.prod(node.shape)
    if len(sparse) < len(patterns):
        one_by_one = Colouring(np.arange(units).reshape(node.shape))
        return GradientOnly(f"all its {units} units interact") if units > MAX_COLOURS else one_by_one
    colouring = colour(node.shape, sparse)
    if colouring.count > MAX_COLOURS:
        return GradientOnly(f"its units interact so densely that they take {colouring.count} colours")
    return colouring


def _fields(graph: EnergyGraph, node: Node, edges: dict[str, EdgePlan]) -> tuple[Field, ...]:
    """Collect the couplings of a node by the function of its own state that they multiply."""
    collected: dict[sp.Expr, list[Source]] = {}
    for name, plan in edges.items():
        for term, adjoint in product(plan.separated or (), roles_of(plan.edge, node.name)):
            own, other = (term.pre_factor, term.post_factor) if adjoint else (term.post_factor, term.pre_factor)
            basis = cast(sp.Expr, term.number * own.subs({PRE: X, POST: X}))
            if X not in basis.free_symbols:
                continue
            neighbour = plan.edge.post if adjoint else plan.edge.pre
            function = cast(sp.Expr, other.subs({PRE: X, POST: X}))
            collected.setdefault(basis, []).append(Source(name, adjoint, term.kernel, neighbour, function))

    def moves(source: Source) -> bool:
        """Whether it changes during a relaxation: with its neighbour, or with winners that this node decides."""
        if source.constant:
            return False
        return graph.node(source.neighbour).free or (source.adjoint and edges[source.edge].selects)

    return tuple(
        Field(
            index,
            basis,
            fixed=tuple(s for s in sources if not moves(s)),
            live=tuple(s for s in sources if moves(s)),
        )
        for index, (basis, sources) in enumerate(collected.items())
    )


def _node_cost(costs: Iterable[Cost], node: str) -> sp.Expr:
    shares = [
        cost.factor * cost.term.subs(Y, target_symbol(cost.target))
        for cost in costs
        if cost.node == node and not cost.external
    ]
    return cast(sp.Expr, sp.Add(*shares))


def _signal_order(graph: EnergyGraph, origins: set[str]) -> list[str]:
    """Free nodes by their distance from some nodes (then as declared): the order in which a signal reaches them."""
    undirected = nx.Graph(graph.network.to_undirected(as_view=True))
    distance = nx.multi_source_dijkstra_path_length(undirected, origins) if origins else {}
    free = [node.name for node in graph.nodes() if node.free]
    return sorted(free, key=lambda name: (distance.get(name, 0), free.index(name)))


def _blocks(graph: EnergyGraph, order: list[Part]) -> tuple[Block, ...]:
    """Colour the graph of free nodes: the parts of a block don't interact, so they are updated at once and exactly."""
    joined = {frozenset((edge.pre, edge.post)) for edge in graph.edges()}
    interaction = nx.Graph()
    interaction.add_nodes_from(order)
    interaction.add_edges_from((a, b) for a, b in combinations(order, 2) if frozenset((a.node, b.node)) in joined)
    colourings = [
        nx.greedy_color(interaction, strategy=strategy)  # pyright: ignore[reportArgumentType]
        for strategy in (lambda graph, colours: order, "DSATUR")
    ]
    best = min(colourings, key=lambda colouring: len(set(colouring.values())))
    groups: dict[int, list[Part]] = {}
    for part in order:
        groups.setdefault(best[part], []).append(part)
    return tuple(tuple(group) for group in groups.values())
