"""Peak memory: the measure against tensors of known size, and what it says about learning."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
from architectures import conv_hopfield, dense_net, hopfield_resnet13
from memory import measure, peak_bytes, sample
from networks import ENTRIES, FOR_ALL, batch, catalogue_model

from physnet import compile_energy
from physnet.dual import dual_propagation
from physnet.feedforward import backpropagation
from physnet.graph import EnergyGraph
from physnet.learning import Engine, EquilibriumPropagation
from physnet.model import EnergyModel
from physnet.relaxation import Relaxation

MB = 2**20


def test_the_peak_is_that_of_the_tensors_alive_at_once() -> None:
    def call() -> None:
        first = torch.empty(3 * MB, dtype=torch.uint8)
        second = torch.empty(2 * MB, dtype=torch.uint8)
        del first
        third = torch.empty(MB, dtype=torch.uint8)  # 5 MB before, 3 MB now
        del second, third

    before = torch.empty(7 * MB, dtype=torch.uint8)
    assert peak_bytes(call) == pytest.approx(5 * MB, rel=0.01)
    del before


NETWORKS = {
    "dense": (lambda: dense_net("hopfield", (32, 48, 48, 10), 0.5), 64, (4, 32)),
    "convolutional": (lambda: conv_hopfield((8, 16, 16, 16)), 2, (3, 9)),
    "residual": (lambda: hopfield_resnet13((8, 16, 16, 16)), 2, (3, 9)),
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::physnet.errors.RelaxationWarning")
@pytest.mark.parametrize("name", NETWORKS)
def test_memory_does_not_depend_on_the_number_of_sweeps(name: str) -> None:
    """At most five times that of inference; backpropagation through K sweeps keeps at least one state for each."""
    make, rows, sweeps = NETWORKS[name]
    graph = make()
    peaks = measure(compile_energy(graph), *sample(graph, rows), sweeps)
    inference, propagation, truncated = np.array([[p.inference, p.propagation, p.truncated] for p in peaks]).T
    assert inference[-1] <= 1.3 * inference[0]  # samples that have settled leave the batch, sooner or later
    assert propagation[-1] <= 1.3 * propagation[0]
    assert (propagation <= 5 * inference).all()
    growth = (truncated[-1] - truncated[0]) / (sweeps[-1] - sweeps[0])
    assert growth >= 4 * rows * sum(prod(node.shape) for node in graph.nodes() if node.free)


RANGES = {name: [-1, 2] for name in ("hidden", "deep", "label")}


def predictive() -> EnergyModel:
    graph = EnergyGraph("predictive").input("image", 5).state("hidden", 4).output("label", 3, cost="(x - y)**2/2")
    return compile_energy(graph.couple("image", "hidden").couple("hidden", "label"))


def pooled() -> EnergyModel:
    """A picture of six by six pixels, heard through a convolution and the means of its windows."""
    graph = EnergyGraph("hopfield").input("image", (1, 6, 6)).state("hidden", (2, 2, 2))
    graph.output("label", 3, cost="(x - y)**2/2").couple("image", "hidden", "conv2d(3) >> avg_pool2d(2)")
    return compile_energy(graph.couple("hidden", "label"))


MADE = {"predictive": predictive, "pooled": pooled}


def settling(entry: str, integrator: str = "auto", protocol: str = "centered", **options: Any) -> Engine:
    model = MADE[entry]() if entry in MADE else catalogue_model(entry)
    relaxation = Relaxation(integrator, max_sweeps=3, options=options)
    return EquilibriumPropagation(model, 0.1, protocol, relaxation=relaxation)


WAYS: dict[str, Callable[[], Engine]] = {
    **{entry: partial(settling, entry) for entry in ENTRIES},
    **{name: partial(settling, "hopfield", name) for name in ("flow", "descent", "fixed_point", "newton")},
    **{name: partial(settling, "hopfield", protocol=name) for name in FOR_ALL},
    **{name: partial(settling, "hopfield", protocol=name) for name in ("implicit", "truncated_backprop(3)")},
    "recurrent_backprop": partial(settling, "hopfield", protocol="recurrent_backprop"),
    "noise": partial(settling, "hopfield", "thermal", noise=0.01, duration=1.0),
    "nudges on a circle": partial(settling, "xy", protocol="holomorphic(4)"),
    "errors": partial(settling, "predictive", protocol="single"),
    "sweeps through layers": partial(settling, "predictive", "layer_sweeps", protocol="single"),
    "spikes": partial(settling, "hopfield", "sigma_delta", steps=[4, 4], ranges=RANGES),
    "spikes, by forces": partial(settling, "hopfield-smooth", "sigma_delta", steps=[4, 4], ranges=RANGES),
    "spikes, through means of windows": partial(
        settling, "pooled", "sigma_delta", steps=[4, 4], ranges={"label": [-1, 2]}
    ),
    "dual propagation": lambda: dual_propagation(predictive()),
    "backpropagation": lambda: backpropagation(predictive()),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.usefixtures("float64")
@pytest.mark.filterwarnings("ignore::physnet.errors.RelaxationWarning")
def test_a_step_leaves_no_tensor_to_the_search_for_cycles(way: str) -> None:
    """Python looks for cycles seldom, and until then all that hangs on them stays in memory."""
    learn = WAYS[way]()
    shape = learn.model.inputs["image"].data_shape
    image, target = batch(units=prod(shape))
    image = image.unflatten(1, shape)
    learn(image=image, target=target).backward()  # what is made once
    gc.collect()
    gc.freeze()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        for _ in range(2):  # the last one's record is kept to be looked at
            learn(image=image, target=target).backward()
        gc.collect()
        assert not [item for item in gc.garbage if isinstance(item, torch.Tensor)]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
        gc.unfreeze()
