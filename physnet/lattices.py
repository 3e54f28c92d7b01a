"""Patterns by rule: rings, lattices, and graphs that are drawn at random."""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

import networkx as nx
import numpy as np

from physnet.errors import DeclarationError
from physnet.patterns import MAX_UNITS, Pattern, from_graph, from_pairs

MAX_PAIRS = 10_000_000


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
            check_kind(f"{key} of '{name}'", item, kind)
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


def check_kind(what: str, value: Any, kind: str) -> None:
    allowed = {"int": int, "float": (int, float), "bool": bool}[kind]
    if not isinstance(value, allowed) or (isinstance(value, bool) and kind != "bool") or value < 0 or value != value:
        words = {"int": "a whole number from 0", "float": "a number from 0", "bool": "True or False"}
        raise DeclarationError(f"{what} is {value!r}", f"give {words[kind]}")
