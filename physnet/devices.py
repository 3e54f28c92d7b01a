"""`physnet simulate --sweep`: accuracy against a property of the hardware, as a table, numbers and a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from physnet.errors import DeclarationError
from physnet.terminal import console, made_folder, write_csv

if TYPE_CHECKING:
    from physnet.robustness import Trial

PROPERTIES = {
    "mismatch": "mismatch / standard deviation relative to the parameter",
    "dispersion": "dispersion / standard deviation in the unit of the parameter",
    "bounds": "bounds of parameters",
    "bits": "resolution of parameters / bits",
    "readout_bits": "resolution of the read-out / bits",
    "noise": "noise / state per square root of the unit of tau",
    "noise.strength": "noise / state per square root of the unit of tau",
    "noise.duration": "duration of the noise / unit of tau",
}
"""How axes are labelled."""


def sweep_hardware(
    source: Path, asked: str, chips: int, changes: Mapping[str, str], samples: int | None, folder: Path | None
) -> None:
    """Test a network on hardware that is more and more perfect, or less and less; print, write and draw the result.

    Arguments:
        source: the folder of a run, or the file of an experiment.
        asked: KEY=VALUE,VALUE,...
        chips: how many specimens, where they differ.
        changes: to the experiment, by dotted key.
        samples: how many test samples; all by default.
        folder: for the files.
    """
    from physnet.plots import robustness_picture
    from physnet.robustness import Robustness, grouped, rows

    sweep = Robustness(source, asked, chips, changes, samples)
    where = made_folder(folder or Path("runs") / f"{sweep.name}-hardware")
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task(f"testing {sweep.key}", total=sweep.count)
        trials = sweep.run(lambda: progress.advance(task))
    console.print(_table(sweep.key, sweep.name, trials))
    groups = {value: [trial.score for trial in found] for value, found in grouped(trials).items()}
    (perfect,) = groups.pop(None)
    measured = "test cost" if trials[0].accuracy is None else "test accuracy / %"
    labels = f"{sweep.name} on imperfect hardware", PROPERTIES.get(sweep.key, sweep.key), measured
    file = f"hardware-{sweep.key}"
    write_csv(where / f"{file}.csv", rows(sweep.key, trials))
    robustness_picture(groups, perfect, labels, where / f"{file}.png")
    for kind, suffix in (("numbers", "csv"), ("picture", "png")):
        console.print(f"{kind:<8}  {where / file}.{suffix}", highlight=False)


def _table(key: str, title: str, trials: Sequence[Trial]) -> Table:
    from physnet.robustness import grouped, spread

    classes = trials[0].accuracy is not None
    measured = "test accuracy %" if classes else "test cost"
    table = Table(title=escape(f"{title} on imperfect hardware"))
    for column in (key, "chips", measured, "worst chip", "loss"):
        table.add_column(escape(column), justify="right")
    perfect = trials[0].score
    for value, group in grouped(trials).items():
        scores = [trial.score for trial in group]
        mean, deviation = sum(scores) / len(scores), spread(scores)
        number = f"{mean:.2f}" if classes else f"{mean:.4g}"
        worst, loss = (min(scores), perfect - mean) if classes else (max(scores), mean - perfect)
        name = "perfect" if value is None else str(value)
        table.add_row(
            escape(name), str(len(scores)),
            number if deviation is None else f"{number} ± {deviation:.2g}",
            f"{worst:.4g}", "" if value is None else f"{loss:.2f}" if classes else f"{loss:.3g}",
        )  # fmt: skip
    return table


def refuse_beside_sweep(given: Mapping[str, object]) -> None:
    """Raise `DeclarationError` for options that have no meaning beside --sweep."""
    for name, value in given.items():
        if value:
            raise DeclarationError(f"--{name} has no meaning beside --sweep, which tests accuracy", "leave it out")
