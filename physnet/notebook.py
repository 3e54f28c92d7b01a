"""How graphs and models show themselves in a notebook: as their picture and their equations."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

import sympy as sp

from physnet.drawing import svg
from physnet.explaining import explain
from physnet.explanation import _math as latex
from physnet.graph import EnergyGraph
from physnet.model import EnergyModel

DRAWN, WRITTEN, NAMED = 40, 6, 4
"""The most nodes that are drawn, the most equations that are shown, and the most names in front of one of them."""


def html(shown: EnergyGraph | EnergyModel) -> str:
    """The picture as SVG, and the equations below it; a notebook typesets what stands between `$$`."""
    graph = shown if isinstance(shown, EnergyGraph) else shown.graph
    nodes = graph.network.number_of_nodes()
    if nodes <= DRAWN:
        picture = f'<div style="overflow-x: auto">{svg(graph)}</div>'
    else:
        picture = f"<p>{escape(repr(graph.name or 'a graph'))} with {nodes} nodes: physnet.draw(graph, 'graph.svg')</p>"
    equations = (f"<p>{escape(title)}</p>\n<div>{escape(body)}</div>" for title, body in _parts(shown))
    return "\n".join([picture, *equations])


def markdown(shown: EnergyGraph | EnergyModel) -> str:
    """The equations alone."""
    return "\n\n".join(f"`{title}`\n\n{body}" if title else body for title, body in _parts(shown))


def _parts(shown: EnergyGraph | EnergyModel) -> Iterator[tuple[str, str]]:
    """Titles and displayed equations, no more than a reader takes in."""
    equations = _declared(shown) if isinstance(shown, EnergyGraph) else list(explain(shown).equations.items())
    for title, body in equations[:WRITTEN]:
        # the typesetters of notebooks take an underscore inside words as it is
        yield title, f"$$\n{body}\n$$".replace(r"\_", "_")
    if len(equations) > WRITTEN:
        everything = "graph.declaration()" if isinstance(shown, EnergyGraph) else "physnet.explain(model)"
        yield f"and {len(equations) - WRITTEN} more: print({everything})", ""


def _declared(graph: EnergyGraph) -> list[tuple[str, str]]:
    """The terms of a graph, each once, with the nodes and edges that have it."""
    terms: dict[tuple[str, str, sp.Expr], list[str]] = {}
    for node in graph.nodes():
        if node.free and node.term != 0:
            terms.setdefault(("energy of", r"E = \sum_i", node.term), []).append(node.name)
    for edge in graph.edges():
        terms.setdefault(("coupling by", r"E = \sum_{ij}", edge.term), []).append(edge.name)
    for cost in graph.costs:
        terms.setdefault(("cost of", r"C = \sum_i", sp.nsimplify(cost.weight) * cost.term), []).append(cost.node)
    return [
        (f"{kind} {_names(names)}", rf"{left} \left[ {latex(term)} \right]")
        for (kind, left, term), names in terms.items()
    ]


def _names(names: list[str]) -> str:
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
