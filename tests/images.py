"""Small networks over images for the tests: the five-layer convolutional Hopfield net and Hopfield-Resnet13."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from physnet.energy import Energy
from physnet.graph import EnergyGraph
from physnet.model import EnergyModel, compile_energy

BIAS: dict[str, Any] = {"b": {"init": "uniform(0.1, 0.5)", "shape": "channel"}}
GAINS = (0.5, 0.7, 0.6, 0.3, 0.4)
CLASSES = 5
MAX = " >> max_pool2d(2)"


def conv_hopfield(pool: str = "max_pool2d(2)", gains: tuple[float, ...] = GAINS, **options: Any) -> EnergyGraph:
    """Four pooled convolutions and a dense layer (arXiv 2312.15103), 16 x 16 pixels."""
    graph, pre = EnergyGraph("hopfield").input("image", (3, 16, 16)), "image"
    for number, shape in enumerate([(4, 8, 8), (5, 4, 4), (6, 2, 2), (6, 1, 1)]):
        post = f"c{number + 1}"
        graph.state(post, shape, parameters=BIAS, **options)
        gain = {"w": {"gain": gains[number]}}
        graph.couple(pre, post, f"conv2d(3, padding=1) >> {pool}", name=f"conv{number + 1}", parameters=gain)
        pre = post
    graph.output("label", CLASSES, cost="(x - y)**2/2")
    return graph.couple("c4", "label", name="top", parameters={"w": {"gain": gains[4]}})


def resnet13(channels: tuple[int, ...] = (3, 4, 4, 5)) -> EnergyGraph:
    """Blocks of two convolutions, the second with stride 2, and a 1 x 1 skip edge (arXiv 2509.26003)."""
    graph, pre, size = EnergyGraph("hopfield").input("image", (3, 32, 32)), "image", 32
    for block, width in enumerate(channels):
        first, second = f"s{2 * block + 1}", f"s{2 * block + 2}"
        graph.state(first, (width, size, size), parameters=BIAS, domain=[0, 6])
        graph.state(second, (width, size // 2, size // 2), parameters=BIAS, domain=[0, 6])
        graph.couple(pre, first, "conv2d(3, padding=1)").couple(first, second, "conv2d(3, stride=2, padding=1)")
        graph.couple(pre, second, "conv2d(1, stride=2)")
        pre, size = second, size // 2
    return graph.output("label", CLASSES, cost="(x - y)**2/2").couple(pre, "label")


def small(
    pool: str = " >> max_pool2d(2)", energy: str | Energy = "hopfield", cost: str = "(x - y)**2/2", **edge: Any
) -> EnergyGraph:
    """image -> c1 -> c2 -> label, for what needs many evaluations; without `pool` the first two edges are strided."""
    stride = "" if pool else ", stride=2"
    graph = EnergyGraph(energy).input("image", (2, 8, 8)).state("c1", (3, 4, 4)).state("c2", (3, 2, 2))
    graph.couple("image", "c1", f"conv2d(3, padding=1{stride}){pool}", **edge)
    graph.couple("c1", "c2", f"conv2d(3, padding=1{stride}){pool}", **edge)
    return graph.output("label", 3, cost=cost).couple("c2", "label", **edge)


def photos(model: EnergyModel, rows: int = 2, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A batch of images and classes, in the dtype and on the device of the model."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(rows, *model.inputs["image"].data_shape, generator=generator, dtype=torch.float64)
    return image.to(next(model.parameters())), torch.arange(rows, device=model.device) % 3


def compiled(graph: EnergyGraph, device: torch.device | str = "cpu", seed: int = 1) -> EnergyModel:
    """In the default dtype, on a device."""
    return compile_energy(graph, seed).to(device)
