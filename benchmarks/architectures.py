"""The networks that are measured: each as an energy, and as a plain net of the same shapes that backpropagation trains.

Widths are arguments, so that tests can build narrow ones; those given by default are the published ones.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from torch import Tensor, nn

from physnet import Energy, EnergyGraph
from physnet.energy import load_energy

CONV_WIDTHS = (128, 256, 512, 512)
CONV_GAINS = (0.4, 0.7, 0.6, 0.3, 0.4)
RESNET_WIDTHS = (128, 256, 512, 512)
SQUARED_ERROR = "(x - y)**2/2"
BIAS = {"b": {"init": "uniform(-0.5, 0.5)/sqrt(fan_in)"}}
"""One per channel."""
DEEP_WIDTHS = (784, *(256,) * 9, 10)
SMALL_VGG = ((64, 32), (64, 16), (128, 16), (128, 8), (256, 4))
"""Channels and side of each 3 x 3 convolution; where the side shrinks, max-pooling by two follows."""
RECTIFIED = Energy(
    node="x**2/2 - b*x",
    coupling="-w*pre*post",
    domain={"state": "nonnegative", "output": "real"},
    parameters={
        "b": {"on": "node", "shape": "channel", "init": "zeros"},
        "w": {"on": "edge", "init": "gain*normal(0, 1)/sqrt(fan_in)", "gain": 1.414},
    },
)
"""Rectified units with the weights of He et al., and linear outputs."""
PREDICTIVE = load_energy("predictive")
"""Predicted rectified units, with the weights of the paper, which are those that torch gives to its layers."""
VGG10 = ((32, 16), (32, 8), (64, 8), (64, 4), (128, 4), (128, 4), (128, 2), (128, 2))
"""Channels and sides of eight convolutions, which with the dense output make a small VGG10."""


# --------------------------------------------------------------------------- dense


def dense_net(
    energy: str, widths: Sequence[int], gain: float, encode: list[str] | None = None, name: str = ""
) -> EnergyGraph:
    """image -> h0 -> ... -> label, every unit with every one of the next layer."""
    graph = EnergyGraph(energy, name).input("image", widths[0], encode=encode)
    names = ["image", *(f"h{index}" for index in range(len(widths) - 2)), "label"]
    for hidden, units in zip(names[1:-1], widths[1:-1], strict=True):
        graph.state(hidden, units)
    graph.output("label", widths[-1], cost=SQUARED_ERROR)
    weight = next(name for name, spec in graph.energy.parameters.items() if spec.on == "edge")
    for pre, post in itertools.pairwise(names):
        graph.couple(pre, post, "dense", parameters={weight: {"gain": gain}})
    return graph


def dense_twin(widths: Sequence[int]) -> nn.Module:
    """Hard sigmoids between dense layers; `widths` begins with the encoded inputs."""
    layers: list[nn.Module] = []
    for pre, post in itertools.pairwise(widths):
        layers += [nn.Linear(pre, post), nn.Hardtanh(0, 1)]
    return nn.Sequential(*layers[:-1])


# --------------------------------------------------------------------------- convolutional


def conv_hopfield(widths: Sequence[int] = CONV_WIDTHS, classes: int = 10) -> EnergyGraph:
    """Four 3 x 3 convolutions with max-pooling by two, then a dense edge, on 3 x 32 x 32 pictures.

    Source: arXiv 2312.15103; gains of its best CIFAR-10 net.
    """
    graph = EnergyGraph("hopfield", "conv-hopfield-5").input("image", (3, 32, 32))
    names = ["image", *(f"h{index}" for index in range(1, 5)), "label"]
    for name, width, side in zip(names[1:5], widths, (16, 8, 4, 1), strict=True):
        graph.state(name, (width, side, side), parameters=BIAS)
    graph.output("label", classes, cost=SQUARED_ERROR, parameters=BIAS)
    for number, (pre, post) in enumerate(itertools.pairwise(names)):
        via = "dense" if post == "label" else f"conv2d(3, padding={int(number < 3)}) >> max_pool2d(2)"
        graph.couple(pre, post, via, parameters={"w": {"gain": CONV_GAINS[number]}})
    return graph


def conv_twin(widths: Sequence[int] = CONV_WIDTHS, classes: int = 10) -> nn.Module:
    """The same convolutions, pools and bounds, once forward."""
    layers: list[nn.Module] = []
    for number, (pre, post) in enumerate(itertools.pairwise((3, *widths))):
        layers += [nn.Conv2d(pre, post, 3, padding=int(number < 3)), nn.MaxPool2d(2), nn.Hardtanh(0, 1)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(widths[-1], classes))


# --------------------------------------------------------------------------- residual


def hopfield_resnet13(widths: Sequence[int] = RESNET_WIDTHS, classes: int = 10) -> EnergyGraph:
    """Four blocks of a 3 x 3 convolution, one of stride 2, and a skip edge around both; then a dense edge.

    Source: arXiv 2509.26003; ReLU6, that is, states in [0, 6].
    """
    graph = EnergyGraph("hopfield", "hopfield-resnet13").input("n0", (3, 32, 32))
    side = 32
    for block, width in enumerate(widths):
        for name, size in ((f"n{2 * block + 1}", side), (f"n{2 * block + 2}", side // 2)):
            graph.state(name, (width, size, size), domain=[0, 6], parameters=BIAS)
        side //= 2
    graph.output("n9", classes, cost=SQUARED_ERROR, parameters=BIAS)
    for block in range(4):
        first, inner, last = (f"n{2 * block + step}" for step in range(3))
        # the published gains are listed in the order in which the code makes its edges: .7 is always the skip
        graph.couple(first, inner, "conv2d(3, padding=1)", parameters={"w": {"gain": 0.6}})
        graph.couple(inner, last, "conv2d(3, stride=2, padding=1)", parameters={"w": {"gain": 0.6}})
        graph.couple(first, last, "conv2d(1, stride=2)", parameters={"w": {"gain": 0.7}})
    return graph.couple("n8", "n9", "dense", parameters={"w": {"gain": 0.8}})


class ResidualTwin(nn.Module):
    """The same convolutions, skips and bounds, once forward."""

    def __init__(self, widths: Sequence[int] = RESNET_WIDTHS, classes: int = 10) -> None:
        super().__init__()
        pairs = list(itertools.pairwise((3, *widths)))
        self.inner = nn.ModuleList(nn.Conv2d(pre, post, 3, padding=1) for pre, post in pairs)
        self.last = nn.ModuleList(nn.Conv2d(post, post, 3, stride=2, padding=1) for _, post in pairs)
        self.skip = nn.ModuleList(nn.Conv2d(pre, post, 1, stride=2, bias=False) for pre, post in pairs)
        self.head = nn.Linear(4 * widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        for inner, last, skip in zip(self.inner, self.last, self.skip, strict=True):
            x = nn.functional.relu6(last(nn.functional.relu6(inner(x))) + skip(x))
        return self.head(x.flatten(1))


# --------------------------------------------------------------------------- feed-forward, rectified


def deep_mlp(widths: Sequence[int] = DEEP_WIDTHS, energy: Energy = RECTIFIED) -> EnergyGraph:
    """image -> h1 -> ... -> label with cross-entropy."""
    names = ["image", *(f"h{index}" for index in range(1, len(widths) - 1)), "label"]
    graph = EnergyGraph(energy, "deep-mlp").input("image", widths[0])
    for name, width in zip(names[1:-1], widths[1:-1], strict=True):
        graph.state(name, width)
    graph.output("label", widths[-1], cost="cross_entropy")
    for pre, post in itertools.pairwise(names):
        graph.couple(pre, post)
    return graph


def deep_mlp_twin(widths: Sequence[int] = DEEP_WIDTHS) -> nn.Module:
    """Rectifiers between dense layers."""
    layers: list[nn.Module] = []
    for pre, post in itertools.pairwise(widths):
        layers += [nn.Linear(pre, post), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def small_vgg(
    shapes: Sequence[tuple[int, int]] = SMALL_VGG, classes: int = 10, energy: Energy = RECTIFIED
) -> EnergyGraph:
    """3 x 3 convolutions, some with max-pooling, then a dense edge, on 3 x 32 x 32 pictures, with cross-entropy."""
    graph, pre, before = EnergyGraph(energy, "small-vgg").input("image", (3, 32, 32)), "image", 32
    for number, (width, side) in enumerate(shapes, 1):
        graph.state(f"h{number}", (width, side, side))
        graph.couple(pre, f"h{number}", "conv2d(3, padding=1)" + " >> max_pool2d(2)" * (side < before))
        pre, before = f"h{number}", side
    graph.output("label", classes, cost="cross_entropy")
    return graph.couple(pre, "label", parameters={"w": {"gain": 0.5}})


def small_vgg_twin(shapes: Sequence[tuple[int, int]] = SMALL_VGG, classes: int = 10) -> nn.Module:
    """The same convolutions, pools and rectifiers."""
    layers: list[nn.Module] = []
    channels, before = 3, 32
    for width, side in shapes:
        layers += [nn.Conv2d(channels, width, 3, padding=1), *[nn.MaxPool2d(2)] * (side < before), nn.ReLU()]
        channels, before = width, side
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * before**2, classes))
