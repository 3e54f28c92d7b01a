"""Peak memory of one training step against pure inference, as the number of sweeps grows.

    python benchmarks/memory.py [dense | convolutional | residual]      tables, and the pictures in docs/

Equilibrium propagation keeps equilibria and no history, so that its peak doesn't depend on the number of sweeps;
backpropagation through K sweeps keeps them all. Counted is what torch's allocator hands out during a call, on top of
what is there before it (parameters and data); on the CPU by the profiler, allocation by allocation.
"""

from __future__ import annotations

import argparse
import gc
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from architectures import conv_hopfield, dense_net, hopfield_resnet13
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
DOCS = Path(__file__).parent.parent / "docs"


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


def peak_bytes(call: Callable[[], object], repeats: int = REPEATS) -> int:
    """The most that torch had allocated at once during a call, on top of what was there before it.

    Blocks from before that are freed meanwhile are taken for a loss, so that the largest of several calls is right.
    """
    call()  # what is allocated once and kept doesn't count
    gc.collect()
    return max(_peak_of_one(call) for _ in range(repeats))


def _peak_of_one(call: Callable[[], object]) -> int:
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


def measure(model: EnergyModel, x: Tensor, y: Tensor, sweeps: Iterable[int] = SWEEPS) -> list[Peak]:
    """Inference, one step of equilibrium propagation and one of truncated backpropagation, for each number of sweeps.

    A tolerance that nothing meets makes every phase take exactly that many.
    """
    inputs = {next(iter(model.inputs)): x}
    resident = sum(value.nbytes for value in model.parameters()) + x.nbytes + y.nbytes
    peaks = []
    for count in sweeps:
        exact = Relaxation(tolerance=2 * torch.finfo(x.dtype).eps, max_sweeps=count)
        centered, truncated = (
            EquilibriumPropagation(model, 0.1, protocol, relaxation=exact, nudged=exact)
            for protocol in ("centered", f"truncated_backprop({count})")
        )

        def forget(ep: EquilibriumPropagation) -> None:
            gradients(ep, **inputs, target=y)
            ep.last = None

        calls = (lambda e=exact: relax(model, e, **inputs), lambda c=centered: forget(c), lambda t=truncated: forget(t))
        peaks.append(Peak(count, *(resident + peak_bytes(call) for call in calls)))
    return peaks


def draw(peaks: Mapping[str, list[Peak]], path: Path) -> None:
    """Megabytes over sweeps, one panel for each network."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.4 * len(peaks) + 0.6, 3.2), layout="constrained")
    for axes, (title, rows) in zip(figure.subplots(1, len(peaks), squeeze=False)[0], peaks.items(), strict=True):
        for field, label, style in (
            ("truncated", "truncated backprop, K sweeps", "s--"),
            ("propagation", "equilibrium propagation", "o-"),
            ("inference", "inference", "^:"),
        ):
            axes.plot([p.sweeps for p in rows], [getattr(p, field) / 1e6 for p in rows], style, label=label)
        axes.set(xlabel="sweeps per phase", ylabel="peak memory (MB)", title=title)
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False)
    figure.savefig(path, dpi=80)


def table(title: str, peaks: list[Peak]) -> None:
    """Print the megabytes."""
    print(f"{title}, MB\n\n| sweeps | inference | EP | of inference | TBP |\n|---|---|---|---|---|")
    for p in peaks:
        values = [p.inference / 1e6, p.propagation / 1e6, p.propagation / p.inference, p.truncated / 1e6]
        print(f"| {p.sweeps} | " + " | ".join(f"{value:.1f}" for value in values) + " |")
    print()


NETWORKS: dict[str, tuple[Callable[[], EnergyGraph], int, str, Iterable[int]]] = {
    "dense": (
        lambda: dense_net("hopfield", (784, 1024, 1024, 10), 0.5),
        256,
        "Hopfield 784-1024-1024-10, batch 256",
        SWEEPS,
    ),
    "convolutional": (
        lambda: conv_hopfield((32, 64, 128, 128)),
        16,
        "conv-hopfield-5, widths / 4, batch 16",
        SWEEPS[:-1],
    ),
    "residual": (
        lambda: hopfield_resnet13((16, 32, 64, 64)),
        16,
        "hopfield-resnet13, widths / 8, batch 16",
        SWEEPS[:-1],
    ),
}
"""Graph, batch, title and numbers of sweeps."""
PICTURES = {"memory.png": ("dense",), "memory_convolutional.png": ("convolutional", "residual")}


def sample(graph: EnergyGraph, rows: int) -> tuple[Tensor, Tensor]:
    """Random pixels and classes for the only input and the only output."""
    shapes = {node.role: node.shape for node in graph.nodes() if node.role != "state"}
    generator = torch.Generator().manual_seed(0)
    return torch.rand(rows, *shapes["input"], generator=generator), torch.arange(rows) % prod(shapes["output"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", choices=[*NETWORKS, []], help="by default all of them")
    parser.add_argument("--folder", type=Path, default=DOCS, help="where pictures go")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)  # gradients through 80 sweeps vanish, and denormal numbers are slow
    warnings.simplefilter("ignore", RelaxationWarning)  # nobody meets the tolerance, on purpose
    for picture, names in PICTURES.items():
        panels: dict[str, list[Peak]] = {}
        for name in (name for name in names if name in (arguments.networks or NETWORKS)):
            make, batch, title, sweeps = NETWORKS[name]
            graph = make()
            panels[title] = measure(compile_energy(graph), *sample(graph, batch), sweeps)
            table(title, panels[title])
        if len(panels) == len(names):
            draw(panels, arguments.folder / picture)


if __name__ == "__main__":
    main()
