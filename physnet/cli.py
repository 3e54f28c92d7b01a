"""The command line: `physnet train | evaluate | simulate | explain | check | draw | sweep | list`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from physnet.declaration import Experiment, load_experiment
from physnet.errors import DeclarationError, PhysnetError
from physnet.seeing import draw, simulate, sweep
from physnet.speaking import show_costs
from physnet.terminal import File, Hardware, Set, changes, console

if TYPE_CHECKING:
    from physnet.registry import Registry
    from physnet.training import Metrics, Trainer

app = typer.Typer(
    help="Declare a physical system by its energy; simulate it and train it by equilibrium propagation.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Entry point: user errors end with status 2 and a message, never with a traceback."""
    try:
        app()
    except PhysnetError as error:
        Console(stderr=True).print(str(error), style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


@app.command()
def train(
    file: Annotated[Path | None, typer.Argument(help="an experiment in YAML", show_default=False)] = None,
    change: Set = None,
    folder: Annotated[Path | None, typer.Option("--out", help="folder of the run; default: a new one in runs/")] = None,
    resume: Annotated[
        Path | None, typer.Option("--resume", help="folder of an interrupted run, to go on with", show_default=False)
    ] = None,
    method: Annotated[
        str | None,
        typer.Option("--method", help="how to learn, such as backprop: learn.protocol", show_default=False),
    ] = None,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="write event files for TensorBoard")] = False,
) -> None:
    """Train a network; write metrics, parameters, checkpoints and pictures into a run folder."""
    if (file is None) == (resume is None):
        raise DeclarationError("train takes one experiment", "physnet train FILE, or physnet train --resume FOLDER")
    if resume is not None and folder is not None:
        raise DeclarationError("a resumed run stays in its folder", "leave out --out")
    asked = [*([f"learn.protocol={method}"] if method else []), *(["train.tensorboard=true"] if tensorboard else [])]
    values = changes([*(change or []), *asked])
    trainer = _begin(file, values, folder) if file is not None else _resume(resume, values)
    from physnet.interruption import stopping_on_signals

    console.quiet = not trainer.accelerator.is_main_process
    console.print(_title(trainer.experiment, trainer))
    with stopping_on_signals(trainer.stop, repeated=trainer.accelerator.num_processes > 1) as signals:
        _train_with_progress(trainer)
    if not trainer.finished:
        console.print(f"stopped in {trainer.position}; go on with\n{_resume_command(trainer)}", soft_wrap=True)
    elif trainer.accelerator.is_main_process:
        _draw(trainer)
    trainer.accelerator.end_training()
    if not trainer.finished:
        raise typer.Exit(128 + signals[0] if signals else 1)


def _begin(file: Path, values: dict[str, str], folder: Path | None) -> Trainer:
    experiment = load_experiment(file, values)
    from physnet.training import RunFolder, Trainer, new_folder

    folder = folder or new_folder(experiment)
    if RunFolder(folder).used:
        raise DeclarationError(f"{folder} holds a run already", f"choose another with --out, or --resume {folder}")
    return Trainer(experiment, folder)


def _resume(folder: Path | None, values: dict[str, str]) -> Trainer:
    from physnet.training import resume_run

    assert folder is not None
    return resume_run(folder, values)


def _resume_command(trainer: Trainer) -> str:
    assert trainer.folder is not None
    words = ["physnet", "train", "--resume", str(trainer.folder.path)]
    processes = trainer.accelerator.num_processes
    if processes > 1:
        words[:1] = ["torchrun", "--nproc_per_node", str(processes), "-m", "physnet.cli"]
    return shlex.join(words)


