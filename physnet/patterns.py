"""Which pairs of units a sparse connection joins.

A pattern is a sorted list of pairs (pre, post) and nothing more. Its text form is part of a network's declaration, so
that it is a pure function of the pairs: the same on every machine, and read back without loss.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import networkx as nx
import numpy as np

from physnet.errors import DeclarationError, ShapeError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

MAX_UNITS = 1_000_000
LISTED = 100
"""Up to how many pairs a declaration lists; longer patterns are written as gaps between consecutive pairs."""


@dataclass(frozen=True, eq=False)
class Pattern:
    """Pairs of units, sorted by post, then pre.

    Arguments:
        pre, post: the units of each pair, numbered from 0 along the flattened node; in an undirected pattern `pre` is
            the smaller number.
        sizes: number of units of post and of pre, or `None` if any that hold the pairs will do.
        undirected: whether the pairs have no direction, so that they join the units of one node.
    """

    pre: np.ndarray
    post: np.ndarray
    sizes: tuple[int, int] | None
    undirected: bool

    def __len__(self) -> int:
        return len(self.pre)

    @property
    def least(self) -> tuple[int, int]:
        """The sizes, or the smallest that hold all pairs."""
        if self.sizes is not None:
            return self.sizes
        post, pre = int(self.post.max()) + 1, int(self.pre.max()) + 1
        return (max(post, pre), max(post, pre)) if self.undirected else (post, pre)

    @property
    def written(self) -> str:
        """The arguments of `sparse(...)` that give this pattern."""
        post_units, pre_units = self.least
        sizes = f", units={post_units}" if self.undirected else f", post={post_units}, pre={pre_units}"
        if self.sizes is None:
            sizes = ""
        if len(self) <= LISTED:
            sign = "-" if self.undirected else ">"
            return repr(" ".join(f"{j}{sign}{i}" for j, i in zip(self.pre, self.post, strict=True))) + sizes
        if self.sizes is None:
            sizes = f", width={pre_units}" + (", undirected=True" if self.undirected else "")
        gaps = np.diff(self.post * pre_units + self.pre, prepend=0)
        return f"gaps='{' '.join(map(str, gaps))}'{sizes}"

    @property
    def digest(self) -> str:
        """Tells patterns apart, whatever they were made by."""
        pairs = np.stack([self.pre, self.post]).astype("<i8")
        return hashlib.sha256(pairs.tobytes()).hexdigest()[:12]

    def transposed(self) -> np.ndarray:
        """The order of the pairs when they are sorted by pre, then post."""
        return np.lexsort((self.post, self.pre))


def from_pairs(pre: Any, post: Any, sizes: tuple[int, int] | None, undirected: bool) -> Pattern:
    """A pattern from units in any order.

    Raises:
        DeclarationError: for no pairs, pairs given twice, and a unit joined with itself where that is known to be one.
        ShapeError: for units that aren't there.
    """
    pre, post = (np.asarray(side, dtype=np.int64).reshape(-1) for side in (pre, post))
    if len(pre) == 0:
        raise DeclarationError("the pattern has no pairs", "leave the edge out, or connect something")
    if undirected:
        pre, post = np.minimum(pre, post), np.maximum(pre, post)
        refuse_loops(pre, post)
    for name, side, units in zip(("post", "pre"), (post, pre), sizes or (None, None), strict=True):
        outside = side[(side < 0) | (side >= (MAX_UNITS if units is None else units))]
        if len(outside):
            there = f"there are {units} units" if units is not None else f"there may be {MAX_UNITS} units"
            raise ShapeError(f"a pair names unit {outside[0]} of {name}, but {there}", "units are numbered from 0")
    order = np.lexsort((pre, post))
    pre, post = pre[order], post[order]
    twice = np.flatnonzero((np.diff(pre) == 0) & (np.diff(post) == 0))
    if len(twice):
        pair = f"{pre[twice[0]]}{'-' if undirected else '>'}{post[twice[0]]}"
        hint = "an undirected pair counts once, in whichever order" if undirected else "give each pair once"
        raise DeclarationError(f"the pair {pair} is given twice", hint)
    return Pattern(pre, post, sizes, undirected)


def refuse_loops(pre: np.ndarray, post: np.ndarray) -> None:
    """Raise `DeclarationError` if a unit is joined with itself."""
    loops = pre[pre == post]
    if len(loops):
        raise DeclarationError(
            f"unit {loops[0]} is coupled to itself", "remove the self-loop; a unit's own energy is a node term"
        )


class OnDevice:
    """Arrays by name as tensors, made once per device; copies and pickles leave the tensors out."""

    def __init__(self, arrays: dict[Any, np.ndarray]) -> None:
        self.arrays, self.tensors = arrays, dict[Any, Any]()

    def __getitem__(self, key: tuple[Any, torch.device]) -> Tensor:
        if key not in self.tensors:
            import torch

            name, device = key
            with torch.inference_mode(False):  # the cache outlives the mode that it was filled in
                self.tensors[key] = torch.as_tensor(self.arrays[name], device=device)
        return self.tensors[key]

    def __getstate__(self) -> dict[str, Any]:
        return {"arrays": self.arrays, "tensors": {}}


def from_graph(graph: nx.Graph) -> Pattern:
    """Each edge of a graph is one pair, each arc of a directed graph one pair from pre to post; units are its nodes in
    their order."""
    number = {label: index for index, label in enumerate(graph)}
    pairs = [(number[a], number[b]) for a, b in graph.edges()]
    pre, post = zip(*pairs, strict=True) if pairs else ((), ())
    return from_pairs(pre, post, (len(number), len(number)), undirected=not graph.is_directed())


def from_matrix(matrix: Any) -> Pattern:
    """Each nonzero of a matrix [post units, pre units] is one directed pair. Its values don't matter."""
    if len(matrix.shape) != 2:
        raise ShapeError(f"a pattern is a matrix, not an array of shape {list(matrix.shape)}", "[post, pre]")
    if hasattr(matrix, "tocsr"):
        matrix = matrix.tocsr(copy=True)
        matrix.sum_duplicates()
    post, pre = matrix.nonzero()
    return from_pairs(pre, post, (int(matrix.shape[0]), int(matrix.shape[1])), undirected=False)
