"""What `explain` calls states and parameters: `node[j]`, `edge.w[i,j]`, `node.b[i]`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import sympy as sp

from physnet.connections import Identity
from physnet.elements import Edge, Node
from physnet.explanation import Sum
from physnet.expressions import symbol
from physnet.imagenotes import members, through
from physnet.separation import X

Names = dict[sp.Basic, sp.Basic]


def influence(edge: Edge, adjoint: bool, kernel: sp.Expr, function: sp.Expr, neighbour: str) -> Sum:
    """sum_j kernel_ij function(neighbour_j), as unit i sees it; between images, the maps that it passes."""
    if members(edge.connection):
        value = renamed(function, {X: sp.Symbol(neighbour)})
        return Sum("", through(edge.connection, adjoint, renamed(kernel, whole(edge)), value))
    index = "" if isinstance(edge.connection, Identity) else "j"
    there = {X: sp.Symbol(f"{neighbour}[{index or 'i'}]")}
    return Sum(index, renamed(kernel, pair(edge, adjoint)) * renamed(function, there))


def whole(edge: Edge) -> Names:
    """The parameters of an edge, without indices."""
    return {symbol(key): sp.Symbol(f"{edge.name}.{key}") for key in edge.parameters}


def pair(edge: Edge, adjoint: bool = False) -> Names:
    """The parameters of an edge with the indices of a pair: post first, as the tensors are stored."""
    index = "i" if isinstance(edge.connection, Identity) else ("j,i" if adjoint else "i,j")
    return {
        symbol(key): sp.Symbol(f"{edge.name}.{key}" + ("" if spec.shape == "scalar" else f"[{index}]"))
        for key, spec in edge.parameters.items()
    }


def fresh(name: str, node: Node) -> sp.Symbol:
    """A symbol that no parameter of the node is called by."""
    while name in node.parameters:
        name = f"{name}_"
    return symbol(name)


def tidy(expression: sp.Expr) -> sp.Expr:
    """The shortest of several ways to write an expression."""
    ways = (expression, sp.factor_terms(expression), sp.expand(expression))
    return cast(sp.Expr, min(ways, key=sp.count_ops))


def renamed(expression: sp.Expr, table: Mapping[Any, Any]) -> sp.Expr:
    return cast(sp.Expr, expression.subs(dict(table), simultaneous=True))


def unit(node: Node) -> Names:
    """The state and the parameters of unit i of a node; c is the channel of the unit."""
    places = {"unit": "[i]", "channel": "[i]" if len(node.shape) == 1 else "[c]", "scalar": ""}
    names: Names = {X: sp.Symbol(f"{node.name}[i]")}
    return names | {symbol(key): sp.Symbol(f"{node.name}.{key}{places[s.shape]}") for key, s in node.parameters.items()}
