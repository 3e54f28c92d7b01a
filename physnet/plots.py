"""Pictures of a run: how it learned, and how it settles."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from physnet import phases
from physnet.learning import EquilibriumPropagation
from physnet.nudging import nudge
from physnet.problem import Problem, State
from physnet.randomness import stream
from physnet.relaxation import Relaxation, coordinates, initial_state, prepared

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from physnet.training import Metrics
    from physnet.trajectory import Trajectory

FREE, NUDGED, TEST, VALIDATION = "#1b6ca8", "#c8553d", "#3a7d44", "#7d5ba6"
ACROSS = 4
"""Panels of a figure side by side."""
MAX_SWEEPS, FLOOR = 60, 1e-10
MARKED = 20
"""Sweeps up to which each is a dot."""
TIME = "time / unit of tau"
NODES, UNITS = 4, 40
"""How many nodes, and how many units of each, a picture of a simulation shows."""


@dataclass
class Trace:
    """One relaxation, sweep by sweep, or step by step.

    Arguments:
        energy: F of every row after each sweep, [sweeps + 1, rows].
        residual: relative residual after each sweep, [sweeps + 1, rows].
        states: the states after each sweep.
        pace: what a sweep is called.
    """

    energy: Tensor
    residual: Tensor
    states: list[State]
    pace: str = "sweep"


@torch.no_grad()
def trace(problem: Problem, state: State, settings: Relaxation) -> Trace:
    """Relax one sweep at a time, at most as often as these settings allow, and record what happens."""
    chosen, rule, _ = prepared(problem, replace(settings, max_sweeps=min(settings.max_sweeps, MAX_SWEEPS)))

    def residual_of(state: State) -> Tensor:
        return rule.residual(state).clamp(max=1.0)  # units at rest that are about to move have no size to compare with

    states, energy, residual = [state], [problem.energy(state)], [residual_of(state)]
    for after in chosen.path(problem, state, rule):
        states.append(after)
        energy.append(problem.energy(after))
        residual.append(residual_of(after))
    return Trace(torch.stack(energy), torch.stack(residual), states, chosen.pace)


@torch.no_grad()
def settling(engine: EquilibriumPropagation, batch: Mapping[str, Tensor]) -> tuple[Trace, Trace]:
    """The free phase of a batch, and the one nudged by +beta that follows it; both in states."""
    problem = engine.model.problem(None, **{name: batch[name] for name in engine.model.inputs})
    initial = "zero" if engine.relaxation.initial == "previous" else engine.relaxation.initial
    start = initial_state(problem, initial, stream(engine.seed, "picture"))
    free = trace(problem, start, engine.relaxation)
    targets = {name: batch[name] for name in engine.model.targets}
    where = coordinates(problem, engine.nudged)
    phase = nudge(problem, free.states[-1], targets, [engine.beta], engine.protocol.clamps, where)
    nudged = trace(phase, phase.zero(), engine.nudged)
    return free, replace(nudged, states=[phase.states(displacement) for displacement in nudged.states])


def relaxation_picture(engine: EquilibriumPropagation, batch: Mapping[str, Tensor], path: str | Path) -> Path:
    """Draw the free phase of a batch and the nudged phase of its first sample.

    Arguments:
        engine: gives model, beta and settings.
        batch: inputs and targets by name.
        path: where to write the picture; the suffix chooses the format.
    """
    # in float64, so that the picture shows the physics and not the resolution of the energy
    free, nudged = settling(copy.deepcopy(engine).double(), batch)
    figure, axes = _figure(3, "How the network settles")
    gap = free.energy - free.energy.amin(0)
    _per_sample(axes[0], gap, "free phase: energy above its lowest", FREE)
    _per_sample(axes[1], free.residual, "relative residual", FREE)
    _per_sample(axes[1], nudged.residual, "relative residual", NUDGED, len(free.states) - 1)
    _output_paths(axes[2], engine.model.targets, free.states, nudged.states)
    for axis in axes:
        axis.set_xlabel(free.pace)
    return _save(figure, path)


def _per_sample(axis: Any, values: Tensor, title: str, color: str, offset: int = 0) -> None:
    sweeps = range(offset, offset + len(values))
    median = values.clamp_min(FLOOR).median(1).values
    values, median = (torch.where(v > FLOOR, v, torch.nan) for v in (values, median))  # what has arrived leaves
    axis.semilogy(sweeps, values.cpu().numpy(), color=color, alpha=0.25, linewidth=0.8)
    label = "free" if color == FREE else "nudged, +beta"
    marker = "." if len(values) <= MARKED else None
    axis.semilogy(sweeps, median.cpu().numpy(), marker=marker, color=color, linewidth=2, label=f"{label} (median)")
    axis.set_title(title)
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.legend(frameon=False)


def _output_paths(axis: Any, targets: Mapping[str, Any], free: Sequence[State], nudged: Sequence[State]) -> None:
    node = next(iter(targets.values()))
    states = [*free, *nudged[1:]]
    values = torch.stack([state[node.node][0].flatten() for state in states]).cpu().numpy()
    axis.plot(values, linewidth=1.2)
    axis.axvspan(len(free) - 1, len(states) - 1, color=NUDGED, alpha=0.12, linewidth=0, label="nudged")
    axis.set(title=f"states of '{node.node}', one sample")
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.legend(frameon=False)


def learning_curve(metrics: Sequence[Metrics], path: str | Path) -> Path:
    """Draw cost and error, training and test, against the epoch."""
    figure, axes = _figure(2, "How the network learns")
    epochs = [item.epoch for item in metrics]
    for axis, kind, title in ((axes[0], "cost", "mean cost"), (axes[1], "error", "error in per cent")):
        for split, color in (("train", FREE), ("validation", VALIDATION), ("test", TEST)):
            values = [getattr(item, f"{split}_{kind}") for item in metrics]
            if None not in values:
                axis.plot(epochs, values, color=color, marker=".", label=f"{split} (last: {values[-1]:.3g})")
        axis.set(title=title, xlabel="epoch")
        axis.set_ylim(bottom=0)
        axis.xaxis.get_major_locator().set_params(integer=True)
        if axis.lines:
            axis.legend(frameon=False)
    return _save(figure, path)


@torch.no_grad()
def simulation_picture(trajectory: Trajectory, path: str | Path) -> Path:
    """Draw energy and residual of every sample against time, and for every free node some states of the first sample;
    of oscillators also the order parameter and the last phases.

    Arguments:
        trajectory: what `simulate` returned.
        path: where to write the picture; the suffix chooses the format.
    """
    shown, angular = list(trajectory.states)[:NODES], trajectory.angles[:NODES]
    figure, axes = _figure(2 + len(shown) + bool(angular) + len(angular), "How the network moves in time")
    times = trajectory.times.cpu().numpy()
    _energy_in_time(axes[0], trajectory)
    residual = torch.where(trajectory.residual > FLOOR, trajectory.residual, torch.nan).cpu().numpy()
    axes[1].semilogy(times, residual, color=FREE, alpha=0.5, linewidth=0.9)
    axes[1].set(title="relative residual", xlabel=TIME)
    slowest = float(trajectory.settling_time.max())
    if math.isfinite(slowest):
        for axis in axes[: 2 + len(shown)]:
            axis.axvline(slowest, color=NUDGED, linewidth=1, linestyle=":")
        axes[1].text(slowest, 0.98, " last one settled", color=NUDGED, size=8, transform=axes[1].get_xaxis_transform(),
                     va="top")  # fmt: skip
    for axis, node in zip(axes[2:], shown, strict=False):
        if node in trajectory.angles:
            phases.against_time(axis, trajectory, node)
            continue
        axis.plot(times, trajectory[node][:, 0].flatten(1)[:, :UNITS].cpu().numpy(), linewidth=1)
        axis.set(title=f"states of '{node}', one sample", xlabel=TIME)
    if angular:
        phases.order_parameter(axes[2 + len(shown)], trajectory, FREE)
    for axis, node in zip(axes[3 + len(shown) :], angular, strict=False):
        last = trajectory.wrapped(node, turning=True)[-1, 0].cpu().numpy()
        phases.pattern(axis, trajectory.equilibrium.problem.model.graph, node, last)
        axis.set(title=f"last phases of '{node}', one sample")
    return _save(figure, path)


def _energy_in_time(axis: Any, trajectory: Trajectory) -> None:
    """Above the equilibrium, on a logarithmic scale; as it is, where a sample has none."""
    times = trajectory.times.cpu().numpy()
    if bool(trajectory.equilibrium.converged.all()) and bool(trajectory.converged.all()):
        gap = trajectory.energy - trajectory.equilibrium.energy
        values = torch.where(gap > FLOOR, gap, torch.nan).cpu().numpy()
        axis.semilogy(times, values, color=FREE, alpha=0.5, linewidth=0.9)
        axis.set(title="energy above equilibrium", xlabel=TIME)
        return
    axis.plot(times, trajectory.energy.cpu().numpy(), color=FREE, alpha=0.5, linewidth=0.9)
    axis.set(title="energy" + " in the turning frame" * any(trajectory.frame.values()), xlabel=TIME)


def sweep_picture(summary: Sequence[Mapping[str, Any]], keys: Sequence[str], metric: str, path: str | Path) -> Path:
    """Draw mean and standard deviation of a metric against the first swept key, a line for each setting of the others.

    Arguments:
        summary: rows with the swept values, `<metric>_mean` and `<metric>_std`.
        keys: what was swept.
        metric: such as test_error.
        path: where to write the picture.
    """
    figure, (axis,) = _figure(1, f"{metric.replace('_', ' ')}, mean and standard deviation over seeds")
    first, others = keys[0], keys[1:]
    values = list(dict.fromkeys(row[first] for row in summary))
    numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    lines: dict[str, list[Mapping[str, Any]]] = {}
    for row in summary:
        label = ", ".join(f"{key.split('.')[-1]} = {row[key]}" for key in others)
        lines.setdefault(label, []).append(row)
    for label, rows in lines.items():
        x = [row[first] if numeric else values.index(row[first]) for row in rows]
        error = [row[f"{metric}_std"] or 0.0 for row in rows]
        axis.errorbar(x, [row[f"{metric}_mean"] for row in rows], error, marker="o", capsize=3, label=label or None)
    if not numeric:
        axis.set_xticks(range(len(values)), list(map(str, values)))
    elif min(values) > 0 and max(values) >= 10 * min(values):
        axis.set_xscale("log")
    axis.set(xlabel=first, ylabel=metric.replace("_", " ") + (" %" if metric.endswith("error") else ""))
    if others:
        axis.legend(frameon=False, fontsize=8)
    return _save(figure, path)


def robustness_picture(
    groups: Mapping[Any, Sequence[float]], perfect: float, labels: tuple[str, str, str], path: str | Path
) -> Path:
    """Draw accuracy against a property of the hardware: every chip, and mean and standard deviation of all.

    Arguments:
        groups: the accuracies of all chips, by value of the property.
        perfect: that of perfect hardware.
        labels: title, what the property is, what is measured; with units.
        path: where to write the picture.
    """
    figure, (axis,) = _figure(1, labels[0])
    values = list(groups)
    numeric = all(isinstance(value, int | float) for value in values)
    places = values if numeric else list(range(len(values)))
    axis.axhline(perfect, color=TEST, linestyle="--", linewidth=1.2, label=f"perfect hardware: {perfect:.4g}")
    several = any(len(chips) > 1 for chips in groups.values())
    for place, chips in zip(places, groups.values(), strict=True):
        if several:
            axis.plot([place] * len(chips), chips, ".", color=FREE, alpha=0.35, markersize=5)
    means = [sum(chips) / len(chips) for chips in groups.values()]
    errors = [float(torch.tensor(chips).std()) if len(chips) > 1 else 0.0 for chips in groups.values()]
    label, line = "chips, mean and standard deviation" if several else None, "-" if numeric else "none"
    axis.errorbar(
        places, means, errors if several else None, color=FREE, marker="o", capsize=3, linestyle=line, label=label
    )
    if not numeric:
        axis.set_xticks(places, [str(value).strip("{}").replace('"', "") for value in values], size=8)
        axis.margins(x=0.5 / len(values))
    elif min(values) > 0 and max(values) >= 20 * min(values):
        axis.set_xscale("log")
    if all(isinstance(value, int) for value in values):
        axis.set_xticks(values, list(map(str, values)))
    axis.set(xlabel=labels[1], ylabel=labels[2])
    axis.legend(frameon=False, fontsize=8)
    return _save(figure, path)


def _figure(panels: int, title: str) -> tuple[Figure, Any]:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    across = panels if panels <= ACROSS else -(-panels // -(-panels // ACROSS))
    down = -(-panels // across)
    figure, grid = pyplot.subplots(
        down, across, figsize=(4.6 * across, 3.6 * down), layout="constrained", squeeze=False
    )
    axes = grid.ravel()[:panels]
    for axis in grid.ravel()[panels:]:
        axis.set_axis_off()
    figure.suptitle(title)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.2)
    return figure, axes


def _save(figure: Figure, path: str | Path) -> Path:
    from matplotlib import pyplot

    figure.savefig(path, dpi=130)
    pyplot.close(figure)
    return Path(path)
