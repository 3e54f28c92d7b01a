"""From a graph to what has to be computed: fields, exact updates, blocks and contrasts.

Nothing here knows torch or prints code. The energy of the units of a node, given everything else, is

    E(x) = phi(x) + beta C(x, y) + sum_m basis_m(x) h_m,        h_m = fixed_m + live_m

where the fields h_m are connections applied to functions of the neighbours. `fixed` collects what depends on clamped
nodes and parameters only and is computed once per relaxation; `live` is recomputed in every sweep.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations, product
from typing import NamedTuple, cast

import networkx as nx
import numpy as np
import sympy as sp

from physnet.costs import Cost, Penalty
from physnet.elements import Edge, Node
from physnet.errors import DeclarationError, Fault, located
from physnet.expressions import derivative, symbol
from physnet.external import BETA, External, Y, target_symbol
from physnet.graph import EnergyGraph
from physnet.periodic import is_tilted, rotations, winding
from physnet.separation import POST, PRE, GradientOnly, Separated, Solver, X, classify, separate
from physnet.topologies import MAX_COLOURS, Colouring, Within, colour


@dataclass(frozen=True)
class Source:
    """One contribution to a field: a connection applied to a function of a neighbour.

    Arguments:
        edge: name of the edge.
        adjoint: whether it flows against the direction of the edge.
        kernel: the weight, an expression in edge parameters.
        neighbour: name of the node it comes from.
        function: an expression in `x`, the state of the neighbour; a number if it doesn't depend on it.
    """

    edge: str
    adjoint: bool
    kernel: sp.Expr
    neighbour: str
    function: sp.Expr

    @property
    def constant(self) -> bool:
        return X not in self.function.free_symbols


@dataclass(frozen=True)
class Field:
    """h = fixed + live, which multiplies basis(x) in the energy of a node.

    Arguments:
        turns: whether it is the drive that a frame takes away which turns with the oscillators; `Problem` finds it.
    """

    index: int
    basis: sp.Expr
    fixed: tuple[Source, ...]
    live: tuple[Source, ...]
    turns: bool = False

    @property
    def fixed_symbol(self) -> sp.Symbol:
        return sp.Symbol(f"fixed {self.index}", real=True)

    @property
    def live_symbol(self) -> sp.Symbol:
        return sp.Symbol(f"live {self.index}", real=True)

    @property
    def value(self) -> sp.Expr:
        """fixed + live, without the one that is absent."""
        given = self.fixed or self.turns
        present = [s for s, sources in ((self.fixed_symbol, given), (self.live_symbol, self.live)) if sources]
        return cast(sp.Expr, sp.Add(*present))


A = symbol("a")
"""The drive of a node, in its energy."""


class Part(NamedTuple):
    """The units of a node, or those of one colour."""

    node: str
    colour: int | None = None


Block = tuple[Part, ...]


@dataclass(frozen=True)
class NodePlan:
    """What is to be computed for a free node.

    Arguments:
        cost: its share of C as one unit sees it, in `x` and targets, or zero: what is a sum over units, and a bound
            on what isn't.
        free: the exact update without a nudge.
        nudged: the exact update at any beta.
        mixed: the couplings that don't separate.
        separable: the part of the cost that is a sum over units.
        external: the other costs.
        drive: what the predictions of a node add up to, apart from its bias; its basis is 0, as it multiplies nothing.
        colouring: where units of the node interact: those of one colour don't.
    """

    node: Node
    cost: sp.Expr
    fields: tuple[Field, ...]
    free: Solver
    nudged: Solver
    mixed: tuple[str, ...]
    separable: sp.Expr
    external: tuple[External, ...]
    drive: Field | None = None
    colouring: Colouring | None = field(default=None, compare=False)

    @property
    def parts(self) -> tuple[Part, ...]:
        """Sets of its units that don't interact; together they are the node."""
        name = self.node.name
        return (Part(name),) if self.colouring is None else tuple(Part(name, c) for c in range(self.colouring.count))

    @property
    def all_fields(self) -> tuple[Field, ...]:
        """Its fields, and its drive."""
        return self.fields if self.drive is None else (*self.fields, self.drive)

    @property
    def conditional(self) -> sp.Expr:
        """The energy of a unit given its fields and the nudge, without couplings that don't separate."""
        return conditional(self.node.term, self.cost, self.fields)


@dataclass(frozen=True)
class EdgePlan:
    """A coupling: separated into products, or `None` where it must be broadcast over all pairs."""

    edge: Edge
    separated: tuple[Separated, ...] | None

    @property
    def selects(self) -> bool:
        """Whether its connection passes on the largest of several values."""
        return self.edge.connection.selects

    @property
    def only(self) -> Separated:
        """The single product of an edge that selects."""
        assert self.separated is not None
        return self.separated[0]

    @property
    def passed(self) -> sp.Expr:
        """What pre passes to a prediction, or to a connection that selects: an expression in `pre`."""
        return self.only.pre_factor if self.edge.message is None else self.edge.message


