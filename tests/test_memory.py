"""Peak memory: the measure against tensors of known size, and what it says about learning."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
from memory import dense_net, measure, peak_bytes

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


@pytest.mark.filterwarnings("ignore::physnet.errors.RelaxationWarning")
def test_memory_does_not_depend_on_the_number_of_sweeps() -> None:
    """At most five times that of inference; backpropagation through K sweeps keeps at least one state for each."""
    rows, shapes, sweeps = 64, (32, 48, 48, 10), (4, 16, 32)
    x, y = torch.rand(rows, shapes[0]), torch.arange(rows) % shapes[-1]
    peaks = measure(dense_net(shapes), x, y, sweeps)
    inference, propagation, truncated = np.array([[p.inference, p.propagation, p.truncated] for p in peaks]).T
    assert inference[-1] <= 1.3 * inference[0]  # samples that have settled leave the batch, sooner or later
    assert propagation[-1] <= 1.3 * propagation[0]
    assert (propagation <= 5 * inference).all()
    growth = (truncated[-1] - truncated[0]) / (sweeps[-1] - sweeps[0])
    assert growth >= rows * sum(shapes[1:]) * x.element_size()
