"""What `explain` says about connections between images: which maps a signal passes, and what correlates at its end.

    forward     max_pool2d(conv2d(c1, conv2.w))
    backward    conv2d_transposed(max_pool2d_transposed(c2), conv2.w)
    weights     correlate(c1, max_pool2d_transposed(c2))

A transposed max-pooling passes a value back to the winner of its window; `correlate(u, v)` is d<v, conv2d(u, w)>/dw.
"""

from __future__ import annotations

from typing import cast

import sympy as sp

from physnet.chains import Chain
from physnet.connections import Connection
from physnet.convolutions import Spatial
from physnet.plans import EdgePlan, contrast_products
from physnet.separation import POST, PRE


def members(connection: Connection) -> tuple[Connection, ...]:
    """The maps that a signal passes between images; none for other connections."""
    if isinstance(connection, Chain):
        return connection.members
    return (connection,) if isinstance(connection, Spatial) else ()


def through(connection: Connection, adjoint: bool, kernel: sp.Expr, value: sp.Expr) -> sp.Expr:
    """What arrives at the other end of a value."""
    stages = members(connection)
    for member in reversed(stages) if adjoint else stages:
        value = _applied(member, adjoint, value, kernel)
    return value if any(member.weighted for member in stages) else cast(sp.Expr, kernel * value)


def _applied(member: Connection, adjoint: bool, value: sp.Expr, *kernel: sp.Expr) -> sp.Expr:
    name = member.declaration().split("(")[0] + ("_transposed" if adjoint else "")
    return cast(sp.Expr, sp.Function(name)(value, *(kernel if member.weighted else ())))


def correlation(plan: EdgePlan, parameter: str) -> sp.Expr:
    """dE/d parameter, every entry by what it meets at both ends."""
    total = sp.Integer(0)
    for factor, products in contrast_products(plan, parameter).items():
        for product in products:
            pre = cast(sp.Expr, product.pre_factor.subs(PRE, sp.Symbol(plan.edge.pre)))
            post = cast(sp.Expr, product.post_factor.subs(POST, sp.Symbol(plan.edge.post)))
            total += product.number * factor * correlate(plan.edge.connection, pre, post)
    return cast(sp.Expr, total)


def correlate(connection: Connection, pre: sp.Expr, post: sp.Expr) -> sp.Expr:
    """What a weight meets: `pre` is passed on as far as the member that has the weight, and `post` back to it."""
    stages = members(connection)
    place = next((i for i, member in enumerate(stages) if member.weighted), len(stages))
    for member in stages[:place]:
        pre = _applied(member, False, pre)
    for member in reversed(stages[place + 1 :]):
        post = _applied(member, True, post)
    return cast(sp.Expr, sp.Function("correlate")(pre, post))
