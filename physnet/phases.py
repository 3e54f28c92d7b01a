"""Pictures of phases: on the topology of their couplings, against time, and moving.

Phases have no ends, so that they are drawn on a colour map that has none either, and seen from the frame that turns
with the oscillators.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from physnet.connections import Shape
from physnet.graph import EnergyGraph
from physnet.topologies import Within
from physnet.trajectory import Trajectory

COLOURS = "twilight"
PAIRS = 3000
"""Up to how many couplings a picture shows."""
FRAMES = 80
"""Frames of an animation."""
LINES = 12
"""Up to how many oscillators have a line each against time; of more, each has a row of colours."""


def pattern(axis: Any, graph: EnergyGraph, node: str, phases: np.ndarray, *, bar: bool = True) -> Any:
    """Draw the phases of the oscillators of a node where they are: a grid for two axes, else a circle with couplings.

    Arguments:
        axis: where to draw.
        graph: says which units are coupled inside the node.
        node: its name.
        phases: of one sample, in [-pi, pi], [*node].
        bar: whether to draw the scale of colours.

    Returns:
        What is drawn, whose colours `set_array` changes.
    """
    shape = graph.node(node).shape
    style: dict[str, Any] = {"cmap": COLOURS, "vmin": -math.pi, "vmax": math.pi}
    if len(shape) == 2:
        drawn = axis.imshow(phases, origin="upper", interpolation="nearest", **style)
        axis.set(xlabel="column", ylabel="row")
        axis.grid(False)
    else:
        place = _circle(math.prod(shape))
        _draw_pairs(axis, graph, node, place)
        size = float(np.clip(6000 / len(place), 2, 90))
        edge = {"edgecolors": "#444444", "linewidths": 0.4} if size > 8 else {}
        drawn = axis.scatter(*place.T, c=phases.ravel(), s=size, zorder=3, **style, **edge)
        axis.set(xlim=(-1.12, 1.12), ylim=(-1.12, 1.12), aspect="equal")
        axis.set_axis_off()
    if bar:
        _phase_bar(axis, drawn)
    return drawn


def _circle(units: int) -> np.ndarray:
    """Places of units in their order, clockwise from the top, [units, 2]."""
    around = 2 * np.pi * np.arange(units) / units
    return np.stack([np.sin(around), np.cos(around)], 1)


def _draw_pairs(axis: Any, graph: EnergyGraph, node: str, place: np.ndarray) -> None:
    from matplotlib.collections import LineCollection

    shape: Shape = graph.node(node).shape
    for edge in graph.edges():
        if edge.pre == edge.post == node and isinstance(edge.connection, Within):
            pairs = edge.connection.pattern_of(shape)
            if pairs is not None and len(pairs) <= PAIRS:
                lines = place[np.stack([pairs.pre, pairs.post], 1)]
                axis.add_collection(LineCollection(list(lines), colors="#999999", linewidths=0.5, alpha=0.6, zorder=1))


def _phase_bar(axis: Any, drawn: Any) -> None:
    bar = axis.figure.colorbar(drawn, ax=axis, shrink=0.85, label="phase / rad")
    bar.set_ticks([-math.pi, -math.pi / 2, 0, math.pi / 2, math.pi], labels=["−π", "−π/2", "0", "π/2", "π"])


def against_time(axis: Any, trajectory: Trajectory, node: str) -> None:
    """Draw the wrapped phases of the first sample: a line for each oscillator, or of many a row of colours."""
    phases = trajectory.wrapped(node, turning=True)[:, 0].flatten(1).cpu().numpy()
    times = trajectory.times.cpu().numpy()
    if phases.shape[1] <= LINES:
        jumps = np.abs(np.diff(phases, axis=0, prepend=phases[:1])) > math.pi  # it goes on at the other end
        axis.plot(times, np.where(jumps, np.nan, phases), linewidth=1)
        axis.set_yticks([-math.pi, 0, math.pi], labels=["−π", "0", "π"])
        axis.set(ylabel="phase / rad")
    else:
        drawn = axis.imshow(
            phases.T, aspect="auto", origin="lower", interpolation="nearest", cmap=COLOURS, vmin=-math.pi, vmax=math.pi,
            extent=(times[0], times[-1], -0.5, phases.shape[1] - 0.5),
        )  # fmt: skip
        axis.grid(False)
        axis.set(ylabel="oscillator")
        _phase_bar(axis, drawn)
    axis.set(title=f"phases of '{node}'{_seen(trajectory, node)}, one sample", xlabel="time / unit of tau")


def _seen(trajectory: Trajectory, node: str) -> str:
    return " in their frame" if trajectory.frame.get(node) else ""


def order_parameter(axis: Any, trajectory: Trajectory, colour: str) -> None:
    """Draw how far the oscillators of every sample are in synchrony, against time."""
    order = trajectory.order().cpu().numpy()
    axis.plot(trajectory.times.cpu().numpy(), order, color=colour, alpha=0.6, linewidth=1)
    axis.set(title="order parameter |mean of exp(i x)|", xlabel="time / unit of tau", ylim=(0, 1.03))


def animation(trajectory: Trajectory, path: Path) -> Path:
    """Write the moving phases of the first sample as a GIF: where the oscillators are, and on the circle of phases.

    Arguments:
        trajectory: what `simulate` returned; the first of its nodes of oscillators is shown.
        path: where to write it, with the suffix .gif.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot
    from matplotlib.animation import FuncAnimation, PillowWriter

    node, graph = trajectory.angles[0], trajectory.equilibrium.problem.model.graph
    phases = trajectory.wrapped(node, turning=True)[:, 0].cpu().numpy()
    shown = np.unique(np.linspace(0, len(phases) - 1, FRAMES).round().astype(int))
    order = trajectory.order(node)[:, 0].cpu().numpy()
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(7.6, 3.7), layout="constrained")
    drawn = pattern(left, graph, node, phases[0])
    circle = _phase_circle(right)
    points = right.scatter([], [], s=18, cmap=COLOURS, vmin=-math.pi, vmax=math.pi, c=[], alpha=0.8, zorder=3)
    (mean,) = circle

    def show(frame: int) -> tuple[Any, ...]:
        x, time = phases[frame], float(trajectory.times[frame])
        drawn.set_array(x if x.ndim == 2 else x.ravel())
        points.set_offsets(np.stack([np.cos(x.ravel()), np.sin(x.ravel())], 1))
        points.set_array(x.ravel())
        centre = np.exp(1j * x).mean()
        mean.set_data([0, centre.real], [0, centre.imag])
        left.set_title(f"'{node}' at time {time:.1f}")
        right.set_title(f"order parameter {order[frame]:.2f}")
        return drawn, points, mean

    show(0)
    figure.canvas.draw()
    figure.set_layout_engine("none")  # once is enough, and takes longer than a frame
    FuncAnimation(figure, show, frames=list(shown), blit=False).save(path, PillowWriter(fps=12), dpi=80)
    pyplot.close(figure)
    return path


def _phase_circle(axis: Any) -> Any:
    around = np.linspace(0, 2 * np.pi, 200)
    axis.plot(np.cos(around), np.sin(around), color="#bbbbbb", linewidth=1, zorder=1)
    for x, y, text in ((1.2, 0, "0"), (0, 1.2, "π/2"), (-1.2, 0, "π"), (0, -1.2, "−π/2")):
        axis.text(x, y, text, ha="center", va="center", size=9)
    axis.set(xlim=(-1.4, 1.4), ylim=(-1.4, 1.4), aspect="equal")
    axis.set_axis_off()
    return axis.plot([], [], color="#333333", linewidth=2.5, zorder=2)
