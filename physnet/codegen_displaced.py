"""Torch source for nudged phases in displacements from the free state.

With  d = s_beta - s_0  the slope of a unit's energy is  -r + dS(d),  where r is the force at the free state (zero
inside a box, not zero at a bound) and dS the change of the slope, derived by `physnet.differences`. So nothing that is
nearly equal is ever subtracted, and nudges far below the resolution of the states keep their digits. The functions take

    o   free states by node (clamped ones too)    d   displacements by node
    r   per node: the force and the live fields at the free state, and the domain seen from it
    s   o + d, where an energy isn't polynomial

and otherwise the names of `physnet.codegen`.
"""

from collections.abc import Iterable
from typing import cast

import sympy as sp

from physnet.costcode import split
from physnet.differences import after, difference
from physnet.displacements import FORCE, Displacements, changes, live_move, live_moves
from physnet.expressions import derivative
from physnet.external import BETA, at_current_state
from physnet.plans import EdgePlan, NodePlan, Source
from physnet.separation import POST, PRE, GradientOnly, Linear, Quadratic, Scalar, Sinusoid, Solver, X
from physnet.vocabulary import Names


class DisplacedEmitter(Displacements):
    """Writes the functions of nudged phases."""

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
        constant, live = split(plan, push, changes(plan))
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
        self.returned(curved, local)
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


def slopes(plan: NodePlan) -> tuple[sp.Expr, sp.Expr]:
    """(dE/dx, dC/dx) of one unit, given its fields."""
    energy = plan.node.term + sp.Add(*(field.basis * field.value for field in plan.fields))
    return derivative(cast(sp.Expr, energy), X), derivative(plan.cost, X)


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
