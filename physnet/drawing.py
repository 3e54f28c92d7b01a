"""The picture of a graph: nodes in layers from the inputs to the outputs, with what couples them."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import networkx as nx
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Patch

from physnet.costs import Cost
from physnet.domains import Domain, Interval, Partition
from physnet.elements import Edge, Node
from physnet.errors import DataError, DeclarationError
from physnet.graph import EnergyGraph

if TYPE_CHECKING:
    from physnet.model import EnergyModel

COLORS = {"input": "#d9e6f2", "state": "#f4f1e8", "output": "#dcebdd"}
COUPLING, BACKWARD, COST = "#4a4a4a", "#8a6d3b", "#c8553d"
SUFFIXES = (".svg", ".png", ".pdf")
LETTER, LINE = 0.068, 0.16  # inches that a letter and a line of text take
LONGEST = 40  # letters of a line
PIXELS = 30_000  # along one side of a picture

Place = tuple[float, float]


def draw(graph: EnergyGraph | EnergyModel, path: str | Path | None = None) -> Figure:
    """Draw a network: every node with its shape and domain, every edge with its connection, the costs.

    Arguments:
        graph: a graph, or a compiled model. It needn't be complete.
        path: where to write the picture, if anywhere; the suffix `.svg`, `.png` or `.pdf` chooses the format.

    Raises:
        DeclarationError: for another suffix.
        DataError: if the file can't be written.
    """
    figure = _Drawing(graph if isinstance(graph, EnergyGraph) else graph.graph).figure
    if path is not None:
        path = Path(path)
        if path.suffix.lower() not in SUFFIXES:
            raise DeclarationError(f"{path}: pictures are written as {', '.join(SUFFIXES)}", f"{path.stem or 'a'}.svg")
        _write(figure, path, path.suffix.lower()[1:])
    return figure


def svg(graph: EnergyGraph | EnergyModel) -> str:
    """The picture as one `<svg>` element, for embedding."""
    buffer = io.BytesIO()
    _write(draw(graph), buffer, "svg")
    text = buffer.getvalue().decode()
    return text[text.index("<svg") :]


def _write(figure: Figure, to: Path | io.BytesIO, kind: str) -> None:
    # text stays text; and the same graph gives the same file
    dated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind, {})
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "physnet"}):
        try:
            figure.savefig(to, format=kind, dpi=min(130, PIXELS / max(figure.get_size_inches())), metadata=dated)
        except OSError as problem:
            raise DataError(f"{to}: can't be written ({problem.strerror}); choose another with --out") from None


# --------------------------------------------------------------------------- layers


def layers(graph: EnergyGraph) -> dict[str, int]:
    """The layer of every node: the longest way from an input, over edges that don't lead back."""
    directed = nx.DiGraph()
    directed.add_nodes_from(node.name for node in sorted(graph.nodes(), key=lambda node: node.free))
    for edge in graph.edges():  # a coupling acts both ways: what is declared towards an input still starts there
        ends = (edge.pre, edge.post) if graph.node(edge.post).free else (edge.post, edge.pre)
        directed.add_edge(*ends)
    finished = {name: number for number, name in enumerate(nx.dfs_postorder_nodes(directed))}
    forward = nx.DiGraph()
    forward.add_nodes_from(directed)
    forward.add_edges_from((a, b) for a, b in directed.edges if finished[b] < finished[a])
    depth = {name: layer for layer, names in enumerate(nx.topological_generations(forward)) for name in names}
    return {node.name: depth[node.name] for node in graph.nodes()}


def _positions(depth: Mapping[str, int], column: float, row: float) -> dict[str, Place]:
    """The centre of every node, in inches: layers side by side, each centred, its nodes from the top."""
    rows: dict[int, list[str]] = {}
    for name, layer in depth.items():
        rows.setdefault(layer, []).append(name)
    return {
        name: (layer * column, ((len(names) - 1) / 2 - place) * row)
        for layer, names in rows.items()
        for place, name in enumerate(names)
    }


# --------------------------------------------------------------------------- what is written


