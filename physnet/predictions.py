"""Prediction terms: the energy of a node as a function of its state and its drive.

    T(x, a) = precision/2 (x - f(a))^2,      a = b + sum over prediction edges of connection(message(pre))

With the error e = x - f(a) in place of x the energy of such a node is precision/2 e^2, whatever the drive. Nothing here
knows torch. Source: arXiv 2606.03584; in errors: arXiv 2505.20137.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import sympy as sp

from physnet.elements import Node
from physnet.expressions import write
from physnet.plans import A
from physnet.separation import X

ERROR = sp.Symbol("error", real=True)
"""x - f(a), in what follows from an energy."""


@dataclass(frozen=True)
class Prediction:
    """T(x, a) = precision/2 (x - activation(a))^2.

    Arguments:
        activation: f, an expression in `a` and parameters of the node.
        precision: an expression in parameters of the node.
    """

    activation: sp.Expr
    precision: sp.Expr

    def in_error(self, expression: sp.Expr) -> sp.Expr:
        """An expression in the state, written in the error: nothing nearly equal is subtracted any more."""
        return cast(sp.Expr, sp.simplify(expression.subs(X, self.activation + ERROR)))


def prediction(node: Node) -> Prediction | str:
    """The prediction that a node's energy makes, or why it makes none."""
    if not node.driven:
        return "its energy has no drive"
    polynomial = node.term.as_poly(X)
    if polynomial is None or polynomial.degree() != 2:
        return f"its energy {write(node.term)} isn't quadratic in x"
    precision = cast(sp.Expr, sp.simplify(2 * polynomial.coeff_monomial(X**2)))
    if A in precision.free_symbols or precision.is_negative:
        return f"its precision {write(precision)} " + ("depends on the drive" if A in precision.free_symbols else "< 0")
    activation = cast(sp.Expr, sp.simplify(-polynomial.coeff_monomial(X) / precision))
    rest = cast(sp.Expr, sp.simplify(polynomial.coeff_monomial(1) - precision * activation**2 / 2))
    if A in rest.free_symbols:
        return f"its energy {write(node.term)} is no precision/2 (x - f(a))^2: {write(rest)} is left"
    return Prediction(activation, precision)
