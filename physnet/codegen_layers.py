"""Torch source for layers: their drives and activations, and the adjoints of both.

    x = f(a),   a = sum of connection(message(x_j)) + bias

The functions take

    p   parameters by name             s   states by node, [rows, *node]; clamped ones, too, but in drives
    k   fixed drives by node           y   targets by name
    a   the drive of a node            v   anything of the shape of a node's state
    q   values by node, of the shape of their drives

and `feedback_<node>` is the adjoint of all drives in the state of a node, `learn_<owner>__<key>` in a parameter:

    d/dx_j  sum_i <q_i, a_i>      and      d/dtheta  sum_i <q_i, a_i>,  over all rows.
"""

from __future__ import annotations

from typing import cast

import sympy as sp

from physnet.costcode import CostEmitter, headed
from physnet.expressions import clip, derivative, relu, symbol, write
from physnet.layers import A, Layer, Layers
from physnet.lowering import Source
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

    # ------------------------------------------------------------ forwards

    def drive(self, layer: Layer) -> None:
        name = layer.node.name
        bias = [] if layer.bias == 0 else [self.print(layer.bias, self.node_symbols(name))]
        if layer.fixed:
            self.out.function(f"fixed_{name}(p, s)", f"The drive of {name} from clamped nodes and parameters alone.")
            self.out(f"return {' + '.join([self.sum_of(layer.fixed), *bias])}")
            bias = [f'k["{name}"]']
        self.out.function(f"drive_{name}(p, s, k)", f"a of {name}.")
        terms = [*map(self.source, layer.live), *bias]
        self.out(f"return {' + '.join(terms)}")

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

    def through(self, layer: Layer, symbols: Names) -> str:
        """f'(a) v, in one pass over memory where there is one."""
        f = layer.activation
        if f == A:
            return "v"
        if f == relu(A):
            return "through_relu(v, a)"
        if isinstance(f, clip) and f.args[0] == A and f.args[1].is_number and f.args[2].is_number:
            lo, hi = (self.print(cast(sp.Expr, bound)) for bound in f.args[1:])
            return f"through_clip(v, a, {lo}, {hi})"
        return f"({self.print(layer.slope, symbols)})*v"

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
        chosen = f", {self.message(source)}" if self.selects(source) else ""
        kernel = self.kernel(source.edge, source.kernel)
        return f'{source.edge}_edge.adjoint(q["{layer.node.name}"], {kernel}{chosen})'

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
            self.out.function(f"learn_{owner}__{key}(p, s, q)", f"d/d{tensor} of all drives times q, over all rows.")
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
            v = f"{source.edge}_edge.place({v}, {self.kernel(source.edge, source.kernel)}, {message})"
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


__all__ = ["LayerEmitter", "generate_layers"]
