"""How generated code calls things: parameters, states, targets, weights, fields."""

from __future__ import annotations

from collections.abc import Iterable

import sympy as sp

from physnet.expressions import derivative, symbol
from physnet.lowering import BETA, EdgePlan, NodePlan, Plan, Source, target_symbol
from physnet.printing import TorchPrinter
from physnet.separation import POST, PRE, X

Names = dict[sp.Basic, str]


class Lines:
    """Source text under construction."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def __call__(self, line: str = "", indent: int = 1) -> None:
        self.lines.append("    " * indent + line if line else "")

    def function(self, head: str, doc: str) -> None:
        self("")
        self("")
        self(f"def {head}:", 0)
        self(f'"""{doc}"""')


class Vocabulary:
    """The names of one plan in torch code."""

    here = "s"
    """A mapping that holds states, as generated functions call it."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    @staticmethod
    def parameter(owner: str, key: str) -> str:
        return f'p["{owner}.{key}"]'

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
            table[symbol(key)] = self.parameter(name, key) + view
        for cost in self.plan.graph.costs:
            table[target_symbol(cost.target)] = f'y["{cost.target}"]'
        return table

    def edge_symbols(self, plan: EdgePlan) -> Names:
        return {symbol(key): self.parameter(plan.edge.name, key) for key in plan.edge.parameters}

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
        return f"{plan.edge.name}_edge.{way}({value}, {self.kernel(source.edge, source.kernel)})"

    def sum_of(self, sources: Iterable[Source]) -> str:
        return " + ".join(map(self.source, sources))

    def fixed_table(self, plan: NodePlan) -> Names:
        return {field.fixed_symbol: f'k["{plan.node.name}"][{field.index}]' for field in plan.fields}

    @staticmethod
    def state(name: str) -> str:
        return f's["{name}"]'

    def mixed_force(self, edge: str, node: str) -> str:
        """The force of a coupling that doesn't separate on one of its ends."""
        plan = self.plan.edges[edge]
        to_pre = plan.edge.pre == node
        slope = derivative(plan.edge.term, PRE if to_pre else POST)
        return f"- {edge}_edge.{'to_pre' if to_pre else 'to_post'}({self.print(slope, self.pair_symbols(plan))})"

    def pair_symbols(self, plan: EdgePlan) -> Names:
        """Symbols of a coupling that is broadcast over all pairs."""
        edge = plan.edge
        pairs = f'{edge.name}_edge.pairs(s["{edge.pre}"], s["{edge.post}"])'
        return self.edge_symbols(plan) | {PRE: f"{pairs}[0]", POST: f"{pairs}[1]"}
