"""Pictures of a run: how it learned, and how it settles."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from physnet.learning import EquilibriumPropagation
from physnet.problem import Problem, State
from physnet.randomness import stream
from physnet.relaxation import Relaxation, StoppingRule, initial_state, run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from physnet.training import Metrics

FREE, NUDGED, TEST = "#1b6ca8", "#c8553d", "#3a7d44"
MAX_SWEEPS, FLOOR = 60, 1e-10


@dataclass
class Trace:
    """One relaxation, sweep by sweep.

    Arguments:
        energy: F of every row after each sweep, [sweeps + 1, rows].
        residual: relative residual after each sweep, [sweeps + 1, rows].
        states: the states after each sweep.
    """

    energy: Tensor
    residual: Tensor
    states: list[State]


@torch.no_grad()
def trace(problem: Problem, state: State, settings: Relaxation, reference: State | None = None) -> Trace:
    """Relax one sweep at a time and record what happens."""
    tolerance = settings.tolerance or 1e-6
    rule = StoppingRule(problem, tolerance, 1, reference)
    single = replace(settings, max_sweeps=1, tolerance=1e-12)
    states, energy, residual = [state], [problem.energy(state)], [rule.residual(state)]
    while len(states) <= MAX_SWEEPS and bool((residual[-1] > tolerance).any()):
        state = run(problem, state, single, reference, quiet=True).states
        states.append(state)
        energy.append(problem.energy(state))
        residual.append(rule.residual(state))
    return Trace(torch.stack(energy), torch.stack(residual), states)


def relaxation_picture(engine: EquilibriumPropagation, batch: Mapping[str, Tensor], path: str | Path) -> Path:
    """Draw the free phase of a batch and the nudged phase of its first sample.

    Arguments:
        engine: gives model, beta and settings.
        batch: inputs and targets by name.
        path: where to write the picture; the suffix chooses the format.
    """
    # in float64, so that the picture shows the physics and not the resolution of the energy
    model = copy.deepcopy(engine.model).double()
    targets = {name: batch[name] for name in model.targets}
    problem = model.problem(None, **{name: batch[name] for name in model.inputs})
    initial = "zero" if engine.relaxation.initial == "previous" else engine.relaxation.initial
    with torch.no_grad():
        start = initial_state(problem, initial, stream(engine.seed, "picture"))
    free = trace(problem, start, engine.relaxation)
    nudged = trace(problem.nudged(targets, [engine.beta]), free.states[-1], engine.nudged, free.states[-1])

    figure, axes = _figure(3, "How the network settles")
    gap = (free.energy - free.energy[-1:])[:-1]
    _per_sample(axes[0], gap, "free phase: energy above equilibrium", FREE)
    _per_sample(axes[1], free.residual, "relative residual", FREE)
    _per_sample(axes[1], nudged.residual, "relative residual", NUDGED, len(free.states) - 1)
    _output_paths(axes[2], model.targets, free.states, nudged.states)
    return _save(figure, path)


def _per_sample(axis: Any, values: Tensor, title: str, color: str, offset: int = 0) -> None:
    sweeps = range(offset, offset + len(values))
    median = values.clamp_min(FLOOR).median(1).values
    values, median = (torch.where(v > FLOOR, v, torch.nan) for v in (values, median))  # what has arrived leaves
    axis.semilogy(sweeps, values.cpu().numpy(), color=color, alpha=0.25, linewidth=0.8)
    label = "free" if color == FREE else "nudged, +beta"
    axis.semilogy(sweeps, median.cpu().numpy(), color=color, linewidth=2, label=f"{label} (median)")
    axis.set(title=title, xlabel="sweep")
    axis.legend(frameon=False)


def _output_paths(axis: Any, targets: Mapping[str, Any], free: Sequence[State], nudged: Sequence[State]) -> None:
    node = next(iter(targets.values()))
    states = [*free, *nudged[1:]]
    values = torch.stack([state[node.node][0].flatten() for state in states]).cpu().numpy()
    axis.plot(values, linewidth=1.2)
    axis.axvspan(len(free) - 1, len(states) - 1, color=NUDGED, alpha=0.12, linewidth=0, label="nudged")
    axis.set(title=f"states of '{node.node}', one sample", xlabel="sweep")
    axis.legend(frameon=False)


def learning_curve(metrics: Sequence[Metrics], path: str | Path) -> Path:
    """Draw cost and error, training and test, against the epoch."""
    figure, axes = _figure(2, "How the network learns")
    epochs = [item.epoch for item in metrics]
    for axis, kind, title in ((axes[0], "cost", "mean cost"), (axes[1], "error", "error in per cent")):
        for split, color in (("train", FREE), ("test", TEST)):
            values = [getattr(item, f"{split}_{kind}") for item in metrics]
            if None not in values:
                axis.plot(epochs, values, color=color, marker=".", label=f"{split} (last: {values[-1]:.3g})")
        axis.set(title=title, xlabel="epoch")
        axis.set_ylim(bottom=0)
        axis.xaxis.get_major_locator().set_params(integer=True)
        if axis.lines:
            axis.legend(frameon=False)
    return _save(figure, path)


def _figure(panels: int, title: str) -> tuple[Figure, Any]:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, panels, figsize=(4.6 * panels, 3.6), layout="constrained")
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
