"""Energies as they are declared: scalar terms, the domain of states and parameters; and the catalogue."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import sympy as sp

from physnet.domains import REAL, Domain, parse_domain
from physnet.errors import DeclarationError, Fault, did_you_mean, located
from physnet.expressions import RESERVED, names, parse, symbol, write
from physnet.parameters import ParameterSpec, parse_parameter
from physnet.registry import Registry
from physnet.sources import read_source

FORMAT = 1
"""Version of the file formats."""

PRE = symbol("pre")
_STATES = {"node": {"x", "a"}, "coupling": {"pre", "post"}, "message": {"pre"}}
"""The states that terms are written in."""


@dataclass(frozen=True)
class Energy:
    """E = sum over nodes of node(x, a) + sum over connected pairs of coupling(pre, post).

    a is the drive of a node: b + sum over its prediction edges of connection(message(pre)).

    Arguments:
        node: an expression in `x`, the drive `a` and node parameters, as text or SymPy; one, or a mapping from role
            (`state`, `output`) to expression. Read back, it is the term of states.
        coupling: an expression in `pre`, `post` and edge parameters.
        message: what prediction edges pass on, an expression in `pre`.
        domain: where states live; one domain, or a mapping from role (`state`, `output`) to domain.
        parameters: declarations by name, each `{on, shape, init, constraint, frozen}`; or `ParameterSpec`s.
        tau: time constant of free nodes, tau dx/dt = -dF/dx; positive. It bears on `simulate` alone.
        encode: expressions in `x` that the input is turned into, stacked along its first axis.
        name, title, reference: for people.

    Raises:
        DeclarationError: for symbols that aren't declared, and for anything that can't be parsed.
    """

    node: Any = "0"
    coupling: Any = "0"
    message: Any = "pre"
    domain: Any = REAL
    parameters: Mapping[str, Any] = field(default_factory=dict)
    encode: Any = None
    name: str = ""
    title: str = ""
    reference: str = ""
    tau: float = 1.0
    output: sp.Expr = field(init=False, default=sp.Integer(0))
    """The node term of outputs."""

    def __post_init__(self) -> None:
        faults: list[Fault] = []

        def attempt(key: str, make: Any) -> Any:
            try:
                return make()
            except DeclarationError as error:
                faults.extend(error.under(key).faults)
                return None

        specs: dict[str, ParameterSpec] = {}
        for name, declared in self.parameters.items():
            if isinstance(declared, ParameterSpec):
                specs[name] = declared
            elif not isinstance(declared, Mapping):
                faults.append(Fault("expected a mapping", "such as {on: node, init: zeros}", ("parameters", name)))
            elif name in RESERVED:
                faults.append(Fault(f"'{name}' is reserved", "choose another name", ("parameters", name)))
            else:
                spec = attempt("parameters", lambda n=name, d=declared: located((n,), lambda: parse_parameter(n, d)))
                if spec is not None:
                    specs[name] = spec
        broken = set(self.parameters) - set(specs)
        terms: dict[str, Any] = {}
        for key, (place, written) in self._written().items():
            terms[key] = attempt(place[0], lambda place=place, w=written: located(place[1:], lambda: parse(w)))
            if terms[key] is not None:
                on = "node" if place[0] == "node" else "edge"
                known = {name for name, spec in specs.items() if spec.on == on and key != "message"} | broken
                faults.extend(undeclared(terms[key], written, _STATES[place[0]], known, on, place))
        terms.setdefault("output", terms["node"])
        domain = attempt("domain", lambda: parse_role_domains(self.domain))
        encode = attempt("encode", lambda: parse_encoding(self.encode))
        tau = attempt("tau", lambda: parse_time_constant(self.tau))
        if faults:
            raise DeclarationError(faults)
        parsed = {**terms, "domain": domain, "encode": encode, "parameters": specs, "tau": tau}
        for attribute, value in parsed.items():
            object.__setattr__(self, attribute, value)

    def _written(self) -> dict[str, tuple[tuple[str, ...], Any]]:
        """What was declared for every term, and where."""
        on_edges = {"coupling": (("coupling",), self.coupling), "message": (("message",), self.message)}
        if not isinstance(self.node, Mapping):
            return {"node": (("node",), self.node)} | on_edges
        unknown = sorted(map(str, set(self.node) - {"state", "output"}))
        if unknown:
            fault = Fault(f"unknown role '{unknown[0]}'", "node terms are given for state and output", ("node",))
            raise DeclarationError(fault)
        roles = {"node": "state", "output": "output"}
        return {key: (("node", role), self.node.get(role, "0")) for key, role in roles.items()} | on_edges

    def term_for(self, role: str) -> sp.Expr:
        """The node term of nodes of that role."""
        return self.output if role == "output" else self.node

    def domain_for(self, role: str) -> Domain:
        """The domain of nodes of that role."""
        return self.domain[role]

    def declaration(self) -> dict[str, Any]:
        """The energy as it is written in a file."""
        result: dict[str, Any] = {"node": write(self.node), "coupling": write(self.coupling)}
        if self.output != self.node:
            result["node"] = {"state": write(self.node), "output": write(self.output)}
        if self.message != PRE:
            result["message"] = write(self.message)
        domains = {role: domain.declaration() for role, domain in self.domain.items()}
        result["domain"] = domains["state"] if domains["state"] == domains["output"] else domains
        if self.encode:
            result["encode"] = [write(item) for item in self.encode]
        if self.tau != 1:
            result["tau"] = self.tau
        result["parameters"] = {name: spec.declaration() for name, spec in self.parameters.items()}
        return result


def undeclared(
    term: sp.Expr, source: object, states: set[str], parameters: set[str], kind: str, path: tuple[str, ...]
) -> list[Fault]:
    """Faults for the symbols of a term that are neither states nor declared parameters of this kind."""
    faults: list[Fault] = []
    for name in sorted(names(term) - states - parameters):
        if name in RESERVED:
            message = f"'{name}' has no meaning in a {kind} term"
            fix = f"a {kind} term is written in {', '.join(sorted(states))} and {kind} parameters"
        else:
            message = f"undeclared symbol '{name}' in {'an' if kind == 'edge' else 'a'} {kind} term"
            fix = did_you_mean(name, sorted(parameters | states), _declaring(name, kind))
        text = source if isinstance(source, str) else write(term)
        faults.append(Fault(message, fix, path, offset=_find_name(text, name), value=text))
    return faults


def _declaring(name: str, kind: str) -> str:
    if kind == "cost":
        return f"use x, y and parameters of the node, or declare {name} under parameters of the node"
    return f"declare it under parameters: {name}: {{on: {kind}, init: zeros}}"


def _find_name(text: str, name: str) -> int | None:
    """Where a whole word stands in an expression."""
    found = re.search(rf"(?<![A-Za-z0-9_]){re.escape(name)}(?![A-Za-z0-9_])", text)
    return found.start() if found else None


def parse_role_domains(declared: object) -> dict[str, Domain]:
    """One domain for all free nodes, or one per role."""
    if isinstance(declared, Mapping):
        unknown = set(declared) - {"state", "output"}
        if unknown:
            raise DeclarationError(
                Fault(f"unknown role '{sorted(map(str, unknown))[0]}'", "domains are given for state and output")
            )
        domains = {str(role): parse_domain(domain) for role, domain in declared.items()}
        return {"state": domains.get("state", REAL), "output": domains.get("output", REAL)}
    domain = parse_domain(declared)
    return {"state": domain, "output": domain}


def parse_message(declared: object) -> sp.Expr:
    """What a prediction edge passes on: an expression in `pre`."""
    term = parse(declared)  # pyright: ignore[reportArgumentType]
    faults = undeclared(term, declared, _STATES["message"], set(), "edge", ())
    if faults:
        raise DeclarationError(faults)
    return term


def parse_time_constant(declared: object) -> float:
    """A time constant: a positive, finite number."""
    if isinstance(declared, int | float) and not isinstance(declared, bool) and 0 < declared < math.inf:
        return float(declared)
    raise DeclarationError(Fault(f"the time constant {declared!r} is not a positive number", "such as tau: 2.5"))


def parse_encoding(declared: object) -> tuple[sp.Expr, ...]:
    """Expressions in `x`, one or a list, from text or SymPy."""
    if declared is None:
        return ()
    items: list[Any] = list(declared) if isinstance(declared, list | tuple) else [declared]
    parsed: list[sp.Expr] = []
    for item in items:
        expression = parse(item)
        extra = names(expression) - {"x"}
        if extra:
            raise DeclarationError(
                Fault(
                    f"'{sorted(extra)[0]}' has no meaning in an encoding", "encodings are written in x", value=str(item)
                )
            )
        parsed.append(expression)
    return tuple(parsed)


# --------------------------------------------------------------------------- the catalogue

_KEYS = {"physnet", "title", "reference", "node", "coupling", "message", "domain", "parameters", "encode", "tau"}


def energy_from_mapping(declared: Mapping[str, Any], name: str = "") -> Energy:
    """An energy from the mapping that stands under `energy:` in a file or makes up a catalogue entry."""
    unknown = sorted(set(declared) - _KEYS)
    if unknown:
        raise DeclarationError(
            Fault(f"unknown key '{unknown[0]}'", did_you_mean(unknown[0], _KEYS), (unknown[0],), at_key=True)
        )
    version = declared.get("physnet", FORMAT)
    if version != FORMAT:
        raise DeclarationError(Fault(f"format version {version!r} is not supported", f"use {FORMAT}", ("physnet",)))
    parameters = declared.get("parameters") or {}
    if not isinstance(parameters, Mapping):
        raise DeclarationError(Fault("expected a mapping of parameters", "name: {on: ..., init: ...}", ("parameters",)))
    return Energy(
        node=declared.get("node", "0"),
        coupling=declared.get("coupling", "0"),
        message=declared.get("message", "pre"),
        domain=declared.get("domain", "real"),
        parameters=parameters,
        encode=declared.get("encode"),
        tau=declared.get("tau", 1.0),
        name=name,
        title=str(declared.get("title", "")),
        reference=str(declared.get("reference", "")),
    )


def _folder(thing: Any) -> Path:
    """The folder that a path or a package stands for."""
    return Path(thing) if isinstance(thing, str | Path) else Path(next(iter(thing.__path__)))


def _objection(name: str, thing: Any) -> str | None:
    if isinstance(thing, str | Path) or hasattr(thing, "__path__"):
        return None if _folder(thing).is_dir() else f"there is no folder {_folder(thing)}"
    return "it must be a path, or a package that holds one YAML file for each energy"


CATALOGUES: Registry[Any] = Registry(
    "catalogue", "physnet.energies", {"physnet": Path(__file__).parent / "energies"}, _objection
)
"""Folders of energies, one YAML file for each, by a name of their own: paths, or packages."""


def catalogue() -> dict[str, Path]:
    """The known energies: name -> file."""
    return {name: files[0] for name, files in _entries().items()}


def _entries() -> dict[str, list[Path]]:
    """The files of every energy; there should be one of each name."""
    found: dict[str, list[Path]] = {}
    for _, folder in CATALOGUES.usable():
        for path in sorted(_folder(folder).glob("*.yaml")):
            found.setdefault(path.stem, []).append(path)
    return found


def load_energy(name: str, folder: str | Path = ".") -> Energy:
    """The energy of that name in the catalogue, or in a file.

    Arguments:
        name: a name from `catalogue()`, or the path of a YAML file.
        folder: what the path is relative to.

    Raises:
        DeclarationError: if there is none.
    """
    if name.endswith((".yaml", ".yml")):
        return _read_energy(Path(folder) / name)
    return _from_catalogue(name)


@cache
def _from_catalogue(name: str) -> Energy:
    entries = _entries()
    if name not in entries:
        hint = did_you_mean(name, entries, f"one of {', '.join(entries)}; or declare your own")
        raise DeclarationError(Fault(f"there is no energy '{name}' in the catalogue", hint))
    path, *others = entries[name]
    if others:
        raise DeclarationError(f"the energy '{name}' is provided by {path} and by {others[0]}", "rename one of them")
    return _read_energy(path)


def _read_energy(path: Path) -> Energy:
    source = read_source(path)
    if not isinstance(source.data, Mapping):
        raise DeclarationError(f"{path}: an energy is a mapping with the keys node, coupling, …", "see the catalogue")
    try:
        return energy_from_mapping(source.data, path.stem)
    except DeclarationError as error:
        raise source.relocate(error) from None
