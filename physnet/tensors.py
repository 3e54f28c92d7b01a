"""The tensors of a graph's parameters: their shapes, and how many connections meet at their ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

from physnet.connections import Shape
from physnet.parameters import ParameterSpec

if TYPE_CHECKING:
    from physnet.graph import EnergyGraph


def declared_tensors(graph: EnergyGraph) -> dict[str, tuple[ParameterSpec, Shape, tuple[int, int]]]:
    """Every parameter, tied or not: `owner.parameter` -> (declaration, shape, (fan_in, fan_out))."""
    result: dict[str, tuple[ParameterSpec, Shape, tuple[int, int]]] = {}
    fan_in: dict[str, int] = {}
    fan_out: dict[str, int] = {}
    for edge in graph.edges():
        pre, post = graph.node(edge.pre), graph.node(edge.post)
        fans = edge.connection.fans(pre.shape, post.shape)
        fan_in[edge.post] = max(fans[0], fan_in.get(edge.post, 0))
        fan_out[edge.pre] = max(fans[1], fan_out.get(edge.pre, 0))
        for key, spec in edge.parameters.items():
            shape = () if spec.shape == "scalar" else edge.connection.weight_shape(pre.shape, post.shape)
            result[f"{edge.name}.{key}"] = spec, shape, fans
    for node in graph.nodes():
        for key, spec in node.parameters.items():
            shape = {"unit": node.shape, "channel": node.shape[:1], "scalar": ()}[spec.shape]
            result[f"{node.name}.{key}"] = spec, shape, (fan_in.get(node.name, 1), fan_out.get(node.name, 1))
    for name, cost in graph.readouts().items():
        assert cost.readout is not None
        connection, pre, post = cost.readout.connection, graph.node(cost.node).shape, cost.readout.shape
        shapes = {"connection": connection.weight_shape(pre, post), "unit": post, "channel": post[:1], "scalar": ()}
        for key, spec in cost.readout.parameters.items():
            result[f"{name}.{key}"] = spec, shapes[spec.shape], connection.fans(pre, post)
    return result
