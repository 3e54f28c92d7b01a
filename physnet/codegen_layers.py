"""Torch source for layers: their drives and activations, and the adjoints of both.

    x = f(a),   a = sum of connection(message(x_j)) + bias

The functions take

    p   parameters by name             s   states by node, [rows, *node]; clamped ones, too, but in drives
    k   fixed drives by node           y   targets by name
    a   the drive of a node            v   anything of the shape of a node's state
    q   values by node, of the shape of their drives
    r   states that have decided the winners of connections that select; if not given, s

and `feedback_<node>` is the adjoint of all drives in the state of a node, `learn_<owner>__<key>` in a parameter:

    d/dx_j  sum_i <q_i, a_i>      and      d/dtheta  sum_i <q_i, a_i>,  over all rows.
"""

from __future__ import annotations

from typing import cast

import sympy as sp

from physnet.costcode import CostEmitter, headed
from physnet.differences import Move, difference
from physnet.expressions import clip, derivative, relu, symbol, write
from physnet.layers import A, Layer, Layers
from physnet.plans import Source
from physnet.printing import Lines
from physnet.separation import X
from physnet.vocabulary import Names


def generate_layers(layers: Layers) -> str:
    """The torch source for layers, and for the costs of their plan."""
    out = headed(layers.plan)
    LayerEmitter(layers, out).emit()
    return "\n".join(out.lines) + "\n"