@app.command()
def evaluate(
    folder: Annotated[Path, typer.Argument(help="the folder of a run", show_default=False)],
    best: Annotated[bool, typer.Option("--best", help="as it was after the best validation epoch")] = False,
    hardware: Hardware = None,
) -> None:
    """Test a trained network on the test set of its run; where it speaks in spikes, also count what they cost."""
    from physnet.activity import Activity
    from physnet.listening import listening
    from physnet.metrics import measure
    from physnet.training import load_run

    trainer = load_run(folder, best, changes(hardware, "hardware"))
    with listening(activity := Activity(trainer.engine.rows_per_sample)):
        found = measure(trainer.engine, trainer.test, top=trainer.top)
    console.print(f"test cost  {found.cost:.5f}")
    if found.error is not None:
        console.print(f"test error {found.error:.2f} %   (accuracy {100 - found.error:.2f} %)")
    if found.top_error is not None:
        console.print(f"top-{trainer.top} error {found.top_error:.2f} %")
    if found.lost:
        console.print(f"{found.lost} of {trainer.test.count} images can't be read")
    if activity.spoken:
        show_costs(trainer, activity)


@app.command()
def explain(
    file: File, change: Set = None, latex: Annotated[bool, typer.Option("--latex", help="as LaTeX")] = False
) -> None:
    """Show what is derived from an energy: forces, exact updates, learning rules, the integrator and why."""
    experiment = load_experiment(file, changes(change))
    from physnet.explaining import explain as make_explanation
    from physnet.model import compile_energy

    learn = experiment.learn
    model = compile_energy(experiment.graph)
    explanation = make_explanation(model, learn.protocol, learn.beta, experiment.relax.integrator)
    print(explanation.latex if latex else explanation.text)


@app.command()
def check(
    file: File,
    change: Set = None,
    samples: Annotated[int, typer.Option(min=1, help="training samples to use")] = 8,
    gdu: Annotated[bool, typer.Option("--gdu", help="step by step, against backpropagation through time")] = False,
) -> None:
    """Compare every protocol's gradient with the implicit one, per parameter, at beta and at beta/2."""
    experiment = load_experiment(file, changes([*(change or []), "train.dtype=float64", "train.precision=null"]))
    from physnet.checking import check_gradients
    from physnet.training import Trainer, relaxation_settings

    trainer = Trainer(experiment)
    batch = trainer.train.first(samples)
    beta = experiment.learn.beta
    if gdu:
        console.print(_updates_table(trainer, batch, beta / 100))
        return
    table = Table(title=f"gradient against the implicit one, beta = {beta:g}, {samples} samples, float64")
    for column in ("protocol", "tensor", "cosine", "relative error", "falls, beta/2"):
        table.add_column(column, justify="left" if column in ("protocol", "tensor") else "right")
    previous = ""
    for row in check_gradients(trainer.energy, batch, beta, relaxation=relaxation_settings(experiment.relax)):
        first = row.protocol if row.protocol != previous else ""
        if first and previous:
            table.add_section()
        previous = row.protocol
        table.add_row(first, row.tensor, f"{row.cosine:.6f}", f"{row.error:.2e}", f"{row.fall:.2f} x")
    console.print(table)
    from physnet.integration import choose

    problem = trainer.energy.problem(samples, **{name: batch[name] for name in trainer.energy.inputs})
    for caveat in choose(problem, experiment.relax.integrator)[0].caveats(problem):
        console.print(f"[yellow]{escape(caveat)}[/]")


def _updates_table(trainer: Trainer, batch: dict[str, Any], beta: float) -> Table:
    """Gradient-descending updates of every node and parameter, at a small beta and at half of it."""
    from physnet.gdu import gradient_descending_updates
    from physnet.training import relaxation_settings

    relaxation = relaxation_settings(trainer.experiment.relax)
    full, half = (
        gradient_descending_updates(trainer.energy, batch, nudge, relaxation=relaxation) for nudge in (beta, beta / 2)
    )
    rows = len(next(iter(batch.values())))
    table = Table(title=f"gradient-descending updates, beta = {beta:g}, {rows} samples, float64")
    for column in ("states, parameters", "relative error", "falls, beta/2", "opposite signs"):
        table.add_column(column, justify="left" if column == "states, parameters" else "right")
    for update, smaller in zip(full, half, strict=True):
        fall = update.error / smaller.error if smaller.error else float("nan")
        table.add_row(update.name, f"{update.error:.2e}", f"{fall:.2f} x", f"{100 * update.opposite:.2f} %")
    return table


