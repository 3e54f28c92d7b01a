"""From the intermediate form to torch source.

The source is meant to be read: `model.source` shows it, tracebacks point into it. Its functions take

    p   parameters by name             s   states by node, [rows, *node]
    k   fixed fields by node and index y   targets by name
    c   what `prepare_<node>` made of them for one relaxation
    beta  the nudge, a number or [rows, 1, ...]

and the connections and domains of the graph stand under `<edge>_edge` and `<node>_domain`.
"""

from __future__ import annotations

import hashlib
import linecache
from collections.abc import Iterable
from typing import Any, cast

import sympy as sp

from physnet import scalar
from physnet.codegen_contrast import ContrastEmitter
from physnet.codegen_displaced import DisplacedEmitter, clamped_sources
from physnet.codegen_errors import ErrorEmitter
from physnet.connections import Linked, RealLink, Selecting
from physnet.costcode import CostEmitter, headed, split
from physnet.errors import DeclarationError, Fault
from physnet.expressions import derivative, symbol
from physnet.external import BETA, at_current_state
from physnet.plans import A, EdgePlan, Field, NodePlan, Plan, Source
from physnet.printing import function_namespace, shown
from physnet.reductions import REDUCTIONS
from physnet.separation import POST, PRE, GradientOnly, Linear, Quadratic, Scalar, Sinusoid, Solver, X
from physnet.vocabulary import Names


def generate(plan: Plan) -> str:
    """The torch source for a plan."""
    out = headed(plan)
    _Emitter(plan, out).emit()
    if plan.predictive:  # whose nudged phases have other coordinates
        ErrorEmitter(plan, out).emit()
    else:
        DisplacedEmitter(plan, out).emit()
    ContrastEmitter(plan, out).emit()
    return "\n".join(out.lines) + "\n"


def generate_activations(plan: Plan) -> str:
    """The torch source for exact updates of free phases, and for costs: all that a feed-forward net needs."""
    out = headed(plan)
    emitter = _Emitter(plan, out)
    for node in plan.nodes.values():
        emitter.node(node)
    emitter.cost()
    return "\n".join(out.lines) + "\n"


def load(plan: Plan, source: str) -> dict[str, Any]:
    """Execute generated source; tracebacks show its lines."""
    filename = f"<physnet {hashlib.sha256(source.encode()).hexdigest()[:12]}>"
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    namespace = function_namespace()
    namespace |= {
        "minimise_scalar": scalar.minimise,
        "reciprocal": scalar.reciprocal,
        "to_bound": scalar.to_bound,
        "angle": scalar.angle,
    }
    graph = plan.graph
    for edge in graph.edges():
        link = edge.connection.bind(graph.node(edge.pre).shape, graph.node(edge.post).shape)
        if plan.edges[edge.name].separated is None and type(link).pairs is Linked.pairs:
            message = f"over {edge.connection.declaration()} a coupling must separate into products of pre and post"
            fault = Fault(
                message, "use a dense connection, or another coupling", ("edges", f"{edge.pre} -> {edge.post}")
            )
            raise DeclarationError(fault)
        namespace[f"{edge.name}_edge"] = link if isinstance(link, Selecting) else RealLink(link)
    for node in graph.nodes():
        namespace[f"{node.name}_domain"] = node.domain
    for name, cost in graph.readouts().items():
        assert cost.readout is not None
        link = cost.readout.connection.bind(graph.node(cost.node).shape, cost.readout.shape)
        namespace[f"{name}_edge"] = RealLink(link)
    namespace |= {f"{name}_reduction": kind() for name, kind in REDUCTIONS.items()}
    exec(compile(source, filename, "exec"), namespace)  # our own text, printed from SymPy
    return namespace


