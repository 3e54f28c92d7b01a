"""What a graph is made of: nodes and edges, and how their declarations are read."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import sympy as sp

from physnet.connections import Connection, Shape
from physnet.domains import Domain
from physnet.energy import Energy, undeclared
from physnet.errors import DeclarationError, Fault, ShapeError, did_you_mean, located
from physnet.expressions import RESERVED, names, parse, symbol
from physnet.parameters import ParameterSpec, parse_parameter

T = TypeVar("T")
MAX_UNITS = 2**31
_NAME = re.compile(r"(?=.{1,100}$)[A-Za-z][A-Za-z0-9]*(_[A-Za-z0-9]+)*")
KEYWORDS = frozenset({"relaxation", "target", "beta", "start", "rows", "seed", "step"})
"""Names that inputs can't have, since inputs are passed as keyword arguments beside these."""


@dataclass(frozen=True)
class Node:
    """A group of units with one state tensor of shape [rows, *shape].

    Arguments:
        shape: shape of the state, after encoding.
        data_shape: shape of what the user gives, before encoding.
        role: `input` (clamped), `state` or `output` (free).
        term: the node energy, in `x` and parameters.
        domain: where free states live.
        parameters: declarations of the parameters that the term or a cost uses.
        encode: expressions in `x` that the input is turned into.
        tau: time constant of a free node, tau dx/dt = -dF/dx.
        initial: how the states of every sample are drawn that a free phase starts from; `None` leaves that to
            `Relaxation.initial`.
    """

    name: str
    shape: Shape
    data_shape: Shape
    role: str
    term: sp.Expr
    domain: Domain
    parameters: Mapping[str, ParameterSpec]
    encode: tuple[sp.Expr, ...] = ()
    tau: float = 1.0
    initial: ParameterSpec | None = None

    @property
    def free(self) -> bool:
        return self.role != "input"

    @property
    def driven(self) -> bool:
        """Whether its energy is written in its drive `a`."""
        return symbol("a") in self.term.free_symbols


@dataclass(frozen=True)
class Edge:
    """A coupling from one node to another over a connection; or a prediction.

    Arguments:
        term: the coupling, in `pre`, `post` and parameters; 0 for a prediction.
        message: of a prediction: what it passes on to the drive of post, an expression in `pre`.
    """

    name: str
    pre: str
    post: str
    connection: Connection
    term: sp.Expr
    parameters: Mapping[str, ParameterSpec]
    message: sp.Expr | None = None

    @property
    def predicts(self) -> bool:
        return self.message is not None


def parse_shape(declared: object) -> Shape:
    """A shape from a positive whole number or a list of them."""
    items = list(declared) if isinstance(declared, list | tuple) else [declared]
    for item in items:
        if isinstance(item, bool) or not isinstance(item, int) or item < 1:
            raise ShapeError(
                Fault(
                    f"the shape {declared!r} is not made of positive whole numbers",
                    "such as 64 or [3, 32, 32]",
                    ("shape",),
                )
            )
    if not items or len(items) > 8 or math.prod(cast(list[int], items)) > MAX_UNITS:
        raise ShapeError(Fault(f"the shape {declared!r} is out of range", f"at most {MAX_UNITS} units", ("shape",)))
    return tuple(cast(list[int], items))


def parse_initial(declared: object) -> ParameterSpec | None:
    """How initial states are drawn: a number, or an initialiser of parameters such as `uniform(-pi, pi)`; or nothing.

    Raises:
        DeclarationError: for what is neither; states have no fans and no constants.
    """
    if declared is None:
        return None
    if isinstance(declared, bool) or not isinstance(declared, int | float | str):
        raise DeclarationError(f"an initial state is an expression, found {declared!r}", "such as uniform(-pi, pi)")
    spec = ParameterSpec("initial", "node", init=str(declared))
    if spec.spectral:
        raise DeclarationError("spectral is for parameters of nodes", "draw states otherwise, such as uniform(-pi, pi)")
    fans = names(spec.expression()) & {"fan_in", "fan_out"}
    if fans:
        raise DeclarationError(
            Fault(f"a state has no {min(fans)}", "write a number", offset=spec.init.find(min(fans)), value=spec.init)
        )
    return spec


def specialise(
    term: sp.Expr,
    base: Energy,
    kind: str,
    states: set[str],
    own_term: Any,
    changes: Mapping[str, Any] | None,
    path: tuple[str, ...],
) -> tuple[sp.Expr, dict[str, ParameterSpec]]:
    """The term and parameters of one node or edge: those of the energy, with its own changes."""
    specs = {key: spec for key, spec in base.parameters.items() if spec.on == kind}
    for key, change in (changes or {}).items():
        here = (*path, "parameters", key)
        if isinstance(change, ParameterSpec):
            specs[key] = change
        elif not isinstance(change, Mapping):
            raise DeclarationError(Fault("expected a mapping", "such as {init: zeros, frozen: true}", here))
        elif key in specs:
            specs[key] = located(here, lambda s=specs[key], c=change: s.override(c))
        elif key in RESERVED:
            raise DeclarationError(Fault(f"'{key}' is reserved", "choose another name", here))
        else:
            specs[key] = located(here, lambda k=key, c=change: parse_parameter(k, {"on": kind, **c}))
    if own_term is not None:
        term = located((*path, "term"), lambda: parse(own_term))
        faults = undeclared(term, own_term, states, set(specs), kind, (*path, "term"))
        if faults:
            raise DeclarationError(faults)
    return term, specs


def check_name(name: str, path: tuple[str, ...]) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise DeclarationError(
            Fault(
                f"{str(name)[:100]!r} is not a name",
                "use letters, digits and single underscores, and begin with a letter",
                path,
            )
        )


def unused(name: str, used: Iterable[str], path: tuple[str | int, ...]) -> Fault:
    """The fault of a parameter that no term uses: usually a slip in the name of one that is used."""
    return Fault(f"no term uses the parameter '{name}'", did_you_mean(name, used, "remove it"), path, at_key=True)


def no_such_node(name: str, known: Iterable[str], path: tuple[str | int, ...]) -> DeclarationError:
    """The error for an edge or cost that names a node which isn't there."""
    hint = did_you_mean(name, known, "declare it under nodes")
    return DeclarationError(Fault(f"there is no node '{name}'", hint, path, at_key=True))
