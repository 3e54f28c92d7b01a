"""Speed and accuracy of one training step, on one thread: `make bench`.

A step of equilibrium propagation is timed against a step of plain backpropagation: forward, backward and SGD update of
a net with the same weights, batch and threads, medians of interleaved runs. Its gradient is compared with the one that
the same protocol gives at the converged equilibrium in float64. The floor is what the products and the update alone
cost.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from physnet import EnergyGraph, EquilibriumPropagation, compile_energy, gradients
from physnet.checking import cosine
from physnet.data import load_data
from physnet.errors import DataError

ROUNDS, WARM_UP, TRAINING_STEPS = 60, 5, 500


@dataclass(frozen=True)
class Case:
    """One network: its energy, widths, batch and learning settings."""

    name: str
    energy: str
    encode: list[str] | None
    batch: int
    beta: float
    rate: float
    gain: float
    widths: tuple[int, int, int] = (784, 1024, 10)


CASES = (
    Case("hopfield-784-1024-10", "hopfield", None, batch=16, beta=0.2, rate=0.05, gain=0.7),
    Case("resistive-784-1024-10", "resistive", ["480*x", "-480*x"], batch=4, beta=1.0, rate=0.006, gain=1.0),
)


@dataclass
class Result:
    """What was measured. Ratios are to a backprop step in the same run."""

    name: str
    ratio_to_backprop: float
    worst_cosine: float
    whole_cosine: float
    worst_cosine_to_implicit: float
    sweeps: float
    nudged_sweeps: float
    backprop_ms: float
    step_ms: float
    ratio_of_floor: float
    data: str


def build(case: Case) -> EnergyGraph:
    """The network of a case."""
    graph = EnergyGraph(case.energy, case.name)
    inputs, hidden, outputs = case.widths
    graph.input("image", inputs, encode=case.encode).state("hidden", hidden).output(
        "label", outputs, cost="(x - y)**2/2"
    )
    weight = next(name for name, spec in graph.energy.parameters.items() if spec.on == "edge")
    for pre, post in (("image", "hidden"), ("hidden", "label")):
        graph.couple(pre, post, "dense", parameters={weight: {"gain": case.gain}})
    return graph


def samples() -> tuple[Tensor, Tensor, str]:
    """28 x 28 pictures: Fashion-MNIST where it is installed, else scikit-learn's digits, enlarged."""
    try:
        data = load_data({"fashion_mnist": {"limit": 10_000}})
        return torch.from_numpy(data.train["x"]), torch.from_numpy(data.train["y"]), "fashion_mnist"
    except DataError:
        data = load_data("digits")
        small = torch.from_numpy(data.train["x"]).view(-1, 1, 8, 8)
        return nn.functional.interpolate(small, size=28).flatten(1), torch.from_numpy(data.train["y"]), "digits"


def interleaved(actions: list[Callable[[], object]]) -> list[float]:
    """The median time of each action in milliseconds, run in turn."""
    times: list[list[float]] = [[] for _ in actions]
    for round_number in range(WARM_UP + ROUNDS):
        for action, record in zip(actions, times, strict=True):
            began = time.perf_counter()
            action()
            if round_number >= WARM_UP:
                record.append(1e3 * (time.perf_counter() - began))
    return [median(record) for record in times]


def backprop_step(inputs: Tensor, classes: Tensor, widths: tuple[int, int, int], rate: float) -> Callable[[], None]:
    """One step of plain backprop on a net whose weights have the shapes of the energy's."""
    net = nn.Sequential(nn.Linear(inputs.shape[1], widths[1]), nn.Hardtanh(0, 1), nn.Linear(widths[1], widths[2]))
    optimizer = torch.optim.SGD(net.parameters(), lr=rate)
    targets = nn.functional.one_hot(classes, widths[2]).float()

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss = (net(inputs) - targets).square().sum(1).mean() / 2
        loss.backward()
        optimizer.step()

    return step