class _Emitter(CostEmitter):
    """Writes the functions of a plan."""

    def emit(self) -> None:
        for plan in self.plan.nodes.values():
            self.node(plan)
        for node in self.plan.graph.nodes():
            if not node.free:
                self.clamped_force(node.name)
        self.energy()
        self.cost()

    def node(self, plan: NodePlan) -> None:
        """The functions of a free node."""
        self.fixed(plan)
        self.drive(plan)
        self.prepare_and_minimise(plan, "free", plan.free)
        self.force(plan, "free")
        self.curvature(plan, "free", plan.free)
        if plan.cost != 0:
            self.prepare_and_minimise(plan, "nudged", plan.nudged)
            self.force(plan, "nudged")
            self.curvature(plan, "nudged", plan.nudged)

    # ------------------------------------------------------------ relaxation

    def fixed(self, plan: NodePlan) -> None:
        name = plan.node.name
        present = [field for field in plan.all_fields if field.fixed]
        self.out.function(f"fixed_{name}(p, s)", f"Fields of {name} from clamped nodes and parameters alone.")
        entries = ", ".join(f"{field.index}: {self.sum_of(field.fixed)}" for field in present)
        self.out(f"return {{{entries}}}")

    def live(self, fields: Iterable[Field], wanted: set[sp.Basic]) -> dict[sp.Basic, str]:
        """Emit the live fields that are needed, and say what they are called."""
        table: dict[sp.Basic, str] = {}
        for field in fields:
            if field.live and field.live_symbol in wanted:
                self.out(f"live{field.index} = {self.sum_of(field.live)}")
                table[field.live_symbol] = f"live{field.index}"
        return table

    def prepare_and_minimise(self, plan: NodePlan, phase: str, solver: Solver) -> None:
        name = plan.node.name
        head = f"prepare_{name}__{phase}(p, k, y, beta)"
        doc = f"What the exact update of {name} needs and doesn't change during the {phase} phase."
        body = f"minimise_{name}__{phase}(p, s, k, c, y, beta)"
        match solver:
            case GradientOnly():
                return
            case Quadratic(curvature, drive):
                self.quadratic(plan, head, doc, body, curvature, drive)
            case Sinusoid(cosine, sine):
                self.affine(plan, head, doc, body, (sine, cosine), "atan2({}, {})", "argmin of -A cos x - B sin x")
            case Linear(drive):
                self.affine(
                    plan, head, doc, body, (drive,), f'to_bound({{}}, s["{name}"], {name}_domain)', "argmin of -drive x"
                )
            case Scalar():
                self.scalar(plan, head, doc, body, solver)

    def affine(
        self, plan: NodePlan, head: str, doc: str, body: str, parts: tuple[sp.Expr, ...], form: str, meaning: str
    ) -> None:
        """An update that is a function of quantities affine in the live fields."""
        symbols = self.node_symbols(plan.node.name) | self.fixed_table(plan)
        pieces = [split(plan, part, live_symbols(plan)) for part in parts]
        self.out.function(head, doc)
        self.out(f"return ({''.join(self.print(constant, symbols) + ', ' for constant, _ in pieces)})")
        self.out.function(body, f"{meaning}, exactly.")
        wanted = {item for _, live in pieces for item in live.free_symbols}
        table = self.live(plan.fields, wanted)
        written = []
        for index, (constant, live) in enumerate(pieces):
            terms = [] if constant == 0 else [f"c[{index}]"]
            terms.append(self.zero(plan.node.name) if live == 0 else self.print(live, table, symbols))
            written.append(" + ".join(terms))
        self.out(f"return {form.format(*written)}")

    def quadratic(self, plan: NodePlan, head: str, doc: str, body: str, curvature: sp.Expr, drive: sp.Expr) -> None:
        name = plan.node.name
        symbols = self.node_symbols(name) | self.fixed_table(plan)
        constant, live = split(plan, drive, live_symbols(plan))
        made, bounds = self.prepared(plan, live.free_symbols, first=2)
        if any(field.live_symbol in curvature.free_symbols for field in plan.fields):
            self.out.function(head, doc)
            made, bounds = self.prepared(plan, curvature.free_symbols)
            self.out(f"return ({''.join(f'{bound}, ' for bound in made)})")
            self.out.function(body, f"x = ({shown(drive)})/({shown(curvature)}), clipped to the domain.")
            table = self.live(plan.fields, curvature.free_symbols | drive.free_symbols) | bounds
            rate = f'reciprocal({self.print(curvature, symbols, table)}, "{name}")'
            self.out(f"return {name}_domain.project(({self.print(drive, symbols, table)})*{rate})")
            return
        self.out.function(head, doc)
        unit = curvature == 1
        if unit:
            self.out(f"return ({self.print(constant, symbols)}, )")
        else:
            printed = self.print(curvature, symbols)
            self.out(f'rate = reciprocal({printed}, "{name}")')
            self.out(f"return ({', '.join([f'({self.print(constant, symbols)})*rate', 'rate', *made])})")
        self.out.function(body, f"argmin over the domain of curvature/2 x^2 - drive x, curvature = {shown(curvature)}.")
        table = self.live(plan.fields, live.free_symbols) | bounds
        terms = [] if constant == 0 else ["c[0]"]
        printed = self.zero(name) if live == 0 else self.print(live, symbols, table)
        terms.append(printed if unit or live == 0 else f"({printed})*c[1]")
        self.out(f"return {name}_domain.project({' + '.join(terms)})")

    def scalar(self, plan: NodePlan, head: str, doc: str, body: str, solver: Scalar) -> None:
        name = plan.node.name
        self.out.function(head, doc)
        wanted = solver.energy.free_symbols
        made, bounds = self.prepared(plan, wanted)
        self.out(f"return ({''.join(f'{bound}, ' for bound in made)})")
        self.out.function(body, "The local minimum that the state descends to, by safeguarded Newton.")
        table = self.live(plan.fields, wanted) | self.node_symbols(name) | self.fixed_table(plan) | {X: "x"}
        table |= self.hoisted(plan, wanted) | bounds
        for function, expression in (("energy", solver.energy), ("slopes", (solver.slope, solver.curvature))):
            self.out("")
            self.out(f"def {function}(x):")
            self.returned(expression if isinstance(expression, tuple) else (expression,), table)
        self.out("")
        self.out(f'return minimise_scalar(energy, slopes, s["{name}"], {name}_domain)')

    def force(self, plan: NodePlan, phase: str) -> None:
        name = plan.node.name
        self.out.function(f"force_{name}__{phase}(p, s, k, y, beta)", f"-dF/dx of {name}.")
        energy = plan.conditional if phase == "nudged" else plan.conditional.subs(BETA, 0)
        slope = at_current_state(derivative(energy, X))
        table = self.live(plan.fields, slope.free_symbols) | self.driven(plan, slope)
        symbols = self.node_symbols(name) | self.fixed_table(plan) | {X: self.state(name)}
        terms = [] if slope == 0 else [f"-({self.print(slope, symbols, table)})"]
        terms += [self.mixed_force(mixed, name) for mixed in plan.mixed] + self.fed_back(name, "k")
        fields = {item for field in plan.fields for item in field.value.free_symbols}
        if len(terms) < 2 and X not in slope.free_symbols and not fields & slope.free_symbols:
            terms.append(f"+ {self.zero(name)}")  # the same in every state, but one for each of them
        self.out(f"return {' '.join(terms)}")

    def curvature(self, plan: NodePlan, phase: str, solver: Solver) -> None:
        """What a force is measured by where there is no exact update."""
        if not isinstance(solver, GradientOnly):
            return
        name = plan.node.name
        self.out.function(f"curvature_{name}__{phase}(p, s, k, y, beta)", f"d^2F/dx^2 of each unit of {name}.")
        energy = plan.conditional if phase == "nudged" else plan.conditional.subs(BETA, 0)
        bend = derivative(derivative(energy, X), X)
        table = self.live(plan.fields, bend.free_symbols) | self.driven(plan, bend)
        symbols = self.node_symbols(name) | self.fixed_table(plan) | {X: self.state(name)}
        terms = [f"{self.zero(name)} + {self.print(bend, symbols, table)}"]
        terms += [self.mixed_curvature(mixed, name) for mixed in plan.mixed]
        self.out(f"return {' '.join(terms)}")

    def mixed_curvature(self, edge: str, node: str) -> str:
        plan = self.plan.edges[edge]
        own, way = (PRE, "to_pre") if plan.edge.pre == node else (POST, "to_post")
        bend = derivative(derivative(plan.edge.term, own), own)
        pairs = self.pair_symbols(plan)
        return f"+ {edge}_edge.{way}({self.print(bend, pairs)} + 0*{pairs[PRE]}*{pairs[POST]})"

    def clamped_force(self, name: str) -> None:
        """-dF/dx of a clamped node: the force that its clamp holds against, and the gradient of its input."""
        self.out.function(f"force_{name}(p, s)", f"-dE/dx of {name}, which is clamped.")
        terms: list[str] = []
        for plan in self.plan.edges.values():
            if name not in (plan.edge.pre, plan.edge.post):
                continue
            if plan.separated is None:
                terms.append(self.mixed_force(plan.edge.name, name))
            else:
                terms += self.separated_force(plan, name)
        terms += self.fed_back(name)
        self.out(f"return {' '.join(terms) or self.zero(name)}")

    def separated_force(self, plan: EdgePlan, name: str) -> list[str]:
        return [
            f"- ({self.print(slope, {X: self.state(name)})})*{self.source(source)}"
            for slope, source in clamped_sources(plan, name)
        ]

    # ------------------------------------------------------------ predictions

    def drive(self, plan: NodePlan) -> None:
        """The drive of a node, and the slope of its energy in it."""
        if plan.drive is None:
            return
        name, drive = plan.node.name, plan.drive
        self.out.function(f"drive_{name}(p, s, k=None)", f"a of {name}; k spares what clamped nodes contribute.")
        bias: list[str] = []
        if "b" in plan.node.parameters:
            bias.append(self.node_symbols(name)[symbol("b")])
        if drive.fixed:
            self.out(f'fixed = {self.sum_of(drive.fixed)} if k is None else k["{name}"][{drive.index}]')
            bias.append("fixed")
        self.out(f"return {self.biased_sum(drive.live, bias)}")
        self.out.function(f"pull_{name}(p, s, a)", f"dE/da of {name}.")
        table = self.node_symbols(name) | {X: self.state(name), A: "a"}
        self.out(f"return {self.print(derivative(plan.node.term, A), table)} + 0*a")

    def driven(self, plan: NodePlan, wanted: sp.Expr) -> Names:
        """Emit the drive of a node, if an expression needs it, and say what it is called."""
        if A not in wanted.free_symbols:
            return {}
        self.out(f"a = drive_{plan.node.name}(p, s, k)")
        return {A: "a"}

    def fed_back(self, name: str, fixed: str = "") -> list[str]:
        """-dE/dx through the predictions that a node makes."""
        terms: list[str] = []
        for plan in self.plan.edges.values():
            edge = plan.edge
            if edge.message is None or edge.pre != name or self.plan.nodes[edge.post].drive is None:
                continue
            drive = f"drive_{edge.post}(p, s{', ' * bool(fixed)}{fixed})"
            source = Source(edge.name, True, symbol("w"), edge.post, X)
            slope = derivative(edge.message, PRE)
            factor = "" if slope == 1 else f"({self.print(slope, {PRE: self.state(name)})})*"
            terms.append(f"- {factor}{self.source(source, f'pull_{edge.post}(p, s, {drive})')}")
        return terms

    # ------------------------------------------------------------ scalars

    def energy(self) -> None:
        self.out.function("energy(p, s)", "E of every row.")
        terms: list[str] = []
        for name, plan in self.plan.nodes.items():
            if plan.node.term != 0:
                drive: Names = {A: f"drive_{name}(p, s)"} if plan.drive else {}
                terms.append(f"total({self.per_unit(plan.node.term, name, drive)})")
        for plan in self.plan.edges.values():
            edge = plan.edge
            if plan.separated is None:
                terms.append(f"total({self.print(edge.term, self.pair_symbols(plan))})")
            for term in plan.separated or ():
                pre = Source(edge.name, False, term.kernel, edge.pre, cast(sp.Expr, term.pre_factor.subs(PRE, X)))
                outer = cast(sp.Expr, term.number * term.post_factor)
                printed = self.print(outer, {POST: self.state(edge.post)})
                factor = "" if outer == 1 else f"({printed})*"
                terms.append(f"total({factor}{self.source(pre)})")
        self.out(f"return ({' + '.join(terms) or self.no_rows()})".replace("\n", " "))


def live_symbols(plan: NodePlan) -> set[sp.Symbol]:
    """The fields of a node that are recomputed in every sweep."""
    return {field.live_symbol for field in plan.fields}
