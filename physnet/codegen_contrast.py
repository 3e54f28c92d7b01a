"""Torch source for contrasts: dF/dtheta of every parameter, combined over the phases of a protocol.

The functions take what those of `physnet.codegen_displaced` take, with `s` holding all states, and `phases`, which
knows how rows of several phases combine (`physnet.contrast`).
"""

from __future__ import annotations

from typing import cast

import sympy as sp

from physnet.differences import Move, after, difference
from physnet.displacements import Displacements
from physnet.expressions import derivative, symbol, write
from physnet.external import BETA
from physnet.plans import A, EdgePlan, NodePlan, Product, contrast_products, parameter_slope
from physnet.predictions import ERROR, Prediction, prediction
from physnet.printing import shown
from physnet.separation import POST, PRE, X
from physnet.vocabulary import Names

NUDGE = {BETA: Move(sp.Integer(0), BETA, BETA)}


class ContrastEmitter(Displacements):
    """Writes the contrasts of a plan."""

    def emit(self) -> None:
        for edge in self.plan.edges.values():
            for name in edge.edge.parameters:
                (self.prediction_contrast if edge.edge.predicts else self.edge_contrast)(edge, name)
        for plan in self.plan.nodes.values():
            for name in plan.node.parameters:
                (self.driven_contrast if plan.drive else self.node_contrast)(plan, name)
        for item in self.plan.external:
            self.readout_contrasts(item)
        self.summed_contrasts()

    def edge_contrast(self, plan: EdgePlan, parameter: str) -> None:
        edge = plan.edge
        slope = derivative(edge.term, symbol(parameter))
        self.out.function(self.contrast_head(edge.name, parameter), f"d/d{parameter}: {write(slope)}")
        weight = self.tensor(edge.name, parameter)
        if plan.separated is None:
            self.mixed_contrast(plan, slope, weight)
            return
        terms: list[str] = []
        for factor, products in contrast_products(plan, parameter).items():
            stacked = ", ".join(self.product(plan, product) for product in products)
            terms.append(self.correlation(plan, parameter, factor, f"*phases.stack({stacked})"))
        self.out(f"return {' + '.join(terms) or f'0*{weight}'}")

    def mixed_contrast(self, plan: EdgePlan, slope: sp.Expr, weight: str) -> None:
        moves, table = self.pair_moves(plan)
        self.out("o = phases.expand(o)")
        pairs = self.pair(plan, "o", "o")
        every_pair = f"0*{pairs[0]}*{pairs[1]}"  # a summand without pre or post counts once per pair, too
        change = self.print(difference(slope, moves), table)
        value = self.print(after(slope, moves), table)
        self.out(f"return phases.reduce({change} + {every_pair}, lambda: {value} + {every_pair}, {weight})")

    def product(self, plan: EdgePlan, product: Product) -> str:
        """The rows of one product: how phases combine depends on which factors are the same in all phases."""
        edge, arguments, kinds = plan.edge, [], []
        for side, factor, variable in ((edge.pre, product.pre_factor, PRE), (edge.post, product.post_factor, POST)):
            if variable not in factor.free_symbols:
                kinds.append("constant")
                arguments.append(f"ones({edge.name}_edge.{'pre' if variable is PRE else 'post'}, {self.here})")
            elif side in self.moves:
                kinds.append("free")
                arguments.append(f"({self.value(factor, side, variable)}, {self.change(factor, side, variable)})")
            else:
                kinds.append("clamped")
                arguments.append(self.print(factor, {variable: f'o["{side}"]'}))
        if plan.selects and self.moves.keys() & {edge.pre, edge.post}:
            kinds[1], arguments[1] = "free", self.placed(plan)
        return f"phases.{kinds[0]}_{kinds[1]}({arguments[0]}, {arguments[1]}, {self.print(product.number)})"

    def placed(self, plan: EdgePlan) -> str:
        """What post passes back to the places of the winners, and how much that has changed."""
        edge, term, pre = plan.edge, plan.only, self.old_end(plan, PRE)
        post, change = self.value(term.post_factor, edge.post, POST), self.change(term.post_factor, edge.post, POST)
        if edge.pre in self.moves:
            place = f"place_moved({post}, {self.selected_weight(plan)}, {self.choice(plan)}, {pre})"
        else:
            place = f"place({post}, {self.selected_weight(plan)}, {pre})"
        return f"({edge.name}_edge.{place}, {self.through_winners(plan, 'place', change)})"

    def prediction_contrast(self, plan: EdgePlan, parameter: str) -> None:
        """dF/dw = sum of message(pre) dF/da: a product of what passes an edge forwards and backwards."""
        edge, weight = plan.edge, self.tensor(plan.edge.name, parameter)
        self.out.function(self.contrast_head(edge.name, parameter), f"d/d{parameter}: {write(plan.passed)} dE/da")
        self.out(f"u = {self.print(plan.passed, {PRE: self.state(edge.pre)})}")
        every = "each" if edge.pre in self.plan.nodes else "whole"
        self.out(f'v = phases.{every}_signal("{edge.post}")')
        if plan.selects:
            self.out(f"v = {edge.name}_edge.place(v, {weight}, u)")
        self.out(f"return {edge.name}_edge.correlate(u, v, {weight})")

    def driven_contrast(self, plan: NodePlan, parameter: str) -> None:
        """dF/dtheta of a node with a drive: of its bias, the slope in its drive; of others, in terms of its error."""
        name, slope = plan.node.name, parameter_slope(plan, parameter)
        form = prediction(plan.node)
        slope = form.in_error(slope) if isinstance(form, Prediction) else slope
        parts = ["dE/da"] * (parameter == "b") + [shown(slope)] * (slope != 0)
        self.out.function(self.contrast_head(name, parameter), f"d/d{parameter}: {' + '.join(parts) or '0'}")
        weight = self.tensor(name, parameter)
        terms = [f'phases.each_signal("{name}")'] if parameter == "b" else []
        if slope != 0:
            table: Names = {X: self.state(name), A: f'phases.drives["{name}"]', ERROR: f'phases.errors["{name}"]'}
            terms.append(f"phases.each({self.print(slope, self.node_symbols(name), table)} + {self.zero(name)})")
        self.out(f"return rows_onto({' + '.join(terms)}, {weight})" if terms else f"return 0*{weight}")

    def node_contrast(self, plan: NodePlan, parameter: str) -> None:
        name = plan.node.name
        slope = parameter_slope(plan, parameter)
        self.out.function(self.contrast_head(name, parameter), f"d/d{parameter}: {shown(slope)}")
        number, rest = cast(tuple[sp.Expr, sp.Expr], slope.as_coeff_Mul())
        weight = self.tensor(name, parameter)
        if slope == 0:
            self.out(f"return 0*{weight}")
            return
        moves = NUDGE | self.move(name)
        tables = (self.node_symbols(name), self.states)
        none = f' + 0*d["{name}"]'
        change = self.print(difference(rest, moves), *tables) + none
        value = self.print(after(rest, moves), *tables) + none
        self.out(f"return phases.reduce({change}, lambda: {value}, {weight}, {self.print(number)})")
