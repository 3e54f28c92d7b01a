"""Energies of angles: periodic up to a drive, and which of them a common rotation leaves alone.

    E(x + 2 pi) = E(x) - 2 pi omega        a state on a circle has a force only if this holds
    E(x_1 + c, ..., x_n + c) = E(x) - c sum omega        the gauge freedom of oscillators that nothing outside holds

Drives such as -omega*x (a tilted washboard) are allowed, since their force is periodic. Where the second equation holds
the oscillators have no frame of rest but the one that turns at their mean frequency.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, cast

import networkx as nx
import numpy as np
import sympy as sp
from scipy.sparse import coo_array
from scipy.sparse.csgraph import dijkstra

from physnet.costs import Cost
from physnet.elements import Edge, Node
from physnet.errors import Fault
from physnet.expressions import symbol, write
from physnet.patterns import Pattern
from physnet.separation import POST, PRE, X
from physnet.topologies import Within

if TYPE_CHECKING:
    from physnet.graph import EnergyGraph


def turned(term: sp.Expr, turns: Mapping[sp.Symbol, sp.Expr]) -> sp.Expr:
    """By how much a term changes when some of its angles are turned."""
    exact = sp.nsimplify(term, rational=True)
    moved = exact.subs({angle: angle + turn for angle, turn in turns.items()}, simultaneous=True)
    return cast(sp.Expr, sp.expand(sp.expand(moved) - sp.expand(exact)))


def is_periodic(term: sp.Expr, angle: sp.Symbol) -> bool:
    """Whether a term in an angle (and in the other end of its edge) has the period 2 pi, up to a drive."""
    return not turned(term, {angle: 2 * sp.pi}).free_symbols & {X, PRE, POST, symbol("a")}


def aperiodic(nodes: Mapping[str, Node], edges: Iterable[Edge], costs: Iterable[Cost]) -> Iterator[Fault]:
    """Faults for the terms that give angles which are the same different forces."""
    angular = {name for name, node in nodes.items() if node.free and node.domain.period}
    fix = "write angles inside sin and cos with whole multiples, such as -w*cos(pre - post); -omega*x is a drive"
    for name in angular:
        if not is_periodic(nodes[name].term, X):
            message = f"the energy {write(nodes[name].term)} is not periodic in x, but '{name}' lives on a circle"
            yield Fault(message, fix, ("nodes", name))
    for edge in edges:
        if edge.message is not None and edge.pre in angular and turned(edge.message, {PRE: 2 * sp.pi}) != 0:
            message = f"what '{edge.pre}' passes on, {write(edge.message)}, is not periodic in pre, which is an angle"
            yield Fault(message, "such as message: cos(pre)", ("edges", f"{edge.pre} -> {edge.post}"))
        for end, angle in ((edge.pre, PRE), (edge.post, POST)):
            if end in angular and not is_periodic(edge.term, angle):
                message = f"the coupling {write(edge.term)} is not periodic in {angle}, but '{end}' lives on a circle"
                yield Fault(message, fix, ("edges", f"{edge.pre} -> {edge.post}"))
                break
    for number, cost in enumerate(costs):
        if cost.node in angular and not cost.external and not is_periodic(cost.term, X):
            message = f"the cost {write(cost.term)} is not periodic in x, but '{cost.node}' lives on a circle"
            yield Fault(message, "such as 1 - cos(x - y), or (cos(x) - y)**2/2", ("costs", "cost", number, "term"))


def rotations(graph: EnergyGraph) -> tuple[tuple[str, ...], ...]:
    """Sets of coupled nodes of angles whose energy depends on differences alone, up to drives; costs left aside."""
    free = nx.Graph()
    free.add_nodes_from(node.name for node in graph.nodes() if node.free)
    held = {node.name for node in graph.nodes() if node.free and not _turns_freely(node)}
    common = sp.Symbol("common turn", real=True)
    for edge in graph.edges():
        ends = [end for end in (edge.pre, edge.post) if graph.node(end).free]
        if len(ends) == 2:
            free.add_edge(*ends)
        if len(ends) < 2 or edge.predicts or turned(edge.term, {PRE: common, POST: common}).free_symbols & {PRE, POST}:
            held.update(ends)
    order = [node.name for node in graph.nodes()]
    components = (sorted(part, key=order.index) for part in nx.connected_components(free) if not part & held)
    return tuple(map(tuple, components))


def _turns_freely(node: Node) -> bool:
    return bool(node.domain.period) and X not in sp.expand(sp.diff(node.term, X)).free_symbols


def winding(graph: EnergyGraph) -> float:
    """By how many turns oscillators can be apart that are locked: a quarter turn for each pair on the way between
    them, such as in a long chain whose frequencies grow along it."""
    pairs = 0
    for edge in graph.edges():
        within = edge.connection
        pattern = within.pattern_of(graph.node(edge.pre).shape) if isinstance(within, Within) else None
        pairs += 1 if pattern is None else _reach(pattern)
    return pairs / 4


def _reach(pattern: Pattern) -> int:
    """A bound on the pairs between any two units: twice those between one of the most distant ones and the others."""
    units = max(pattern.least)
    matrix = coo_array((np.ones(len(pattern)), (pattern.post, pattern.pre)), shape=(units, units))
    distance = dijkstra(matrix.tocsr(), directed=False, unweighted=True, indices=[int(pattern.pre[0])])
    return 2 * int(distance[np.isfinite(distance)].max())


def is_tilted(node: Node) -> bool:
    """Whether the energy of a unit is tilted: whether a constant force turns it."""
    return turned(node.term, {X: 2 * sp.pi}) != 0
