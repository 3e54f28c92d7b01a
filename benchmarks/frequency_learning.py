"""How often learning of natural frequencies converges, by how they are drawn: python benchmarks/frequency_learning.py

Of every row 50 seeds of examples/formants_frequency_learning.yaml, which draw couplings, frequencies, batches. A seed
has converged if at most one test sample in ten is wrong in the end; it has drifted if a batch left the locking range,
where there is no gradient. After arXiv 2604.10272.
"""

from __future__ import annotations

import sys
import time
import warnings
from pathlib import Path

from physnet.declaration import load_experiment
from physnet.errors import RelaxationError
from physnet.model import EnergyModel
from physnet.training import Trainer

EXAMPLE = Path(__file__).parent.parent / "examples" / "formants_frequency_learning.yaml"
DRAWS = {"spectral": "spectral(scale)", "random, alike": "normal(0, scale)", "random, wide": "normal(0, 5*scale)"}
"""How frequencies are drawn; a scale of 0.2 is the largest spectral one, and 5 times of it is the mean coupling."""
CONVERGED = 10.0


def outcome(init: str, seed: int, model: EnergyModel | None = None) -> tuple[float | None, EnergyModel]:
    """The test error in per cent of a run, `None` if it drifted; and its model, which another run may use."""
    changes = {f"nodes.{node}.parameters.omega.init": init for node in ("hidden", "vowel")}
    trainer = Trainer(load_experiment(EXAMPLE, changes | {"train.seed": str(seed)}), compiled=model)
    try:
        *_, last = trainer.epochs()
    except RelaxationError:
        return None, trainer.energy
    return last.test_error, trainer.energy


def main(seeds: int = 50) -> None:
    """Print a row for every way to draw frequencies."""
    print(f"{'frequencies':<16}{'converged':>12}{'drifted':>10}{'mean error %':>15}{'s per seed':>12}")
    for name, init in DRAWS.items():
        errors, began, model = list[float | None](), time.process_time(), None
        for seed in range(seeds):
            error, model = outcome(init, seed, model)
            errors.append(error)
        settled = [error for error in errors if error is not None]
        converged = [error for error in settled if error <= CONVERGED]
        mean = f"{sum(converged) / len(converged):.2f}" if converged else "-"
        spent = (time.process_time() - began) / seeds
        print(f"{name:<16}{len(converged):>6} of {seeds}{seeds - len(settled):>10}{mean:>15}{spent:>12.2f}", flush=True)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(*map(int, sys.argv[1:]))
