"""Spiking convolutions trained with average pooling and with max-pooling, side by side.

    python benchmarks/spiking_pooling.py --epochs 1

The network of examples/fashion_spiking_conv.yaml, and the same with max-pooling, whose winners are those of spikes, and
half the gains, since the largest of four sums is about twice as large as they mostly are; each by spikes and by rates.
Source of the comparison: arXiv 2405.02546.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from pathlib import Path

import torch

from physnet.declaration import load_experiment
from physnet.training import Trainer

EXAMPLE = Path(__file__).parent.parent / "examples" / "fashion_spiking_conv.yaml"
RATES = {"relax.integrator": "auto", "relax.tolerance": "0.01"}


def with_maxima(text: str) -> str:
    """The declaration with max-pooling in place of averages."""
    changed = text.replace('avg_pool2d(2)", gain: 1.5', 'max_pool2d(2)", gain: 0.75')
    changed = changed.replace('avg_pool2d(2)", gain: 1.4', 'max_pool2d(2)", gain: 0.7')
    if "avg_pool2d(2)" in changed:
        raise SystemExit(f"{EXAMPLE.name} has changed: give its gains here, too")
    return changed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")  # that winners of spikes change is what is measured
    torch.set_num_threads(1)
    text = EXAMPLE.read_text()
    print(f"{'pooling':<10}{'messages':<10}{'train error %':>15}{'test error %':>15}{'processor, s':>14}")
    for pooling, declared in (("average", text), ("max", with_maxima(text))):
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "pooling.yaml"
            file.write_text(declared)
            for messages, changes in (("spikes", {}), ("rates", RATES)):
                shared = {"train.epochs": str(arguments.epochs), "train.seed": str(arguments.seed)}
                began, trainer = time.process_time(), Trainer(load_experiment(file, shared | changes))
                *_, last = trainer.epochs()
                spent = time.process_time() - began
                row = f"{last.train_error:>15.2f}{last.test_error:>15.2f}{spent:>14.0f}"
                print(f"{pooling:<10}{messages:<10}{row}", flush=True)


if __name__ == "__main__":
    main()
