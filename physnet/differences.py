"""Differences of expressions between two nearby points, without subtracting what is nearly equal.

    f(x_0 + d) - f(x_0),   written so that its relative error stays that of d

A nudged state differs little from the free one, and subtracting the two loses most digits of float32. So differences
are derived from the expression, as derivatives are: by a product rule, a chain rule, and one formula per function, such
as  cos(x_0 + d) - cos(x_0) = -2 sin(x_0 + d/2) sin(d/2).  The formulas themselves are in `physnet.stable`; a function
without one is subtracted in float64.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import sympy as sp

from physnet import expressions
from physnet.expressions import clip, log_cosh, relu, sigmoid, softplus

MAX_POWER = 8
"""Integer powers up to this one are factorised."""


@dataclass(frozen=True)
class Move:
    """A symbol that moves from `old` to `new`, which differ by `change`."""

    old: sp.Expr
    change: sp.Expr
    new: sp.Expr


Moves = Mapping[sp.Symbol, Move]

STABLE: dict[type, str] = {
    sp.sin: "sin_difference", sp.cos: "cos_difference", sp.tan: "tan_difference", sp.tanh: "tanh_difference",
    sp.exp: "exp_difference", sp.log: "log_difference", sp.Abs: "magnitude_difference", relu: "relu_difference",
    softplus: "softplus_difference", sigmoid: "sigmoid_difference", log_cosh: "log_cosh_difference",
}  # fmt: skip
"""f(a, d) = function(a + d) - function(a), by function of one argument."""

_STEPS = (expressions.step, sp.sign)
"""Functions with few values, which can be subtracted as they are."""


def difference(expression: sp.Expr, moves: Moves) -> sp.Expr:
    """expression(new) - expression(old), stable where all symbols move a little.

    Arguments:
        expression: any expression of the language, or a derivative of one.
        moves: what each symbol that moves was, is, and changed by. A symbol whose old value is the number 0, such as
            the nudge, contributes without any cancellation.
    """
    if not _moving(expression, moves):
        return sp.Integer(0)
    match expression:
        case sp.Symbol():
            return moves[expression].change
        case sp.Add():
            return cast(sp.Expr, sp.Add(*(difference(cast(sp.Expr, part), moves) for part in expression.args)))
        case sp.Mul():
            return _product(expression, moves)
        case sp.Pow():
            return _power(expression, moves)
        case sp.Max() | sp.Min():
            return _extreme(expression, moves)
        case clip():
            x, lo, hi = cast(tuple[sp.Expr, sp.Expr, sp.Expr], expression.args)
            return difference(cast(sp.Expr, sp.Min(sp.Max(x, lo), hi)), moves)
    if type(expression) in STABLE:
        argument = cast(sp.Expr, expression.args[0])
        stable = sp.Function(STABLE[type(expression)], real=True)
        return cast(sp.Expr, stable(before(argument, moves), difference(argument, moves)))
    if isinstance(expression, _STEPS):
        return cast(sp.Expr, after(expression, moves) - before(expression, moves))
    return _wide(expression, moves)


def missing(expression: sp.Expr) -> set[str]:
    """Names of the functions that have no stable difference, so that it is worked out in float64."""
    found: set[str] = set()
    for part in sp.preorder_traversal(expression):
        if isinstance(part, sp.Pow) and not _factorised(part) and part.free_symbols:
            found.add(f"power {part.exp}")
        elif isinstance(part, sp.Function) and not isinstance(part, (*STABLE, *_STEPS, clip, sp.Max, sp.Min)):
            found.add(type(part).__name__)
    return found


def before(expression: sp.Expr, moves: Moves) -> sp.Expr:
    """The expression where everything was."""
    return cast(sp.Expr, expression.xreplace({symbol: move.old for symbol, move in moves.items()}))


def after(expression: sp.Expr, moves: Moves) -> sp.Expr:
    """The expression where everything is now."""
    return cast(sp.Expr, expression.xreplace({symbol: move.new for symbol, move in moves.items()}))


def _moving(expression: sp.Basic, moves: Moves) -> bool:
    return not expression.free_symbols.isdisjoint(moves)


def _product(expression: sp.Mul, moves: Moves) -> sp.Expr:
    """d(u v) = u_old dv + du v_new"""
    still = [part for part in expression.args if not _moving(part, moves)]
    first, *rest = [cast(sp.Expr, part) for part in expression.args if _moving(part, moves)]
    change = difference(first, moves)
    if rest:
        others = cast(sp.Expr, sp.Mul(*rest))
        change = before(first, moves) * difference(others, moves) + change * after(others, moves)
    return cast(sp.Expr, sp.Mul(*still, change))


def _factorised(expression: sp.Pow) -> bool:
    doubled = 2 * expression.exp
    return bool(doubled.is_Integer) and abs(int(doubled)) <= 2 * MAX_POWER


def _power(expression: sp.Pow, moves: Moves) -> sp.Expr:
    base, exponent = cast(tuple[sp.Expr, sp.Expr], expression.args)
    if not _factorised(expression):
        return _wide(expression, moves)
    old, new, change = before(base, moves), after(base, moves), difference(base, moves)
    n = abs(int(exponent))
    if not exponent.is_Integer:  # b^(n/2) = sqrt(b)^n
        change = cast(sp.Expr, sp.Function("sqrt_difference", real=True)(old, change))
        old, new, n = cast(sp.Expr, sp.sqrt(old)), cast(sp.Expr, sp.sqrt(new)), abs(int(2 * exponent))
    factored = cast(sp.Expr, change * sp.Add(*(new**i * old ** (n - 1 - i) for i in range(n))))
    return factored if exponent > 0 else cast(sp.Expr, -factored / (old**n * new**n))


def _extreme(expression: sp.Expr, moves: Moves) -> sp.Expr:
    """Of the larger of two: who leads at first gives the reference that both are measured from."""
    first, *rest = cast(list[sp.Expr], list(expression.args))
    others = cast(sp.Expr, expression.func(*rest))
    name = "maximum_difference" if isinstance(expression, sp.Max) else "minimum_difference"
    stable = sp.Function(name, real=True)
    return cast(
        sp.Expr,
        stable(before(first, moves), difference(first, moves), before(others, moves), difference(others, moves)),
    )


def _wide(expression: sp.Expr, moves: Moves) -> sp.Expr:
    """The function of arguments that moved, in float64: old and changed arguments in pairs."""
    pairs: list[sp.Expr] = []
    for argument in cast(tuple[sp.Expr, ...], expression.args):
        pairs += [before(argument, moves), difference(argument, moves)]
    dummies = [sp.Dummy(f"a{index}", real=True) for index in range(len(expression.args))]
    return cast(sp.Expr, Wide(sp.Lambda(tuple(dummies), expression.func(*dummies)), *pairs))


class Wide(sp.Function):
    """Wide(f, a, da, b, db, ...) = f(a + da, b + db, ...) - f(a, b, ...), in float64."""