@dataclass(frozen=True)
class Plan:
    """The intermediate form of a graph.

    Arguments:
        nodes: plans of the free nodes, by name, in the order in which a signal from the inputs reaches them.
        edges: plans of the edges, by name.
        blocks: sets of units that don't interact, in the order of a free sweep; together they hold all free units.
        nudged_blocks: the same, in the order in which the nudge reaches them.
        ties: the tensors that tied parameters stand for.
        penalties: the regularisers, by owner.
        rotations: sets of nodes whose energy a common rotation leaves as it is, up to drives.
    """

    graph: EnergyGraph
    nodes: dict[str, NodePlan]
    edges: dict[str, EdgePlan]
    blocks: tuple[Block, ...]
    nudged_blocks: tuple[Block, ...]
    ties: dict[str, str]
    penalties: tuple[Penalty, ...]
    rotations: tuple[tuple[str, ...], ...] = ()

    @property
    def external(self) -> tuple[External, ...]:
        """All costs that aren't sums over the units of their node."""
        return tuple(external for plan in self.nodes.values() for external in plan.external)

    def tensor_of(self, owner: str, key: str) -> str:
        """The name of the tensor that a parameter stands for: its own, or the one that it shares."""
        name = f"{owner}.{key}"
        return self.ties.get(name, name)

    @cached_property
    def predictive(self) -> bool:
        """Whether the energy of a node is written in its drive."""
        return any(plan.drive is not None for plan in self.nodes.values())

    @cached_property
    def winners_move(self) -> bool:
        """Whether a free node decides the winners of an edge that selects."""
        return any(plan.selects and plan.edge.pre in self.nodes for plan in self.edges.values())

    @cached_property
    def winding(self) -> float:
        """By how many turns angles can be apart that are locked."""
        return winding(self.graph)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a user should know about this energy."""
        slow = (
            f"the coupling {plan.edge.term} of '{plan.edge.name}' doesn't separate into products of pre and post: "
            "each evaluation broadcasts over all pairs of units, for every sample"
            for plan in self.edges.values()
            if plan.separated is None
        )
        return (*slow, *(_rising(plan.edge) for plan in self.edges.values() if self._may_rise(plan)))

    def _may_rise(self, plan: EdgePlan) -> bool:
        """Whether winners that are held are no upper bound:  -v max(z) <= -v z[winner]  only where v >= 0."""
        if not (plan.selects and plan.separated):
            return False
        pre, post = self.graph.node(plan.edge.pre), self.graph.node(plan.edge.post)
        return pre.free and post.free and not plan.only.number * post.domain.sign < 0


def _rising(edge: Edge) -> str:
    return (
        f"the coupling {edge.term} of '{edge.name}' takes maxima, and '{edge.post}' may have the sign with which they "
        f"raise the energy: an update of '{edge.pre}', which holds the winners, may then raise it, too; give "
        f"'{edge.post}' a domain of one sign, such as nonnegative, or use avg_pool2d"
    )


def conditional(term: sp.Expr, cost: sp.Expr, fields: Iterable[Field]) -> sp.Expr:
    return cast(sp.Expr, term + BETA * cost + sp.Add(*(field.basis * field.value for field in fields)))


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


def roles_of(edge: Edge, node: str) -> tuple[bool, ...]:
    """Whether a node is `pre` (true) or `post` (false) of an edge; for couplings inside it, both."""
    return tuple(adjoint for adjoint, end in ((False, edge.post), (True, edge.pre)) if end == node)


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


@dataclass(frozen=True)
class Product:
    """One matrix product of an edge's contrast: number * factor ⊙ correlate(u(pre), v(post))."""

    number: sp.Expr
    pre_factor: sp.Expr
    post_factor: sp.Expr


def contrast_products(plan: EdgePlan, parameter: str) -> dict[sp.Expr, list[Product]]:
    """dE/d parameter = sum over factors of factor ⊙ sum_k number_k correlate(u_k, v_k); keyed by factor."""
    groups: dict[sp.Expr, list[Product]] = {}
    for term in plan.separated or ():
        slope = derivative(term.kernel, symbol(parameter))
        if slope == 0:
            continue
        number, factor = cast(tuple[sp.Expr, sp.Expr], sp.factor_terms(slope).as_coeff_Mul())
        groups.setdefault(factor, []).append(Product(term.number * number, term.pre_factor, term.post_factor))
    return groups


def parameter_slope(plan: NodePlan, parameter: str) -> sp.Expr:
    """d(phi + beta C)/d parameter for a node parameter."""
    return derivative(plan.node.term + BETA * plan.cost, symbol(parameter))
