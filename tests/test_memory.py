"""Peak memory: the measure against tensors of known size, and what it says about learning."""

from __future__ import annotations

import sys
from math import prod
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
from architectures import conv_hopfield, dense_net, hopfield_resnet13
from memory import measure, peak_bytes, sample

from physnet import compile_energy

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
