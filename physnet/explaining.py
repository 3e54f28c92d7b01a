"""What the compiler made of a declaration, for people: `print(explain(model))`.

For every free node its energy, force and exact update; for every parameter its local learning rule

    dL/dtheta = sum_k c_k dF/dtheta(s_k)

All of it is read off the plan; nothing is written for one substrate.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import groupby
from typing import Any, cast

import sympy as sp
import torch

from physnet.connections import Identity
from physnet.costnotes import NOTE, external_costs, penalty_rules, readout_rule, users
from physnet.domains import Domain, Interval, Partition
from physnet.elements import Edge, Node
from physnet.explanation import Case, Explanation, NodeEntry, ParameterEntry, Sum, Update
from physnet.expressions import clip, derivative, symbol
from physnet.external import BETA, at_current_state, target_symbol
from physnet.graph import EnergyGraph
from physnet.imagenotes import correlation, members
from physnet.integration import Integrator, choose, make_integrator
from physnet.model import EnergyModel, check_model
from physnet.naming import Names, fresh, influence, pair, renamed, tidy, unit, whole
from physnet.plans import A, Block, NodePlan, Plan, conditional, parameter_slope, roles_of
from physnet.predictionnotes import bias_slope, drive, onward, weight_rule
from physnet.predictionnotes import updates as in_errors
from physnet.protocols import Protocol
from physnet.references import Reference, find_method, protocol_of
from physnet.separation import POST, PRE, GradientOnly, Linear, Quadratic, Scalar, Sinusoid, Solver, X


def explain(
    model: EnergyModel,
    protocol: str | Protocol = "centered",
    beta: float | None = None,
    integrator: str = "auto",
    options: Mapping[str, Any] | None = None,
) -> Explanation:
    """Show what follows from a declared energy.

    Arguments:
        model: the compiled energy.
        protocol: whose learning rules to show. References have none; that of `centered` leads to them as beta vanishes.
        beta: the nudge, if it is known.
        integrator: the one asked for.
        options: those of the integrator.

    Raises:
        DeclarationError: for an integrator or options that there aren't, or that don't fit the network.
    """
    check_model(model, "explain")
    plan, graph = model.plan, model.graph
    method = find_method(protocol)
    phases = {"free phase": plan.blocks} | ({"nudged phase": plan.nudged_blocks} if graph.costs else {})
    blocks = {phase: _taken(plan, order) for phase, order in phases.items()}
    asked = make_integrator(integrator, options or {})
    integrators, caveats = _integrators(model, integrator, asked)
    if asked is not None:
        asked.check(model)
    named, title = graph.name or graph.energy.name, graph.energy.title
    return Explanation(
        title=": ".join(part for part in (named, title) if part) or "a network without a name",
        integrators=_merged(integrators, "every phase"),
        blocks={} if asked is not None and asked.speaks else _merged(blocks, "every phase"),
        nodes=tuple(_node(model, node) for node in plan.nodes.values()),
        parameters=tuple(_parameter(model, name) for name in graph.tensors()),
        protocol=protocol_of(method),
        beta=beta,
        warnings=(*plan.warnings, *caveats),
        reference=str(method) if isinstance(method, Reference) else "",
        notes=() if asked is None else asked.notes(model),
    )


def _taken(plan: Plan, blocks: tuple[Block, ...]) -> tuple[tuple[str, ...], ...]:
    """What is updated at once, in turn; colours of one node that follow each other are counted."""
    taken: list[tuple[str, ...]] = []
    for nodes, run in groupby(blocks, key=lambda block: tuple(part.node for part in block)):
        counts = [{part.colour for part in parts} for parts in zip(*run, strict=True)]
        shares = [
            name if None in colours else f"{name} (coloured, {len(colours)} of {len(plan.nodes[name].parts)} in turn)"
            for name, colours in zip(nodes, counts, strict=True)
        ]
        taken.append(tuple(shares))
    return tuple(taken)


def _merged(phases: dict[str, Any], every: str) -> dict[str, Any]:
    """One entry for all phases where they agree."""
    first, *others = phases.values()
    return {every: first} if all(first == other for other in others) else phases


def _integrators(model: EnergyModel, name: str, asked: Integrator | None) -> tuple[dict[str, str], tuple[str, ...]]:
    """What is chosen for each phase and why, and its caveats; asked with a batch of one blank sample."""
    blank = {name: torch.zeros(1, *node.data_shape) for name, node in model.inputs.items()}
    with torch.no_grad():
        problem = model.problem(rows=1, **blank)
        problems = {"free phase": problem}
        if model.targets:
            targets = {name: torch.zeros(1, *node.shape) for name, node in model.targets.items()}
            problems["nudged phase"] = problem.nudged(targets, [0.0])
    chosen = {phase: choose(asked, name) for phase, asked in problems.items()}
    caveats = dict.fromkeys(item for kind, _ in chosen.values() for item in (asked or kind()).caveats(problem))
    return {
        phase: f"{kind.name}, {'since ' * (reason != 'asked for')}{reason.replace(f'{kind.name}: ', '')}"
        for phase, (kind, reason) in chosen.items()
    }, tuple(caveats)


# --------------------------------------------------------------------------- nodes


def _node(model: EnergyModel, plan: NodePlan) -> NodeEntry:
    graph, node = model.graph, plan.node
    table, fields = _fields(graph, plan)
    cost, names, meanings = external_costs(plan, cast(sp.Symbol, table[BETA]), lambda name: fresh(name, node))
    table, fields = table | names, fields | meanings
    energy = conditional(node.term, plan.separable + cost, plan.fields)
    force = -at_current_state(derivative(plan.conditional, X))
    for number, name in enumerate(plan.mixed, 1):
        pairs, pull = (fresh(f"{word}{number}", node) for word in ("pairs", "pull"))
        roles = [_broadcast(node, graph.edge(name), adjoint) for adjoint in roles_of(graph.edge(name), node.name)]
        fields[pairs], fields[pull] = zip(*roles, strict=True)
        energy, force = energy + pairs, force + pull
    fields |= drive(graph, plan)
    energies, forces = onward(graph, node)
    back: sp.Expr = sp.Integer(0)
    if forces:
        onwards, returned = fresh("onward", node), fresh("back", node)
        fields |= {onwards: energies, returned: forces}
        energy, force, back = energy + onwards, force + returned, returned
    phases = {"free": plan.free} | ({} if plan.cost == 0 else {"nudged": plan.nudged})
    holds = any(edge.connection.selects and edge.pre == node.name for edge in graph.edges())
    updates = {phase: _majorised(_update(solver, node, table), plan, phase, holds) for phase, solver in phases.items()}
    if plan.drive is not None and not isinstance(model.predictions, str):
        updates = in_errors(plan, table, back)
        fields = _used(fields, energy, force, *(case.state for update in updates.values() for case in update.cases))
    return NodeEntry(
        name=node.name,
        shape=node.shape,
        domain=_where(node.domain),
        energy=renamed(energy, table),
        force=tidy(renamed(force, table)),
        fields=fields,
        updates=_merged(updates, "every"),
    )


def _used(fields: dict[sp.Symbol, tuple[Sum, ...]], *shown: sp.Expr) -> dict[sp.Symbol, tuple[Sum, ...]]:
    """Those names of a node that occur in what is shown, or in what another one stands for."""
    bodies = [*shown, *(item.body for sums in fields.values() for item in sums)]
    symbols = {item.name for body in bodies for item in body.free_symbols if isinstance(item, sp.Symbol)}
    return {name: sums for name, sums in fields.items() if name.name in symbols}


def _majorised(update: Update, plan: NodePlan, phase: str, holds: bool) -> Update:
    """The update as it is called where a bound stands for part of the energy: of the cost, or with winners held."""
    costs = bool(plan.external) and phase != "free"
    if not (costs or holds) or not update.cases:
        return update
    kind = "majorised (winners held)" if holds else "majorised"
    kind = kind if update.kind == "exact" else f"{kind}, {update.kind}"
    return replace(update, kind=kind, note=NOTE if costs else update.note)


def _fields(graph: EnergyGraph, plan: NodePlan) -> tuple[Names, dict[sp.Symbol, tuple[Sum, ...]]]:
    """Names for the internal symbols of a node, and what the fields among them stand for."""
    table, fields = _nudge(graph, plan.node), {}
    for number, field in enumerate(plan.fields, 1):
        if field.turns:  # what the frame of the oscillators takes away: tau times their common frequency
            table[field.fixed_symbol] = fresh("frame", plan.node)
            continue
        name = fresh("h" if len(plan.fields) == 1 else f"h{number}", plan.node)
        fields[name] = tuple(
            influence(graph.edge(source.edge), source.adjoint, source.kernel, source.function, source.neighbour)
            for source in (*field.fixed, *field.live)
        )
        # only fixed + live ever occurs, so that one may stand for the whole and the other for nothing
        table |= (
            {field.fixed_symbol: name, field.live_symbol: sp.Integer(0)} if field.fixed else {field.live_symbol: name}
        )
    return table, fields


def _nudge(graph: EnergyGraph, node: Node) -> Names:
    """The nudge is called beta, and the target y if there is only one."""
    targets = {cost.target for cost in graph.costs if cost.node == node.name and not cost.external}
    names: Names = {target_symbol(name): fresh("y" if len(targets) == 1 else f"y_{name}", node) for name in targets}
    return names | {BETA: fresh("beta", node)}


def _broadcast(node: Node, edge: Edge, adjoint: bool) -> tuple[Sum, Sum]:
    """The energy and the force of a coupling that doesn't separate, at one of its ends."""
    own, other, neighbour = (PRE, POST, edge.post) if adjoint else (POST, PRE, edge.pre)
    index = "" if isinstance(edge.connection, Identity) else "j"
    table = {**pair(edge, adjoint), own: X, other: sp.Symbol(f"{neighbour}[{index or 'i'}]")}
    return Sum(index, renamed(edge.term, table)), Sum(index, renamed(-derivative(edge.term, own), table))


