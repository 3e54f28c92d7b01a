"""Torch source for predictions in errors: what a pass forwards and a pass backwards are made of.

    x = f(a) + e,      g = beta dC/dx + sum over children of message'(x) connection^T(f'(a) g)

The functions take what those of `physnet.codegen_layers` take.
"""

from __future__ import annotations

from physnet.codegen_layers import LayerEmitter
from physnet.costcode import CostEmitter
from physnet.expressions import derivative, write
from physnet.external import BETA, at_current_state
from physnet.layers import prediction_layers
from physnet.plans import NodePlan, Plan
from physnet.predictions import Prediction, prediction
from physnet.printing import Lines
from physnet.separation import X


class ErrorEmitter(CostEmitter):
    """Writes the functions of nodes whose states are predicted; nothing, where errors are no coordinates."""

    def __init__(self, plan: Plan, out: Lines) -> None:
        super().__init__(plan, out)
        layers = prediction_layers(plan)
        self.layers = None if isinstance(layers, str) else LayerEmitter(layers, out)

    def emit(self) -> None:
        if self.layers is None:
            return
        for layer in self.layers.layers.nodes.values():
            self.layers.activation(layer)
        for node in self.plan.graph.nodes():
            if self.layers.layers.children(node.name):
                self.layers.feedback(node.name)
        for plan in self.plan.nodes.values():
            self.nudge(plan)
            self.error(plan)

    def nudge(self, plan: NodePlan) -> None:
        if plan.cost != 0:
            name = plan.node.name
            self.out.function(f"nudge_{name}(p, s, y, beta)", f"beta dC/d{name}")
            slope = at_current_state(derivative(plan.cost, X))
            self.out(f"return {self.print(BETA * slope, self.node_symbols(name), {X: self.state(name)})}")

    def error(self, plan: NodePlan) -> None:
        """-g/precision"""
        name, form = plan.node.name, prediction(plan.node)
        assert isinstance(form, Prediction)
        self.out.function(f"error_{name}(p, g)", f"-g/({write(form.precision)})")
        one = form.precision == 1
        printed = self.print(form.precision, self.node_symbols(name))
        if one:
            self.out("return -g")
        else:
            self.out(f"return -g/({printed})")
        self.out.function(f"weighed_{name}(p, e)", f"{write(form.precision)} e")
        self.out("return e" if one else f"return e*({printed})")


__all__ = ["ErrorEmitter"]