def _clip(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def _domain(domain: Domain) -> str:
    if isinstance(domain, Partition):
        return " and ".join(_domain(part) for part, _ in domain.parts)
    if isinstance(domain, Interval) and domain.bounded:
        return f"[{domain.lo:g}, {domain.hi:g}]"
    return str(domain.declaration())


def _node_lines(node: Node) -> list[str]:
    units = "×".join(map(str, node.shape))
    if not node.free:
        return [node.name, units, *(["encoded"] if node.encode else [])]
    tau = f"τ = {node.tau:g}" if node.tau != 1 else ""
    lines = (units, _domain(node.domain), ", ".join(node.parameters), tau)
    return [node.name, *(_clip(line) for line in lines if line)]


def _edge_lines(edge: Edge) -> list[str]:
    declared = edge.connection.declaration()
    named = declared if isinstance(declared, str) else str(declared)
    parameters = ", ".join(key if spec.shape != "scalar" else f"{key} (one)" for key, spec in edge.parameters.items())
    return [edge.name, *(_clip(line) for line in (named, parameters) if line)]


def _cost_line(cost: Cost) -> str:
    weight = "" if cost.weight == 1 else f"{cost.weight:g} · "
    head = "" if cost.readout is None else f" of {cost.readout.name}: {cost.readout.declaration()}"
    return f"cost {weight}{cost.written}{head}, y = {cost.target}"


# --------------------------------------------------------------------------- the figure


@dataclass
class _Drawing:
    """One figure, laid out in inches."""

    graph: EnergyGraph

    def __post_init__(self) -> None:
        graph = self.graph
        self.nodes = {node.name: _node_lines(node) for node in graph.nodes()}
        self.edges = {edge.name: _edge_lines(edge) for edge in graph.edges()}
        self.width = 0.25 + LETTER * max((len(line) for lines in self.nodes.values() for line in lines), default=0)
        self.height = 0.25 + LINE * max((len(lines) for lines in self.nodes.values()), default=0)
        gap = 0.4 + LETTER * max((len(line) for lines in self.edges.values() for line in lines), default=0)
        self.depth = layers(graph)
        self.at = _positions(self.depth, self.width + gap, self.height + 0.9)
        self.figure = Figure(figsize=(3, 1))
        self.axes: Any = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set_axis_off()
        self.low = self.high = 0.0
        self._fill()
        self._frame()

    def _fill(self) -> None:
        if not self.nodes:
            self._text(0, 0, ["a graph without nodes"])
        for node in self.graph.nodes():
            self._node(node)
        beside: dict[frozenset[str], int] = {}
        for edge in self.graph.edges():
            ends = frozenset((edge.pre, edge.post))
            beside[ends] = beside.get(ends, -1) + 1
            self._edge(edge, beside[ends])
        under: dict[str, int] = {}
        for cost in self.graph.costs:
            under[cost.node] = under.get(cost.node, 0) + 1
            self._cost(cost, under[cost.node])

    def _text(self, x: float, y: float, lines: list[str], color: str = "black", back: bool = False) -> None:
        """Lines of text around a centre; the first one stands out."""
        for number, line in enumerate(lines):
            height = y + ((len(lines) - 1) / 2 - number) * LINE
            style = {"size": 9 if number == 0 else 7.5, "weight": "bold" if number == 0 and not back else "normal"}
            box = {"boxstyle": "square,pad=0.05", "facecolor": "white", "edgecolor": "none", "alpha": 0.85}
            self.axes.text(
                x, height, line, ha="center", va="center", color=color, zorder=4, parse_math=False,
                bbox=box if back else None, **style,
            )  # fmt: skip
            self._seen(height)

    def _seen(self, y: float) -> None:
        self.low, self.high = min(self.low, y), max(self.high, y)

    def _node(self, node: Node) -> None:
        x, y = self.at[node.name]
        corner = (x - self.width / 2, y - self.height / 2)
        look = "round,pad=0,rounding_size=0.12" if node.free else "square,pad=0"
        box = FancyBboxPatch(
            corner, self.width, self.height, boxstyle=look, facecolor=COLORS[node.role], edgecolor="#555555", zorder=3
        )
        box.set_gid(f"node {node.name}")
        self.axes.add_patch(box)
        self._text(x, y, self.nodes[node.name])
        self._seen(y - self.height / 2)
        self._seen(y + self.height / 2)

    def _edge(self, edge: Edge, number: int) -> None:
        """An arrow from pre to post; the further it reaches and the more run beside it, the more it bends."""
        span = self.depth[edge.post] - self.depth[edge.pre]
        side = 1 if span >= 0 else -1
        color = COUPLING if span >= 0 else BACKWARD
        (x0, y0), (x1, y1) = self.at[edge.pre], self.at[edge.post]
        half, top = self.width / 2, side * self.height / 2
        bow = 0.7 * number
        if edge.pre == edge.post:
            start, end, bow = (x0 - half / 2, y0 + top), (x0 + half / 2, y0 + top), 0.7 + bow
        elif span == 0:
            way = 1 if y1 > y0 else -1
            start, end = (x0, y0 + way * self.height / 2), (x1, y1 - way * self.height / 2)
        elif span == 1:
            start, end = (x0 + half, y0), (x1 - half, y1)
        else:  # over the nodes between the two, or back below them
            start, end = (x0 + side * half / 2, y0 + top), (x1 - side * half / 2, y1 + top)
            bow += 0.4 + 0.35 * math.sqrt(abs(span))
        dx, dy = end[0] - start[0], end[1] - start[1]
        across = bow / math.hypot(dx, dy)
        # a quadratic curve goes half as far out as its control point, which `rad` gives as a share of the way
        self._arrow(edge, start, end, -2 * across, color)
        self._label(edge, (start[0] + end[0]) / 2 - dy * across, (start[1] + end[1]) / 2 + dx * across, color)

    def _arrow(self, edge: Edge, start: Place, end: Place, bend: float, color: str) -> None:
        arrow = FancyArrowPatch(
            start, end, connectionstyle=f"arc3,rad={bend:.4f}", arrowstyle="-|>", mutation_scale=11,
            color=color, linewidth=1.2, shrinkA=0, shrinkB=0, zorder=2,
        )  # fmt: skip
        arrow.set_gid(f"edge {edge.name}")
        self.axes.add_patch(arrow)

    def _label(self, edge: Edge, x: float, y: float, color: str = COUPLING) -> None:
        self._text(x, y + LINE * 0.4, self.edges[edge.name], color, back=True)
        self._seen(y + LINE * 2)
        self._seen(y - LINE * 2)

    def _cost(self, cost: Cost, number: int) -> None:
        x, y = self.at[cost.node]
        height = y - self.height / 2 - 0.08 - LINE * number
        text = _clip(_cost_line(cost))
        self.axes.text(x, height, text, ha="center", va="center", size=7.5, color=COST, parse_math=False, zorder=4)
        self._seen(height - LINE)

    def _frame(self) -> None:
        """Fit the page around what was drawn, and say what the colours mean."""
        half = max(self.width / 2, LETTER * LONGEST / 2 if self.graph.costs else 0.8) + 0.15
        left = min((x for x, _ in self.at.values()), default=0) - half
        right = max((x for x, _ in self.at.values()), default=0) + half
        low, high = self.low - 0.5, self.high + (0.5 if self.graph.name else 0.2)
        self.figure.set_size_inches(right - left, high - low)
        self.axes.set(xlim=(left, right), ylim=(low, high))
        if self.graph.name:
            self.axes.text((left + right) / 2, high - 0.22, self.graph.name, ha="center", va="center", size=11,
                           parse_math=False)  # fmt: skip
        roles = [role for role in COLORS if any(node.role == role for node in self.graph.nodes())]
        self.axes.legend(
            handles=[Patch(facecolor=COLORS[role], edgecolor="#555555", label=role) for role in roles],
            loc="lower center", ncols=3, frameon=False, fontsize=7.5, borderaxespad=0.2,
        )  # fmt: skip
