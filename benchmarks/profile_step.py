"""Where the time of one step of equilibrium propagation goes: `make profile`.

    python benchmarks/profile_step.py --case conv-hopfield-5 [--relax KEY=VALUE] [--nudged KEY=VALUE]

torch's profiler records every operation; what belongs to which part is told by labels around the products of
connections, the measuring of residuals and the phases. "outside" is what Python and
the profiler take between operations. Times are scaled to the processor time that the step takes without profiler.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from cases import CASES, Case
from rich.console import Console
from rich.table import Table
from timing import floor, timed
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, record_function

from physnet import (
    EquilibriumPropagation,
    RelaxationWarning,
    compile_energy,
    connections,
    convolved,
    learning,
    stopping,
)

LABELS: dict[tuple[Any, str], str] = {
    **{
        (kind, method): part
        for kind in (convolved.ConvLink, connections._DenseLink)
        for method, part in (("apply", "forward"), ("adjoint", "transposed"), ("correlate", "weight gradient"))
    },
    (stopping.StoppingRule, "of_samples"): "residual",
    (learning.EquilibriumPropagation, "free_phase"): "free",
    (learning, "run_nudged"): "nudged",
    (learning, "_contrast"): "contrast",
}
"""What a function does; the last three are stages."""
STAGES = ("free", "nudged", "contrast")
PRODUCTS = ("forward", "transposed", "weight gradient")
PARTS = (*PRODUCTS, "pooling", "residual", "copies", "elementwise")
COPIES = ("aten::copy_", "aten::cat", "aten::index", "aten::fill_", "aten::zero_", "aten::stack")
Times = dict[tuple[str, str], float]
"""Milliseconds by part and stage."""


@contextmanager
def labelled() -> Iterator[None]:
    """Let the profiler know which part is at work."""
    with ExitStack() as stack:
        for (owner, name), label in LABELS.items():
            stack.enter_context(patch.object(owner, name, _labelled(getattr(owner, name), label)))
        yield


def _labelled(function: Callable[..., Any], label: str) -> Callable[..., Any]:
    def call(*arguments: Any, **options: Any) -> Any:
        with record_function(label):
            return function(*arguments, **options)

    return call


def parts(action: Callable[[], object]) -> Times:
    """Milliseconds that pass in every part and stage; under ("outside", "rest") what isn't spent in operations."""
    with labelled(), profile(activities=[ProfilerActivity.CPU]) as recorded:
        began = time.perf_counter()
        action()
        passed = 1e3 * (time.perf_counter() - began)
    times: Times = defaultdict(float)
    for event in recorded.events() or ():
        if event.name in LABELS.values():
            continue
        within = set(_parents(event))
        stage = next((stage for stage in STAGES if stage in within), "rest")
        part = next((part for part in (*PRODUCTS, "residual") if part in within), _kind(event.name))
        times[part, stage] += event.self_cpu_time_total / 1e3
    times["outside", "rest"] = passed - sum(times.values())
    return times


def _parents(event: Any) -> Iterator[str]:
    while event is not None:
        yield event.name
        event = event.cpu_parent


def _kind(operation: str) -> str:
    if "pool" in operation or operation == "aten::gather":
        return "pooling"
    return "copies" if operation in COPIES else "elementwise"


def profiled(case: Case) -> tuple[Times, float, float, tuple[float, float]]:
    """Times by part and stage, of the whole step and of the floor, and the mean sweeps of both phases."""
    x, y, _ = case.samples()
    model = compile_energy(case.graph(), seed=1)
    ep = EquilibriumPropagation(model, case.beta, relaxation=case.relaxation, nudged=case.nudged, watch=0)
    batch: Mapping[str, Tensor] = case.batches(x[: case.batch], y[: case.batch])

    def step() -> None:
        model.zero_grad(set_to_none=True)
        ep(**batch).backward()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RelaxationWarning)
        step()
        whole = timed(step)
        times = parts(step)
    slower = sum(times.values()) / whole  # where others use the machine, the profiler counts their time, too
    times = {at: value / slower for at, value in times.items()}
    assert ep.last is not None and ep.last.nudged is not None
    sweeps = (float(ep.last.free.sweeps.double().mean()), float(ep.last.nudged.sweeps.double().mean()))
    return times, whole, floor(model, case.batch, *sweeps), sweeps


def show(case: Case) -> None:
    """Profile a case and print the table."""
    times, whole, least, sweeps = profiled(case)
    stages = (*STAGES, "rest")
    table = Table(title=f"{case.name}: one step, {whole:.0f} ms, {sweeps[0]:.1f} + {sweeps[1]:.1f} sweeps")
    for title in ("ms", *stages, "sum", "share", "of the floor"):
        table.add_column(title, justify="right" if title != "ms" else "left")
    total = sum(times.values())
    for part in (*PARTS, "outside"):
        row = [times.get((part, stage), 0.0) for stage in stages]
        found = [*(f"{value:.1f}" for value in row), f"{sum(row):.1f}"]
        table.add_row(part, *found, f"{sum(row) / total:.1%}", f"{sum(row) / least:.2f}")
    row = [sum(value for (_, within), value in times.items() if within == stage) for stage in stages]
    table.add_section()
    table.add_row("all", *(f"{value:.1f}" for value in row), f"{total:.1f}", "100 %", f"{total / least:.2f}")
    console = Console(width=120)
    console.print(table)
    console.print(f"floor: {least:.0f} ms for the bare products of as many sweeps, the contrast and the update")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", action="append", choices=[case.name for case in CASES])
    parser.add_argument("--relax", action="append", default=[], metavar="KEY=VALUE", help="setting of free phases")
    parser.add_argument("--nudged", action="append", default=[], metavar="KEY=VALUE", help="setting of nudged phases")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for case in CASES:
        if case.name in options.case if options.case else case.slow:
            show(case.with_settings(options.relax, options.nudged))


if __name__ == "__main__":
    main()
