"""The commands that show: `physnet draw | simulate | sweep`."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from physnet.declaration import load_experiment
from physnet.devices import refuse_beside_sweep, sweep_hardware
from physnet.errors import DeclarationError
from physnet.speaking import show_messages
from physnet.terminal import File, Hardware, Set, changes, console, made_folder, write_csv

if TYPE_CHECKING:
    from physnet.declaration import Experiment
    from physnet.model import EnergyModel
    from physnet.sweeping import Run
    from physnet.trajectory import Trajectory

SHOWN = 12
"""Rows of a table of samples."""


def draw(
    file: File,
    change: Set = None,
    out: Annotated[Path | None, typer.Option("--out", help="the picture: .svg, .png, .pdf; default: FILE.svg")] = None,
) -> None:
    """Draw the network: nodes from inputs to outputs, couplings, costs."""
    experiment = load_experiment(file, changes(change))
    from physnet.drawing import draw as draw_graph

    path = out or Path(f"{file.stem}.svg")
    draw_graph(experiment.graph, path)
    console.print(f"graph  {path}", highlight=False)


def simulate(
    file: Annotated[Path, typer.Argument(help="an experiment in YAML, or the folder of a run", show_default=False)],
    change: Set = None,
    duration: Annotated[float | None, typer.Option(help="how long; default: as declared, or until settled")] = None,
    samples: Annotated[int | None, typer.Option(min=1, help="test samples, or random starts; default: 8")] = None,
    nudged: Annotated[bool, typer.Option("--nudged", help="from the free equilibrium, nudged by learn.beta")] = False,
    folder: Annotated[Path | None, typer.Option("--out", help="folder for the files; default: in runs/")] = None,
    hardware: Hardware = None,
    swept: Annotated[
        str | None, typer.Option("--sweep", help="test accuracy against a key of the hardware: bits=2,4,8")
    ] = None,
    chips: Annotated[int, typer.Option(min=1, help="of a sweep: how many, where they differ")] = 5,
) -> None:
    """Follow a network in true time, tau dx/dt = -dF/dx: settling times, energy, residual, states; of oscillators
    phases, order parameter and frequencies. Or sweep a property of the hardware and plot accuracy against it."""
    if swept is not None:
        refuse_beside_sweep({"set": file.is_dir() and change, "duration": duration, "nudged": nudged})
        sweep_hardware(file, swept, chips, changes(change) | changes(hardware, "hardware"), samples, folder)
        return
    experiment, model, test = _network(file, change, nudged, changes(hardware, "hardware"))
    from physnet.hardware import make_chip, noise_of
    from physnet.plots import simulation_picture
    from physnet.simulation import Simulation
    from physnet.simulation import simulate as follow

    declared, initial = experiment.simulate, experiment.relax.initial
    rows = samples or declared.samples
    batch = test.first(rows) if test is not None else {}
    noise = noise_of(experiment.hardware)
    model.mount(make_chip(experiment.hardware, experiment.graph))
    settings = Simulation(
        duration or declared.duration, declared.times, "zero" if initial == "previous" else initial,
        accuracy=declared.accuracy, method=declared.method,
        noise=0.0 if noise is None else noise.strength, step=None if noise is None else noise.step,
    )  # fmt: skip
    target = {name: batch[name] for name in model.targets} if nudged else None
    beta = experiment.learn.beta if nudged else None
    inputs = {name: batch[name] for name in model.inputs}
    rows = None if inputs else len(next(iter(batch.values()))) if batch else rows
    seed = experiment.train.seed
    path = follow(model, settings, target=target, beta=beta, start=None, rows=rows, seed=seed, **inputs)
    name = experiment.graph.name or file.stem
    where = made_folder(folder or Path("runs") / f"{name}-simulation")
    console.print(_settling_table(path, f"{name}{f', nudged, beta = {experiment.learn.beta:g}' if nudged else ''}"))
    write_csv(where / "simulation.csv", _in_time(path))
    files = {"numbers": where / "simulation.csv"}
    if path.angles:
        write_csv(where / "oscillators.csv", _oscillators(path))
        files["oscillators"] = where / "oscillators.csv"
    files["picture"] = simulation_picture(path, where / "simulation.png")
    files |= show_messages(experiment, model, inputs, target, rows, where)
    if path.angles and declared.animate:
        from physnet.phases import animation

        files["animation"] = animation(path, where / "phases.gif")
    for kind, file in files.items():
        console.print(f"{kind:<11}  {file}", highlight=False)


def _in_time(path: Trajectory) -> list[dict[str, Any]]:
    """One row for every time and sample."""
    columns = {"energy": path.energy, "residual": path.residual}
    if path.angles:
        columns["order"] = path.order()
    values = {name: column.tolist() for name, column in columns.items()}
    return [
        {"time": time, "sample": sample, **{name: column[number][sample] for name, column in values.items()}}
        for number, time in enumerate(path.times.tolist())
        for sample in range(path.energy.shape[1])
    ]


def _oscillators(path: Trajectory) -> list[dict[str, Any]]:
    """One row for every oscillator of every sample: its last phase, and its frequency over the second half."""
    rows: list[dict[str, Any]] = []
    for node in path.angles:
        phases, frequencies = path.wrapped(node)[-1].flatten(1).tolist(), path.frequencies(node).flatten(1).tolist()
        for sample, pair in enumerate(zip(phases, frequencies, strict=True)):
            for unit, (phase, frequency) in enumerate(zip(*pair, strict=True)):
                rows.append({"node": node, "unit": unit, "sample": sample, "phase": phase, "frequency": frequency})
    return rows


def _network(
    file: Path, change: list[str] | None, nudged: bool, hardware: dict[str, str]
) -> tuple[Experiment, EnergyModel, Any]:
    """The network, trained if a run is given, and its test data, if it takes any."""
    if file.is_dir():
        if change:
            fix = "give the experiment's file instead"
            raise DeclarationError("--set changes experiments; a run stays as it was", fix)
        from physnet.training import load_run

        trainer = load_run(file, changes=hardware)
        return trainer.experiment, trainer.energy, trainer.test
    exact = {"train.dtype": "float64", "train.precision": "null"}
    experiment = load_experiment(file, changes(change) | exact | hardware)
    if not nudged and all(node.free for node in experiment.graph.nodes()):
        from physnet.model import compile_energy
        from physnet.runs import read_declared_parameters

        model = compile_energy(experiment.graph, experiment.train.seed).double()
        read_declared_parameters(model, experiment)
        return experiment, model, None
    from physnet.training import Trainer

    trainer = Trainer(experiment)
    return experiment, trainer.energy, trainer.test


def _settling_table(path: Trajectory, title: str) -> Table:
    table = Table(title=escape(title), caption=f"{float(path.times[-1]):g} units of time, as in tau")
    order = [path.order()[-1].tolist()] if path.angles else []
    for column in ("sample", "settling time", "residual", "energy", *["order parameter"] * len(order)):
        table.add_column(column, justify="right")
    columns = [path.settling_time.tolist(), path.residual[-1].tolist(), path.energy[-1].tolist(), *order]
    lost = path.equilibrium.drifting
    drifting = [] if lost is None else lost.tolist()

    def add(name: object, time: float, residual: float, energy: float, *order: float) -> None:
        never = "never: drifts" if isinstance(name, int) and drifting and drifting[name] else "later"
        numbers = f"{time:.4g}" if math.isfinite(time) else never, f"{residual:.1e}", f"{energy:.6g}"
        table.add_row(str(name), *numbers, *(f"{value:.4f}" for value in order))

    for sample, numbers in list(enumerate(zip(*columns, strict=True)))[:SHOWN]:
        add(sample, *numbers)
    table.add_section()
    settled = [time for time in columns[0] if math.isfinite(time)]
    add("mean", *(sum(values) / len(values) if values else math.inf for values in (settled, *columns[1:])))
    slowest = max(range(len(columns[0])), key=columns[0].__getitem__)
    add(f"slowest: {slowest}", *(column[slowest] for column in columns))
    return table


_SWEPT = (
    "values to try, divided by commas as in a YAML list: learn.beta=.01,.1. Commas in brackets, braces and quotes "
    "belong to a value: nodes.hidden.shape=[64],[128] tries two shapes, nodes.hidden.shape=[1,2] one"
)


def sweep(
    file: File,
    change: Annotated[list[str] | None, typer.Option("--set", help=_SWEPT)] = None,
    seeds: Annotated[int, typer.Option(min=1, help="seeds for each setting, counted from train.seed")] = 3,
    folder: Annotated[Path | None, typer.Option("--out", help="folder of the sweep; default: in runs/")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="processes, with one thread each")] = os.cpu_count() or 1,
) -> None:
    """Train over a grid of values and seeds; what is finished in the folder is not repeated."""
    given = changes(change)
    if len(given) < len(change or []):
        raise DeclarationError("--set names a key twice", "give all its values at once, divided by commas")
    load_experiment(file)
    from physnet.sweeping import execute, parse_values, plan, summary

    swept = {key: parse_values(key, text) for key, text in given.items()}
    folder = folder or Path("runs") / f"{file.stem}-sweep"
    runs = plan(file, swept, seeds, folder / "runs")
    done = sum(run.finished for run in runs)
    console.print(f"{len(runs)} runs, {done} of them finished before" if done else f"{len(runs)} runs", highlight=False)
    failures: dict[str, str] = {}
    try:
        _with_progress(runs, jobs, failures, execute)
    finally:
        finished = summary(runs) if folder.is_dir() else []
        if any(row["seeds"] for row in finished):
            _report(runs, list(runs[0].values), finished, folder)
    for title, message in failures.items():
        console.print(f"[red]failed:[/] {escape(title)}", highlight=False)
        console.print(f"  {message}", markup=False, highlight=False)
    if failures:
        raise typer.Exit(1)


def _with_progress(runs: Sequence[Run], jobs: int, failures: dict[str, str], execute: Any) -> None:
    from rich.progress import Progress

    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("training", total=len(runs), completed=sum(run.finished for run in runs))

        def report(run: Run, failure: str | None) -> None:
            if failure is not None:
                failures[run.title] = failure
            progress.update(task, advance=1, description=f"training{f', {len(failures)} failed' * bool(failures)}")

        execute(runs, jobs, report)


def _report(runs: Sequence[Run], keys: list[str], finished: list[dict[str, Any]], folder: Path) -> None:
    """Write runs.csv, summary.csv and the picture; print the summary."""
    from physnet.plots import sweep_picture
    from physnet.sweeping import cell, rows

    write_csv(folder / "runs.csv", [{key: cell(value) for key, value in row.items()} for row in rows(runs)])
    write_csv(folder / "summary.csv", [{key: cell(value) for key, value in row.items()} for row in finished])
    full = [row for row in finished if row["seeds"]]
    metric = "test_error" if all(row["test_error_mean"] is not None for row in full) else "test_cost"
    table = Table(box=None, header_style="bold")
    for column in (*keys, "seeds", metric.replace("_", " ") + " %" * metric.endswith("error"), "test cost", "s"):
        table.add_column(column, justify="right")
    for row in finished:
        values = [_spread(row, name) for name in (metric, "test_cost", "seconds")]
        table.add_row(*(escape(str(cell(row[key]))) for key in keys), str(row["seeds"]), *values)
    console.print(table)
    files = {"every epoch": folder / "runs.csv", "summary": folder / "summary.csv"}
    if keys:
        files["picture"] = sweep_picture(
            [{key: cell(value) if key in keys else value for key, value in row.items()} for row in full],
            keys, metric, folder / "sweep.png",
        )  # fmt: skip
    for name, path in files.items():
        console.print(f"{name:<11}  {path}", highlight=False)


def _spread(row: Mapping[str, Any], name: str) -> str:
    """Mean and standard deviation of a metric; `-` if there is no finished run."""
    mean, deviation = row.get(f"{name}_mean"), row.get(f"{name}_std")
    if mean is None:
        return "-"
    return f"{mean:.4g}" if deviation is None else f"{mean:.4g} ± {deviation:.2g}"
