"""Time of a spiking step against the sweep of the rate network.

    python benchmarks/spiking_speed.py [file ...]      by default an MLP and a conv net

A step tells the messages of all nodes and moves them all; a sweep is one exact update of every node. The rate network
works out what comes from its inputs once, before its sweeps; inputs that speak in spikes say something new in every
step, so that the honest comparison is the sweep together with that product. With the quantiser `identity` for inputs
both hoist it. Times are those of the processor, medians of interleaved rounds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from physnet import EnergyModel, Relaxation, compile_energy, relax
from physnet.declaration import load_experiment

EXAMPLES = Path(__file__).parent.parent / "examples"
FILES = [EXAMPLES / "fashion_spiking_mlp.yaml", EXAMPLES / "mnist_spiking_conv.yaml"]
ROWS, FEW, MANY = 20, 20, 120


def per_step(call: Callable[[int], object]) -> float:
    """Milliseconds of one more step."""
    began = time.process_time()
    call(FEW)
    between = time.process_time()
    call(MANY)
    return 1e3 * (time.process_time() - between - (between - began)) / (MANY - FEW)


def timed(model: EnergyModel, options: dict[str, Any], rounds: int) -> dict[str, float]:
    """Milliseconds: of a step, of one whose inputs are exact, of a sweep, of the product with the inputs."""
    (name, node), *_ = model.inputs.items()
    image = {name: torch.rand(ROWS, *node.shape, generator=torch.Generator().manual_seed(0)) ** 3}
    problem = model.problem(None, **image)

    def spiking(quantiser: Any) -> Callable[[int], object]:
        given = {**options, "quantiser": quantiser}
        return lambda steps: relax(model, Relaxation("sigma_delta", options={**given, "steps": steps}), **image)

    def sweeps(count: int) -> None:
        state = problem.zero()
        for _ in range(count):
            for block in problem.blocks:
                state |= problem.minimise(block, state)

    def inputs(count: int) -> None:
        for _ in range(count):
            model.problem(None, **image)

    calls = {
        "step": spiking(options.get("quantiser", "sigma_delta")),
        "exact inputs": spiking({name: "identity"}),
        "sweep": sweeps,
        "inputs": inputs,
    }
    with torch.no_grad():
        found = [{key: per_step(call) for key, call in calls.items()} for _ in range(rounds)]
    return {key: statistics.median(item[key] for item in found) for key in calls}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, default=FILES, help="spiking experiments")
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print("| network | step, ms | sweep with inputs | ratio | step, exact inputs | sweep | ratio |")
    print("|---|---|---|---|---|---|---|")
    for file in arguments.files:
        experiment = load_experiment(file)
        graph = experiment.graph
        ms = timed(compile_energy(graph), dict(experiment.relax.options), arguments.rounds)
        whole = ms["sweep"] + ms["inputs"]
        cells = (ms["step"], whole, ms["step"] / whole, ms["exact inputs"], ms["sweep"])
        numbers = " | ".join(f"{value:.3g}" for value in (*cells, ms["exact inputs"] / ms["sweep"]))
        print(f"| {graph.name} | {numbers} |")


if __name__ == "__main__":
    main()