def _update(solver: Solver, node: Node, table: Names) -> Update:
    def named(expression: sp.Expr) -> sp.Expr:
        return tidy(renamed(expression, table))

    parts = list(_parts(node.domain, node.shape))
    match solver:
        case Quadratic(curvature, drive):
            state = cast(sp.Expr, named(drive) / named(curvature))
            vanishes = curvature.free_symbols - {BETA} and not curvature.is_positive
            note = "an undriven unit without curvature stays at 0" if vanishes else ""
            return Update("exact", tuple(Case(_confined(state, part), units) for units, part in parts), note)
        case Linear(drive):
            signs = {"hi": named(drive) > 0, "lo": named(drive) < 0}
            cases = (Case(_end(part, side), units, sign) for units, part in parts for side, sign in signs.items())
            return Update("exact", tuple(cases), "a unit without drive stays")
        case Sinusoid(cosine, sine):
            return Update("exact", (Case(cast(sp.Expr, sp.atan2(named(sine), named(cosine)))),))
        case Scalar(slope=slope, curvature=curvature):
            step = cast(sp.Expr, X - named(slope) / named(curvature))
            return Update("Newton", (Case(step),), "repeated within a bracket and the domain, to the local minimum")
        case GradientOnly(reason):
            return Update("gradient", (), reason)


