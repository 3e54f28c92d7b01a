"""Whether a graph can be compiled: what no single node, edge or cost can tell."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import networkx as nx

from physnet.connections import Shape
from physnet.elements import KEYWORDS, unused
from physnet.errors import DeclarationError, Fault, ShapeError
from physnet.expressions import names
from physnet.periodic import aperiodic
from physnet.sharing import tie_faults
from physnet.tensors import declared_tensors

if TYPE_CHECKING:
    from physnet.graph import EnergyGraph


def check(graph: EnergyGraph) -> None:
    """Check the whole graph.

    Raises:
        DeclarationError: with everything that is wrong, each with its place and fix.
    """
    faults = [
        *_clamped_faults(graph),
        *_target_faults(graph),
        *aperiodic({node.name: node for node in graph.nodes()}, graph.edges(), graph.costs),
        *_prediction_faults(graph),
        *_unused_parameters(graph),
        *_unreached_nodes(graph),
    ]
    shape_faults = list(_connection_faults(graph))
    for error in _parameter_errors(graph, complete=not shape_faults):
        (shape_faults if isinstance(error, ShapeError) else faults).extend(error.faults)
    if shape_faults and not faults:
        raise ShapeError(shape_faults)
    if faults or shape_faults:
        raise DeclarationError([*faults, *shape_faults])


def _clamped_faults(graph: EnergyGraph) -> Iterator[Fault]:
    """Graphs and edges without anything that could move."""
    if not any(node.free for node in graph.nodes()):
        yield Fault("the graph has no free node", "add a node with role state or output", ("nodes",))
    for edge in graph.edges():
        if not graph.node(edge.pre).free and not graph.node(edge.post).free:
            path = ("edges", f"{edge.pre} -> {edge.post}")
            yield Fault("both ends of this edge are clamped, so it has no effect", "remove it", path)


def _connection_faults(graph: EnergyGraph) -> Iterator[Fault]:
    """Connections that don't fit the shapes at their ends."""
    for edge in graph.edges():
        try:
            edge.connection.check(graph.node(edge.pre).shape, graph.node(edge.post).shape)
        except DeclarationError as error:
            yield from error.under("edges", f"{edge.pre} -> {edge.post}").faults


def _unused_parameters(graph: EnergyGraph) -> Iterator[Fault]:
    """Parameters of nodes that stand in no term."""
    for node in graph.nodes():
        terms = [node.term, *(c.term for c in graph.costs if c.node == node.name and not c.external)]
        used = {name for term in terms for name in names(term)} | ({"b"} if node.driven else set())
        for key in sorted(set(node.parameters) - used):
            yield unused(key, used & set(node.parameters), ("nodes", node.name, "parameters", key))


def _unreached_nodes(graph: EnergyGraph) -> Iterator[Fault]:
    """Free nodes that no input has a way to, where there are inputs."""
    inputs = {node.name for node in graph.nodes() if not node.free}
    components = nx.weakly_connected_components(graph.network)
    reached = {name for component in components if component & inputs for name in component}
    for node in graph.nodes():
        if inputs and node.free and node.name not in reached:
            message = f"'{node.name}' isn't connected to any input"
            yield Fault(message, "add an edge that leads to it", ("nodes", node.name))


def _parameter_errors(graph: EnergyGraph, complete: bool) -> Iterator[DeclarationError]:
    """What is wrong with ties and regularisers; shapes are only known where connections fit."""
    places: dict[str, tuple[str | int, ...]] = {node.name: ("nodes", node.name) for node in graph.nodes()}
    places |= {edge.name: ("edges", f"{edge.pre} -> {edge.post}") for edge in graph.edges()}
    places |= {c.readout.name: ("costs", "cost", i) for i, c in enumerate(graph.costs) if c.readout is not None}
    specs = graph.specs()
    shapes = {name: shape for name, (_, shape, _) in declared_tensors(graph).items()} if complete else {}
    at = {name: (*places[(parts := name.split("."))[0]], "parameters", parts[1]) for name in specs}
    broken = list(tie_faults(specs, at, shapes))
    yield from broken
    try:
        list(() if broken else graph.penalties())
    except DeclarationError as error:
        yield error


def _target_faults(graph: EnergyGraph) -> Iterator[Fault]:
    """Targets whose names or shapes meet with others."""
    shapes: dict[str, Shape] = {}
    for number, cost in enumerate(graph.costs):
        path = ("costs", "cost", number, "target")
        shape = graph.node(cost.node).shape if cost.readout is None else cost.readout.shape
        if cost.target in graph.network and not graph.node(cost.target).free:
            yield Fault(f"the target '{cost.target}' is called like an input", "rename one of the two", path)
        if cost.target in KEYWORDS - {"target"}:
            yield Fault(f"a target can't be called '{cost.target}', an argument of relax", "rename it", path)
        if shapes.setdefault(cost.target, shape) != shape:
            both = f"{shapes[cost.target]} and {shape}"
            message = f"the target '{cost.target}' belongs to states or readouts of shapes {both}"
            yield Fault(message, "give each its own target", path)


def _prediction_faults(graph: EnergyGraph) -> Iterator[Fault]:
    """Drives that nothing adds to, and predictions that no energy asks for."""
    predicted = {edge.post for edge in graph.edges() if edge.predicts}
    for node in graph.nodes():
        if node.free and node.driven and node.name not in predicted:
            fix = f"add an edge that leads to '{node.name}', or give it a term without a"
            yield Fault(f"no edge predicts '{node.name}', whose energy has a drive", fix, ("nodes", node.name))
    for edge in graph.edges():
        path = ("edges", f"{edge.pre} -> {edge.post}")
        if edge.predicts and edge.pre == edge.post:
            yield Fault(f"'{edge.pre}' predicts itself", "turn it into a coupling, or remove it", path)
        elif edge.predicts and not graph.node(edge.post).driven:
            fix = f"give '{edge.post}' a term in a, such as (x - relu(a))**2/2, or the edge a coupling"
            yield Fault(f"the energy of '{edge.post}' has no drive that could be predicted", fix, path)