class LayerEmitter(CostEmitter):
    """Writes the functions of layers."""

    def __init__(self, layers: Layers, out: Lines) -> None:
        super().__init__(layers.plan, out)
        self.layers = layers

    def emit(self) -> None:
        for layer in self.layers.nodes.values():
            self.drive(layer)
            self.activation(layer)
        for node in self.plan.graph.nodes():
            if self.layers.children(node.name):
                self.feedback(node.name)
        for tensor in self.plan.graph.tensors():
            self.learn(tensor)
            self.shape(tensor)
        self.cost()
        for name in dict.fromkeys(cost.node for cost in self.plan.graph.costs):
            self.cost_slope(name)
        for tensor in self.plan.graph.tensors():
            self.judged(tensor)

    # ------------------------------------------------------------ forwards

    def drive(self, layer: Layer) -> None:
        name = layer.node.name
        bias = [] if layer.bias == 0 else [self.print(layer.bias, self.node_symbols(name))]
        if layer.fixed:
            self.out.function(f"fixed_{name}(p, s)", f"The drive of {name} from clamped nodes and parameters alone.")
            self.out(f"return {self.biased_sum(layer.fixed, bias)}")
            bias = [f'k["{name}"]']
        self.out.function(f"drive_{name}(p, s, k)", f"a of {name}.")
        self.out(f"return {self.biased_sum(layer.live, bias)}")

    def activation(self, layer: Layer) -> None:
        name, written = layer.node.name, write(layer.activation)
        symbols = self.node_symbols(name) | {A: "a"}
        self.out.function(f"activation_{name}(p, a)", f"f(a) = {written}")
        self.out(f"return {self.print(layer.activation, symbols)}")
        self.out.function(f"slope_{name}(p, a)", f"f'(a) = {write(layer.slope)}")
        none = "" if A in layer.slope.free_symbols else " + 0*a"
        self.out(f"return {self.print(layer.slope, symbols)}{none}")
        self.out.function(f"through_{name}(p, a, v)", "f'(a) v")
        self.out(f"return {self.through(layer, symbols)}")
        doc = "unit (f(a + d/unit) - f(a)), without loss; unit is a negative number, and a and d may be used up."
        self.out.function(f"error_{name}(p, a, d, unit)", doc)
        self.out(f"return {self.error(layer, symbols)}")

    def through(self, layer: Layer, symbols: Names) -> str:
        """f'(a) v, in one pass over memory where there is one."""
        if layer.activation == A:
            return "v"
        if layer.activation == relu(A):
            return "through_relu(v, a)"
        bounds = self.bounds(layer)
        return f"through_clip(v, a, {bounds})" if bounds else f"({self.print(layer.slope, symbols)})*v"

    def error(self, layer: Layer, symbols: Names) -> str:
        """unit (f(a + d/unit) - f(a)); for a rectifier in as few passes as it takes without a unit."""
        if layer.activation == A:
            return "d"
        if layer.activation == relu(A):
            return "relu_error(a, d, unit)"
        bounds = self.bounds(layer)
        if bounds:
            return f"unit*clip_difference(a, d/unit, {bounds})"
        change = difference(layer.activation, {A: Move(A, _CHANGE, cast(sp.Expr, A + _CHANGE))})
        return f"unit*({self.print(change, symbols, {_CHANGE: '(d/unit)'})})"

    def bounds(self, layer: Layer) -> str:
        """Those of an activation that clips its drive to numbers; empty for others."""
        f = layer.activation
        if isinstance(f, clip) and f.args[0] == A and f.args[1].is_number and f.args[2].is_number:
            return ", ".join(self.print(cast(sp.Expr, bound)) for bound in f.args[1:])
        return ""

    # ------------------------------------------------------------ backwards

    def feedback(self, name: str) -> None:
        self.out.function(f"feedback_{name}(p, s, q)", f"d/d{name} of the drives of all that hear of it, times q.")
        slopes: dict[sp.Expr, list[str]] = {}
        for layer, source in self.layers.children(name):
            slopes.setdefault(derivative(source.function, X), []).append(self.back(layer, source))
        terms: list[str] = []
        for slope, sums in slopes.items():
            printed = self.print(slope, {X: self.state(name)})
            terms.append(" + ".join(sums) if slope == 1 else f"({printed})*({' + '.join(sums)})")
        self.out(f"return {' + '.join(terms)}")

    def back(self, layer: Layer, source: Source) -> str:
        """The adjoint of the connection of a source."""
        link, kernel, v = f"{source.edge}_edge", self.kernel(source.edge, source.kernel), f'q["{layer.node.name}"]'
        if self.selects(source):
            return f"{link}.link.adjoint({self.placed(source, v)}, {kernel})"
        return f"{link}.adjoint({v}, {kernel})"

    def placed(self, source: Source, value: str, states: str = "s") -> str:
        """A value at the places of the winners that its connection selects."""
        kernel = self.kernel(source.edge, source.kernel)
        message = self.print(source.function, {X: f'{states}["{source.neighbour}"]'})
        return f"{source.edge}_edge.placed({value}, {kernel}, {message})"

    def selects(self, source: Source) -> bool:
        return self.plan.edges[source.edge].selects

    def message(self, source: Source) -> str:
        """What a source passes to its connection."""
        if source.constant:
            return f"ones({source.edge}_edge.pre, {self.here})"
        return self.print(source.function, {X: self.state(source.neighbour)})

    # ------------------------------------------------------------ parameters

    def learn(self, tensor: str) -> None:
        terms = [term for owner, key in self.users[tensor] for term in self.drive_slopes(owner, key)]
        if terms:
            owner, key = tensor.split(".")
            doc = f"d/d{tensor} of all drives times q, over all rows."
            self.out.function(f"learn_{owner}__{key}(p, s, q, r=None)", doc)
            if any("placed(" in term for term in terms):
                self.out("r = r or s")
            self.out(f"return {' + '.join(terms)}")

    def drive_slopes(self, owner: str, key: str) -> list[str]:
        """d/dparameter of sum_i <q_i, a_i>, by source or bias."""
        if owner in self.plan.edges:
            return [
                self.weight_slope(layer, source, key)
                for layer in self.layers.nodes.values()
                for source in layer.sources
                if source.edge == owner and symbol(key) in source.kernel.free_symbols
            ]
        layer = self.layers.nodes.get(owner)
        slope = sp.Integer(0) if layer is None else derivative(layer.bias, symbol(key))
        return [] if slope == 0 else [self.summed(slope, f'q["{owner}"]', owner, key)]

    def weight_slope(self, layer: Layer, source: Source, key: str) -> str:
        slope = sp.factor_terms(derivative(source.kernel, symbol(key)))
        number, factor = cast(tuple[sp.Expr, sp.Expr], slope.as_coeff_Mul())
        message, v = self.message(source), f'q["{layer.node.name}"]'
        if source.constant:
            v = f"{v}.sum(0, keepdim=True)"
        elif self.selects(source):
            v = self.placed(source, v, "r")
        term = self.correlation(self.plan.edges[source.edge], key, factor, f"{message}, {v}")
        return term if number == 1 else f"{self.print(number)}*{term}"

    def shape(self, tensor: str) -> None:
        """The derivative of activations in a parameter, for tensors that shape any."""
        terms: list[str] = []
        for owner, key in self.users[tensor]:
            layer = self.layers.nodes.get(owner)
            slope = sp.Integer(0) if layer is None else derivative(layer.activation, symbol(key))
            if slope != 0:
                terms.append(self.summed(slope, f'v["{owner}"]', owner, key, {A: f'a["{owner}"]'}))
        if terms:
            owner, key = tensor.split(".")
            doc = f"d/d{tensor} of all activations f(a) times v, over all rows; a and v by node."
            self.out.function(f"shape_{owner}__{key}(p, a, v)", doc)
            self.out(f"return {' + '.join(terms)}")

    def summed(self, slope: sp.Expr, value: str, owner: str, key: str, table: Names | None = None) -> str:
        """slope * value, summed over rows and all units that share a parameter of their node."""
        if slope != 1:
            value = f"({self.print(slope, self.node_symbols(owner), table or {})})*{value}"
        return f"rows_onto({value}, {self.tensor(owner, key)})"

    # ------------------------------------------------------------ costs

    def cost_slope(self, name: str) -> None:
        plan, state = self.plan.nodes[name], self.state(name)
        self.out.function(f"cost_slope_{name}(p, s, y)", f"dC/d{name}")
        slope = derivative(plan.separable, X)
        terms = [] if slope == 0 else [self.per_unit(slope, name)]
        terms += [f"{self.print(item.cost.factor)}*tilt_{item.index}(p, s, y)" for item in plan.external]
        self.out(f"return {' + '.join(terms) or f'0*{state}'}")

    def judged(self, tensor: str) -> None:
        """What a cost itself says about a parameter: of its term, of its readout, or of a regulariser."""
        terms = [term for owner, key in self.users[tensor] for term in self.judgements(owner, key)]
        slope = self.penalty_slope(tensor)
        if slope:
            terms.append(f"len({self.state(next(iter(self.plan.nodes)))})*({slope})")
        if terms:
            owner, key = tensor.split(".")
            self.out.function(f"judged_{owner}__{key}(p, s, y)", f"dC/d{tensor}, over all rows, states held.")
            self.out(f"return {' + '.join(terms)}")

    def judgements(self, owner: str, key: str) -> list[str]:
        weight = self.tensor(owner, key)
        for item in self.plan.external:
            if item.cost.readout is not None and item.cost.readout.name == owner:
                slope = f"{self.print(item.cost.factor)}*slope_{item.index}(p, s, y)"
                if key == "b":
                    return [f"rows_onto({slope}, {weight})"]
                return [f"{owner}_edge.correlate({self.state(item.cost.node)}, {slope}, {weight})"]
        plan = self.plan.nodes.get(owner)
        slope = sp.Integer(0) if plan is None else derivative(plan.separable, symbol(key))
        return [] if slope == 0 else [f"rows_onto({self.per_unit(slope, owner)}, {weight})"]


_CHANGE = sp.Symbol("change of a", real=True)

__all__ = ["LayerEmitter", "generate_layers"]
