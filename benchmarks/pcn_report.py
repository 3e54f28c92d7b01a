"""What `pcn_schemes.py` has measured, as tables and curves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

ENOUGH = 0.999
BEGIN, END = "<!-- measured -->\n", "<!-- end of what is measured -->\n"
Cosines = dict[tuple[str, float], tuple[float, float]]


@dataclass
class Found:
    """What was measured on one network.

    Arguments:
        error: on the batch that is measured, in percent.
        curves: by scheme, after each sweep, the cosine to the fixed point of its own rule and to the stationary one.
        nudges: by method and nudge, the cosine to backpropagation, of all tensors together and of the worst.
        points: by pair of fixed points and nudge, likewise.
        unsettled: by rule and nudge, rows whose float64 reference hasn't settled.
        costs: by method, in backpropagation steps.
    """

    error: float
    curves: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    nudges: Cosines = field(default_factory=dict)
    points: Cosines = field(default_factory=dict)
    unsettled: dict[tuple[str, float], int] = field(default_factory=dict)
    costs: dict[str, float] = field(default_factory=dict)


def report(found: Mapping[str, Found], folder: Path, sweeps: int) -> None:
    """Put the tables into `pcn_schemes.md`, between its two marks, and the curves into `pcn_schemes.png`."""
    path, tables = folder / "pcn_schemes.md", "\n".join(written(found, sweeps))
    before, _, rest = (path.read_text() if path.exists() else BEGIN + END).partition(BEGIN)
    path.write_text(before + BEGIN + tables + "\n" + END + rest.partition(END)[2])
    draw(found, folder / "pcn_schemes.png")
    print(tables)


def written(found: Mapping[str, Found], sweeps: int) -> Iterable[str]:
    nets, columns = list(found), [(item, which) for item in found.values() for which in (0, 1)]
    errors = ", ".join(f"{net} {item.error:.0f} %" for net, item in found.items())
    yield f"Error on the batch after training: {errors}.\n"
    yield "**Sweeps until the cosine exceeds .999 for good**, at beta = .05, to the fixed point of its own rule"
    yield f"and to the stationary one of errors; in brackets the cosine after {sweeps} sweeps, or the largest one where"
    yield "states diverge.\n"
    yield from table(
        ["scheme", *(f"{net}, {which}" for net in nets for which in ("own", "stationary"))],
        [
            [name, *(arrival([point[which] for point in item.curves[name]], sweeps) for item, which in columns)]
            for name in found[nets[0]].curves
        ],
    )
    for net, item in found.items():
        yield f"\n**Cosine to backpropagation, {net}**: of all tensors together (of the worst tensor).\n"
        yield from cosines(item.nudges)
        yield f"\n**Cosine between the fixed points, {net}**, float64.\n"
        yield from cosines(item.points)
        left = [f"{rule} at beta = {beta:g}: {rows}" for (rule, beta), rows in item.unsettled.items() if rows]
        yield f"\nRows, two for every sample, whose reference hadn't settled: {', '.join(left) or 'none'}."
    yield "\n**Time of a gradient**, in steps of the network's backpropagation twin.\n"
    times = [[name, *(f"{item.costs[name]:.2g}" for item in found.values())] for name in found[nets[0]].costs]
    yield from table(["method", *nets], times)


def arrival(curve: list[float], sweeps: int) -> str:
    """After which sweep a curve stays above."""
    if len(curve) < sweeps and len(curve) > 2:  # errors are measured for two rounds
        return f"diverges ({number(max(curve, default=0.0))})"
    late = max((sweep for sweep, value in enumerate(curve, 1) if not value > ENOUGH), default=0)
    return f"{late + 1}" if late < len(curve) else f"never ({number(curve[-1])})"


def cosines(items: Cosines) -> Iterable[str]:
    nudges = sorted({beta for _, beta in items})

    def cell(name: str, beta: float) -> str:
        if (name, beta) not in items:
            return "diverges"
        whole, worst = items[name, beta]
        return f"{number(whole)} ({number(worst)})"

    rows = [[name, *(cell(name, beta) for beta in nudges)] for name in dict.fromkeys(name for name, _ in items)]
    return table(["", *(f"beta = {beta:g}" for beta in nudges)], rows)


def number(cosine: float) -> str:
    """More digits near one."""
    return f"{cosine:.5f}" if cosine > 0.9995 else f"{cosine:.3f}"


def table(head: list[str], rows: Iterable[list[str]]) -> Iterable[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def draw(found: Mapping[str, Found], path: Path) -> None:
    """Above the way to the stationary gradient over sweeps, below the distance to backpropagation over the nudge."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 8.6), layout="constrained")
    axes = figure.subplots(2, len(found), squeeze=False, sharey="row")
    for (net, item), (above, below) in zip(found.items(), axes.T, strict=True):
        for number_, (scheme, curve) in enumerate(item.curves.items()):
            ways = [max(1 - stationary, 1e-8) for _, stationary in curve]
            style = {"marker": "o", "color": "black"} if scheme == "errors" else {"color": f"C{number_ % 10}"}
            style |= {"linestyle": "-" if number_ < 10 else "--"}
            above.semilogy(range(1, len(ways) + 1), ways, label=scheme, **style)
        above.axhline(1 - ENOUGH, color="grey", linestyle=":")
        above.set(title=net, xlabel="sweeps", ylabel="1 - cosine to the stationary EP gradient", ylim=(1e-7, 3))
        for number_, name in enumerate(dict.fromkeys(name for name, _ in item.nudges)):
            points = sorted((beta, max(1 - pair[0], 1e-11)) for (n, beta), pair in item.nudges.items() if n == name)
            style = ":" if "fixed point" in name else "-"
            below.loglog(*zip(*points, strict=True), style, marker="o", color=f"C{number_}", label=name)
        below.set(xlabel="beta", ylabel="1 - cosine to backpropagation")
    for row in axes:
        row[-1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1.01, 0.5))
    figure.savefig(path, dpi=130)
