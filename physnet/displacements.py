"""What moves in a nudged phase, and how changes of it are written as torch code.

    s = o + d

The state s of a free node has moved by d from the free state o; clamped nodes stay. A field moves since neighbours do.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import sympy as sp

from physnet.costcode import CostEmitter
from physnet.differences import Move, Moves, difference
from physnet.expressions import derivative
from physnet.plans import EdgePlan, Field, NodePlan, Plan, Source
from physnet.printing import Lines
from physnet.separation import POST, PRE, X
from physnet.vocabulary import Names

FORCE = sp.Symbol("force at the free state", real=True)


def move_of(node: str) -> Move:
    """How the state of a node moves, as symbols."""
    return Move(*(sp.Symbol(f"{what} {node}", real=True) for what in ("origin", "change", "moved")))


class Displacements(CostEmitter):
    """Names and changes of everything that moves."""

    here = "o"

    def __init__(self, plan: Plan, out: Lines) -> None:
        super().__init__(plan, out)
        self.moves = {name: move_of(name) for name in plan.nodes}
        self.states: Names = {}
        for node in plan.graph.nodes():
            move = self.moves.get(node.name)
            table = {} if move is None else {move.old: "o", move.change: "d", move.new: "s"}
            self.states |= {item: f'{letter}["{node.name}"]' for item, letter in table.items()}

    def move(self, node: str, variable: sp.Symbol = X) -> dict[sp.Symbol, Move]:
        """The moves of an expression in the state of one node; a clamped node stays."""
        return {variable: self.moves[node]} if node in self.moves else {}

    def value(self, expression: sp.Expr, node: str, variable: sp.Symbol = X) -> str:
        """An expression in the state of a node, where it is now."""
        return self.print(expression, {variable: f'{"s" if node in self.moves else "o"}["{node}"]'})

    def change(self, expression: sp.Expr, node: str, variable: sp.Symbol = X) -> str:
        """How much an expression in the state of a node has changed."""
        return self.print(difference(expression, self.move(node, variable)), self.states)

    def live_change(self, source: Source) -> str:
        """How much what flows in has changed; a constant flows on through winners that may change."""
        plan = self.plan.edges[source.edge]
        change = self.change(source.function, source.neighbour)
        if not plan.selects:
            return self.source(source, change)
        if source.adjoint:
            return self.through_winners(plan, "adjoint", change)
        return f"{source.edge}_edge.apply_change({change}, {self.selected_weight(plan)}, {self.old_end(plan, PRE)})"

    def through_winners(self, plan: EdgePlan, way: str, change: str) -> str:
        """How much `adjoint` or `place` of an edge that selects has changed; where pre is clamped, winners stay."""
        head, pre, post = f"{plan.edge.name}_edge.{way}", self.old_end(plan, PRE), self.old_end(plan, POST)
        if plan.edge.pre not in self.moves:
            return f"{head}({change}, {self.selected_weight(plan)}, {pre})"
        change = change if plan.edge.post in self.moves else f"0*{post}"
        return f"{head}_change({change}, {self.selected_weight(plan)}, {post}, {self.choice(plan)}, {pre})"

    def selected_weight(self, plan: EdgePlan) -> str:
        """The weight of an edge that selects."""
        return self.kernel(plan.edge.name, plan.only.kernel)

    def choice(self, plan: EdgePlan) -> str:
        """How much what pre passes to an edge that selects has changed."""
        return self.change(plan.only.pre_factor, plan.edge.pre, PRE)

    def old_end(self, plan: EdgePlan, end: sp.Symbol) -> str:
        """What an end of an edge that selects passed on in the free phase."""
        factor, node = (plan.only.pre_factor, plan.edge.pre) if end is PRE else (plan.only.post_factor, plan.edge.post)
        return self.print(factor, {end: f'o["{node}"]'})

    def live(self, fields: Iterable[Field], wanted: set[sp.Basic]) -> None:
        for field in fields:
            if field.live and live_move(field).change in wanted:
                self.out(f"live{field.index} = {' + '.join(map(self.live_change, field.live))}")

    def field_table(self, plan: NodePlan) -> Names:
        table = self.fixed_table(plan) | {FORCE: 'r["force"]'}
        for field in plan.fields:
            table |= {live_move(field).old: f"r[{field.index}]", live_move(field).change: f"live{field.index}"}
        return table

    def symbols(self, plan: NodePlan) -> Names:
        return self.node_symbols(plan.node.name) | self.field_table(plan) | self.states

    def now(self, names: Iterable[str]) -> None:
        """Emit the states of some nodes, where they are now."""
        needed = ", ".join(f'"{name}": o["{name}"] + d["{name}"]' for name in dict.fromkeys(names))
        self.out(f"s = {{{needed}}}")

    def sees(self, expressions: Iterable[sp.Expr], fields: Iterable[Field]) -> list[str]:
        """Nodes whose present state some expressions, and the fields in them, are written with."""
        used = {item for expression in expressions for item in expression.free_symbols}
        for field in fields:
            if live_move(field).change in used:
                for source in field.live:
                    used |= difference(source.function, self.move(source.neighbour)).free_symbols
        return [name for name, move in self.moves.items() if move.new in used]

    # ------------------------------------------------------------ couplings that don't separate

    @staticmethod
    def ends(plan: EdgePlan) -> tuple[str, str]:
        return plan.edge.pre, plan.edge.post

    def pair_moves(self, plan: EdgePlan) -> tuple[Moves, Names]:
        """The moves of both ends of all pairs, and how their symbols are written."""
        moves: dict[sp.Symbol, Move] = {}
        table = self.edge_symbols(plan)
        for position, (end, variable) in enumerate(zip(self.ends(plan), (PRE, POST), strict=True)):
            if end in self.moves:
                # by their ends, not by their node, which both have in common for a coupling inside it
                move = moves[variable] = move_of(f"{end} {variable}")
                for item, letter in ((move.old, "o"), (move.change, "d"), (move.new, "s")):
                    table[item] = self.pair(plan, letter, letter)[position]
            else:
                table[variable] = self.pair(plan, "o", "o")[position]
        return moves, table

    def pair(self, plan: EdgePlan, pre: str, post: str) -> tuple[str, str]:
        ends = self.ends(plan)
        letters = [letter if end in self.moves else "o" for letter, end in zip((pre, post), ends, strict=True)]
        pairs = f'{plan.edge.name}_edge.pairs({letters[0]}["{ends[0]}"], {letters[1]}["{ends[1]}"])'
        return f"{pairs}[0]", f"{pairs}[1]"

    def mixed_change(self, edge: str, node: str) -> str:
        plan = self.plan.edges[edge]
        (moves, table), terms = self.pair_moves(plan), []
        for end, side, way in ((plan.edge.pre, PRE, "to_pre"), (plan.edge.post, POST, "to_post")):
            if end == node:
                slope = difference(derivative(plan.edge.term, side), moves)
                terms.append(f"- {edge}_edge.{way}({self.print(slope, table)})")
        return " ".join(terms)


def live_move(field: Field) -> Move:
    old, change = (sp.Symbol(f"{what} live {field.index}", real=True) for what in ("old", "change"))
    return Move(old, change, cast(sp.Expr, old + change))


def live_moves(plan: NodePlan) -> dict[sp.Symbol, Move]:
    return {field.live_symbol: live_move(field) for field in plan.fields if field.live}


def changes(plan: NodePlan) -> set[sp.Expr]:
    """What is recomputed in every sweep."""
    return {move.change for move in live_moves(plan).values()}
