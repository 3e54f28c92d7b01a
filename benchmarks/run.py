"""Speed and accuracy of one training step, on one thread: `make bench`, and `make bench-all` with the slow cases.

A step of equilibrium propagation is timed against a step of plain backpropagation: forward, backward and SGD update of
a net with the same weights, batch and threads, medians of interleaved runs. Its gradient is compared with the one that
the same protocol gives at the converged equilibrium in float64; where there are several equilibria, at the one that the
run's own free state goes on to. The floor is what the bare products of the sweeps, the contrast and the update cost.

    python benchmarks/run.py --case hopfield-resnet13 --relax omega=1.6 --nudged tolerance=0.02
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from cases import CASES, Case
from judging import Judgement, Reference, backprop_reference, digest, energies, in_float64, judge, kept
from rich.console import Console
from rich.table import Table
from timing import backprop_step, floor, interleaved, several
from torch import Tensor

from physnet import EnergyModel, EquilibriumPropagation, compile_energy, gradients

WARM_UP = 5


@dataclass
class Result:
    """What was measured. Ratios are to a backprop step in the same run."""

    name: str
    ratio_to_backprop: float
    ratio_to_half: float
    ratio_of_floor: float
    worst_cosine: float
    whole_cosine: float
    sweeps: float
    nudged_sweeps: float
    slowest: tuple[int, int]
    step_ms: float
    backprop_ms: float
    half_backprop_ms: float
    floor_ms: float
    published: str
    data: str
    cosines: dict[str, float] = field(default_factory=dict)
    distance: float = 0.0
    reference_residual: tuple[float, float] = (0.0, 0.0)
    worst_cosine_to_implicit: float | None = None
    energy: dict[str, float] = field(default_factory=dict)
    small: dict[str, float] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)


class Step:
    """One training step of a case.

    Arguments:
        case: what is trained.
        model: its compiled energy.
    """

    def __init__(self, case: Case, model: EnergyModel) -> None:
        self.case, self.model = case, model
        self.ep = case.engine(model)
        self.optimizer = torch.optim.SGD(model.parameters(), lr=case.rate)
        self.ep.attach(self.optimizer)

    def __call__(self, batch: dict[str, Tensor]) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self.ep(**batch).backward()
        self.optimizer.step()

    def stand_still(self) -> None:
        """From now on steps do all the work and leave the network where it is."""
        for group in self.optimizer.param_groups:
            group["lr"] = 1e-9


def measure(case: Case) -> Result:
    """Train for a while, then judge the gradient of a step and time it."""
    step, shown, data = trained(case)
    result = judged(step, shown, data)
    return timed_against_backprop(step, shown, result)


def trained(case: Case) -> tuple[Step, dict[str, Tensor], str]:
    """A step of the network after the training of the case, the batch that is measured, and what the data are."""
    x, y, data = case.samples()
    step, batch = Step(case, compile_energy(case.graph(), seed=1)), case.batch
    for number in range(case.training):
        index = torch.arange(number * batch, (number + 1) * batch) % len(x)
        step(case.batches(x[index], y[index]))
    return step, case.batches(x[-batch:], y[-batch:]), data


def judged(step: Step, batch: dict[str, Tensor], data: str) -> Result:
    """The gradient against float64."""
    case, model, ep = step.case, step.model, step.ep
    found = gradients(ep, **batch)
    assert ep.last is not None
    if ep.last.nudged is None:
        return judged_without_phases(case, found, case.reference(model, batch, None), data)
    free, nudged = ep.last.free, ep.last.nudged
    start = free.states if case.continues else None
    name = digest(model, batch, case.beta, case.continues, case.protocol)
    reference = kept(lambda: case.reference(model, batch, start), name, start)
    cosines: Judgement = judge(found, reference.gradients)
    result = Result(
        case.name, 0, 0, 0, cosines.worst, cosines.whole, float(free.sweeps.double().mean()),
        float(nudged.sweeps.double().mean()), (int(free.sweeps.max()), int(nudged.sweeps.max())), 0, 0, 0, 0,
        case.published, data, cosines.tensors, reference.distance(free.states), reference.residual,
        settings={"relaxation": str(case.relaxation), "nudged": str(case.nudged)},
    )  # fmt: skip
    if case.energies:
        result.energy = compared_energies(case, model, batch, reference)
    if case.small:
        result.small = at_small_nudge(replace(case, beta=case.small), model, batch)
    if not case.slow and not model.plan.predictive:  # solves linear systems, which takes minutes for large nets
        implicit = gradients(EquilibriumPropagation(in_float64(model), case.beta, "implicit"), **batch)
        result.worst_cosine_to_implicit = judge(found, implicit).worst
    return result


def at_small_nudge(case: Case, model: EnergyModel, batch: dict[str, Tensor]) -> dict[str, float]:
    """Worst cosines to the converged equilibrium in float64, and to backpropagation."""
    found = gradients(case.engine(model), **batch)
    return {
        "beta": case.beta,
        "to the equilibrium": judge(found, case.reference(model, batch, None).gradients).worst,
        "to backpropagation": judge(found, backprop_reference(model, batch).gradients).worst,
    }


def judged_without_phases(case: Case, found: dict[str, Tensor], reference: Reference, data: str) -> Result:
    """The gradient of what sweeps once forward and once back."""
    cosines = judge(found, reference.gradients)
    return Result(
        case.name, 0, 0, 0, cosines.worst, cosines.whole, 1, 0, (1, 0), 0, 0, 0, 0, case.published, data,
        cosines.tensors, settings={"method": case.method, "options": str(case.options)},
    )  # fmt: skip


def compared_energies(
    case: Case, model: EnergyModel, batch: dict[str, Tensor], reference: Reference
) -> dict[str, float]:
    """Mean energies per sample after 20 sweeps of ours and 120 of the published schedule, above the equilibrium, and
    how far both are from it."""
    inputs = {name: value for name, value in batch.items() if name != "target"}
    result = {"equilibrium": float(reference.energy.mean())}
    for name, (energy, states) in energies(model, case.relaxation, inputs).items():
        result[name] = float((energy - reference.energy).mean())
        result[f"{name}, distance"] = reference.distance(states)
    return result


def timed_against_backprop(step: Step, batch: dict[str, Tensor], result: Result) -> Result:
    """Fill in the times."""
    case, model = step.case, step.model
    step.stand_still()
    node = next(iter(model.inputs))
    encoded = model.encode({node: batch[node]})[node]
    actions: list[Callable[[], object]] = [
        several(backprop_step(case.twin(), encoded, batch["target"], half=half), case.backprops)
        for half in (False, True)
    ]
    times = interleaved([*actions, lambda: step(batch)], case.rounds, 0 if case.slow else WARM_UP)
    result.backprop_ms, result.half_backprop_ms = (time / case.backprops for time in times[:2])
    result.step_ms = times[2]
    phases = 1 if case.method or case.protocol == "single" else 2
    result.floor_ms = floor(model, len(encoded), result.sweeps, result.nudged_sweeps, phases)
    result.ratio_to_backprop = result.step_ms / result.backprop_ms
    result.ratio_to_half = result.step_ms / result.half_backprop_ms
    result.ratio_of_floor = result.step_ms / result.floor_ms
    return result


COLUMNS: dict[str, Callable[[Result], str]] = {
    "": lambda r: r.name,
    "backprop steps": lambda r: f"{r.ratio_to_backprop:.2f}",
    "bf16 ones": lambda r: f"{r.ratio_to_half:.2f}",
    "authors' code": lambda r: r.published,
    "of the floor": lambda r: f"{r.ratio_of_floor:.2f}",
    "worst cosine": lambda r: f"{r.worst_cosine:.6f}",
    "whole cosine": lambda r: f"{r.whole_cosine:.6f}",
    "to implicit": lambda r: "" if r.worst_cosine_to_implicit is None else f"{r.worst_cosine_to_implicit:.4f}",
    "sweeps": lambda r: f"{r.sweeps:.1f}",
    "nudged": lambda r: f"{r.nudged_sweeps:.1f}",
    "ms": lambda r: f"{r.step_ms:.2f}",
    "backprop ms": lambda r: f"{r.backprop_ms:.2f}",
}


def show(results: list[Result]) -> None:
    """Print the table, and what belongs to single cases."""
    table = Table(title="one training step, one thread, float32")
    for title in COLUMNS:
        table.add_column(title, justify="right" if title else "left", no_wrap=not title)
    for result in results:
        table.add_row(*(write(result) for write in COLUMNS.values()))
    console = Console(width=160)
    console.print(table)
    for result in results:
        low = {name: value for name, value in result.cosines.items() if value < 0.999}
        if low:
            console.print(f"{result.name}: cosines below .999:", ", ".join(f"{n} {v:.4f}" for n, v in low.items()))
        if result.small:
            written = ", ".join(f"{name} {value:.6g}" for name, value in result.small.items())
            console.print(f"{result.name}, worst cosines with a small nudge: {written}")
        if result.energy:
            written = ", ".join(f"{name} {value:.4g}" for name, value in result.energy.items())
            console.print(f"{result.name}: energy above equilibrium, 20 sweeps of ours, 120 published: {written}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/bench.json"))
    parser.add_argument("--case", action="append", choices=[case.name for case in CASES], help="only these cases")
    parser.add_argument("--all", action="store_true", help="slow cases, too: a few minutes each")
    parser.add_argument("--cold", action="store_true", help="all references start from zero, as the run itself does")
    parser.add_argument("--relax", action="append", default=[], metavar="KEY=VALUE", help="setting of free phases")
    parser.add_argument("--nudged", action="append", default=[], metavar="KEY=VALUE", help="setting of nudged phases")
    options = parser.parse_args()
    torch.set_num_threads(1)
    chosen = [case for case in CASES if (case.name in options.case if options.case else options.all or not case.slow)]
    chosen = [case.with_settings(options.relax, options.nudged) for case in chosen]
    if options.cold:
        chosen = [replace(case, continues=False) for case in chosen]
    results = [measure(case) for case in chosen]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps([asdict(result) for result in results], indent=2) + "\n")
    show(results)
    print(options.out)


if __name__ == "__main__":
    main()
