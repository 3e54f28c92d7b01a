"""What a network is trained for: costs on nodes or readouts, and regularisers.

    C = sum over costs of weight * sum_i term(z_i, y_i),  or weight * reduction(z, y);  and  + R(parameters)

z is the state of a node, or of a readout z = connection(state, w) + b that stands outside the dynamical system
(arXiv 2101.05536): it is no state, acts on the network only through beta C, and learns from dC/dw.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import sympy as sp

from physnet.chains import parse_connection
from physnet.connections import Connection, Shape
from physnet.elements import Node, check_name, parse_shape, specialise, unused
from physnet.energy import Energy, undeclared
from physnet.errors import DeclarationError, Fault, did_you_mean, located
from physnet.expressions import RESERVED, names, parse, write
from physnet.parameters import ParameterSpec
from physnet.reductions import REDUCTIONS

Path = tuple[str, ...]

READOUT = Energy(
    parameters={
        "w": {"on": "edge", "init": "uniform(-1, 1)/sqrt(fan_in)"},
        "b": {"on": "node", "init": "uniform(-1, 1)/sqrt(fan_in)"},
    }
)
"""Weights and biases of readouts, drawn as by `torch.nn.Linear`."""


@dataclass(frozen=True)
class Readout:
    """z = connection(state, w) + b.

    Arguments:
        name: owner of the tensors `name.w` and `name.b`.
        shape: of z.
    """

    name: str
    connection: Connection
    shape: Shape
    parameters: Mapping[str, ParameterSpec]

    def declaration(self) -> str:
        """The readout as it is written in a file, such as `dense(10)`."""
        kind, _, options = self.connection.declaration().partition("(")
        shape = str(list(self.shape)) if len(self.shape) > 1 else str(*self.shape)
        return f"{kind}({shape}{', ' + options if options else ')'}"


@dataclass(frozen=True)
class Cost:
    """weight * sum over units of term(z, y), or weight * reduction(z, y); y is the batch tensor called `target`.

    Arguments:
        node: whose state it is about.
        term: an expression in `x`, which stands for z, and `y`; zero for a reduction.
        reduction: name of a reduction, or nothing.
        readout: what z is, if it isn't the state itself.
    """

    node: str
    term: sp.Expr
    target: str = "target"
    weight: float = 1.0
    reduction: str = ""
    readout: Readout | None = None

    @property
    def external(self) -> bool:
        """Whether it is more than a sum over the units of its node."""
        return bool(self.reduction) or self.readout is not None

    @property
    def written(self) -> str:
        return self.reduction or write(self.term)

    @property
    def factor(self) -> sp.Rational:
        """The weight as an exact number."""
        return cast(sp.Rational, sp.nsimplify(self.weight, rational=True))

    def declaration(self) -> dict[str, Any]:
        result: dict[str, Any] = {"node": self.node}
        if self.readout is not None:
            changed = {k: s.declaration() for k, s in self.readout.parameters.items() if s != READOUT.parameters[k]}
            result |= {"readout": self.readout.declaration(), "name": self.readout.name}
            result |= {"parameters": changed} if changed else {}
        return result | {"term": self.written, "target": self.target, "weight": self.weight}


@dataclass(frozen=True)
class Regulariser:
    """weight * sum over entries of term(parameters), over every owner that has all of these parameters.

    Arguments:
        on: nodes, edges and readouts to restrict it to; all of them, if empty.
    """

    term: sp.Expr
    weight: float = 1.0
    on: tuple[str, ...] = ()

    def declaration(self) -> dict[str, Any]:
        restricted = {"on": list(self.on)} if self.on else {}
        return {"term": write(self.term), "weight": self.weight, **restricted}


@dataclass(frozen=True)
class Target:
    """What a target belongs to: `name` is a node or a readout of `node`."""

    name: str
    node: str
    shape: Shape


@dataclass(frozen=True)
class Penalty:
    """One share of a regulariser: an expression in the parameters of one owner.

    Arguments:
        tensors: the tensor that each of its parameters is.
    """

    owner: str
    term: sp.Expr
    tensors: Mapping[str, str]


def make_cost(
    node: Node, term: Any, target: str, weight: Any, readout: Any, name: str, parameters: Any, path: Path
) -> Cost:
    """A cost from its declaration; faults are under `path`."""
    if not node.free:
        raise DeclarationError(
            Fault(f"'{node.name}' is clamped and can't carry a cost", "put it on a free node", (*path, "node"))
        )
    head = None
    if readout is not None:
        head = _make_readout(node, readout, name or f"{node.name}_readout", parameters, path)
    elif name or parameters:
        key = "name" if name else "parameters"
        fix = "parameters of a node are declared with the node" if parameters else "remove it"
        raise DeclarationError(Fault(f"only a cost with a readout has {key}", fix, (*path, key), at_key=True))
    reduction = term.strip() if isinstance(term, str) and term.strip() in REDUCTIONS else ""
    parsed = sp.Integer(0) if reduction else _term(term, node.parameters if head is None else None, (*path, "term"))
    return Cost(node.name, parsed, target, _number(weight, path), reduction, head)


def _term(term: Any, known: Iterable[str] | None, path: Path) -> sp.Expr:
    """A term in x, y and parameters of its node, or `None` where there is a readout, which has none to offer."""
    parsed = located(path, lambda: parse(term))
    if isinstance(term, str) and term.strip() in names(parsed) - {"x", "y", *(known or ())}:
        fix = did_you_mean(term.strip(), REDUCTIONS, f"write an expression in x and y, or {', '.join(REDUCTIONS)}")
        raise DeclarationError(Fault(f"'{term.strip()}' is neither a reduction nor an expression", fix, path))
    faults = undeclared(parsed, term, {"x", "y"}, set(known or ()), "cost", path)
    if faults and known is None:
        faults = [replace(fault, fix="a term on a readout is written in x and y") for fault in faults]
    if faults:
        raise DeclarationError(faults)
    return parsed


def _number(weight: Any, path: Path) -> float:
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
        raise DeclarationError(
            Fault(f"the weight {weight!r} is not a finite number", "give a number", (*path, "weight"))
        )
    return float(weight)


def _make_readout(node: Node, declared: Any, name: str, changes: Any, path: Path) -> Readout:
    check_name(name, (*path, "name"))
    connection, shape = located((*path, "readout"), lambda: parse_readout(declared))
    located((*path, "readout"), lambda: connection.check(node.shape, shape))
    if changes is not None and not isinstance(changes, Mapping):
        raise DeclarationError(Fault("expected a mapping of parameters", "w: {init: zeros}", (*path, "parameters")))
    for key in set(changes or ()) - set(READOUT.parameters):
        raise DeclarationError(unused(key, READOUT.parameters, (*path, "parameters", key)))
    own = {kind: {k: v for k, v in (changes or {}).items() if READOUT.parameters[k].on == kind} for kind in _KINDS}
    specs = {
        k: s for kind in _KINDS for k, s in specialise(_NOTHING, READOUT, kind, set(), None, own[kind], path)[1].items()
    }
    return Readout(name, connection, shape, specs)


_KINDS = ("edge", "node")
_NOTHING = sp.Integer(0)


def parse_readout(declared: Any) -> tuple[Connection, Shape]:
    """Connection and shape of a readout from its declaration, such as `dense(10)`."""
    usage = "write a connection with the shape of the readout, such as dense(10)"
    try:
        call = ast.parse(declared.strip(), mode="eval").body if isinstance(declared, str) else None
        match call:
            case ast.Call(func=ast.Name(id=name), args=[shape], keywords=options):
                rest = ", ".join(ast.unparse(option) for option in options)
                return parse_connection(f"{name}({rest})"), parse_shape(ast.literal_eval(shape))
    except DeclarationError:
        raise
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        pass
    raise DeclarationError(Fault(f"{str(declared)[:80]!r} is not a readout", usage))


# --------------------------------------------------------------------------- regularisers


def make_regulariser(term: Any, on: Any, weight: Any, path: Path) -> Regulariser:
    """A regulariser from its declaration; faults are under `path`."""
    parsed = located((*path, "term"), lambda: parse(term))
    states = sorted(names(parsed) & RESERVED)
    if states:
        fix = "add node: with the name of a free node" if states[0] in ("x", "y") else "write it in parameters alone"
        message = f"'{states[0]}' has no meaning in a cost without a node"
        raise DeclarationError(Fault(message, fix, (*path, "term")))
    if not names(parsed):
        raise DeclarationError(Fault("a cost without states and parameters has no effect", "remove it", path))
    places = [on] if isinstance(on, str) else list(on) if isinstance(on, list | tuple) else [on] if on else []
    if not all(isinstance(place, str) for place in places):
        raise DeclarationError(Fault(f"{on!r} is not a list of names", "such as [image_hidden, head]", (*path, "on")))
    return Regulariser(parsed, _number(weight, path), tuple(places))


def penalties(
    regulariser: Regulariser, owners: Mapping[str, Iterable[str]], ties: Mapping[str, str], path: tuple[str | int, ...]
) -> list[Penalty]:
    """The shares of a regulariser; owners that share all their tensors count once.

    Arguments:
        owners: the parameters of every node, edge and readout.
        ties: tensors that tied parameters stand for.

    Raises:
        DeclarationError: if no owner has these parameters, or one that is named hasn't.
    """
    wanted, found = names(regulariser.term), dict[frozenset[tuple[str, str]], Penalty]()
    for name in regulariser.on:
        if name not in owners:
            raise DeclarationError(
                Fault(f"there is no node, edge or readout '{name}'", did_you_mean(name, owners), (*path, "on"))
            )
        for key in sorted(wanted - set(owners[name])):
            hint = did_you_mean(key, owners[name], f"'{name}' has {', '.join(owners[name]) or 'none'}")
            raise DeclarationError(Fault(f"'{name}' has no parameter '{key}'", hint, (*path, "on")))
    for owner in regulariser.on or owners:
        if wanted <= set(owners[owner]):
            tensors = {key: ties.get(f"{owner}.{key}", f"{owner}.{key}") for key in sorted(wanted)}
            term = cast(sp.Expr, sp.nsimplify(regulariser.weight, rational=True) * regulariser.term)
            found.setdefault(frozenset(tensors.items()), Penalty(owner, term, tensors))
    if not found:
        known = sorted({key for keys in owners.values() for key in keys})
        key = next((key for key in sorted(wanted) if key not in known), sorted(wanted)[0])
        hint = did_you_mean(key, known, f"one node, edge or readout must have them all; there are {', '.join(known)}")
        message = f"nothing has the parameter{'s' * (len(wanted) > 1)} {', '.join(sorted(wanted))} of this regulariser"
        raise DeclarationError(Fault(message, hint, (*path, "term")))
    return list(found.values())