def _parts(domain: Domain, shape: tuple[int, ...]) -> Iterator[tuple[str, Domain]]:
    """The parts of a domain, with the units that live in each if there are several."""
    if not isinstance(domain, Partition):
        yield "", domain
        return
    first = 0
    for (part, _), count in zip(domain.parts, domain.counts(shape[0]), strict=True):
        yield f"units {first} to {first + count - 1}", part
        first += count


def _confined(state: sp.Expr, part: Domain) -> sp.Expr:
    """The point of a domain that is nearest to a state."""
    if not part.edges:
        return state
    if not isinstance(part, Interval):
        return cast(sp.Expr, sp.Function("project")(state))
    if part.bounded:
        return cast(sp.Expr, clip(state, _number(part.lo), _number(part.hi)))
    return cast(sp.Expr, sp.Max(state, _number(part.lo)) if part.hi == math.inf else sp.Min(state, _number(part.hi)))


def _end(part: Domain, side: str) -> sp.Expr:
    """The lowest (`lo`) or highest (`hi`) state of a domain; a domain that isn't an interval has a name for it."""
    return _number(getattr(part, side)) if isinstance(part, Interval) else symbol(side)


def _number(value: float) -> sp.Expr:
    return cast(sp.Expr, sp.nsimplify(value, rational=True))