@app.command("list")
def list_everything() -> None:
    """List energies, connections, domains, integrators, protocols, data sets and augmentations."""
    from physnet.augmentations import AUGMENTATIONS
    from physnet.connections import CONNECTIONS
    from physnet.data import DATA
    from physnet.domains import NAMED
    from physnet.energy import catalogue
    from physnet.expressions import FUNCTIONS
    from physnet.integration import INTEGRATORS, integrators
    from physnet.methods import METHODS
    from physnet.protocols import FAMILIES, PROTOCOLS
    from physnet.quantisers import QUANTISERS
    from physnet.references import REFERENCES
    from physnet.schedules import ANNEALINGS

    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name in catalogue():
        table.add_row("energy", name, _title_of(name))
    for name, connection in CONNECTIONS.usable():
        table.add_row("connection", name, _first_line(connection) + _from(CONNECTIONS, name))
    for name, domain in NAMED.usable():
        table.add_row("domain", name, (_first_line(domain) if isinstance(domain, type) else "") + _from(NAMED, name))
    table.add_row("domain", r"\[lo, hi]", "a box; a list of intervals divides the units of a node")
    for name, kind in integrators().usable():
        table.add_row("integrator", name, kind.idea + _from(INTEGRATORS, name))
    for name, quantiser in QUANTISERS.usable():
        table.add_row("quantiser", name, _first_line(quantiser) + _from(QUANTISERS, name))
    for name, annealing in ANNEALINGS.usable():
        table.add_row("step size", name, _first_line(annealing) + _from(ANNEALINGS, name))
    for name, protocol in PROTOCOLS.usable():
        table.add_row("protocol", name, f"error of order {protocol.bias}" + _from(PROTOCOLS, name))
    for family, make in FAMILIES.items():
        table.add_row("protocol", f"{family}(N)", _first_line(make))
    for reference in REFERENCES.values():
        table.add_row("reference", str(reference), reference.idea)
    for name, method in METHODS.usable():
        table.add_row("method", name, method.idea + _from(METHODS, name))
    for name, data in DATA.usable():
        table.add_row("data", name, _first_line(data) + _from(DATA, name))
    for name, augmentation in AUGMENTATIONS.usable():
        table.add_row("augmentation", name, _first_line(augmentation) + _from(AUGMENTATIONS, name))
    table.add_row("function", ", ".join(FUNCTIONS), "")
    console.print(table)


@app.command()
def schema() -> None:
    """Print the JSON schema of experiment files, for editors."""
    import json

    from physnet.schema import json_schema

    print(json.dumps(json_schema(), indent=2))


for _command in (draw, simulate, sweep):
    app.command()(_command)


def _first_line(thing: Any) -> str:
    """The first line of a docstring, in which brackets are no markup."""
    return escape(next(iter((thing.__doc__ or "").strip().splitlines()), ""))


def _from(registry: Registry[Any], name: str) -> str:
    """Which distribution a plug-in belongs to."""
    provider = registry.provider(name)
    return f" (from {provider})" if provider else ""


def _title_of(energy: str) -> str:
    from physnet.energy import load_energy

    try:
        return load_energy(energy).title
    except DeclarationError as error:  # an entry of a plug-in
        return f"can't be used: {error}"


def _title(experiment: Experiment, trainer: Trainer) -> str:
    parameters = sum(value.numel() for value in trainer.model.parameters())
    learn = experiment.learn
    nudge = "" if trainer.engine.nudge is None else f" beta = {trainer.engine.nudge:g}"
    return (
        f"[bold]{experiment.graph.name or experiment.source.name}[/]  {parameters:,} parameters, "
        f"{learn.protocol}{nudge}, {trainer.data.name}, {trainer.accelerator.device}, "
        f"seed {experiment.train.seed}"
    )


