"""What `physnet train` shows of a run: its title, its progress, its metrics and its pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from physnet.learning import EquilibriumPropagation
from physnet.plots import learning_curve, relaxation_picture
from physnet.terminal import console
from physnet.validation import best_epoch

if TYPE_CHECKING:
    from physnet.training import Metrics, Trainer


def title(trainer: Trainer) -> str:
    """What is trained, by which method, on what."""
    experiment = trainer.experiment
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


def train_with_progress(trainer: Trainer) -> None:
    """Train to the end or until it is stopped, and print what each epoch has brought."""
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


def conclude(trainer: Trainer) -> None:
    """Print what a finished run has reached, and draw how it learnt and how the network settles."""
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