def _where(domain: Domain) -> str:
    if isinstance(domain, Partition):
        return " and ".join(_written(part) for part, _ in domain.parts)
    return _written(domain) if isinstance(domain, Interval) else str(domain.declaration())


def _written(part: Interval) -> str:
    return f"[{part.lo:g}, {part.hi:g}]" if part.bounded else str(part.declaration())


# --------------------------------------------------------------------------- parameters


def _parameter(model: EnergyModel, name: str) -> ParameterEntry:
    graph, plan = model.graph, model.plan
    spec, shape, _ = graph.tensors()[name]
    rules = [_rule(model, owner, key, shape) for owner, key in users(plan, name)]
    slope, entry, local = rules[0]
    others = (*(other for _, _, other in rules[1:]), *penalty_rules(plan, name, entry))
    return ParameterEntry(
        name=name,
        shape=shape,
        constraint="" if spec.constraint is None else _written(spec.constraint),
        frozen=spec.frozen,
        slope=slope,
        entry=entry,
        local=local,
        others=others,
        shared=tuple(".".join(user) for user in users(plan, name)[1:]),
    )


def _rule(model: EnergyModel, owner: str, key: str, shape: tuple[int, ...]) -> tuple[sp.Expr, sp.Symbol, Sum]:
    """dF/dtheta for one user of a tensor: in the symbols of the declaration; the entry; and by the states around."""
    graph, plan = model.graph, model.plan
    readouts = graph.readouts()
    if owner in readouts:
        return readout_rule(readouts[owner], key)
    spec = graph.owners()[owner][key]
    if owner not in plan.nodes:
        return _edge_rule(plan, graph.edge(owner), key)
    node = graph.node(owner)
    slope = parameter_slope(plan.nodes[owner], key) + bias_slope(plan.nodes[owner], key)
    slope = tidy(renamed(slope, _nudge(graph, node)))
    table = unit(node) | {A: sp.Symbol(f"{owner}.a[i]")}
    shared = "" if shape == node.shape else ("i" if spec.shape == "scalar" else "i in c")
    return slope, cast(sp.Symbol, table[symbol(key)]), Sum(shared, renamed(slope, table))


def _edge_rule(plan: Plan, edge: Edge, key: str) -> tuple[sp.Expr, sp.Symbol, Sum]:
    scalar, alike = edge.parameters[key].shape == "scalar", isinstance(edge.connection, Identity)
    image = bool(members(edge.connection))
    entry = sp.Symbol(f"{edge.name}.{key}") if image else cast(sp.Symbol, pair(edge)[symbol(key)])
    shared = "" if not scalar else "k" if image else "i" if alike else "ij"
    if edge.predicts:
        slope, local = weight_rule(plan.graph, edge, shared)
        return slope, entry, local
    slope = derivative(edge.term, symbol(key))
    if image:
        return slope, entry, Sum(shared, renamed(correlation(plan.edges[edge.name], key), whole(edge)))
    slope = tidy(slope)
    ends = {PRE: sp.Symbol(f"{edge.pre}[{'i' if alike else 'j'}]"), POST: sp.Symbol(f"{edge.post}[i]")}
    return slope, entry, Sum(shared, renamed(slope, pair(edge) | ends))
