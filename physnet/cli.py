"""The command line: `physnet train | evaluate | simulate | explain | check | draw | sweep | list`."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from physnet.declaration import load_experiment
from physnet.errors import DeclarationError, PhysnetError
from physnet.seeing import draw, simulate, sweep
from physnet.speaking import show_costs
from physnet.terminal import File, Hardware, Set, changes, console

if TYPE_CHECKING:
    from physnet.training import Trainer

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
    begin: Annotated[
        Path | None,
        typer.Option("--from", help="a run whose parameters to begin with: train.parameters", show_default=False),
    ] = None,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="write event files for TensorBoard")] = False,
) -> None:
    """Train a network; write metrics, parameters, checkpoints and pictures into a run folder."""
    if (file is None) == (resume is None):
        raise DeclarationError("train takes one experiment", "physnet train FILE, or physnet train --resume FOLDER")
    if resume is not None and folder is not None:
        raise DeclarationError("a resumed run stays in its folder", "leave out --out")
    if resume is not None and begin is not None:
        raise DeclarationError("a resumed run goes on with its own parameters", "leave out --from, or begin a new run")
    asked = [*([f"learn.protocol={method}"] if method else []), *(["train.tensorboard=true"] if tensorboard else [])]
    asked += [f"train.parameters={json.dumps(str(begin.resolve()))}"] if begin else []
    values = changes([*(change or []), *asked])
    trainer = _begin(file, values, folder) if file is not None else _resume(resume, values)
    from physnet.interruption import stopping_on_signals
    from physnet.reporting import conclude, title, train_with_progress

    console.quiet = not trainer.accelerator.is_main_process
    console.print(title(trainer))
    with stopping_on_signals(trainer.stop, repeated=trainer.accelerator.num_processes > 1) as signals:
        train_with_progress(trainer)
    if not trainer.finished:
        console.print(f"stopped in {trainer.position}; go on with\n{_resume_command(trainer)}", soft_wrap=True)
    elif trainer.accelerator.is_main_process:
        conclude(trainer)
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
    from physnet.training import experiment_faults

    learn = experiment.learn
    model = compile_energy(experiment.graph)
    asked = experiment.relax
    with experiment_faults(experiment, "relax"):
        explanation = make_explanation(model, learn.protocol, learn.beta, asked.integrator, asked.options)
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
    from physnet.listing import everything

    console.print(everything())


@app.command()
def schema() -> None:
    """Print the JSON schema of experiment files, for editors."""
    import json

    from physnet.schema import json_schema

    print(json.dumps(json_schema(), indent=2))


for _command in (draw, simulate, sweep):
    app.command()(_command)


if __name__ == "__main__":
    main()
