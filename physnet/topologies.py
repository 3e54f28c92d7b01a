"""Couplings over given pairs of units, between two nodes or among the units of one.

    apply(u, w)_i = sum over pairs p = (j, i) of w_p u_j

Among the units of one node a unit is `pre` in some of its pairs and `post` in the others. Its energy, given the other
units, is exact; all units at once don't have one. They are coloured, so that units of one colour share no pair and are
updated at once.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import singledispatch
from typing import TYPE_CHECKING, Any

import networkx as nx
import numpy as np

from physnet.connections import CONNECTIONS, Connection, Dense, Identity, Linked, Shape
from physnet.edgelists import read_pattern
from physnet.errors import DeclarationError, ShapeError
from physnet.patterns import OnDevice, Pattern, refuse_loops

if TYPE_CHECKING:
    import torch
    from torch import Tensor

MAX_COLOURS = 32
"""Where the units of a node take more turns than this, they are relaxed by their gradient flow."""


@dataclass(frozen=True, init=False, repr=False)
class Sparse(Connection):
    """Given pairs of units: a graph, a sparse matrix, a list, a file, or one of several families of networks.

    Weights have the shape [pairs]; `pattern.pre` and `pattern.post` say which units entry k joins. Only the pattern of
    a matrix counts, not its values: weights are drawn by `init`.

    Arguments:
        pattern: a networkx graph (each edge is one pair, of units numbered in the graph's node order, for couplings
            inside a node; in a directed graph each arc is one pair from pre to post), a scipy or numpy matrix
            [post units, pre units] (each nonzero is one directed pair), a list such as `0-1 1-2` (undirected) or
            `0>1 2>1` (pre > post), or the name of a generator followed by its arguments.
        options: `units`, or `post` and `pre`: sizes that go with a list; `file`: a file to read instead; `undirected`
            for that; `seed` and other arguments of a generator.

    Raises:
        DeclarationError: for patterns that can't be read, empty ones, self-loops and pairs given twice.
        ShapeError: for units that aren't there.
    """

    written: str
    pattern: Pattern = field(compare=False)

    def __init__(self, pattern: Any = None, *arguments: Any, **options: Any) -> None:
        found, written = read_pattern(pattern, arguments, options)
        object.__setattr__(self, "pattern", found)
        object.__setattr__(self, "written", written)

    def check(self, pre: Shape, post: Shape) -> None:
        if self.pattern.undirected:
            raise DeclarationError(
                "an undirected pattern joins the units of one node",
                "between two nodes give directed pairs (0>1), a matrix [post units, pre units], or a DiGraph",
            )
        self._fit(pre, post)

    def _fit(self, pre: Shape, post: Shape) -> None:
        units, least = (math.prod(post), math.prod(pre)), self.pattern.least
        any_size = self.pattern.sizes is None
        if not (least == units or (any_size and least[0] <= units[0] and least[1] <= units[1])):
            raise ShapeError(
                f"the pattern is made for {least[0]} units of post and {least[1]} of pre, "
                f"but post has {units[0]} and pre has {units[1]}",
                "make the sizes equal",
            )

    def weight_shape(self, pre: Shape, post: Shape) -> Shape:
        return (len(self.pattern),)

    def fans(self, pre: Shape, post: Shape) -> tuple[int, int]:
        """Mean numbers of neighbours, rounded up."""
        return math.ceil(len(self.pattern) / math.prod(post)), math.ceil(len(self.pattern) / math.prod(pre))

    def bind(self, pre: Shape, post: Shape) -> Linked:
        from physnet.sparse import SparseLink

        return SparseLink(pre, post, self.pattern)

    def declaration(self) -> str:
        return f"sparse({self.written})"

    def __repr__(self) -> str:
        shown = self.written if len(self.written) <= 80 else f"{self.written[:77]}..."
        return f"Sparse({shown})"


CONNECTIONS["sparse"] = Sparse


# --------------------------------------------------------------------------- inside one node


class Within(Connection):
    """A connection among the units of one node. Each pair counts once, with the smaller unit as `pre` if it has no
    direction."""

    @abstractmethod
    def pattern_of(self, shape: Shape) -> Pattern | None:
        """The pairs that interact; `None` if all do."""


@dataclass(frozen=True, init=False, repr=False)
class SparseWithin(Sparse, Within):
    """The pairs of a pattern, inside one node."""

    def __init__(self, sparse: Sparse) -> None:
        refuse_loops(sparse.pattern.pre, sparse.pattern.post)
        object.__setattr__(self, "pattern", sparse.pattern)
        object.__setattr__(self, "written", sparse.written)

    def check(self, pre: Shape, post: Shape) -> None:
        self._fit(pre, post)

    def fans(self, pre: Shape, post: Shape) -> tuple[int, int]:
        degree = math.ceil(2 * len(self.pattern) / math.prod(pre))
        return degree, degree

    def pattern_of(self, shape: Shape) -> Pattern:
        return self.pattern


@dataclass(frozen=True)
class AllPairs(Within):
    """Every pair of different units of a node, once: pairs (0, 1), (0, 2), (1, 2), (0, 3), ...

    A scalar weight makes it a mean field: running sums instead of a matrix.
    """

    def check(self, pre: Shape, post: Shape) -> None:
        if math.prod(pre) < 2:
            raise ShapeError("a node of one unit has no pairs", "leave the edge out")

    def weight_shape(self, pre: Shape, post: Shape) -> Shape:
        units = math.prod(pre)
        return (units * (units - 1) // 2,)

    def fans(self, pre: Shape, post: Shape) -> tuple[int, int]:
        return math.prod(pre) - 1, math.prod(pre) - 1

    def bind(self, pre: Shape, post: Shape) -> Linked:
        from physnet.sparse import AllPairsLink

        return AllPairsLink(pre, post)

    def pattern_of(self, shape: Shape) -> None:
        return None

    def declaration(self) -> str:
        return Dense().declaration()


@singledispatch
def inside(connection: Connection) -> Connection:
    """The connection as it is among the units of one node.

    Raises:
        DeclarationError: for connections that can't be there, with the reason.
    """
    name = type(connection).__name__
    raise DeclarationError(f"{name} doesn't connect the units of one node", "divide it into two nodes, or use sparse")


@inside.register
def _(connection: Identity) -> Connection:
    raise DeclarationError(
        "identity would couple each unit to itself", "use a node term, or sparse or dense for couplings among units"
    )


@inside.register
def _(connection: Dense) -> Connection:
    return AllPairs()


@inside.register
def _(connection: Sparse) -> Connection:
    return SparseWithin(connection)


@inside.register
def _(connection: Within) -> Connection:
    return connection


# --------------------------------------------------------------------------- colours


class Colouring:
    """Units of a node by colour; units of one colour share no pair.

    Arguments:
        colours: the colour of every unit, [*node].
    """

    def __init__(self, colours: np.ndarray) -> None:
        self.colours, self.count = colours, int(colours.max()) + 1
        self._masks = OnDevice({colour: colours == colour for colour in range(self.count)})

    def mask(self, colour: int, device: torch.device) -> Tensor:
        """Which units have a colour, [*node]."""
        return self._masks[colour, device]


def colour(shape: Shape, patterns: Iterable[Pattern]) -> Colouring:
    """Colour the units of a node by the better of two orders: one finds the two colours of every bipartite pattern, the
    other is good on the rest."""
    graph = nx.Graph()
    graph.add_nodes_from(range(math.prod(shape)))
    for pattern in patterns:
        graph.add_edges_from(zip(pattern.pre.tolist(), pattern.post.tolist(), strict=True))
    ways = [nx.greedy_color(graph, strategy) for strategy in ("connected_sequential_bfs", "smallest_last")]
    best = min(ways, key=lambda way: max(way.values()))
    return Colouring(np.array([best[unit] for unit in range(len(graph))]).reshape(shape))
