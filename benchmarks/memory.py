"""Peak memory of one training step against pure inference, as the number of sweeps grows.

    python benchmarks/memory.py            the table, and docs/memory.png

Equilibrium propagation keeps equilibria and no history, so that its peak doesn't depend on the number of sweeps;
backpropagation through K sweeps keeps them all. Counted is what torch's allocator hands out during a call, on top of
what is there before it (parameters and data); on the CPU by the profiler, allocation by allocation.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from physnet import (
    EnergyGraph,
    EnergyModel,
    EquilibriumPropagation,
    Relaxation,
    RelaxationWarning,
    compile_energy,
    gradients,
    relax,
)

REPEATS = 3
SWEEPS = (5, 10, 20, 40, 80)
PICTURE = Path(__file__).parent.parent / "docs" / "memory.png"


@dataclass(frozen=True)
class Peak:
    """Bytes at the peak, parameters and data included.

    Arguments:
        sweeps: in each phase of equilibrium propagation, and through which truncated backpropagation goes.
    """

    sweeps: int
    inference: int
    propagation: int
    truncated: int


def peak_bytes(call: Callable[[], object]) -> int:
    """The most that torch had allocated at once during a call, on top of what was there before it.

    Blocks from before that are freed meanwhile are taken for a loss, so that the largest of several calls is right.
    """
    return max(_peak_of_one(call) for _ in range(REPEATS))


def _peak_of_one(call: Callable[[], object]) -> int:
    call()  # what is allocated once and kept doesn't count
    gc.collect()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call()
    assert profile.profiler is not None
    recorded = profile.profiler.kineto_results
    assert recorded is not None
    changes = [(event.start_ns(), event.nbytes()) for event in recorded.events() if event.name() == "[memory]"]
    current = highest = 0
    for _, change in sorted(changes, key=lambda item: item[0]):
        current += change
        highest = max(highest, current)
    return highest


def dense_net(shapes: Iterable[int] = (784, 1024, 10)) -> EnergyModel:
    """A dense Hopfield network, weak enough for any number of sweeps."""
    image, *hidden, label = shapes
    graph = EnergyGraph("hopfield").input("image", image)
    names = ["image", *(f"h{index}" for index in range(len(hidden))), "label"]
    for name, units in zip(names[1:-1], hidden, strict=True):
        graph.state(name, units)
    graph.output("label", label, cost="(x - y)**2/2")
    for pre, post in itertools.pairwise(names):
        graph.couple(pre, post, parameters={"w": {"gain": 0.5}})
    return compile_energy(graph)


def measure(model: EnergyModel, x: Tensor, y: Tensor, sweeps: Iterable[int] = SWEEPS) -> list[Peak]:
    """Inference, one step of equilibrium propagation and one of truncated backpropagation, for each number of sweeps.

    A tolerance that nothing meets makes every phase take exactly that many.
    """
    resident = sum(value.nbytes for value in model.parameters()) + x.nbytes + y.nbytes
    peaks = []
    for count in sweeps:
        exact = Relaxation(tolerance=2 * torch.finfo(x.dtype).eps, max_sweeps=count)
        centered, truncated = (
            EquilibriumPropagation(model, 0.1, protocol, relaxation=exact, nudged=exact)
            for protocol in ("centered", f"truncated_backprop({count})")
        )

        def forget(ep: EquilibriumPropagation) -> None:
            gradients(ep, image=x, target=y)
            ep.last = None

        calls = (lambda e=exact: relax(model, e, image=x), lambda c=centered: forget(c), lambda t=truncated: forget(t))
        peaks.append(Peak(count, *(resident + peak_bytes(call) for call in calls)))
    return peaks


def draw(peaks: list[Peak], title: str, path: Path) -> None:
    """Megabytes over sweeps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.2), layout="constrained")
    axes = figure.add_subplot()
    for field, label, style in (
        ("truncated", "truncated backprop, K sweeps", "s--"),
        ("propagation", "equilibrium propagation", "o-"),
        ("inference", "inference", "^:"),
    ):
        axes.plot([p.sweeps for p in peaks], [getattr(p, field) / 1e6 for p in peaks], style, label=label)
    axes.set(xlabel="sweeps per phase", ylabel="peak memory (MB)", title=title)
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=80)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--picture", type=Path, default=PICTURE)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)  # gradients through 80 sweeps vanish, and denormal numbers are slow
    shapes = (784, 1024, 1024, 10)
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(arguments.batch, shapes[0], generator=generator), torch.arange(arguments.batch) % shapes[-1]
    warnings.simplefilter("ignore", RelaxationWarning)  # nobody meets the tolerance, on purpose
    peaks = measure(dense_net(shapes), x, y)
    print(
        f"{'-'.join(map(str, shapes))}, batch {arguments.batch}, MB\n\n| sweeps | inference | EP | of inference | TBP |"
    )
    print("|---|---|---|---|---|")
    for p in peaks:
        values = [p.inference / 1e6, p.propagation / 1e6, p.propagation / p.inference, p.truncated / 1e6]
        print(f"| {p.sweeps} | " + " | ".join(f"{value:.1f}" for value in values) + " |")
    draw(peaks, f"Hopfield {'-'.join(map(str, shapes))}, batch {arguments.batch}", arguments.picture)


if __name__ == "__main__":
    main()
