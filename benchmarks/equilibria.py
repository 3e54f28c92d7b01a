"""Does it matter whether states are equilibria?  python benchmarks/equilibria.py

A residual Hopfield network (that of examples/fashion_hopfield_resnet_small.yaml, narrower) is trained on a part of
Fashion-MNIST with the published schedule and counts (parity sweeps, 120 free and 50 nudged ones, each batch from the
states of the last one; arXiv 2509.26003), and with blocks until the states have settled, from zero and from the last
states. Test accuracy and time, several seeds each.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from statistics import mean

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from physnet.data import load_data
from physnet.declaration import load_experiment
from physnet.training import Trainer

EXAMPLE = Path(__file__).parents[1] / "examples" / "fashion_hopfield_resnet_small.yaml"
WIDTHS = {"h1": (16, 14, 14), "h2": (16, 7, 7), "h3": (16, 7, 7), "h4": (48, 4, 4)}
PARITY = "{integrator: blocks, tolerance: 1.0e-6, max_sweeps: %d, options: {schedule: parity}%s}"
WAYS = {
    "published schedule and counts, from previous": (PARITY % (120, ", initial: previous"), PARITY % (50, "")),
    "settled, from zero": ("{tolerance: 0.01, initial: zero}", "{tolerance: 0.05}"),
    "settled, from previous": ("{tolerance: 0.01, initial: previous}", "{tolerance: 0.05}"),
    "barely settled, from zero": ("{tolerance: 0.1, initial: zero}", "{tolerance: 0.5}"),
}


def part(samples: int, folder: Path) -> Path:
    """The first pictures of Fashion-MNIST, as a file."""
    data = load_data({"fashion_mnist": {"pad": 0, "normalise": {"spread": 3}}})
    arrays = {f"{key}_train": value[:samples] for key, value in data.train.items()}
    arrays |= {f"{key}_test": value[:2000] for key, value in data.test.items()}
    np.savez(folder / "part.npz", **arrays)
    return folder / "part.npz"


def run(file: Path, way: tuple[str, str], seed: int, epochs: int) -> tuple[float, float, float, float]:
    """Test accuracy in per cent, seconds of processor time, and the mean sweeps of both phases in the last epoch."""
    changes = {f"nodes.{name}.shape": str(list(shape)) for name, shape in WIDTHS.items()}
    changes |= {"relax": way[0], "learn.nudged": way[1], "train.seed": str(seed), "train.epochs": str(epochs)}
    changes |= {"train.data": f"{{npz: {{file: {file}}}}}", "train.augment": "[]", "train.validation": "null"}
    trainer = Trainer(load_experiment(EXAMPLE, changes))
    began = time.process_time()
    *_, last = trainer.epochs()
    assert last.test_error is not None
    return 100 - last.test_error, time.process_time() - began, last.sweeps, last.nudged_sweeps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=6000)
    parser.add_argument("--epochs", type=int, default=4)
    options = parser.parse_args()
    torch.set_num_threads(1)
    table = Table(title=f"{options.samples} pictures, {options.epochs} epochs")
    for title in ("", "test accuracy % (seeds)", "mean", "seconds", "sweeps free / nudged"):
        table.add_column(title)
    with tempfile.TemporaryDirectory() as folder:
        file = part(options.samples, Path(folder))
        for name, way in WAYS.items():
            found = [run(file, way, seed, options.epochs) for seed in range(options.seeds)]
            accuracies, seconds, sweeps, nudged = zip(*found, strict=True)
            shown = ", ".join(f"{value:.2f}" for value in accuracies)
            counts = f"{mean(sweeps):.1f} / {mean(nudged):.1f}"
            table.add_row(name, shown, f"{mean(accuracies):.2f}", f"{mean(seconds):.0f}", counts)
            print(name, shown, f"{mean(seconds):.0f} s", counts, flush=True)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