_COLUMNS = {
    "epoch": "epoch", "train_cost": "train cost", "train_error": "train error %", "test_cost": "test cost",
    "test_error": "test error %", "test_top_error": "test top-{top} %", "validation_error": "validation error %",
    "validation_top_error": "validation top-{top} %", "sweeps": "sweeps", "nudged_sweeps": "nudged",
    "residual": "residual", "unconverged": "missed %", "unreadable": "unreadable", "seconds": "s",
}  # fmt: skip
_SOMETIMES = ("test_top_error", "validation_top_error", "unreadable")
"""Columns that are shown where there is something to show."""


def _train_with_progress(trainer: Trainer) -> None:
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[status]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(f"epoch {trainer.position.epoch}", status="")

        def on_step(number: int, batches: int, cost: float) -> None:
            if number % 10 == 0 or number == batches:
                last = trainer.engine.last
                assert last is not None
                status = f"cost {cost:.4f}  sweeps {last.free.sweeps.max()}  residual {last.free.residual.max():.1e}"
                progress.update(task, total=batches, completed=number, status=status)

        for metrics in trainer.epochs(on_step):
            progress.update(task, description=f"epoch {metrics.epoch + 1}", completed=0)
    if trainer.history:
        console.print(_metrics_table(trainer.history))


def _metrics_table(history: list[Metrics]) -> Table:
    table = Table(box=None, header_style="bold")
    held_out = history[0].validation_cost is not None
    noted = {key for key in _SOMETIMES if any(getattr(metrics, key) is not None for metrics in history)}
    hidden = {*_SOMETIMES, *(() if held_out else ("validation_error",))} - noted
    columns = {key: title for key, title in _COLUMNS.items() if key not in hidden}
    for title in columns.values():
        table.add_column(title.format(top=history[0].top), justify="right")
    shown = history if len(history) <= 12 else [*history[:2], *history[4:-2:5], *history[-2:]]
    for metrics in shown:
        table.add_row(*(_cell(key, getattr(metrics, key)) for key in columns))
    return table


def _cell(key: str, value: float | int | None) -> str:
    if value is None:
        return "-"
    if key in ("epoch", "unreadable"):
        return str(value)
    if key == "residual":
        return f"{value:.1e}"
    return f"{value:.5f}" if key.endswith("cost") else f"{value:.2f}"


def _draw(trainer: Trainer) -> None:
    from physnet.learning import EquilibriumPropagation
    from physnet.plots import learning_curve, relaxation_picture
    from physnet.validation import best_epoch

    assert trainer.folder is not None
    history, folder = trainer.history, trainer.folder.path
    last = history[-1]
    batch = trainer.test.first(32)
    curve = learning_curve(history, folder / "learning_curve.png")
    if last.test_error is not None:
        seconds = sum(item.seconds for item in history)
        console.print(
            f"[bold]test accuracy {100 - last.test_error:.2f} %[/] after {last.epoch} epochs in {seconds:.1f} s"
        )
    best = best_epoch(history)
    if best is not None and best.test_error is not None and best.validation_error is not None:
        console.print(
            f"best validation epoch {best.epoch}: validation accuracy {100 - best.validation_error:.2f} %, "
            f"test accuracy {100 - best.test_error:.2f} %"
        )
    if last.unconverged:
        console.print(
            f"[yellow]{last.unconverged:.2f} % of the samples missed the tolerance of the free phase: "
            "raise relax.max_sweeps or relax.tolerance[/]"
        )
    console.print(f"learning curve  {curve}", highlight=False)
    if isinstance(trainer.engine, EquilibriumPropagation):
        picture = relaxation_picture(trainer.engine, batch, folder / "relaxation.png")
        console.print(f"relaxation      {picture}", highlight=False)
    console.print(f"run             {folder}", highlight=False)


if __name__ == "__main__":
    main()
