"""How far the gradient of dual propagation is from backpropagation: a table, and `docs/dual_stability.png`.

A 6-8-7-4 net of rectifiers with weights of standard deviation 1.4/sqrt(fan_in), squared error, float64, four samples;
forty sweeps forward and back, so that what is compared are settled pairs. Both variants, alpha = 0, 1/2 and 1.

    python benchmarks/dual_stability.py
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import torch
from architectures import RECTIFIED, SQUARED_ERROR
from rich.console import Console
from rich.table import Table
from torch import Tensor

from physnet import EnergyGraph, EnergyModel, compile_energy, gradients
from physnet.dual import DualPropagation
from physnet.dyads import DualSettings
from physnet.methods import METHODS

WIDTHS = (6, 8, 7, 4)
NUDGES = (0.1, 0.01, 0.001)
RULES = (
    ("transpose", 0.5),
    ("original", 0.5),
    ("original", 0.0),
    ("original", 1.0),
    ("transpose", 0.0),
    ("transpose", 1.0),
)
NAMES = {"transpose": "Lagrangian", "original": "original"}


def network(seed: int = 3) -> tuple[EnergyModel, dict[str, Tensor]]:
    """The net and its batch."""
    bias = {"b": {"init": "uniform(0.1, 0.5)"}}
    graph = EnergyGraph(RECTIFIED).input("image", WIDTHS[0])
    graph.state("h1", WIDTHS[1], parameters=bias).state("h2", WIDTHS[2], parameters=bias)
    graph.output("label", WIDTHS[3], cost=SQUARED_ERROR, parameters=bias)
    for pre, post in itertools.pairwise(("image", "h1", "h2", "label")):
        graph.couple(pre, post, parameters={"w": {"gain": 1.4}})
    generator = torch.Generator().manual_seed(seed)
    rows = {name: torch.randn(4, width, generator=generator) for name, width in (("image", 6), ("target", 4))}
    return compile_energy(graph, seed), rows


def error(model: EnergyModel, batch: dict[str, Tensor], settings: DualSettings) -> float:
    """Relative error of all weights together."""
    exact, found = (
        gradients(engine, **batch) for engine in (METHODS["backprop"].make(model), DualPropagation(model, settings))
    )
    a, b = (torch.cat([g[name].flatten() for name in exact if name.endswith(".w")]) for g in (found, exact))
    return float((a - b).norm() / b.norm())


def draw(path: Path, model: EnergyModel, batch: dict[str, Tensor]) -> None:
    """Errors over the nudge."""
    from matplotlib.figure import Figure

    axes = (figure := Figure(figsize=(6.4, 4.2), layout="constrained")).subplots()
    nudges = [10 ** (-4 + k / 8) for k in range(29)]
    styles = {"transpose": "-", "original": "--"}
    for variant, alpha in RULES:
        errors = [error(model, batch, DualSettings(beta, alpha, variant, "fwbw40")) for beta in nudges]
        colour = {0.0: "tab:blue", 0.5: "tab:green", 1.0: "tab:orange"}[alpha]
        axes.loglog(nudges, errors, styles[variant], color=colour, label=f"{NAMES[variant]}, alpha = {alpha:g}")
    axes.loglog(nudges, nudges, ":", color="grey", label="beta")
    axes.loglog(nudges, [beta**2 / 4 for beta in nudges], "-.", color="grey", label="beta^2/4")
    axes.set(xlabel="beta", ylabel="relative error of the weights' gradient", ylim=(1e-9, 30))
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plot", type=Path, default=Path("docs/dual_stability.png"))
    options = parser.parse_args()
    torch.set_default_dtype(torch.float64)
    model, batch = network()
    table = Table("variant", "alpha", *(f"beta = {beta:g}" for beta in NUDGES))
    for variant, alpha in RULES:
        errors = (error(model, batch, DualSettings(beta, alpha, variant, "fwbw40")) for beta in NUDGES)
        table.add_row(NAMES[variant], f"{alpha:g}", *(f"{value:.2g}" for value in errors))
    Console().print(table)
    draw(options.plot, model, batch)
    print(options.plot)


if __name__ == "__main__":
    main()
