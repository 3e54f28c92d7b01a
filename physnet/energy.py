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
from physnet.expressions import RESERVED, names, parse, write
from physnet.parameters import ParameterSpec, parse_parameter
from physnet.registry import Registry
from physnet.sources import read_source

FORMAT = 1
"""Version of the file formats."""


@dataclass(frozen=True)
class Energy:
    """E = sum over nodes of node(x) + sum over connected pairs of coupling(pre, post).

    Arguments:
        node: an expression in `x` and node parameters, as text or SymPy.
        coupling: an expression in `pre`, `post` and edge parameters.
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
    domain: Any = REAL
    parameters: Mapping[str, Any] = field(default_factory=dict)
    encode: Any = None
    name: str = ""
    title: str = ""
    reference: str = ""
    tau: float = 1.0

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
        terms = {key: attempt(key, lambda key=key: parse(getattr(self, key))) for key in ("node", "coupling")}
        for key, allowed in (("node", {"x"}), ("coupling", {"pre", "post"})):
            if terms[key] is not None:
                on = "node" if key == "node" else "edge"
                declared_here = {name for name, spec in specs.items() if spec.on == on} | broken
                faults.extend(undeclared(terms[key], getattr(self, key), allowed, declared_here, on, (key,)))
        domain = attempt("domain", lambda: parse_role_domains(self.domain))
        encode = attempt("encode", lambda: parse_encoding(self.encode))
        tau = attempt("tau", lambda: parse_time_constant(self.tau))
        if faults:
            raise DeclarationError(faults)
        parsed = {**terms, "domain": domain, "encode": encode, "parameters": specs, "tau": tau}
        for attribute, value in parsed.items():
            object.__setattr__(self, attribute, value)

    def domain_for(self, role: str) -> Domain:
        """The domain of nodes of that role."""
        return self.domain[role]

    def declaration(self) -> dict[str, Any]:
        """The energy as it is written in a file."""
        result: dict[str, Any] = {"node": write(self.node), "coupling": write(self.coupling)}
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

_KEYS = {"physnet", "title", "reference", "node", "coupling", "domain", "parameters", "encode", "tau"}


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
