"""Torch source for nudged phases in displacements from the free state.

With  d = s_beta - s_0  the slope of a unit's energy is  -r + dS(d),  where r is the force at the free state (zero
inside a box, not zero at a bound) and dS the change of the slope, derived by `physnet.differences`. So nothing that is
nearly equal is ever subtracted, and nudges far below the resolution of the states keep their digits. The functions take

    o   free states by node (clamped ones too)    d   displacements by node
    r   per node: the force and the live fields at the free state, and the domain seen from it
    s   o + d, where an energy isn't polynomial

and otherwise the names of `physnet.codegen`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import sympy as sp

from physnet.costcode import CostEmitter
from physnet.differences import Move, Moves, after, difference
from physnet.expressions import derivative, symbol, write
from physnet.external import HERE, at_current_state
from physnet.lowering import (
    BETA,
    EdgePlan,
    Field,
    NodePlan,
    Plan,
    Product,
    Source,
    contrast_products,
    parameter_slope,
)
from physnet.printing import Lines, shown
from physnet.separation import POST, PRE, GradientOnly, Linear, Quadratic, Scalar, Sinusoid, Solver, X
from physnet.vocabulary import Names

FORCE = sp.Symbol("force at the free state", real=True)
NUDGE = {BETA: Move(sp.Integer(0), BETA, BETA)}


def move_of(node: str) -> Move:
    """How the state of a node moves, as symbols."""
    return Move(*(sp.Symbol(f"{what} {node}", real=True) for what in ("origin", "change", "moved")))


class DisplacedEmitter(CostEmitter):
    """Writes the functions of nudged phases."""

    here = "o"

    def __init__(self, plan: Plan, out: Lines) -> None:
        super().__init__(plan, out)
        self.moves = {name: move_of(name) for name in plan.nodes}
        self.states: Names = {}
        for node in plan.graph.nodes():
            move = self.moves.get(node.name)
            table = {} if move is None else {move.old: "o", move.change: "d", move.new: "s"}
            self.states |= {item: f'{letter}["{node.name}"]' for item, letter in table.items()}

    def emit(self) -> None:
        for plan in self.plan.nodes.values():
            self.origin(plan)
            for phase in ("free", "nudged") if plan.cost != 0 else ("free",):
                self.minimise(plan, phase)
                self.force(plan, phase)
        for node in self.plan.graph.nodes():
            if not node.free:
                self.clamped_force(node.name)
        self.energy()
        for edge in self.plan.edges.values():
            for name in edge.edge.parameters:
                self.edge_contrast(edge, name)
        for plan in self.plan.nodes.values():
            for name in plan.node.parameters:
                self.node_contrast(plan, name)
        for item in self.plan.external:
            self.readout_contrasts(item)
        self.summed_contrasts()

    # ------------------------------------------------------------ what moves

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
        return self.source(source, self.change(source.function, source.neighbour))

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

    # ------------------------------------------------------------ relaxation

    def origin(self, plan: NodePlan) -> None:
        name = plan.node.name
        self.out.function(f"origin_{name}(p, s, k)", f"The force on {name} at the free state, and its live fields.")
        entries = ['"force": force']
        table: Names = self.node_symbols(name) | self.fixed_table(plan) | {X: self.state(name)}
        needed = self.needed(plan)
        for field in plan.fields:
            if field.live:
                self.out(f"live{field.index} = {self.sum_of(field.live)}")
                table[field.live_symbol] = f"live{field.index}"
                if live_move(field).old in needed:
                    entries.append(f"{field.index}: live{field.index}")
        slope = slopes(plan)[0]
        terms = [] if slope == 0 else [f"-({self.print(slope, table)})"]
        terms += [self.mixed_force(mixed, name) for mixed in plan.mixed]
        shaped = X in slope.free_symbols or plan.mixed
        self.out(f"force = {' '.join(terms) or '0'}{'' if shaped else f' + 0*{self.state(name)}'}")
        self.out(f"return {{{', '.join(entries)}}}")

    def needed(self, plan: NodePlan) -> set[sp.Basic]:
        """What the functions of a node are written with; fields of the free state matter where they multiply."""
        moves = live_moves(plan) | self.move(plan.node.name)
        written = [difference(slopes(plan)[0], moves), *self.curved(plan, "nudged")]
        written += [rate for solver in (plan.free, plan.nudged) if (rate := self.rate(plan, solver)) is not None]
        return {item for expression in written for item in expression.free_symbols}

    def minimise(self, plan: NodePlan, phase: str) -> None:
        name, solver = plan.node.name, plan.nudged if phase == "nudged" else plan.free
        if isinstance(solver, GradientOnly):
            return
        push = self.push(plan, phase)
        rate = self.rate(plan, solver)
        constant, live = split(plan, push)
        steady = rate is not None and not changes(plan) & rate.free_symbols
        symbols = self.symbols(plan)
        self.out.function(
            f"displaced_prepare_{name}__{phase}(p, o, r, k, y, beta)",
            f"What the displacement of {name} depends on and doesn't change during the phase.",
        )
        kept = [self.print(constant, symbols)]
        if rate is not None and steady and rate != 1:
            printed = self.print(rate, symbols)
            self.out(f"rate = {f'reciprocal({printed}, {name!r})' if isinstance(solver, Quadratic) else printed}")
            kept.append("rate")
        curved = self.curved(plan, phase) if isinstance(solver, Scalar) else ()
        made, bounds = self.prepared(plan, {i for part in (live, *curved) for i in part.free_symbols}, len(kept))
        self.out(f"return ({', '.join([*kept, *made])}, )")
        self.out.function(
            f"displaced_{name}__{phase}(p, o, d, r, k, c, y, beta)",
            f"The displacement at which the force on {name} vanishes: {solver.name}.",
        )
        used = live.free_symbols | (set() if rate is None or steady else rate.free_symbols)
        seen = [live, *curved] if rate is None or steady else [live, rate]
        self.present(plan, phase, seen)
        self.live(plan.fields, used | {item for part in curved for item in part.free_symbols})
        symbols |= bounds | self.hoisted(plan, live.free_symbols | {i for part in curved for i in part.free_symbols})
        drive = "c[0]" if live == 0 else f"c[0] + {self.print(live, symbols)}"
        if isinstance(solver, Scalar):
            self.newton(plan, curved, symbols)
            return
        self.out(f"push = {drive}")
        self.out(f'return r["domain"].project({self.landing(name, solver, rate, steady, symbols)})')

    def landing(self, name: str, solver: Solver, rate: sp.Expr | None, steady: bool, symbols: Names) -> str:
        """Where a push takes the units of a node."""
        if isinstance(solver, Linear):
            return f'to_bound(push, d["{name}"], r["domain"])'
        assert rate is not None
        if isinstance(solver, Sinusoid):
            return f"angle(push, {'c[1]' if steady else self.print(rate, symbols)})"
        if rate == 1:
            return "push"
        return "push*c[1]" if steady else f"push*reciprocal({self.print(rate, symbols)}, {name!r})"

    def push(self, plan: NodePlan, phase: str) -> sp.Expr:
        """The force on a unit that stands at its free state, while everything else has moved."""
        here = {X: self.moves[plan.node.name].old}
        energy, cost = slopes(plan)
        push = FORCE - difference(cast(sp.Expr, energy.xreplace(here)), live_moves(plan))
        if phase == "nudged":
            push -= BETA * cost.xreplace(here)
        return cast(sp.Expr, push)

    def rate(self, plan: NodePlan, solver: Solver) -> sp.Expr | None:
        """The curvature that answers a push, where the energy is quadratic or a sinusoid."""
        origin = self.moves[plan.node.name].old
        if isinstance(solver, Quadratic):
            return after(solver.curvature, live_moves(plan))
        if isinstance(solver, Sinusoid):
            bend = solver.cosine * sp.cos(origin) + solver.sine * sp.sin(origin)
            return after(cast(sp.Expr, bend), live_moves(plan))
        return None

    def curved(self, plan: NodePlan, phase: str) -> tuple[sp.Expr, sp.Expr]:
        """Slope and curvature of the energy of a unit that stands displaced."""
        energy, cost = slopes(plan)
        moves = live_moves(plan) | self.move(plan.node.name)
        slope = difference(energy, moves) - FORCE
        bend = after(derivative(energy, X), moves)
        if phase == "nudged":
            slope += BETA * after(cost, moves)
            bend += BETA * after(derivative(cost, X), moves)
        return cast(sp.Expr, slope), cast(sp.Expr, bend)

    def newton(self, plan: NodePlan, curved: tuple[sp.Expr, ...], symbols: Names) -> None:
        name = plan.node.name
        self.out("")
        self.out("def slopes(x):")
        self.out(f'm = o["{name}"] + x', 2)
        local = symbols | {self.moves[name].change: "x", self.moves[name].new: "m"}
        shared, reduced = sp.cse(curved, symbols=(sp.Dummy(f"v{i}") for i in range(1000)))
        for index, (item, value) in enumerate(shared):
            self.out(f"v{index} = {self.print(value, local)}", 2)
            local[item] = f"v{index}"
        self.out(f"return {', '.join(self.print(cast(sp.Expr, item), local) for item in reduced)}", 2)
        self.out("")
        self.out(f'return minimise_scalar(None, slopes, d["{name}"], r["domain"])')

    def present(self, plan: NodePlan, phase: str, expressions: Iterable[sp.Expr]) -> None:
        """Emit the present states that a function needs: of non-linear neighbours, and where a cost ties units."""
        names = self.sees(expressions, plan.fields)
        if phase == "nudged" and plan.external:
            names.append(plan.node.name)
        if names:
            self.now(names)

    def force(self, plan: NodePlan, phase: str) -> None:
        name = plan.node.name
        self.out.function(f"displaced_force_{name}__{phase}(p, o, d, r, k, y, beta)", f"-dF/dx of {name}, displaced.")
        energy, cost = slopes(plan)
        moves = live_moves(plan) | self.move(name)
        force = FORCE - difference(energy, moves)
        if phase == "nudged":
            force -= BETA * after(at_current_state(cost), moves)
        ends = [end for mixed in plan.mixed for end in self.ends(self.plan.edges[mixed])]
        names = [*self.sees([cast(sp.Expr, force)], plan.fields), *(end for end in ends if end in self.moves)]
        if phase == "nudged" and plan.external:
            names.append(name)
        if names:
            self.now(names)
        self.live(plan.fields, force.free_symbols)
        terms = [self.print(cast(sp.Expr, force), self.symbols(plan))]
        terms += [self.mixed_change(mixed, name) for mixed in plan.mixed]
        self.out(f"return {' '.join(terms)}")

    def clamped_force(self, name: str) -> None:
        self.out.function(f"displaced_force_{name}(p, o, d)", f"How much -dE/dx of {name}, which is clamped, changed.")
        self.now(self.moves)
        terms: list[str] = []
        for plan in self.plan.edges.values():
            if name not in self.ends(plan):
                continue
            if plan.separated is None:
                terms.append(self.mixed_change(plan.edge.name, name))
            else:
                terms += [self.slope_change(slope, source, name) for slope, source in clamped_sources(plan, name)]
        self.out(f"return {' '.join(terms) or f'0*{self.here}[{name!r}]'}")

    def slope_change(self, slope: sp.Expr, source: Source, name: str) -> str:
        if source.constant:
            return ""
        return f"- ({self.value(slope, name)})*{self.live_change(source)}"

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

    # ------------------------------------------------------------ scalars

    def energy(self) -> None:
        self.out.function("displaced_energy(p, o, d)", "E at the displaced state minus E at the free state.")
        self.now(self.moves)
        terms: list[str] = []
        for name, plan in self.plan.nodes.items():
            change = difference(plan.node.term, self.move(name))
            if change != 0:
                terms.append(f"total({self.print(change, self.node_symbols(name), self.states)})")
        for plan in self.plan.edges.values():
            if plan.separated is None:
                moves, table = self.pair_moves(plan)
                terms.append(f"total({self.print(difference(plan.edge.term, moves), table)})")
            for term in plan.separated or ():
                terms += self.product_change(plan, term)
        self.out(f"return {' + '.join(terms)}")

    def product_change(self, plan: EdgePlan, term) -> list[str]:
        """d(u v) = du v_old + u_new dv, summed over all pairs."""
        edge = plan.edge
        pre = Source(edge.name, False, term.kernel, edge.pre, cast(sp.Expr, term.pre_factor.subs(PRE, X)))
        post = cast(sp.Expr, term.number * term.post_factor)
        terms: list[str] = []
        if edge.pre in self.moves and not pre.constant:
            old = self.print(post, {POST: f'o["{edge.post}"]'})
            terms.append(f"total(({old})*{self.live_change(pre)})")
        if edge.post in self.moves and POST in post.free_symbols:
            new = self.source(pre, None if pre.constant else self.value(pre.function, edge.pre))
            terms.append(f"total(({self.change(post, edge.post, POST)})*{new})")
        return terms

    # ------------------------------------------------------------ contrasts

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
            printed = self.print(factor, self.edge_symbols(plan))
            # a scalar that multiplies a tensor has one slope per pair, which are summed
            each = edge.parameters[parameter].shape == "scalar" and any(
                edge.parameters[str(item)].shape != "scalar" for item in factor.free_symbols
            )
            term = f"{edge.name}_edge.correlate(*phases.stack({stacked}), {printed if each else weight})"
            if factor != 1:
                term = f"({printed})*{term}"
            if each:
                term = f"({term}).sum()"
            terms.append(term)
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
        return f"phases.{kinds[0]}_{kinds[1]}({arguments[0]}, {arguments[1]}, {self.print(product.number)})"

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


def slopes(plan: NodePlan) -> tuple[sp.Expr, sp.Expr]:
    """(dE/dx, dC/dx) of one unit, given its fields."""
    energy = plan.node.term + sp.Add(*(field.basis * field.value for field in plan.fields))
    return derivative(cast(sp.Expr, energy), X), derivative(plan.cost, X)


def live_move(field: Field) -> Move:
    old, change = (sp.Symbol(f"{what} live {field.index}", real=True) for what in ("old", "change"))
    return Move(old, change, cast(sp.Expr, old + change))


def live_moves(plan: NodePlan) -> dict[sp.Symbol, Move]:
    return {field.live_symbol: live_move(field) for field in plan.fields if field.live}


def changes(plan: NodePlan) -> set[sp.Expr]:
    """What is recomputed in every sweep."""
    return {move.change for move in live_moves(plan).values()}


def split(plan: NodePlan, expression: sp.Expr) -> tuple[sp.Expr, sp.Expr]:
    """(what stays the same during a phase, the rest)."""
    silent = {*changes(plan), HERE, *(item.tilt for item in plan.external)}
    constant = cast(sp.Expr, expression.subs(dict.fromkeys(silent, 0)))
    return constant, cast(sp.Expr, sp.expand(expression - constant))


def clamped_sources(plan: EdgePlan, name: str) -> list[tuple[sp.Expr, Source]]:
    """The separated forces of an edge on one of its ends: (slope in x of that end, what flows in)."""
    edge, result = plan.edge, []
    adjoint = edge.pre == name
    for term in plan.separated or ():
        own, other = (term.pre_factor, term.post_factor) if adjoint else (term.post_factor, term.pre_factor)
        slope = derivative(cast(sp.Expr, term.number * own.subs({PRE: X, POST: X})), X)
        if slope != 0:
            function = cast(sp.Expr, other.subs({PRE: X, POST: X}))
            result.append(
                (slope, Source(edge.name, adjoint, term.kernel, edge.post if adjoint else edge.pre, function))
            )
    return result
