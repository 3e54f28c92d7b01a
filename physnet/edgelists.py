"""Patterns from text and files, and what the arguments of `sparse(...)` mean."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np

from physnet.errors import DeclarationError, did_you_mean
from physnet.lattices import GENERATORS, check_kind, generate
from physnet.patterns import Pattern, from_graph, from_matrix, from_pairs

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
        return _from_gaps(options)
    if isinstance(pattern, str):
        return _listed(pattern, options)
    raise DeclarationError(
        f"{'nothing' if pattern is None else type(pattern).__name__} is not a pattern of pairs",
        "give a networkx graph, a scipy matrix [post units, pre units], a list such as '0-1 1-2', or one of "
        f"{', '.join(GENERATORS)}",
    )


def _from_gaps(options: dict[str, Any]) -> Pattern:
    """`gaps='1 5 3'`: how far consecutive pairs are apart, numbered along the matrix [post, pre]."""
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
        check_kind(f"{key} of sparse", value, "int")
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
