"""A graph as plain data: what YAML and the digest are made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from physnet.elements import Edge, Node
from physnet.energy import FORMAT, Energy
from physnet.expressions import write
from physnet.parameters import ParameterSpec

if TYPE_CHECKING:
    from physnet.graph import EnergyGraph


def plain(graph: EnergyGraph) -> dict[str, Any]:
    """The whole graph with everything resolved."""
    return {
        "physnet": FORMAT,
        "name": graph.name,
        "energy": graph.energy.declaration(),
        "nodes": {node.name: _of_node(graph.energy, node) for node in graph.nodes()},
        "edges": [_of_edge(graph.energy, edge) for edge in graph.edges()],
        "costs": [item.declaration() for item in (*graph.costs, *graph.regularisers)],
    }


def _of_node(energy: Energy, node: Node) -> dict[str, Any]:
    result: dict[str, Any] = {"shape": list(node.data_shape), "role": node.role}
    if not node.free:
        return result | {"encode": [write(item) for item in node.encode]}
    result["domain"] = node.domain.declaration()
    if node.tau != energy.tau:
        result["tau"] = node.tau
    if node.initial is not None:
        result["initial"] = node.initial.init
    if node.term != energy.term_for(node.role):
        result["term"] = write(node.term)
    changed = _changed(energy, node.parameters)
    return result | ({"parameters": changed} if changed else {})


def _of_edge(energy: Energy, edge: Edge) -> dict[str, Any]:
    body: dict[str, Any] = {"via": edge.connection.declaration(), "name": edge.name}
    if edge.message is not None:
        body |= {"kind": "prediction", "message": write(edge.message)}
    elif edge.term != energy.coupling:
        body["term"] = write(edge.term)
    changed = _changed(energy, edge.parameters)
    if changed:
        body["parameters"] = changed
    return {f"{edge.pre} -> {edge.post}": body}


def _changed(energy: Energy, parameters: Mapping[str, ParameterSpec]) -> dict[str, Any]:
    """The parameters that differ from those of the graph's energy; a constraint that was lifted is named."""
    changed: dict[str, Any] = {}
    for key, spec in parameters.items():
        base = energy.parameters.get(key)
        if spec != base:
            lifted = base is not None and base.constraint is not None and spec.constraint is None
            if base is not None and spec.share and spec.constraint == base.constraint:
                spec, lifted = replace(spec, constraint=None), False
            changed[key] = spec.declaration() | ({"constraint": "real"} if lifted else {})
    return changed
