"""Which pairs of units a sparse connection joins: read from graphs, matrices, files, generators and short texts.

A pattern is a sorted list of pairs (pre, post) and nothing more. Its text form is part of a network's declaration, so
that it is a pure function of the pairs: the same on every machine, and read back without loss.
"""

from __future__ import annotations

import hashlib
import inspect
import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import networkx as nx
import numpy as np

from physnet.errors import DeclarationError, ShapeError, did_you_mean

if TYPE_CHECKING:
    import torch
    from torch import Tensor

MAX_UNITS, MAX_PAIRS = 1_000_000, 10_000_000
LISTED = 100
"""Up to how many pairs a declaration lists; longer patterns are written as gaps between consecutive pairs."""
_PAIR = re.compile(r"(\d{1,9})([->])(\d{1,9})")
_folder: ContextVar[Path] = ContextVar("folder", default=Path())


@contextmanager
def relative_to(folder: Path) -> Iterator[None]:
    """Read pattern files relative to a folder: that of the declaration."""
    token = _folder.set(folder)
    try:
        yield
    finally:
        _folder.reset(token)


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


# --------------------------------------------------------------------------- from objects


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


# --------------------------------------------------------------------------- generators


def ring(units: int, reach: int = 1) -> Pattern:
    """Every unit with the `reach` next ones, around."""
    _bound(units, units * reach)
    if not 0 < 2 * reach < units:
        raise DeclarationError(f"in a ring of {units} units a reach of {reach} meets itself", "take a smaller reach")
    pre = np.repeat(np.arange(units), reach)
    return from_pairs(pre, (pre + np.tile(np.arange(1, reach + 1), units)) % units, (units, units), undirected=True)


def lattice(*sizes: int, periodic: bool = False) -> Pattern:
    """Nearest neighbours on a grid of any dimension; `periodic` closes it around every axis."""
    if not sizes or len(sizes) > 8:
        raise DeclarationError(f"a lattice has 1 to 8 sizes, found {len(sizes)}", "such as sparse('lattice', 28, 28)")
    units = math.prod(sizes)
    _bound(units, units * len(sizes))
    numbers = np.arange(units).reshape(sizes)
    pairs: list[np.ndarray] = []
    for axis, size in enumerate(sizes):
        if size > 1:
            wrapped = periodic and size > 2  # around an axis of two the second pair would be the first again
            near = numbers if wrapped else numbers.take(range(size - 1), axis)
            far = np.roll(numbers, -1, axis) if wrapped else numbers.take(range(1, size), axis)
            pairs.append(np.stack([near.reshape(-1), far.reshape(-1)]))
    pre, post = np.concatenate(pairs, 1) if pairs else np.zeros((2, 0))
    return from_pairs(pre, post, (units, units), undirected=True)


def watts_strogatz(units: int, neighbours: int, rewiring: float, seed: int = 0) -> Pattern:
    """A small world: a ring with `neighbours` per unit, each pair rewired with probability `rewiring`."""
    _bound(units, units * neighbours, rewiring)
    return from_graph(nx.watts_strogatz_graph(units, neighbours, rewiring, seed=seed))


def erdos_renyi(units: int, probability: float, seed: int = 0) -> Pattern:
    """Every pair with the same probability."""
    _bound(units, units * units * probability, probability)
    return from_graph(nx.fast_gnp_random_graph(units, probability, seed=seed))


def random_regular(units: int, degree: int, seed: int = 0) -> Pattern:
    """A random graph in which every unit has `degree` neighbours."""
    _bound(units, units * degree)
    return from_graph(_in_order(nx.random_regular_graph(degree, units, seed=seed)))


