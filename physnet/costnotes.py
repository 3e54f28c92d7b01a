"""What `explain` says about costs on readouts, reductions, regularisers and tied parameters."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, cast

import sympy as sp

from physnet.costs import Cost
from physnet.explanation import Sum
from physnet.expressions import derivative, parse, symbol
from physnet.external import HERE, External, Y
from physnet.plans import NodePlan, Plan
from physnet.reductions import REDUCTIONS
from physnet.separation import X

Names = dict[sp.Basic, sp.Basic]
NOTE = "x on the right is the current state, where beta*C has the slope beta*g"


def external_costs(
    plan: NodePlan, beta: sp.Symbol, fresh: Callable[[str], sp.Symbol]
) -> tuple[sp.Expr, Names, dict[sp.Symbol, tuple[Sum, ...]]]:
    """The costs of a node that aren't sums over its units.

    Arguments:
        fresh: makes a symbol that nothing in the node is called by.

    Returns:
        Their sum, written with C; names for their internal symbols; and what these names stand for.
    """
    total, table, meanings = sp.Integer(0), dict[sp.Basic, sp.Basic](), dict[sp.Symbol, tuple[Sum, ...]]()
    for number, item in enumerate(plan.external, 1):
        end = "" if len(plan.external) == 1 else str(number)
        value, slope, bound = (fresh(f"{letter}{end}") for letter in ("C", "g", "L"))
        total += item.cost.factor * value
        meanings |= _meanings(item, value, slope, bound)
        scale = sp.Abs(beta) * bound / (beta * item.curvature) if item.curvature else sp.Integer(0)
        table |= {item.tilt: slope, item.bend: cast(sp.Basic, scale)}
    return cast(sp.Expr, total), table | {HERE: X}, meanings


def _meanings(item: External, value: sp.Symbol, slope: sp.Symbol, bound: sp.Symbol) -> dict[sp.Symbol, tuple[Sum, ...]]:
    cost, head = item.cost, item.cost.readout
    meanings: dict[sp.Symbol, tuple[Sum, ...]] = {}
    curvature = item.curvature
    if head is None:
        meanings[value] = (Sum("", sp.Function(cost.reduction)(X, symbol(cost.target))),)
        meanings[slope] = (Sum("", readout_slope(cost, X, symbol(f"{cost.target}[i]"))),)
    else:
        z, y = symbol(f"{head.name}[k]"), symbol(f"{cost.target}[k]")
        summed = Sum("k", cast(sp.Expr, cost.term.subs({X: z, Y: y})))
        whole = Sum("", sp.Function(cost.reduction)(symbol(head.name), symbol(cost.target)))
        meanings[value] = (whole if cost.reduction else summed,)
        meanings[z] = (
            Sum("", symbol(f"{head.name}.b[k]")),
            Sum("j", symbol(f"{head.name}.w[k,j]") * symbol(f"{cost.node}[j]")),
        )
        meanings[slope] = (Sum("k", symbol(f"{head.name}.w[k,i]") * readout_slope(cost, z, y)),)
        norm = sp.Function("norm")(symbol(f"{head.name}.w")) ** 2
        curvature = curvature and cast(sp.Expr, curvature * norm)
    return meanings | ({bound: (Sum("", curvature),)} if curvature else {})


def readout_slope(cost: Cost, z: sp.Expr, y: sp.Expr) -> sp.Expr:
    """dC/dz of one entry."""
    if not cost.reduction:
        return cast(sp.Expr, derivative(cost.term, X).subs({X: z, Y: y}, simultaneous=True))
    text = REDUCTIONS[cost.reduction].slope
    written = parse(text, functions=re.findall(r"(\w+)\(", text))
    return cast(sp.Expr, written.subs({symbol("z"): z, Y: y}, simultaneous=True))


# --------------------------------------------------------------------------- learning rules


def readout_rule(cost: Cost, key: str) -> tuple[sp.Expr, sp.Symbol, Sum]:
    """d(beta C)/dw or d(beta C)/db of a readout: in z, y and x; the entry; and by the states at both ends."""
    head = cost.readout
    assert head is not None
    beta = symbol("beta")
    if key == "b":
        own, state, entry = sp.Integer(1), sp.Integer(1), symbol(f"{head.name}.b[i]")
    else:
        own, state, entry = X, symbol(f"{cost.node}[j]"), symbol(f"{head.name}.w[i,j]")
    shared = {"scalar": "i" if key == "b" else "ij", "channel": "i in c"}.get(head.parameters[key].shape, "")
    if shared:
        entry = symbol(f"{head.name}.{key}" + ("[c]" if shared == "i in c" else ""))
    plain = readout_slope(cost, symbol("z"), Y)
    local = readout_slope(cost, symbol(f"{head.name}[i]"), symbol(f"{cost.target}[i]"))
    factor = beta * cost.factor
    return (
        cast(sp.Expr, factor * plain * own),
        cast(sp.Symbol, entry),
        Sum(shared, cast(sp.Expr, factor * local * state)),
    )


def penalty_rules(plan: Plan, tensor: str, entry: sp.Symbol) -> Iterator[Sum]:
    """beta dR/dtheta: the share of regularisers in the learning rule of a tensor."""
    for item in plan.penalties:
        named: dict[Any, Any] = {symbol(key): symbol(name) for key, name in item.tensors.items()}
        for key, name in item.tensors.items():
            if name == tensor:
                table: dict[Any, Any] = named | {symbol(key): entry}
                slope = derivative(item.term, symbol(key)).subs(table, simultaneous=True)
                yield Sum("", cast(sp.Expr, symbol("beta") * slope))


def users(plan: Plan, tensor: str) -> list[tuple[str, str]]:
    """Every owner and parameter that a tensor is used by, the owner of the tensor first."""
    named = [(owner, key) for owner, specs in plan.graph.owners().items() for key in specs]
    found = [(owner, key) for owner, key in named if plan.tensor_of(owner, key) == tensor]
    return sorted(found, key=lambda user: ".".join(user) != tensor)


__all__ = ["NOTE", "external_costs", "penalty_rules", "readout_rule", "users"]
