"""Peak memory of a training step of a spiking network, as the number of time steps grows.

    python benchmarks/spiking_memory.py      the table, and docs/spiking_memory.png

Equilibrium propagation by spikes keeps where it stands. Backpropagation through time goes back through every step of
the same dynamics, with a surrogate for the derivative of a spike, so that it keeps all of them. Counted is what torch's
allocator hands out during a training step, parameters and data included (see memory.py).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from memory import DOCS, peak_bytes
from torch import Tensor

from physnet import EnergyGraph, EnergyModel, EquilibriumPropagation, Relaxation, compile_energy, gradients

STEPS = (25, 50, 100, 200, 400)
WIDTHS, ROWS = (784, 256, 10), 64


@dataclass(frozen=True)
class Peak:
    """Bytes at the peak.

    Arguments:
        steps: of the free phase, and through which backpropagation goes; nudged phases have half as many.
    """

    steps: int
    propagation: int
    backpropagation: int


class Spike(torch.autograd.Function):
    """q = 1[phi > 1/2], with the triangle max(0, 1 - 2 |phi - 1/2|) for its derivative."""

    @staticmethod
    def forward(ctx: Any, phi: Tensor) -> Tensor:
        ctx.save_for_backward(phi)
        return torch.where(phi > 0.5, 1.0, 0.0)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        (phi,) = ctx.saved_tensors
        return grad_outputs[0] * (1 - 2 * (phi - 0.5).abs()).clamp_min(0)


def through_time(parameters: Mapping[str, Tensor], x: Tensor, steps: int) -> dict[str, Tensor]:
    """The states of image -> hidden -> label in [0, 1] after some steps of sigma-delta, differentiable through time."""
    w, v, b, c = (parameters[name] for name in ("image_hidden.w", "hidden_label.w", "hidden.b", "label.b"))
    s = {"image": x, "hidden": x.new_zeros(len(x), len(b)), "label": x.new_zeros(len(x), len(c))}
    last, phi, r = ({name: torch.zeros_like(value) for name, value in s.items()} for _ in range(3))
    for t in range(1, steps + 1):
        size, smoothing = 0.843 / t**0.0923, 0.832 / t**0.584
        for name, value in s.items():
            phi[name] = phi[name] + (value - (1 - smoothing) * last[name]) / smoothing
            spikes = Spike.apply(phi[name])
            phi[name] = phi[name] - spikes
            r[name] = (1 - smoothing) * r[name] + smoothing * spikes
        last = s
        hidden, label = r["image"] @ w.mT + r["label"] @ v + b, r["hidden"] @ v.mT + c
        s = {
            "image": x,
            "hidden": ((1 - size) * s["hidden"] + size * hidden).clamp(0, 1),
            "label": ((1 - size) * s["label"] + size * label).clamp(0, 1),
        }
    return s


def network(widths: tuple[int, int, int] = WIDTHS) -> EnergyModel:
    """image -> hidden -> label."""
    graph = EnergyGraph("hopfield").input("image", widths[0]).state("hidden", widths[1])
    graph.output("label", widths[2], cost="(x - y)**2/2", domain=[0, 1])
    return compile_energy(graph.couple("image", "hidden").couple("hidden", "label"))


def measure(model: EnergyModel, x: Tensor, y: Tensor, steps: Iterable[int] = STEPS) -> list[Peak]:
    """A training step of either kind, for each number of steps."""
    resident = sum(value.nbytes for value in model.parameters()) + x.nbytes + y.nbytes
    wanted = torch.nn.functional.one_hot(y, next(iter(model.targets.values())).shape[0]).to(x)
    peaks = []
    for count in steps:
        settings = Relaxation("sigma_delta", options={"steps": [count, count // 2]})
        ep = EquilibriumPropagation(model, 0.5, relaxation=settings)

        def propagate(ep: EquilibriumPropagation = ep) -> None:
            gradients(ep, image=x, target=y)
            ep.last = None

        def backpropagate(count: int = count) -> None:
            label = through_time(model.tensors, x, count)["label"]
            cost = (label - wanted).square().sum() / (2 * len(x))
            torch.autograd.grad(cost, list(model.tensors.values()))

        peaks.append(Peak(count, *(resident + peak_bytes(call) for call in (propagate, backpropagate))))
    return peaks


def draw(peaks: list[Peak], path: Path) -> None:
    """Megabytes over steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 3.4), layout="constrained")
    axes = figure.subplots()
    for field, label, style in (
        ("backpropagation", "backprop through time, surrogate gradient", "s--"),
        ("propagation", "equilibrium propagation", "o-"),
    ):
        axes.plot([peak.steps for peak in peaks], [getattr(peak, field) / 1e6 for peak in peaks], style, label=label)
    title = f"{'-'.join(map(str, WIDTHS))}, {ROWS} samples, sigma-delta"
    axes.set(xlabel="time steps of the free phase", ylabel="peak memory of a training step (MB)", title=title)
    axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=DOCS / "spiking_memory.png")
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(ROWS, WIDTHS[0], generator=generator), torch.arange(ROWS) % WIDTHS[-1]
    peaks = measure(network(), x, y)
    print("| steps | EP, MB | backprop through time, MB |\n|---|---|---|")
    for peak in peaks:
        print(f"| {peak.steps} | {peak.propagation / 1e6:.1f} | {peak.backpropagation / 1e6:.1f} |")
    draw(peaks, parser.parse_args().out)


if __name__ == "__main__":
    main()
