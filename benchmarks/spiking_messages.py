"""Whether messages pay as small integers or booleans: the product of spikes and weights, in milliseconds.

    h = messages W^T,        messages in {0, 1}, W in float32

Four ways: messages as float32; as int8 or bool, which become float32 before they meet the weights; as a list of who has
spoken, whose rows of weights are added. And, for comparison, with weights that are int8 too, which are other weights.
The shapes are those of 784-500-10 and 20 samples: a hundred steps of the image at once, as they are worked out, and a
single step of each edge. One thread, medians.

    python benchmarks/spiking_messages.py
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from timing import interleaved, several
from torch import Tensor

CASES = {
    "image - hidden, 100 steps": (2000, 784, 500, 0.28),
    "image - hidden, one step": (20, 784, 500, 0.28),
    "hidden - label": (20, 500, 10, 0.10),
    "label - hidden": (20, 10, 500, 0.03),
}
"""Rows, units that speak, units that hear, and the share of those that speak."""
REPEATS = 5


def ways(rows: int, speakers: int, hearers: int, rate: float) -> dict[str, Callable[[], Tensor]]:
    """The same product in every way, checked against the first."""
    generator = torch.Generator().manual_seed(0)
    spikes = torch.rand(rows, speakers, generator=generator) < rate
    weights = torch.randn(hearers, speakers, generator=generator)
    floats, bytes_, columns = spikes.float(), spikes.to(torch.int8), weights.t().contiguous()
    small = torch.randint(-127, 128, (hearers, speakers), dtype=torch.int8, generator=generator).t()

    def added() -> Tensor:
        who, counts = spikes.nonzero()[:, 1], spikes.sum(1)
        return torch.nn.functional.embedding_bag(who, columns, counts.cumsum(0) - counts, mode="sum")

    found: dict[str, Callable[[], Tensor]] = {
        "float32": lambda: floats @ weights.T,
        "int8": lambda: bytes_.float() @ weights.T,
        "bool": lambda: spikes.float() @ weights.T,
        "rows added": added,
    }
    wanted = found["float32"]()
    assert all(torch.allclose(way(), wanted, atol=1e-3) for way in found.values())
    return found | {"int8, int8 weights": lambda: torch._int_mm(bytes_, small)}


def main() -> None:
    torch.set_num_threads(1)
    for name, case in CASES.items():
        calls = ways(*case)
        often = [several(call, REPEATS) for call in calls.values()]  # so that each finds its own weights in the cache
        times = [taken / REPEATS for taken in interleaved(often, rounds=9, warm_up=1)]
        print(f"{name}: {', '.join(f'{way} {taken:.3f}' for way, taken in zip(calls, times, strict=True))}")


if __name__ == "__main__":
    main()
