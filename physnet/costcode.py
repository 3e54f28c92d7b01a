"""The torch source of costs: their values and slopes, regularisers, and the contrasts that they and ties add up to."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from functools import cached_property
from typing import cast

import sympy as sp

from physnet.connections import Shape
from physnet.costs import Penalty
from physnet.expressions import derivative, symbol
from physnet.external import HERE, External, Y
from physnet.lowering import NodePlan, Plan
from physnet.printing import Lines
from physnet.separation import X
from physnet.vocabulary import Names, Vocabulary


class CostEmitter(Vocabulary):
    """Writes the functions of a plan that are about costs."""

    def __init__(self, plan: Plan, out: Lines) -> None:
        super().__init__(plan)
        self.out = out

    @staticmethod
    def zero(name: str) -> str:
        return f'0*s["{name}"]'

    def per_unit(self, term: sp.Expr, name: str, table: Names | None = None) -> str:
        """A term of a node, with the shape of its state whatever it is made of."""
        printed = self.print(term, self.node_symbols(name), {X: self.state(name)}, table or {})
        return printed if X in term.free_symbols else f"{printed} + {self.zero(name)}"

    def returned(self, expressions: tuple[sp.Expr, ...], table: Names) -> None:
        """Emit the end of an inner function that returns some expressions; what they share is worked out once."""
        shared, reduced = sp.cse(expressions, symbols=(sp.Dummy(f"v{i}") for i in range(1000)))
        local = dict(table)
        for index, (item, value) in enumerate(shared):
            self.out(f"v{index} = {self.print(value, local)}", 2)
            local[item] = f"v{index}"
        self.out(f"return {', '.join(self.print(cast(sp.Expr, item), local) for item in reduced)}", 2)

    def no_rows(self) -> str:
        first = next(iter(self.plan.nodes))
        return f"0*total({self.state(first)})"

    # ------------------------------------------------------------ values and slopes

    def cost(self) -> None:
        parts: list[str] = []
        for name, plan in self.plan.nodes.items():
            if any(cost.node == name and not cost.external for cost in self.plan.graph.costs):
                self.out.function(f"unit_cost_{name}(p, s, y)", f"C of every unit of {name}.")
                self.out(f"return {self.per_unit(plan.separable, name)}")
                parts.append(f"total(unit_cost_{name}(p, s, y))")
        for item in self.plan.external:
            self.external(item)
            parts.append(f"{self.print(item.cost.factor)}*value_{item.index}(p, s, y)")
        parts = parts or [self.no_rows()]
        if self.plan.penalties:
            self.regularisers()
            parts.append("regularisers(p)")
        self.out.function("cost(p, s, y)", "C of every row.")
        self.out(f"return {' + '.join(parts)}")

    def external(self, item: External) -> None:
        """A cost that is no sum over the units of its node: z, C(z, y), dC/dz, dC/dx and scores."""
        cost, number = item.cost, item.index
        what = f"'{cost.written}' on {cost.readout.name if cost.readout else cost.node}"
        y = f'y["{cost.target}"]'
        if cost.reduction:
            judge = f"{cost.reduction}_reduction"
            value, slope, scores = f"{judge}.value(z, {y})", f"{judge}.gradient(z, {y})", f"{judge}.scores(z)"
        else:
            names: Names = {X: "z", Y: y}
            value = f"total({self.print(cost.term, names)} + 0*z)"
            slope = f"{self.print(item.slope, names)} + 0*z"
            difference = cast(sp.Expr, cost.term.subs(Y, 0) - cost.term.subs(Y, 1))
            scores = f"({self.print(difference, names)} + 0*z).flatten(1)"
        self.out.function(f"z_{number}(p, s)", f"What {what} judges.")
        self.out(f"return {self.readout(item)}")
        for head, doc, body in (
            (f"value_{number}(p, s, y)", f"C of every row: {what}.", value),
            (f"slope_{number}(p, s, y)", f"dC/dz: {what}.", slope),
            (f"scores_{number}(p, s)", f"C without a target, minus C with each one-hot target: {what}.", scores),
        ):
            self.out.function(head, doc)
            self.out(f"z = z_{number}(p, s)")
            self.out(f"return {body}")
        self.out.function(f"tilt_{number}(p, s, y)", f"dC/dx of {cost.node}: {what}.")
        slope = f"slope_{number}(p, s, y)"
        through = f"{cost.readout.name}_edge.adjoint({slope}, {self.weight(item)})" if cost.readout else slope
        self.out(f"return {through}")

    def readout(self, item: External) -> str:
        """z in terms of the state."""
        state, head = self.state(item.cost.node), item.cost.readout
        if head is None:
            return state
        bias = self.tensor(head.name, "b") + _view(head.parameters["b"].shape, head.shape)
        return f"{head.name}_edge.apply({state}, {self.weight(item)}) + {bias}"

    def weight(self, item: External) -> str:
        assert item.cost.readout is not None
        return self.tensor(item.cost.readout.name, "w")

    def hoisted(self, plan: NodePlan, wanted: Iterable[sp.Basic]) -> Names:
        """Emit the slopes of the costs that an update needs, once, and say what they are called."""
        table: Names = {}
        for item in plan.external:
            if item.tilt in wanted:
                self.out(f"tilt{item.index} = tilt_{item.index}(p, s, y)")
                table[item.tilt] = f"tilt{item.index}"
        return table

    def prepared(self, plan: NodePlan, wanted: Iterable[sp.Basic], first: int = 0) -> tuple[list[str], Names]:
        """Bounds that don't change during a phase: how to make them, and where they are found in `c`."""
        table, symbols = dict[sp.Basic, str](), self.node_symbols(plan.node.name)
        bends = [item.bend for item in plan.external if item.bend in wanted]
        for index, bend in enumerate(bends, first):
            table[bend] = f"c[{index}]"
        return [symbols[bend] for bend in bends], table

    # ------------------------------------------------------------ regularisers

    def regularisers(self) -> None:
        self.out.function("regularisers(p)", "R(p), the share of C that no state changes.")
        terms = [f"({self.print(item.term, self.penalty_symbols(item))}).sum()" for item in self.plan.penalties]
        self.out(f"return {' + '.join(terms)}")

    def penalty_symbols(self, item: Penalty) -> Names:
        """Parameters of an owner, shaped to broadcast with each other."""
        return {symbol(key): self.tensor(item.owner, key) + self.view(item.owner, key) for key in item.tensors}

    def view(self, owner: str, key: str) -> str:
        graph = self.plan.graph
        readouts = graph.readouts()
        shape = graph.node(owner).shape if owner in graph.network else ()
        if owner in readouts:
            head = readouts[owner].readout
            assert head is not None
            shape = head.shape
        return _view(graph.owners()[owner][key].shape, shape)

    def penalty_slope(self, tensor: str) -> str:
        """dR/dtheta for a tensor, summed over all regularisers and owners."""
        terms: list[str] = []
        for item in self.plan.penalties:
            slopes = [derivative(item.term, symbol(key)) for key, name in item.tensors.items() if name == tensor]
            table = self.penalty_symbols(item)
            for slope in slopes:  # with one value for each entry of the term
                every = "".join(f" + 0*{code}" for item, code in table.items() if item not in slope.free_symbols)
                terms.append(f'onto({self.print(slope, table)}{every}, p["{tensor}"])')
        return " + ".join(terms)

    # ------------------------------------------------------------ contrasts

    def contrast_head(self, owner: str, key: str) -> str:
        """The function that is the contrast of one owner: part of a sum, where others share the tensor."""
        kind = "part" if self.tensor_of(owner, key) in self.sums else "contrast"
        return f"{kind}_{owner}__{key}(p, o, d, s, y, beta, phases)"

    @cached_property
    def sums(self) -> dict[str, list[tuple[str, str]]]:
        """The tensors whose contrast has several parts, and the owners and parameters of these."""
        penalised = {name for item in self.plan.penalties for name in item.tensors.values()}
        return {name: parts for name, parts in self.users.items() if len(parts) > 1 or name in penalised}

    @cached_property
    def users(self) -> dict[str, list[tuple[str, str]]]:
        """The owners, and their parameters, that every tensor stands for."""
        users: dict[str, list[tuple[str, str]]] = {}
        for owner, specs in self.plan.graph.owners().items():
            for key in specs:
                users.setdefault(self.tensor_of(owner, key), []).append((owner, key))
        return users

    def summed_contrasts(self) -> None:
        """Contrasts of tied tensors add; so does the slope of regularisers, which is the same in all phases."""
        for tensor, users in self.sums.items():
            owner, key = tensor.split(".")
            terms: list[str] = []
            for user, parameter in users:
                axes = len(self.plan.nodes[user].node.shape) if user in self.plan.nodes else 0
                terms.append(f"part_{user}__{parameter}(p, o, d, s, y, spread(beta, {axes}), phases)")
            slope = self.penalty_slope(tensor)
            terms += [f"phases.nudge(beta)*({slope})"] if slope else []
            doc = f"The sum over all that use {tensor}."
            self.out.function(f"contrast_{owner}__{key}(p, o, d, s, y, beta, phases)", doc)
            self.out(f"return {' + '.join(terms)}")

    def readout_contrasts(self, item: External) -> None:
        """d(beta C)/dw and d(beta C)/db of a readout."""
        head, weight = item.cost.readout, self.print(item.cost.factor)
        if head is None:
            return
        for key, doc in (("w", "beta dC/dz state"), ("b", "beta dC/dz")):
            self.out.function(self.contrast_head(head.name, key), f"d/d{key}: {doc}")
            self.out(f"slope = spread(beta, {len(head.shape)})*slope_{item.index}(p, s, y)")
            if key == "b":
                self.out(f"return phases.reduce(slope, lambda: slope, {self.tensor(head.name, key)}, {weight})")
            else:
                state = f'({self.state(item.cost.node)}, d["{item.cost.node}"])'
                rows = f"phases.free_free({state}, (slope, slope), {weight})"
                self.out(f"return {head.name}_edge.correlate(*{rows}, {self.weight(item)})")


def split(plan: NodePlan, expression: sp.Expr, live: Collection[sp.Basic]) -> tuple[sp.Expr, sp.Expr]:
    """(what stays the same during a phase, the rest), given the symbols of fields that don't."""
    silent = [*live, HERE, *(item.tilt for item in plan.external)]
    constant = cast(sp.Expr, expression.subs(dict.fromkeys(silent, 0)))
    return constant, cast(sp.Expr, sp.expand(expression - constant))


def _view(kind: str, shape: Shape) -> str:
    """How a parameter of one entry per channel is indexed to broadcast over units."""
    return f"[:{', None' * (len(shape) - 1)}]" if kind == "channel" and len(shape) > 1 else ""


__all__ = ["CostEmitter", "split"]
