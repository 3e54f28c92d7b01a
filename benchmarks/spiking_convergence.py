"""How near quantised messages come to the equilibrium, step by step, and what others have found.

    mean |s_t - s*| over the units of random symmetric nets of 40 units, after 10, 50, 100 and 400 steps

A net is  E = sum of x^2/2 - b x - w x x'  over all pairs, x in [0, 1], w normal with deviation 1/sqrt(40)/4, b uniform
in [0, 1]; ten seeds. s* is what descent finds in float64. The figures in brackets are of another random symmetric net
of 40 units, by a program that knows nothing of this one; annealing (`osa`) wasn't among them.

    python benchmarks/spiking_convergence.py
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from physnet.energy import Energy
from physnet.graph import EnergyGraph
from physnet.model import EnergyModel, compile_energy
from physnet.relaxation import Relaxation, relax

UNITS, SEEDS, STEPS = 40, 10, (10, 50, 100, 400)


@dataclass(frozen=True)
class Operator:
    """A way to communicate, and what others have found for it.

    Arguments:
        name: for people.
        quantiser, step_size, smoothing: options of `sigma_delta`.
        reference: after 10, 50, 100, 400 steps.
    """

    name: str
    quantiser: str
    step_size: str
    smoothing: str
    reference: tuple[float, ...] = ()


OPERATORS = (
    Operator("continuous, 1/2", "identity", "0.5", "1", (8e-3, 0.0, 0.0, 0.0)),
    Operator("sigma-delta, 1/2", "sigma_delta", "0.5", "1", (0.042, 0.043, 0.030, 0.045)),
    Operator("stochastic, 1/sqrt(t)", "bernoulli", "1/sqrt(t)", "1", (0.039, 0.035, 0.020, 0.016)),
    Operator("sigma-delta, 1/t", "sigma_delta", "1/t", "1", (0.032, 0.012, 0.008, 0.0035)),
    Operator("sigma-delta, 1/sqrt(t)", "sigma_delta", "1/sqrt(t)", "1", (0.018, 0.0095, 0.006, 0.003)),
    Operator("predictive, slow", "sigma_delta", "0.843/t**0.0923", "0.832/t**0.584", (0.011, 0.0028, 0.0024, 0.0008)),
    Operator("predictive, fast", "sigma_delta", "0.89/t**0.43", "0.9/t**0.88", (0.008, 4e-4, 2e-4, 5e-5)),
    Operator("predictive, annealed", "sigma_delta", "osa", "0.9/t**0.88"),
)


def network(seed: int) -> EnergyModel:
    """A random symmetric net, in float64."""
    energy = Energy(
        node="x**2/2 - b*x",
        coupling="-w*pre*post",
        domain=[0, 1],
        parameters={
            "b": {"on": "node", "shape": "unit", "init": "uniform(0, 1)"},
            "w": {"on": "edge", "init": "normal(0, 0.25/sqrt(fan_in))"},
        },
    )
    return compile_energy(EnergyGraph(energy).state("unit", UNITS).couple("unit", "unit"), seed).double()


def distances(operator: Operator, model: EnergyModel, rest: torch.Tensor, seed: int = 0) -> list[float]:
    """Mean |s - s*| after each number of steps; the steps of a longer relaxation begin like a shorter one."""
    found = []
    for steps in STEPS:
        options = {
            "steps": steps,
            "quantiser": operator.quantiser,
            "step_size": operator.step_size,
            "smoothing": operator.smoothing,
            "seed": seed,
        }
        states = relax(model, Relaxation("sigma_delta", options=options), rows=1).states
        found.append(float((states["unit"] - rest).abs().mean()))
    return found


def measured(seeds: int = SEEDS) -> dict[str, list[float]]:
    """The mean over nets of the distance after each number of steps, by operator."""
    sums = {operator.name: [0.0] * len(STEPS) for operator in OPERATORS}
    for seed in range(seeds):
        model = network(seed)
        rest = relax(model, Relaxation("descent", tolerance=1e-12), rows=1).states["unit"]
        for operator in OPERATORS:
            for index, value in enumerate(distances(operator, model, rest, seed)):
                sums[operator.name][index] += value / seeds
    return sums


def slope(distances: Sequence[float]) -> float:
    """d log |s - s*| / d log t, from the first number of steps to the last."""
    return math.log(distances[-1] / distances[0]) / math.log(STEPS[-1] / STEPS[0])


def main() -> None:
    found = measured()
    print(f"{'mean |s - s*| after':24}" + "".join(f"{steps:>20} steps" for steps in STEPS) + f"{'slope':>18}")
    for operator in OPERATORS:
        here, there = found[operator.name], operator.reference
        falls = there and there[-1] > 0
        cells = [f"{value:.2g}" + (f" ({there[number]:.2g})" if there else "") for number, value in enumerate(here)]
        cells.append(f"{slope(here):.2f}" + (f" ({slope(there):.2f})" if falls else ""))
        print(f"{operator.name:24}" + "".join(cell.rjust(26 - 8 * (cell is cells[-1])) for cell in cells))
    print("in brackets: of another net, by another program")


if __name__ == "__main__":
    main()
