"""Feed-forward layers: they compute what the backprop twin computes, and every generated derivative is autograd's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from images import conv_hopfield, photos, resnet13, small
from networks import close
from torch import Tensor

from physnet.codegen import load
from physnet.codegen_layers import generate_layers
from physnet.energy import Energy
from physnet.errors import DeclarationError
from physnet.feedforward import FeedForward
from physnet.graph import EnergyGraph
from physnet.layers import Layers, layers
from physnet.lowering import lower
from physnet.model import EnergyModel, compile_energy

B = {"b": {"on": "node", "init": "uniform(0.1, 0.5)", "shape": "channel"}}
W = {"w": {"on": "edge", "init": "uniform(-1, 1)/sqrt(fan_in)"}}


def dense(energy: str | Energy = "hopfield", cost: str = "(x - y)**2/2", **edge: Any) -> EnergyGraph:
    """image -> first -> second -> label, with skips from image and from first, declared out of order."""
    graph = EnergyGraph(energy).output("label", 3, cost=cost).state("second", 4).input("image", 5)
    graph.state("first", 6)
    for pre, post in (("second", "label"), ("image", "first"), ("first", "second"), ("image", "second")):
        graph.couple(pre, post, **edge)
    return graph.couple("first", "label", **edge)


def tied() -> EnergyGraph:
    """One weight and one bias for two layers each."""
    graph = EnergyGraph("hopfield").input("image", 4).state("first", 4).output("second", 4, cost="(x - y)**2/2")
    graph.state("third", 4, parameters={"b": {"share": "first.b"}}).couple("image", "first")
    graph.couple("first", "third").couple("third", "second", parameters={"w": {"share": "first_third.w"}})
    return graph


def energy(
    node: str = "x**2/2 - b*x", coupling: str = "-w*pre*post", domain: Any = "nonnegative", **more: Any
) -> Energy:
    return Energy(node=node, coupling=coupling, domain=domain, parameters=B | W | more)


K = {"k": {"on": "node", "init": "uniform(1, 2)", "shape": "channel", "constraint": [0.5, 3.0]}}
C = {"c": {"on": "edge", "shape": "scalar", "init": "uniform(0.5, 1)"}}
GRAPHS = {
    "dense": dense,
    "rectified": lambda: dense(energy()),
    "half-lines": lambda: dense(energy(domain=[-0.5, float("inf")])),
    "stiffness": lambda: dense(energy("k*x**2/2 - k*b*x", domain=[-1, 1], **K)),
    "weight-expression": lambda: dense(energy(coupling="-tanh(w)*pre*post - c*w*pre*post", **C)),
    "message": lambda: dense(energy(coupling="-w*tanh(pre)*post - 2*w*pre**2*post - c*post", **C)),
    "tied": tied,
    "conv": lambda: small(pool=""),
    "max-pool": small,
    "avg-pool": lambda: small(pool=" >> avg_pool2d(2)"),
    "conv-hopfield": conv_hopfield,
    "resnet": lambda: resnet13((2, 2, 3, 3)),
    "spread message": lambda: small(energy=energy(coupling="-w*tanh(pre)*post")),
}


class Net:
    """The generated functions of a network, at random states and values for every node."""

    def __init__(self, graph: EnergyGraph) -> None:
        self.model: EnergyModel = compile_energy(graph, 1)
        self.layers: Layers = layers(self.model.plan)
        self.functions = load(self.model.plan, generate_layers(self.layers))
        generator = torch.Generator().manual_seed(0)
        self.p: dict[str, Tensor] = dict(self.model.tensors)
        self.s = {n.name: self.random(n.shape, generator).requires_grad_() for n in graph.nodes()}
        self.q = {name: self.random(layer.node.shape, generator) for name, layer in self.layers.nodes.items()}

    @staticmethod
    def random(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        return torch.randn(3, *shape, generator=generator)

    def drives(self, s: dict[str, Tensor]) -> dict[str, Tensor]:
        k = {name: self.functions[f"fixed_{name}"](self.p, s) for name, la in self.layers.nodes.items() if la.fixed}
        return {name: self.functions[f"drive_{name}"](self.p, s, k) for name in self.layers.nodes}

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        s = {"image": image}
        for name, layer in self.layers.nodes.items():
            k = {name: self.functions[f"fixed_{name}"](self.p, s)} if layer.fixed else {}
            s[name] = self.functions[f"activation_{name}"](self.p, self.functions[f"drive_{name}"](self.p, s, k))
        return s


@pytest.fixture(params=GRAPHS)
def net(request: pytest.FixtureRequest, float64: None) -> Net:
    return Net(GRAPHS[request.param]())


def test_one_pass_is_that_of_the_twin(net: Net) -> None:
    image, _ = photos(net.model)
    with torch.no_grad():
        twin = FeedForward(net.model).states({"image": image}).states
        found = net.forward(image)
    assert list(net.layers.nodes) == list(twin)
    for name, value in twin.items():
        assert close(found[name], value, 1e-13), name


def test_feedback_and_learning_are_the_gradients_of_the_drives(net: Net) -> None:
    summed = sum((net.q[name] * a).sum() for name, a in net.drives(net.s).items())
    assert isinstance(summed, Tensor)
    leaves = {**net.s, **{name: value for name, value in net.p.items() if value.requires_grad}}
    expected = torch.autograd.grad(summed, list(leaves.values()), allow_unused=True)
    with torch.no_grad():
        for (name, leaf), reference in zip(leaves.items(), expected, strict=True):
            made = f"feedback_{name}" if name in net.s else f"learn_{name.replace('.', '__')}"
            assert (made in net.functions) == (reference is not None), name
            if reference is not None:
                found = net.functions[made](net.p, net.s, net.q)
                assert found.shape == leaf.shape
                assert close(found, reference, 1e-12), name


def test_slopes_are_the_gradients_of_activations(net: Net) -> None:
    a = {name: value.clone().requires_grad_() for name, value in net.q.items()}
    v = {name: net.s[name].detach() for name in a}
    shaping = {name: p for name, p in net.p.items() if net.layers.shapes_activation(name)}
    total = sum((v[name] * net.functions[f"activation_{name}"](net.p, a[name])).sum() for name in a)
    assert isinstance(total, Tensor)
    expected = torch.autograd.grad(total, [*a.values(), *shaping.values()])
    with torch.no_grad():
        for name, reference in zip(a, expected, strict=False):
            slope = net.functions[f"slope_{name}"](net.p, a[name])
            assert slope.shape == reference.shape
            assert close(v[name] * slope, reference, 1e-13), name
            assert close(net.functions[f"through_{name}"](net.p, a[name], v[name]), reference, 1e-13), name
        for name, reference in zip(shaping, expected[len(a) :], strict=True):
            assert close(net.functions[f"shape_{name.replace('.', '__')}"](net.p, a, v), reference, 1e-13), name


def test_a_parameter_can_shape_the_activation(float64: None) -> None:
    assert Net(GRAPHS["stiffness"]()).layers.shapes_activation("first.k")


def test_messages_over_one_weight_are_one_product() -> None:
    assert len(layers(lower(dense(energy(coupling="-w*tanh(pre)*post - 2*w*pre**2*post")))).nodes["first"].sources) == 1


# --------------------------------------------------------------------------- what is no layer


def refusal(graph: EnergyGraph) -> str:
    with pytest.raises(DeclarationError) as caught:
        layers(lower(graph))
    return str(caught.value)


def test_all_faults_are_listed() -> None:
    graph = EnergyGraph("hopfield").input("image", 4).state("first", 4).state("second", 4).state("stray", 4)
    graph.output("label", 4, cost="(x - y)**2/2").state("curved", 4, term="x**2/2 + x**4").state("step", 4, term="0")
    graph.couple("image", "first").couple("first", "second").couple("second", "first").couple("second", "label")
    graph.couple("stray", "label").couple("first", "curved").couple("first", "step")
    message = refusal(graph)
    assert "found first -> second -> first" in message
    assert "'stray' has no feed-forward activation: no edge leads to it" in message
    assert "'curved' has no feed-forward activation: phi(x) - a x has no minimum in closed form" in message
    assert "'step' has no feed-forward activation: it is a step" in message
    assert "'label'" not in message


@pytest.mark.parametrize(
    ("graph", "reason"),
    [
        (lambda: dense("resistive"), "its neighbours multiply x\\*\\*2/2, and"),
        (lambda: dense("hopfield-smooth"), "its neighbours multiply"),
        (lambda: dense("xy", "1 - cos(x - y)"), "its neighbours multiply"),
        (lambda: dense(energy("k*x**2/2 - b*x", k={**K["k"], "constraint": None})), "keeps its curvature k"),
        (lambda: dense(energy(domain=["nonnegative", "nonpositive"])), "don't share one interval"),
        (lambda: small(energy=energy(coupling="w*pre*post")), "counts negatively"),
    ],
)
@pytest.mark.filterwarnings("ignore:the coupling")
def test_what_is_no_layer_is_refused(graph: Any, reason: str) -> None:
    with pytest.raises(DeclarationError, match=reason):
        layers(lower(graph()))
