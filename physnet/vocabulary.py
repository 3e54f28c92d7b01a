"""How generated code calls things: parameters, states, targets, weights, fields."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import sympy as sp

from physnet.expressions import derivative, symbol
from physnet.external import BETA, HERE, target_symbol
from physnet.plans import EdgePlan, NodePlan, Plan, Source
from physnet.printing import TorchPrinter
from physnet.separation import POST, PRE, X

Names = dict[sp.Basic, str]


class Vocabulary:
    """The names of one plan in torch code."""

    here = "s"
    """A mapping that holds states, as generated functions call it."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    def print(self, expression: sp.Expr, *tables: Names) -> str:
        where: Names = {}
        for table in tables:
            where |= table
        return TorchPrinter(where).doprint(expression)

    def node_symbols(self, name: str) -> Names:
        """Parameters, targets and the nudge, as a node's functions see them."""
        node = self.plan.graph.node(name)
        table: Names = {BETA: "beta"}
        for key, spec in node.parameters.items():
            view = f"[:{', None' * (len(node.shape) - 1)}]" if spec.shape == "channel" and len(node.shape) > 1 else ""
            table[symbol(key)] = f"{self.tensor(name, key)}{view}"
        for cost in self.plan.graph.costs:
            table[target_symbol(cost.target)] = f'y["{cost.target}"]'
        for item in self.plan.nodes[name].external:
            head = item.cost.readout
            norm = f"*squared_norm({head.name}_edge, {self.tensor(head.name, 'w')})" if head else ""
            table |= {HERE: self.state(name), item.tilt: f"tilt_{item.index}(p, s, y)", item.bend: f"sign(beta){norm}"}
        return table

    def edge_symbols(self, plan: EdgePlan) -> Names:
        return {symbol(key): self.tensor(plan.edge.name, key) for key in plan.edge.parameters}

    def tensor_of(self, owner: str, key: str) -> str:
        """The name of the tensor that a parameter stands for: its own, or the one that it shares."""
        return self.plan.tensor_of(owner, key)

    def tensor(self, owner: str, key: str) -> str:
        return f'p["{self.tensor_of(owner, key)}"]'

    def kernel(self, edge: str, expression: sp.Expr) -> str:
        """The weight of a product; a plain number means every pair counts once."""
        if expression.is_number:
            return f"number({self.print(expression)}, {self.here})"
        return self.print(expression, self.edge_symbols(self.plan.edges[edge]))

    def source(self, source: Source, value: str | None = None) -> str:
        """A connection applied to a function of a neighbour; or to something else of its shape."""
        plan = self.plan.edges[source.edge]
        way = "adjoint" if source.adjoint else "apply"
        if source.constant:  # a factor of 1, since separation puts numbers in front
            value = f"ones({source.edge}_edge.{'post' if source.adjoint else 'pre'}, {self.here})"
        elif value is None:
            value = self.print(source.function, {X: self.state(source.neighbour)})
        chosen = f", {self.chooser(plan)}" if plan.selects and source.adjoint else ""
        return f"{plan.edge.name}_edge.{way}({value}, {self.kernel(source.edge, source.kernel)}{chosen})"

    def correlation(self, plan: EdgePlan, parameter: str, factor: sp.Expr, ends: str) -> str:
        """factor ⊙ correlate(ends) for a parameter of an edge, where factor is the slope of its weight."""
        edge = plan.edge
        printed, weight = self.print(factor, self.edge_symbols(plan)), self.tensor(edge.name, parameter)
        # a scalar that multiplies a tensor has one slope per pair, which are summed
        each = edge.parameters[parameter].shape == "scalar" and any(
            edge.parameters[str(item)].shape != "scalar" for item in factor.free_symbols
        )
        term = f"{edge.name}_edge.correlate({ends}, {printed if each else weight})"
        if factor != 1:
            term = f"({printed})*{term}"
        return f"({term}).sum()" if each else term

    def chooser(self, plan: EdgePlan) -> str:
        """What pre passes to a connection that selects, which decides the winners."""
        return self.print(plan.passed, {PRE: self.state(plan.edge.pre)})

    def sum_of(self, sources: Iterable[Source]) -> str:
        return " + ".join(map(self.source, sources))

    def biased_sum(self, sources: Sequence[Source], bias: Sequence[str]) -> str:
        """Sources and a bias added up, the bias by a connection that can do so on the way."""
        if not sources or sources[0].constant or not bias:
            return " + ".join([*map(self.source, sources), *bias])
        first, *rest = sources
        value = self.print(first.function, {X: self.state(first.neighbour)})
        begun = f"{first.edge}_edge.affine({value}, {self.kernel(first.edge, first.kernel)}, {bias[0]})"
        return " + ".join([begun, *map(self.source, rest), *bias[1:]])

    def fixed_table(self, plan: NodePlan) -> Names:
        return {field.fixed_symbol: f'k["{plan.node.name}"][{field.index}]' for field in plan.fields}

    @staticmethod
    def state(name: str) -> str:
        return f's["{name}"]'

    def mixed_force(self, edge_name: str, node: str) -> str:
        plan, terms = self.plan.edges[edge_name], []
        for end, side, way in ((plan.edge.pre, PRE, "to_pre"), (plan.edge.post, POST, "to_post")):
            if end == node:
                slope = derivative(plan.edge.term, side)
                terms.append(f"- {edge_name}_edge.{way}({self.print(slope, self.pair_symbols(plan))})")
        return " ".join(terms)

    def pair_symbols(self, plan: EdgePlan) -> Names:
        """Symbols of a coupling that is broadcast over all pairs."""
        edge = plan.edge
        pairs = f'{edge.name}_edge.pairs(s["{edge.pre}"], s["{edge.post}"])'
        return self.edge_symbols(plan) | {PRE: f"{pairs}[0]", POST: f"{pairs}[1]"}
