"""How near the gradient of a spiking convolutional net comes to its rate twin: a table, `docs/spiking_gradient.png`.

    cosine of both estimates, per tensor, against the steps of the free phase (a nudged one has half as many)

Twice the same net and batch, image 1 x 12 x 12 - convolution, pooling - convolution, pooling - dense, once with average
pooling and once with max-pooling, whose winners are those of spikes. Symmetric nudges of 1/2;
the rate twin is converged. Source of the comparison: arXiv 2405.02546.

    python benchmarks/spiking_gradient.py
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch

from physnet import EnergyGraph, EnergyModel, EquilibriumPropagation, Relaxation, compile_energy, gradients

STEPS = (10, 20, 50, 100, 200)
POOLS = {"average": "avg_pool2d(2)", "max": "max_pool2d(2)"}
Cosines = dict[str, dict[str, list[float]]]


def network(pool: str, seed: int = 0) -> EnergyModel:
    """The net with one kind of pooling, in float64."""
    gain = {"average": 2.0, "max": 1.0}[pool]
    graph = EnergyGraph("hopfield").input("image", [1, 12, 12])
    graph.state("c1", [8, 5, 5]).state("c2", [16, 3, 3]).output("label", 10, cost="(x - y)**2/2", domain=[0, 1])
    graph.couple("image", "c1", f"conv2d(3) >> {POOLS[pool]}", parameters={"w": {"gain": gain}})
    graph.couple("c1", "c2", f"conv2d(3, padding=1) >> {POOLS[pool].replace('(2)', '(2, padding=1)')}")
    graph.couple("c2", "label", "dense")
    return compile_energy(graph, seed).double()


def batch(rows: int = 16) -> dict[str, torch.Tensor]:
    """Random images in [0, 1] and labels."""
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(rows, 1, 12, 12, generator=generator, dtype=torch.float64)
    return {"image": image, "target": torch.arange(rows) % 10}


def cosines(pools: Sequence[str] = tuple(POOLS), steps: Sequence[int] = STEPS, beta: float = 0.5) -> Cosines:
    """By kind of pooling and weight, the cosine for every number of steps."""
    found: Cosines = {}
    for pool in pools:
        model, data = network(pool), batch()
        rate = EquilibriumPropagation(model, beta, "centered", relaxation=Relaxation("blocks"), watch=0)
        exact = gradients(rate, **data)
        curves = found[pool] = {name: [] for name in exact if name.endswith(".w")}
        for count in steps:
            options = {"steps": [count, max(1, count // 2)]}
            relaxation = Relaxation("sigma_delta", options=options)
            spiking = gradients(EquilibriumPropagation(model, beta, "centered", relaxation=relaxation), **data)
            for name, curve in curves.items():
                curve.append(float(torch.cosine_similarity(spiking[name].flatten(), exact[name].flatten(), 0)))
    return found


def draw(found: Cosines, path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(found), figsize=(8, 3.4), sharey=True, layout="constrained")
    for axis, (pool, curves) in zip(axes, found.items(), strict=True):
        for name, curve in curves.items():
            axis.semilogx(STEPS, curve, "o-", label=name)
        axis.axhline(0.95, color="#999999", linewidth=0.8, linestyle="--")
        axis.set(title=f"{pool} pooling", xlabel="steps of the free phase", ylim=(-0.05, 1.03))
        axis.set_xticks(STEPS, labels=list(map(str, STEPS)))
        axis.minorticks_off()
        axis.grid(alpha=0.3)
        axis.legend(frameon=False)
    axes[0].set(ylabel="cosine to the rate network's gradient")
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/spiking_gradient.png"))
    warnings.simplefilter("ignore")
    found = cosines()
    for pool, curves in found.items():
        print(f"{pool} pooling".ljust(16) + "".join(f"{steps:>7}/{steps // 2}" for steps in STEPS))
        for name, curve in curves.items():
            print(name.ljust(16) + "".join(f"{value:10.3f}" for value in curve))
    draw(found, parser.parse_args().out)


if __name__ == "__main__":
    main()
