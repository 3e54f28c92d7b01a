"""What `physnet simulate` and `physnet evaluate` show of networks whose nodes tell each other messages."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from physnet.terminal import console, write_csv

if TYPE_CHECKING:
    from physnet.activity import Activity
    from physnet.declaration import Experiment
    from physnet.equilibrium import Equilibrium
    from physnet.learning import Engine
    from physnet.model import EnergyModel
    from physnet.training import Trainer

COMPARED = 100
"""Test samples for which the rate network is relaxed, to count its sweeps."""


def show_messages(
    experiment: Experiment, model: EnergyModel, inputs: Mapping[str, Any], target: Any, rows: int | None, where: Path
) -> dict[str, Path]:
    """Relax as declared; if nodes tell each other messages, print what they cost, and write and draw those of a sample.

    Arguments:
        experiment, model: the network.
        inputs: by name.
        target: by name, for a nudged phase after the free one; or `None`.
        rows: how many samples, without inputs.
        where: the folder for the files.

    Returns:
        The files, by what they hold.
    """
    from physnet.integration import find_integrator
    from physnet.relaxation import relax

    declared = experiment.relax.integrator
    if declared == "auto" or not find_integrator(declared).speaks:
        return {}
    from physnet.activity import Activity
    from physnet.listening import listening
    from physnet.rasters import Raster, raster_picture
    from physnet.training import relaxation_settings

    activity, raster = Activity(), Raster()
    beta = None if target is None else experiment.learn.beta
    with listening(activity), listening(raster):
        relax(model, relaxation_settings(experiment.relax), target=target, beta=beta, rows=rows, **inputs)
    console.print(_table({"inference" if target is None else "free and nudged phase": activity}))
    console.print("settling times, energy and simulation.png are of the rate network, messages and raster of spikes")
    write_csv(where / "raster.csv", list(raster.rows()))
    return {"messages": where / "raster.csv", "raster": raster_picture(raster, where / "raster.png")}


def show_costs(trainer: Trainer, inference: Activity) -> None:
    """Print what messages cost per inference and per training step, beside the multiplications of the rate network.

    Arguments:
        trainer: the run.
        inference: what was counted when it was tested.
    """
    from physnet.activity import Activity, multiplications
    from physnet.learning import EquilibriumPropagation
    from physnet.listening import listening

    engine, counted = trainer.engine, {"inference": inference}
    batch = trainer.test.first(COMPARED)
    inputs: dict[str, Any] = {name: batch[name] for name in trainer.model.inputs}
    rows = None if inputs else len(next(iter(batch.values())))
    once, each = multiplications(trainer.model)
    heard = {spoken.channel.node for spoken in inference.spoken.values()}
    exact = once - multiplications(trainer.model, trainer.model.inputs.keys() - heard)[0]
    rates = _in_rates(trainer)
    sweeps = {"inference": mean_sweeps(rates, rates.settle(inputs, rows))}
    if isinstance(engine, EquilibriumPropagation) and engine.reference is None:
        with listening(step := Activity(engine.rows_per_sample)):
            engine(**batch)
        counted["training step"] = step
        rates(**batch)
        assert rates.last is not None and rates.last.nudged is not None
        free, nudged = mean_sweeps(rates, rates.last.free), mean_sweeps(rates, rates.last.nudged)
        sweeps["training step"] = free + len(rates.last.betas) * nudged
    console.print(_table(counted))
    if exact:
        console.print(f"and {exact:,.0f} multiply-accumulates for inputs that are told exactly", highlight=False)
    console.print(f"rate network: {once:,.0f} multiply-accumulates for inputs, {each:,.0f} in a sweep", highlight=False)
    for name, activity in counted.items():
        operations, total = activity.operations / activity.samples + exact, once + each * sweeps[name]
        console.print(
            f"  {name}: {sweeps[name]:.1f} sweeps, {total:,.0f} multiply-accumulates, where spikes take "
            f"{operations / total:.2f} times as many operations",
            highlight=False,
        )


def _in_rates(trainer: Trainer) -> Engine:
    """What would train the same network in rates."""
    from physnet.training import engine

    declared = trainer.experiment
    relax = declared.relax.model_copy(update={"integrator": "auto", "options": {}, "tolerance": None})
    learn = declared.learn.model_copy(update={"nudged": None})
    return engine(trainer.energy, relax, learn, declared.train.seed)


def mean_sweeps(engine: Engine, settled: Equilibrium) -> float:
    """Of a sample in a phase, in all its starts."""
    return float(settled.sweeps.double().mean()) * engine.rows_per_sample


def _table(columns: Mapping[str, Activity]) -> Table:
    """Spikes and synaptic operations per sample, a row for each channel."""
    from physnet.activity import table_of

    table = Table(title="spikes and synaptic operations of a sample")
    table.add_column("node")
    table.add_column("units", justify="right")
    for name in columns:
        for column in ("spikes per unit and step", f"spikes, {name}", "operations"):
            table.add_column(column, justify="right")
    parts = [{row["channel"]: row for row in table_of(activity)} for activity in columns.values()]
    for name, first in parts[0].items():
        numbers = [_cells(part[name]["rate"], part[name]["spikes"], part[name]["operations"]) for part in parts]
        table.add_row(escape(name), str(first["units"]), *(cell for cells in numbers for cell in cells))
    table.add_section()
    sums = [("", *_cells(0, a.spikes / a.samples, a.operations / a.samples)[1:]) for a in columns.values()]
    table.add_row(
        "all", str(sum(row["units"] for row in parts[0].values())), *(cell for cells in sums for cell in cells)
    )
    return table


def _cells(rate: float, spikes: float, operations: float) -> tuple[str, str, str]:
    return f"{rate:.3f}", f"{spikes:,.0f}", f"{operations:,.0f}"
