"""Dual propagation against backpropagation, its published stability, and how it is declared."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from images import photos, small
from networks import batch, close
from test_layers import energy
from torch import Tensor

from physnet.checking import cosine
from physnet.declaration import parse_experiment
from physnet.dual import DualPropagation
from physnet.dyads import DualSettings
from physnet.errors import DeclarationError
from physnet.feedforward import backpropagation
from physnet.graph import EnergyGraph
from physnet.learning import Engine
from physnet.methods import METHODS
from physnet.model import EnergyModel, compile_energy
from physnet.training import Trainer


def chain(widths: tuple[int, ...], cost: str = "(x - y)**2/2", domain: Any = "nonnegative", **head: Any) -> EnergyGraph:
    """image -> h1 -> ... -> label; rectified, with a linear output and He's weights."""
    declared = energy(domain={"state": domain, "output": "real"}, w={"on": "edge", "init": "normal(0, 1.4)/sqrt(fan_in)"})
    graph, names = EnergyGraph(declared).input("image", widths[0]), ["image"]
    for number, width in enumerate(widths[1:-1], 1):
        graph.state(f"h{number}", width)
        names.append(f"h{number}")
    graph.output("label", widths[-1]).cost("label", cost, **head)
    for pre, post in itertools.pairwise([*names, "label"]):
        graph.couple(pre, post)
    return graph


def found(engine: Engine, **given: Tensor) -> dict[str, Tensor]:
    tensors = {name: value for name, value in engine.model.tensors.items() if value.requires_grad}
    values = torch.autograd.grad(engine(**given), list(tensors.values()))
    return dict(zip(tensors, values, strict=True))


def dual(model: EnergyModel, **settings: Any) -> DualPropagation:
    return DualPropagation(model, DualSettings(**settings))


def trained(graph: EnergyGraph, rate: float = 0.05, steps: int = 30) -> tuple[EnergyModel, Tensor, Tensor]:
    """A network after some steps of backpropagation."""
    model = compile_energy(graph, 1)
    image, label = photos(model, 32) if len(model.inputs["image"].shape) > 1 else batch(32, model.inputs["image"].shape[0])
    engine = backpropagation(model)
    optimizer = torch.optim.SGD(model.parameters(), rate)
    for _ in range(steps):
        optimizer.zero_grad()
        engine(image=image, target=label).backward()
        optimizer.step()
    return model, image, label


def conv_net() -> EnergyGraph:
    declared = energy(domain={"state": "nonnegative", "output": "real"}, w={"on": "edge", "init": "normal(0, 1)/sqrt(fan_in)"})
    return small(energy=declared, cost="cross_entropy")


# --------------------------------------------------------------------------- against backpropagation


@pytest.mark.parametrize("settings", [{}, {"fast": True}, {"sweeps": "fwbw2"}, {"sweeps": "fw4"}, {"variant": "original"}])
@pytest.mark.parametrize(
    "graph", [lambda: chain((20, 16, 16, 3)), lambda: chain((20, 16, 16, 3), "cross_entropy"), conv_net]
)
def test_every_tensor_points_along_the_gradient(graph: Any, settings: dict[str, Any]) -> None:
    """float32, beta = .1: at least .998, the figure of arXiv 2302.01228 measured by the reference code."""
    model, image, label = trained(graph())
    reference = found(backpropagation(model), image=image, target=label)
    ours = found(dual(model, **settings), image=image, target=label)
    for name, value in reference.items():
        assert cosine(ours[name], value) > 0.998, name
        assert float(ours[name].norm() / value.norm()) == pytest.approx(1, abs=0.02), name


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("fast", [False, True])
def test_a_small_nudge_gives_the_gradient_in_float32(alpha: float, fast: bool) -> None:
    """Differences aren't subtracted from each other, so that beta = 1e-5 loses nothing."""
    if fast and alpha != 0.5:
        return
    model, image, label = trained(chain((20, 16, 16, 3)))
    reference = found(backpropagation(model), image=image, target=label)
    ours = found(dual(model, beta=1e-5, alpha=alpha, fast=fast), image=image, target=label)
    assert all(close(ours[name], value, 3e-4) for name, value in reference.items())