def floor_step(inputs: Tensor, width: int) -> Callable[[], None]:
    """The arithmetic that no method can do without: one product forward, one for the gradient, and the update."""
    weight, state = torch.rand(width, inputs.shape[1]), torch.rand(inputs.shape[0], width)

    def step() -> None:
        inputs @ weight.T
        weight.add_(state.T @ inputs, alpha=-1e-9)

    return step


def measure(case: Case, pictures: Tensor, classes: Tensor, data: str) -> Result:
    """Train for a while, then time a step and judge its gradient."""
    graph, batch = build(case), case.batch
    model = compile_energy(graph, seed=1)
    ep = EquilibriumPropagation(model, case.beta)
    optimizer = torch.optim.SGD(model.parameters(), lr=case.rate)
    ep.attach(optimizer)

    def step(x: Tensor, y: Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        ep(image=x, target=y).backward()
        optimizer.step()

    for number in range(TRAINING_STEPS):
        index = torch.arange(number * batch, (number + 1) * batch) % len(pictures)
        step(pictures[index], classes[index])
    x, y = pictures[-batch:], classes[-batch:]
    judged = judge(case, graph, ep, x, y)
    for group in optimizer.param_groups:
        group["lr"] = 1e-9  # the timed steps do all the work and leave the network where it is
    encoded = model.encode({"image": x})["image"]
    backprop, energy, floor = interleaved(
        [backprop_step(encoded, y, case.widths, 1e-9), lambda: step(x, y), floor_step(encoded, case.widths[1])]
    )
    return Result(case.name, energy / backprop, *judged, backprop, energy, energy / floor, data)


def judge(case: Case, graph: EnergyGraph, ep: EquilibriumPropagation, x: Tensor, y: Tensor) -> tuple[float, ...]:
    """Worst cosine over tensors and cosine of the whole gradient to float64 at the same beta, worst cosine to the
    implicit gradient, and the mean sweeps of both phases."""
    found = gradients(ep, image=x, target=y)
    assert ep.last is not None and ep.last.nudged is not None
    sweeps, nudged = ep.last.free.sweeps.double().mean(), ep.last.nudged.sweeps.double().mean()
    exact = compile_energy(graph).double()
    exact.load_state_dict(ep.model.state_dict())
    reference = gradients(EquilibriumPropagation(exact, case.beta), image=x, target=y)
    worst = min(cosine(found[name], reference[name]) for name in found)
    whole = cosine(*(torch.cat([g[name].double().flatten() for name in found]) for g in (found, reference)))
    implicit = gradients(EquilibriumPropagation(exact, case.beta, "implicit"), image=x, target=y)
    biased = min(cosine(found[name], implicit[name]) for name in found)
    return worst, whole, biased, float(sweeps), float(nudged)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/bench.json"))
    parser.add_argument("--case", action="append", help="only these cases")
    options = parser.parse_args()
    torch.set_num_threads(1)
    pictures, classes, data = samples()
    chosen = [case for case in CASES if not options.case or case.name in options.case]
    results = [measure(case, pictures, classes, data) for case in chosen]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps([asdict(result) for result in results], indent=2) + "\n")
    table = Table(title=f"one training step, one thread, float32, after {TRAINING_STEPS} steps on {data}")
    titles = (
        "",
        "backprop steps",
        "of the floor",
        "worst cosine",
        "whole cosine",
        "to implicit",
        "sweeps",
        "nudged",
        "ms",
        "backprop ms",
    )
    for title in titles:
        table.add_column(title, justify="right" if title else "left")
    for r in results:
        table.add_row(
            r.name, f"{r.ratio_to_backprop:.2f}", f"{r.ratio_of_floor:.2f}", f"{r.worst_cosine:.6f}",
            f"{r.whole_cosine:.6f}", f"{r.worst_cosine_to_implicit:.4f}", f"{r.sweeps:.1f}", f"{r.nudged_sweeps:.1f}",
            f"{r.step_ms:.2f}", f"{r.backprop_ms:.2f}",
        )  # fmt: skip
    Console(width=150).print(table)
    print(options.out)


if __name__ == "__main__":
    main()