def random(post: int, pre: int, density: float, seed: int = 0) -> Pattern:
    """Between two nodes: a share `density` of all pairs, drawn without replacement."""
    _bound(max(post, pre), post * pre * density, density)
    count = round(post * pre * density)
    drawn = np.random.Generator(np.random.PCG64(seed)).choice(post * pre, count, replace=False, shuffle=False)
    return from_pairs(drawn % pre, drawn // pre, (post, pre), undirected=False)


GENERATORS: dict[str, Callable[..., Pattern]] = {
    function.__name__: function for function in (ring, lattice, watts_strogatz, erdos_renyi, random_regular, random)
}
"""Patterns by the name that declarations use."""


def _in_order(graph: nx.Graph) -> nx.Graph:
    ordered = nx.Graph()
    ordered.add_nodes_from(sorted(graph))
    ordered.add_edges_from(graph.edges())
    return ordered


def _bound(units: float, pairs: float, share: float = 0.0) -> None:
    if not 1 <= units <= MAX_UNITS or not 0 < pairs <= MAX_PAIRS:
        raise DeclarationError(
            f"a pattern of {units:g} units and about {max(pairs, 0):g} pairs is out of range",
            f"1 to {MAX_UNITS} units and 1 to {MAX_PAIRS} pairs",
        )
    if not 0 <= share <= 1:
        raise DeclarationError(f"the probability or share {share:g} is out of range", "give a number from 0 to 1")


def generate(name: str, arguments: tuple[Any, ...], options: Mapping[str, Any]) -> tuple[Pattern, str]:
    """A generated pattern, and its arguments as they are written in a declaration.

    What is drawn depends on libraries, so that the declaration of a random pattern carries a digest of its pairs, which
    is checked whenever it is read.
    """
    function = GENERATORS[name]
    given = {key: value for key, value in options.items() if key != "check"}
    signature = inspect.signature(function)
    try:
        bound = signature.bind(*arguments, **given)
    except TypeError as problem:
        raise DeclarationError(f"'{name}': {problem}", f"write sparse('{name}', {str(signature)[1:]}") from None
    for key, value in bound.arguments.items():
        kind = str(signature.parameters[key].annotation)
        for item in value if isinstance(value, tuple) else (value,):
            _check_kind(f"{key} of '{name}'", item, kind)
    try:
        pattern = function(*arguments, **given)
    except nx.NetworkXException as problem:
        raise DeclarationError(f"'{name}': {problem}", "choose other numbers") from None
    except ValueError as problem:
        if isinstance(problem, DeclarationError):
            raise
        raise DeclarationError(f"'{name}': {problem}", "choose other numbers") from None
    check = {"check": pattern.digest} if "seed" in signature.parameters else {}
    expected = options.get("check")
    if expected is not None and expected != pattern.digest:
        raise DeclarationError(
            f"'{name}' gives other pairs ({pattern.digest}) than those that were declared ({expected})",
            f"another version of networkx or numpy (here {nx.__version__}, {np.__version__}) drew them; use that one, "
            "or leave check out to draw anew",
        )
    bound.apply_defaults()
    written = [repr(name)]
    for key, value in itertools.chain(bound.arguments.items(), check.items()):
        written += [repr(item) for item in value] if isinstance(value, tuple) else [f"{key}={value!r}"]
    return pattern, ", ".join(written)


def _check_kind(what: str, value: Any, kind: str) -> None:
    allowed = {"int": int, "float": (int, float), "bool": bool}[kind]
    if not isinstance(value, allowed) or (isinstance(value, bool) and kind != "bool") or value < 0 or value != value:
        words = {"int": "a whole number from 0", "float": "a number from 0", "bool": "True or False"}
        raise DeclarationError(f"{what} is {value!r}", f"give {words[kind]}")


# --------------------------------------------------------------------------- from text and files


def read_pattern(pattern: Any, arguments: tuple[Any, ...], options: Mapping[str, Any]) -> tuple[Pattern, str]:
    """What the arguments of `sparse(...)` mean, and how they are written in a declaration."""
    if isinstance(pattern, str) and pattern in GENERATORS:
        return generate(pattern, arguments, options)
    found = _explicit(pattern, arguments, dict(options))
    return found, found.written


def _explicit(pattern: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> Pattern:
    if isinstance(pattern, str) and re.search(r"\d", pattern) is None:
        raise DeclarationError(f"unknown topology '{pattern[:80]}'", did_you_mean(pattern, GENERATORS))
    if arguments:
        raise DeclarationError(f"sparse takes one pattern, found {arguments[0]!r} after it", "remove it")
    if isinstance(pattern, nx.Graph):
        _refuse(options)
        return from_graph(pattern)
    if hasattr(pattern, "nonzero") and hasattr(pattern, "shape"):
        _refuse(options)
        return from_matrix(pattern)
    if pattern is None and "file" in options:
        file, undirected = options.pop("file"), options.pop("undirected", False)
        _refuse(options)
        return read_file(file, undirected)
    if pattern is None and "gaps" in options:
        gaps, width = options.pop("gaps"), options.pop("width", None)
        undirected = options.pop("undirected", False) if width is not None else False
        sizes = None if width is not None else _sizes(options)
        if width is None and sizes is None:
            raise DeclarationError("gaps have no meaning without sizes", "give units, or post and pre, or width")
        if width is not None and (isinstance(width, bool) or not isinstance(width, int) or width < 1):
            raise DeclarationError(f"the width {width!r} is not a whole number, at least 1", "such as width=10")
        numbers = str(gaps).split()
        if not all(number.isdigit() and len(number) < 16 for number in numbers):
            raise DeclarationError("gaps are whole numbers", "such as gaps='1 5 3'")
        keys = np.cumsum(np.array(numbers, dtype=np.int64))
        if sizes is not None:
            undirected, width = options.pop("undirected"), sizes[1]
        _refuse(options)
        return from_pairs(keys % int(width or 1), keys // int(width or 1), sizes, undirected)
    if isinstance(pattern, str):
        return _listed(pattern, options)
    raise DeclarationError(
        f"{'nothing' if pattern is None else type(pattern).__name__} is not a pattern of pairs",
        "give a networkx graph, a scipy matrix [post units, pre units], a list such as '0-1 1-2', or one of "
        f"{', '.join(GENERATORS)}",
    )


def _listed(text: str, options: dict[str, Any]) -> Pattern:
    """`0-1 1-2` between units of one node, `0>1 2>1` from pre to post."""
    found = [_PAIR.fullmatch(item) for item in re.split(r"[\s,]+", text.strip())]
    pairs = [match.groups() for match in found if match is not None]
    if len(pairs) < len(found):
        raise DeclarationError(f"'{text[:80]}' is not a list of pairs", "such as '0-1 1-2', or '0>1 2>1' if directed")
    signs = {sign for _, sign, _ in pairs}
    if len(signs) > 1:
        raise DeclarationError("a pattern is either directed (0>1) or not (0-1)", "write all pairs alike")
    sizes = _sizes(options)
    undirected = options.pop("undirected", "-" in signs)
    _refuse(options)
    if undirected != ("-" in signs):
        raise DeclarationError("directed pairs (0>1) have post= and pre=, others (0-1) have units=", "give those sizes")
    return from_pairs([int(a) for a, _, _ in pairs], [int(b) for _, _, b in pairs], sizes, undirected)


def _sizes(options: dict[str, Any]) -> tuple[int, int] | None:
    """Takes the sizes out of the options, and notes whether they are those of an undirected pattern."""
    given = {key: options.pop(key) for key in ("units", "post", "pre") if key in options}
    if not given:
        return None
    for key, value in given.items():
        _check_kind(f"{key} of sparse", value, "int")
    if set(given) not in ({"units"}, {"post", "pre"}):
        raise DeclarationError(f"sizes are units, or post and pre, found {', '.join(given)}", "give either")
    options["undirected"] = "units" in given
    return (given["units"], given["units"]) if "units" in given else (given["post"], given["pre"])


def _refuse(options: Mapping[str, Any]) -> None:
    for key in options:
        raise DeclarationError(
            f"sparse has no use for {key} here", "see docs/declaration.md for what goes with each pattern"
        )


def read_file(name: object, undirected: object = False) -> Pattern:
    """A pattern from a Matrix Market file (.mtx: [post, pre]; symmetric: undirected) or a table of pre and post.

    Raises:
        DeclarationError: if it can't be read.
    """
    if not isinstance(name, str) or not isinstance(undirected, bool):
        raise DeclarationError("a pattern file is given by its name", "such as sparse(file='pairs.csv')")
    path = _folder.get() / name
    try:
        if path.suffix == ".mtx":
            from scipy.io import mminfo, mmread

            symmetric = mminfo(path)[5] == "symmetric"
            found = from_matrix(mmread(path))
            if not (symmetric or undirected):
                return found
            once = found.pre <= found.post if symmetric else slice(None)
            return from_pairs(found.pre[once], found.post[once], found.sizes, undirected=True)
        lines = path.read_text().replace(",", " ").splitlines()
        header = bool(lines) and re.search(r"[A-Za-z]", lines[0]) is not None
        table = np.loadtxt(lines[header:], dtype=np.int64, ndmin=2) if lines[header:] else np.zeros((0, 2))
    except OSError as problem:
        raise DeclarationError(f"{path}: {problem.strerror or problem}", "check the name of the file") from None
    except DeclarationError:  # a ValueError too
        raise
    except (ValueError, OverflowError) as problem:
        raise DeclarationError(f"{path}: {problem}", "write one pair of whole numbers per line: pre, post") from None
    if table.shape[1] != 2:
        raise DeclarationError(f"{path}: {table.shape[1]} columns", "write one pair per line: pre, post")
    return from_pairs(table[:, 0], table[:, 1], None, undirected)