def skips() -> EnergyGraph:
    """Skip edges, a tie, a cost on a hidden node, a readout with cross-entropy, and regularisers."""
    declared = energy("k*x**2/2 - b*x", domain={"state": [0, 1], "output": "real"}, k=K)
    graph = EnergyGraph(declared).input("image", 5).state("first", 5).state("second", 5).output("label", 4)
    graph.couple("image", "first").couple("first", "second", parameters={"w": {"share": "image_first.w"}})
    graph.couple("image", "second", name="skip").couple("first", "label").couple("second", "label", name="top")
    graph.cost("label", "cross_entropy", readout="dense(3)", name="head").cost("second", "(x - 1/2)**4*m**2 + y", target="pull",
        weight=0.5)
    return graph.regularise("w**2/20").regularise("b**4")


K = {"on": "node", "init": "uniform(1, 2)", "shape": "channel", "constraint": [0.5, 3.0]}


def test_readouts_ties_regularisers_and_parameters_of_activations_and_costs_learn(float64: None) -> None:
    declared = energy("k*x**2/2 - b*x", domain={"state": [0, 1], "output": "real"}, k=K)
    graph = EnergyGraph(declared).input("image", 5)
    graph.state("second", 5, parameters={"m": {"on": "node", "init": "uniform(1, 2)"}}).state("first", 5)
    graph.output("label", 4)
    graph.couple("image", "first").couple("first", "second", parameters={"w": {"share": "image_first.w"}})
    graph.couple("image", "second", name="skip").couple("first", "label").couple("second", "label", name="top")
    graph.cost("label", "cross_entropy", readout="dense(3)", name="head")
    graph.cost("second", "m**2*(x - y)**4", target="pull", weight=0.5)
    graph.regularise("w**2/20").regularise("b**4")
    model = compile_energy(graph, 1)
    image, label = batch(12)
    given = {"image": image, "target": label, "pull": torch.rand(12, 5)}
    reference = found(backpropagation(model), **given)
    for settings in ({}, {"fast": True}, {"alpha": 0.2}, {"sweeps": "fwbw2"}):
        ours = found(dual(model, beta=1e-7, **settings), **given)
        for name, value in reference.items():
            assert close(ours[name], value, 1e-5), (settings, name)


def test_inputs_get_their_gradient(float64: None) -> None:
    model, image, label = trained(conv_net(), steps=3)
    image.requires_grad_()
    expected, ours = (
        torch.autograd.grad(engine(image=image, target=label), image)[0]
        for engine in (backpropagation(model), dual(model, beta=1e-6))
    )
    assert close(ours, expected, 1e-5)


def test_settling_is_one_pass() -> None:
    model, image, label = trained(conv_net(), steps=3)
    engine, twin = dual(model), backpropagation(model)
    expected = twin.settle({"image": image}).states
    assert all(torch.allclose(engine.settle({"image": image})[name], value, atol=1e-6) for name, value in expected.items())
    assert float(engine(image=image, target=label)) == pytest.approx(float(twin(image=image, target=label)), rel=1e-6)


# --------------------------------------------------------------------------- stability


def errors(variant: str, alpha: float, sweeps: str = "fwbw40", **more: Any) -> list[float]:
    """Relative errors of all weights together at beta = .1, .01 and .001."""
    model, image, label = stable_net()
    reference = found(backpropagation(model), image=image, target=label)
    result = []
    for beta in (0.1, 0.01, 0.001):
        ours = found(dual(model, beta=beta, alpha=alpha, variant=variant, sweeps=sweeps, **more), image=image, target=label)
        names = [name for name in reference if name.endswith(".w")]
        apart, size = (torch.cat([g[n].flatten() for n in names]) for g in (ours, reference))
        result.append(float((apart - size).norm() / size.norm()))
    return result


def stable_net() -> tuple[EnergyModel, Tensor, Tensor]:
    model = compile_energy(chain((6, 8, 7, 4)), 3)
    generator = torch.Generator().manual_seed(0)
    return model, torch.randn(16, 6, generator=generator), torch.randn(16, 4, generator=generator)
