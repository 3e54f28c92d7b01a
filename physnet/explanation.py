"""What `explain` found, as SymPy and as terminal text and LaTeX."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import sympy as sp
from sympy.printing.latex import LatexPrinter

from physnet.expressions import symbol, write
from physnet.protocols import Phase, Protocol

if TYPE_CHECKING:
    from rich.text import Text

BETA = symbol("beta")


@dataclass(frozen=True)
class Sum:
    """sum over `index` of `body`, or `body` if there is no index. Symbols are called `edge.w[i,j]`, `node[j]`."""

    index: str
    body: sp.Expr


@dataclass(frozen=True)
class Case:
    """A new state, for the units named that meet the condition."""

    state: sp.Expr
    units: str = ""
    condition: sp.Basic = sp.true


@dataclass(frozen=True)
class Update:
    """How a unit is moved to its minimum. Without cases there is no exact update, and the note says why."""

    kind: str
    cases: tuple[Case, ...]
    note: str = ""


@dataclass(frozen=True)
class NodeEntry:
    """One unit of a free node, given the other nodes.

    Arguments:
        energy: in `x`, parameters, fields, `beta` and `y`.
        force: -d energy / dx.
        fields: what the symbols for the influence of other nodes stand for.
        updates: by phase, `free` and `nudged`; or `every`, where they are the same.
    """

    name: str
    shape: tuple[int, ...]
    domain: str
    energy: sp.Expr
    force: sp.Expr
    fields: Mapping[sp.Symbol, tuple[Sum, ...]]
    updates: Mapping[str, Update]


@dataclass(frozen=True)
class ParameterEntry:
    """One parameter tensor.

    Arguments:
        slope: dF/dtheta of one unit or pair, in the symbols of the declaration.
        entry: one entry of the tensor, such as `edge.w[i,j]`.
        local: the slope by the states at the two ends, summed over what shares the entry.
        others: the same for those that share the tensor, and for regularisers; all add.
        shared: names of the parameters that are tied to this tensor.
    """

    name: str
    shape: tuple[int, ...]
    constraint: str
    frozen: bool
    slope: sp.Expr
    entry: sp.Symbol
    local: Sum
    others: tuple[Sum, ...] = ()
    shared: tuple[str, ...] = ()


@dataclass(frozen=True)
class Explanation:
    """All there is to say about a model; `text` and `latex` say it.

    Arguments:
        integrators: which one `auto` takes and why, by phase.
        blocks: sets of nodes that are updated at once, in their order, by phase.
        warnings: what the energy costs.
        reference: the reference that is asked for, if it isn't a protocol.
    """

    title: str
    integrators: Mapping[str, str]
    blocks: Mapping[str, tuple[tuple[str, ...], ...]]
    nodes: tuple[NodeEntry, ...]
    parameters: tuple[ParameterEntry, ...]
    protocol: Protocol
    beta: float | None
    warnings: tuple[str, ...]
    reference: str = ""
    notes: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        return "\n".join(_text(self))

    @property
    def latex(self) -> str:
        """A fragment for a document that uses amsmath."""
        return "\n".join(_latex(self))

    @property
    def equations(self) -> dict[str, str]:
        """Energy, force and update of every node and the rule of every parameter, each as one LaTeX display."""
        nodes = {f"node {node.name}": _node_latex(node) for node in self.nodes}
        rules = {f"parameter {parameter.name}": _rules_latex(self, parameter) for parameter in self.parameters}
        return {
            name: "\n".join(_aligned(rows)).replace("align*", "aligned") for name, rows in {**nodes, **rules}.items()
        }

    def __str__(self) -> str:
        return self.text

    def __rich__(self) -> Text:
        from rich.text import Text

        return Text(self.text)  # not markup: the brackets of w[i,j] are meant

    def _repr_markdown_(self) -> str:
        return f"```text\n{self.text}\n```"


# --------------------------------------------------------------------------- what both have in common


def _summary(explanation: Explanation) -> Iterator[str]:
    yield from (f"integrator, {phase}: {chosen}" for phase, chosen in explanation.integrators.items())
    yield from explanation.notes
    for phase, order in explanation.blocks.items():
        yield f"blocks, {phase}: {', then '.join(' and '.join(block) for block in order)}"
    protocol, beta = explanation.protocol, explanation.protocol.fixed_beta or explanation.beta
    nudge = "" if beta is None else f", beta = {beta:g}"
    if explanation.reference:
        yield f"learning: {explanation.reference}, which the rules of {protocol.name} approach as beta vanishes"
    elif protocol.clamps:
        yield f"learning: {protocol.name}{nudge}: outputs are held at the fraction beta of the way to their targets"
    else:
        yield f"learning: {protocol.name}{nudge}; L is the mean cost, [...] a mean over the samples"
    yield from (f"warning: {message}" for message in explanation.warnings)


def _units(node: NodeEntry) -> str:
    return f"{' x '.join(map(str, node.shape))} units in {node.domain}"


def _about(parameter: ParameterEntry) -> str:
    shape = " x ".join(map(str, parameter.shape)) or "one number"
    tied = f"shared by {', '.join(parameter.shared)}" if parameter.shared else ""
    parts = (shape, parameter.constraint, "frozen" if parameter.frozen else "learned", tied)
    return ", ".join(part for part in parts if part)


def _remark(phase: str, update: Update, case: Case) -> str:
    return "; ".join(part for part in (update.kind, _phase(phase), case.units, update.note) if part)


def _phase(phase: str) -> str:
    return f"{phase} phase" if phase != "every" else ""


def _exact(number: complex) -> sp.Expr:
    """A number without the digits that floating point made up."""
    parts = [sp.nsimplify(round(part, 12), rational=True) for part in (complex(number).real, complex(number).imag)]
    shown = [part if part.q < 1000 else sp.Float(float(part), 4) for part in parts]
    return cast(sp.Expr, shown[0] + sp.I * shown[1])


def _weights(phases: tuple[Phase, ...]) -> list[tuple[sp.Expr, sp.Expr]]:
    """(nudge beta_k, coefficient c_k) of every phase."""
    exact = [(_exact(m), _exact(c)) for m, c in phases]
    return [(multiple * BETA, coefficient / BETA) for multiple, coefficient in exact]


# --------------------------------------------------------------------------- text


def _text(explanation: Explanation) -> Iterator[str]:
    yield explanation.title
    yield from (f"  {line}" for line in _summary(explanation))
    for node in explanation.nodes:
        yield f"\nnode {node.name}: {_units(node)}"
        yield f"  energy  {write(node.energy)}"
        yield f"  force   {write(node.force)}"
        yield from (f"  with    {name} = {' + '.join(map(_sum, sums))}" for name, sums in node.fields.items())
        for phase, update in node.updates.items():
            if not update.cases:
                yield f"  update  none is exact{_phase(phase) and ', ' + _phase(phase)}, since {update.note}"
            for case in update.cases:
                where = "" if case.condition == sp.true else f" where {case.condition}"
                yield f"  update  x <- {write(case.state)}{where}  ({_remark(phase, update, case)})"
    for parameter in explanation.parameters:
        yield f"\nparameter {parameter.name}: {_about(parameter)}"
        for phases in explanation.protocol.alternatives:
            slopes = " + ".join(map(_sum, (parameter.local, *parameter.others)))
            yield f"  dL/d {parameter.entry} = {_rule(phases, slopes)}"


def _rule(phases: tuple[Phase, ...], slope: str) -> str:
    match _weights(phases):
        case [(first, down), (second, up)] if up == -down:
            return f"{write(up)} * [{slope}] from {write(first)} to {write(second)}"
        case weights:
            return " + ".join(f"{write(c)} * [{slope}] at {write(nudge)}" for nudge, c in weights)


def _sum(item: Sum) -> str:
    index = f"({item.index})" if " " in item.index else item.index
    return f"sum_{index} {write(item.body)}" if index else write(item.body)


# --------------------------------------------------------------------------- LaTeX

_NAME = re.compile(r"(?:(?P<owner>\w+)\.)?(?P<name>\w+)(?:\[(?P<index>[\w,]+)\])?")


class _Latex(LatexPrinter):
    """Prints `edge.w[i,j]` as w with the edge above and the indices below, and `node[j]` as an x of that node."""

    def _print_Symbol(self, expr: sp.Symbol, style: str = "plain") -> str:
        found = _NAME.fullmatch(expr.name)
        if found is None or not (found["owner"] or found["index"]):
            return super()._print_Symbol(symbol(expr.name), style)
        owner, name = (found["owner"], found["name"]) if found["owner"] else (found["name"], "x")
        base = super()._print_Symbol(symbol(name), style)
        lower = f"_{{{found['index'].replace(',', '')}}}" if found["index"] else ""
        return f"{{{base}}}^{{{_words(owner)}}}{lower}"

    def _print_log_cosh(self, expr: Any, exp: str | None = None) -> str:
        return self._power(rf"\log\cosh\left({self._print(expr.args[0])}\right)", exp)

    def _print_step(self, expr: Any, exp: str | None = None) -> str:
        return self._power(rf"\Theta\left({self._print(expr.args[0])}\right)", exp)

    def _hprint_Function(self, func: str) -> str:
        return rf"\operatorname{{{_escaped(func)}}}" if "_" in func else super()._hprint_Function(func)

    @staticmethod
    def _power(base: str, exp: str | None) -> str:
        return base if exp is None else rf"\left({base}\right)^{{{exp}}}"


def _math(expression: sp.Basic) -> str:
    return cast(str, _Latex().doprint(expression))


def _escaped(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "^": r"\^{}", "~": r"\~{}"}
    return "".join(special.get(letter, "\\" + letter if letter in "&%$#_{}" else letter) for letter in text)


def _words(text: str) -> str:
    return rf"\text{{{_escaped(text)}}}"


def _latex(explanation: Explanation) -> Iterator[str]:
    yield rf"\paragraph{{{_escaped(explanation.title)}}}"
    yield r"\begin{itemize}"
    yield from (rf"\item {_escaped(line)}" for line in _summary(explanation))
    for node in explanation.nodes:
        yield rf"\item {_escaped(f'node {node.name}: {_units(node)}')}"
        yield from _aligned(_node_latex(node))
    for parameter in explanation.parameters:
        yield rf"\item {_escaped(f'parameter {parameter.name}: {_about(parameter)}')}"
        yield from _aligned(_rules_latex(explanation, parameter))
    yield r"\end{itemize}"


def _rules_latex(explanation: Explanation, parameter: ParameterEntry) -> Iterator[tuple[str, str]]:
    slope = " + ".join(map(_sum_latex, (parameter.local, *parameter.others)))
    left = rf"\frac{{\partial L}}{{\partial {_math(parameter.entry)}}}"
    return ((left, _rule_latex(phases, slope)) for phases in explanation.protocol.alternatives)


def _node_latex(node: NodeEntry) -> Iterator[tuple[str, str]]:
    yield "F(x)", _math(node.energy)
    yield r"-\frac{\partial F}{\partial x}", _math(node.force)
    for name, sums in node.fields.items():
        yield _math(name), " + ".join(map(_sum_latex, sums))
    for phase, update in node.updates.items():
        if not update.cases:
            yield "x", _words(f"no exact update in the {phase} phase, since {update.note}")
        for case in update.cases:
            where = "" if case.condition == sp.true else rf" \quad {_words('where')} \; {_math(case.condition)}"
            yield "x", rf"\leftarrow {_math(case.state)}{where} \quad {_words(f'({_remark(phase, update, case)})')}"


def _rule_latex(phases: tuple[Phase, ...], slope: str) -> str:
    match _weights(phases):
        case [(first, down), (second, up)] if up == -down:
            return rf"{_math(up)} \left[ {slope} \right]_{{{_math(first)}}}^{{{_math(second)}}}"
        case weights:
            return " + ".join(rf"{_math(c)} \left[ {slope} \right]_{{{_math(nudge)}}}" for nudge, c in weights)


def _sum_latex(item: Sum) -> str:
    index = item.index.replace(" in ", r" \in ")
    return rf"\sum_{{{index}}} {_math(item.body)}" if index else _math(item.body)


def _aligned(rows: Any) -> Iterator[str]:
    yield r"\begin{align*}"
    # an arrow stands for the equals sign of an update
    yield " \\\\\n".join(
        f"{left} &{right}" if right.startswith(r"\leftarrow") else f"{left} &= {right}" for left, right in rows
    )
    yield r"\end{align*}"
