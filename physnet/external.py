"""Costs that aren't sums over the units of their node, as one unit sees them.

    beta C(x) <= beta C(here) + beta g.(x - here) + |beta| L/2 |x - here|^2,      g = dC/dx at here,  |d^2C/dx^2| <= L

A readout or a softmax makes the units of a node depend on each other through the cost. In the exact update of a node,
beta C is therefore replaced by the right side, here being the current state: it decouples, touches beta C at the
current state with the same slope, and is an upper bound for either sign of beta, so that the true energy never rises
and a state that no longer moves is an equilibrium of the true energy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import sympy as sp

from physnet.costs import Cost
from physnet.expressions import derivative, symbol
from physnet.reductions import REDUCTIONS
from physnet.separation import X

BETA = sp.Symbol("nudge", real=True)
HERE = sp.Symbol("current state", real=True)
Y = symbol("y")


@dataclass(frozen=True)
class External:
    """One such cost.

    Arguments:
        index: its number in the generated code.
    """

    index: int
    cost: Cost

    @property
    def tilt(self) -> sp.Symbol:
        """g, the slope of the cost in the state of a unit; without the weight."""
        return sp.Symbol(f"tilt {self.index}", real=True)

    @property
    def bend(self) -> sp.Symbol:
        """The sign of beta, times a bound on the largest squared singular value of the readout if there is one."""
        return sp.Symbol(f"bend {self.index}", real=True)

    @property
    def slope(self) -> sp.Expr:
        """dC/dz of one unit, for an expression."""
        return derivative(self.cost.term, X)

    @property
    def curvature(self) -> sp.Expr | None:
        """A bound on the curvature of the cost in z; `None` if there is none."""
        if self.cost.reduction:
            bound = REDUCTIONS[self.cost.reduction].curvature
            return None if bound is None else cast(sp.Expr, sp.nsimplify(bound, rational=True))
        second = sp.simplify(derivative(self.slope, X))
        return cast(sp.Expr, sp.Abs(second)) if second.is_number else None

    @property
    def majorant(self) -> sp.Expr:
        """What stands for the cost in the energy of a unit; multiplied by beta, it is the bound above."""
        weight, step = self.cost.factor, X - HERE
        bound = sp.Abs(weight) * (self.curvature or sp.Integer(0)) * self.bend / 2 * step**2
        return cast(sp.Expr, weight * self.tilt * step + bound)

    @property
    def refusal(self) -> str | None:
        """Why there is no exact update; `None` if there is one."""
        if self.curvature is not None:
            return None
        return f"the curvature of the cost {self.cost.written} has no constant bound"


def at_current_state(expression: sp.Expr) -> sp.Expr:
    """The value of a slope at the current state, where the slope of the bound is that of the cost."""
    return cast(sp.Expr, expression.subs(HERE, X))


def target_symbol(target: str) -> sp.Symbol:
    """The symbol that stands for y of a certain target."""
    return sp.Symbol(f"target {target}", real=True)


__all__ = ["BETA", "HERE", "External", "Y", "at_current_state", "target_symbol"]
