"""Experiments in YAML: reading them into graphs and settings, and writing graphs back.

The schema below says which keys there are; what the values mean is decided where it is used, and every fault is carried
back to its line and column. Nothing here imports torch, so that errors come at once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from physnet.edgelists import relative_to
from physnet.elements import no_such_node
from physnet.energy import Energy, energy_from_mapping, load_energy
from physnet.errors import DeclarationError, Fault, ShapeError, collected, did_you_mean, located
from physnet.graph import EnergyGraph
from physnet.hardware import check_hardware
from physnet.reading import check_share, check_starts, choose_method, read_schema
from physnet.references import check_learning
from physnet.schema import (
    CostSchema,
    ExperimentSchema,
    HardwareSchema,
    LearnSchema,
    NodeSchema,
    RelaxSchema,
    SimulateSchema,
    TrainSchema,
)
from physnet.sources import Source, dump_yaml, parse_source, read_source

_ARROW = re.compile(r"\s*([A-Za-z]\w*)\s*->\s*([A-Za-z]\w*)\s*")


@dataclass(frozen=True)
class Experiment:
    """A declared experiment.

    Arguments:
        graph: the network.
        relax, learn, train: settings, with defaults filled in.
        source: the file, for the places of later errors.
        simulate: settings of `physnet simulate`, on which no run depends.
        hardware: the device that the network runs on; without imperfections by default.
    """

    graph: EnergyGraph
    relax: RelaxSchema
    learn: LearnSchema
    train: TrainSchema
    source: Source = field(repr=False)
    simulate: SimulateSchema = field(default_factory=SimulateSchema)
    hardware: HardwareSchema = field(default_factory=HardwareSchema)

    @property
    def data(self) -> Any:
        """The declared data set, with paths relative to the file made absolute."""
        declared = self.train.data
        if not isinstance(declared, Mapping):
            return declared
        folder = Path(self.source.name).parent
        return {
            name: {
                key: str((folder / value).resolve()) if key in ("file", "folder") and isinstance(value, str) else value
                for key, value in options.items()
            }
            if isinstance(options, Mapping)
            else options
            for name, options in declared.items()
        }

    @property
    def parameters(self) -> Path | None:
        """Where the parameters to begin with are; a path is relative to the file."""
        given = self.train.parameters
        return None if given is None else (Path(self.source.name).parent / given).resolve()

    def resolved(self) -> dict[str, Any]:
        """Everything that a run depends on, as plain data that can be read back."""
        device = self.hardware.model_dump(exclude_defaults=True)
        return (
            self.graph.declaration()
            | ({"hardware": device} if device else {})
            | {
                "relax": self.relax.model_dump(),
                "learn": self.learn.model_dump(exclude_none=True),
                "train": self.train.model_dump(exclude_none=True)
                | {"data": self.data}
                | ({"parameters": str(self.parameters)} if self.parameters else {}),
            }
        )

    def fault(self, message: str, fix: str, *path: str | int) -> DeclarationError:
        """An error that points into the file."""
        return DeclarationError(self.source.locate(Fault(message, fix, path)))


def load_experiment(path: str | Path, changes: Mapping[str, str] | None = None) -> Experiment:
    """Read and check an experiment.

    Arguments:
        path: the file.
        changes: values to change, by dotted key such as `train.epochs`, written as YAML.

    Raises:
        DeclarationError: with everything that is wrong, each fault with file, line, caret and fix.
    """
    source = read_source(path)
    values = {key: parse_source(value, f"--set {key}").data for key, value in (changes or {}).items()}
    _drop_options(source.data, values)
    for key, value in values.items():
        _change(source.data, key, value)
    source = choose_method(source, values)
    return _build(source)


def _drop_options(data: Any, changes: Mapping[str, Any]) -> None:
    """Options are those of the protocol or the integrator that a file names, and go with it."""
    for section, key in (("learn", "protocol"), ("relax", "integrator"), ("learn.nudged", "integrator")):
        declared = data
        for part in section.split("."):
            declared = declared.get(part) if isinstance(declared, dict) else None
        if isinstance(declared, dict) and declared.get(key) != changes.get(f"{section}.{key}", declared.get(key)):
            declared.pop("options", None)


def _change(data: Any, key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        if not isinstance(data, dict):
            break
        data = data.setdefault(parent, {})
    if not isinstance(data, dict):
        raise DeclarationError(f"--set {key}: there is no such key", "name keys as in the file, such as learn.beta")
    data[last] = value


def parse_experiment(text: str, name: str = "<text>") -> Experiment:
    """Read and check an experiment from YAML text."""
    return _build(choose_method(parse_source(text, name)))


def graph_from_yaml(text: str) -> EnergyGraph:
    """The graph that YAML text declares; other sections are checked and left out."""
    return parse_experiment(text).graph


def graph_to_yaml(graph: EnergyGraph) -> str:
    """The graph as YAML with everything resolved: `graph_from_yaml` gives an equal graph."""
    return dump_yaml(graph.declaration())


# --------------------------------------------------------------------------- building


def _build(source: Source) -> Experiment:
    from physnet.augmentations import find_augmentations
    from physnet.data import check_data

    try:
        schema = read_schema(source.data)
        learn = schema.learn
        with relative_to(Path(source.name).parent):
            graph, *_ = collected(
                lambda: _Builder(schema, Path(source.name).parent).build(),
                lambda: located(("learn",), lambda: _check_learning(learn)),
                lambda: located(("train", "data"), lambda: check_data(schema.train.data)),
                lambda: located(("train", "validation"), lambda: check_share(schema.train.validation)),
                lambda: located(("train", "augment"), lambda: find_augmentations(schema.train.augment)),
            )
            located(("hardware",), lambda: check_hardware(schema.hardware, graph))
            located(("learn",), lambda: check_starts(graph, learn.starts, schema.relax.initial))
    except DeclarationError as error:
        raise source.relocate(error) from None
    return Experiment(graph, schema.relax, schema.learn, schema.train, source, schema.simulate, schema.hardware)


def _check_learning(learn: LearnSchema) -> None:
    check_learning(learn.protocol, learn.beta, learn.options, learn.starts)


class _Builder:
    """Builds a graph and collects every fault on the way."""

    def __init__(self, schema: ExperimentSchema, folder: Path) -> None:
        self.schema, self.folder, self.faults = schema, folder, list[Fault]()
        self.only_shapes = True
        self.missing: set[str] = set()
        self.edge_paths: dict[str, tuple[str | int, ...]] = {}
        self.cost_paths: list[tuple[str | int, ...]] = []
        self.regulariser_paths: list[tuple[str | int, ...]] = []

    def build(self) -> EnergyGraph:
        energy = self.attempt(lambda: located(("energy",), lambda: self.energy(self.schema.energy)))
        if self.faults:
            raise DeclarationError(self.faults)
        self.graph = EnergyGraph(energy, self.schema.name)
        for name, node in self.schema.nodes.items():
            before = len(self.faults)
            self.attempt(lambda name=name, node=node: self.node(name, node))
            if len(self.faults) > before:
                self.missing.add(name)
        for index, item in enumerate(self.schema.edges):
            self.attempt(lambda index=index, item=item: self.edge(index, item))
        self.costs()
        if not self.faults:
            self.attempt(self.graph.validate)
        if self.faults:
            raise (ShapeError if self.only_shapes else DeclarationError)(self.faults)
        return self.graph

    def attempt(self, action: Any) -> Any:
        try:
            return action()
        except DeclarationError as error:
            self.faults.extend(map(self.in_file, error.faults))
            self.only_shapes = self.only_shapes and isinstance(error, ShapeError)
            return None

    def in_file(self, fault: Fault) -> Fault:
        """Graphs name edges by their ends and number costs apart from regularisers; files number both in one list."""
        match fault.path:
            case ("costs", "regulariser", int(number), *rest):
                return replace(fault, path=(*self.regulariser_paths[number], *rest))
            case ("costs", "cost", int(number), *rest):
                return replace(fault, path=(*self.cost_paths[number], *rest))
            case ("edges", str(ends), *rest) if ends in self.edge_paths:
                return replace(fault, path=(*self.edge_paths[ends], *rest), at_key=fault.at_key or not rest)
        return fault

    def energy(self, declared: Any) -> Energy:
        if declared is None:
            return Energy()
        if isinstance(declared, str):
            return load_energy(declared, self.folder)
        if isinstance(declared, Mapping):
            return energy_from_mapping(declared)
        raise DeclarationError(f"expected a name or a mapping, found {declared!r}", "such as energy: hopfield")

    def node(self, name: str, node: NodeSchema) -> None:
        given = {key: getattr(node, key) for key in node.model_fields_set - {"shape", "role"}}
        path = ("nodes", name)
        if "energy" in given:
            given["energy"] = located((*path, "energy"), lambda: self.energy(given["energy"]))
        if node.role == "input":
            for key in sorted(set(given) - {"encode"}):
                raise DeclarationError(Fault(f"an input is clamped and has no {key}", "remove it", (*path, key)))
            self.graph.input(name, node.shape, **given)
            return
        if "encode" in given:
            raise DeclarationError(Fault("only inputs are encoded", "remove it", (*path, "encode")))
        add = self.graph.output if node.role == "output" else self.graph.state
        add(name, node.shape, **given)

    def edge(self, index: int, item: Any) -> None:
        where: tuple[str | int, ...] = ("edges", index)
        if isinstance(item, str):
            key, body = item, {}
        elif isinstance(item, Mapping) and len(item) == 1:
            ((key, body),) = item.items()
            where = (*where, key)
        else:
            raise DeclarationError(
                Fault("an edge is written as 'a -> b: connection'", "- image -> hidden: dense", where)
            )
        ends = _ARROW.fullmatch(key)
        if ends is None:
            raise DeclarationError(Fault(f"'{key}' is not an edge", "write: node -> node", where, at_key=True))
        pre, post = ends.groups()
        self.edge_paths[f"{pre} -> {post}"] = where
        for end in (pre, post):
            if end not in self.schema.nodes:
                raise no_such_node(end, self.schema.nodes, where)
        if {pre, post} & self.missing:
            return
        if isinstance(body, str) or body is None:
            body = {"via": body or "dense"}
        if not isinstance(body, Mapping):
            raise DeclarationError(
                Fault("expected a connection or a mapping", "such as {via: dense, gain: 0.7}", where)
            )
        self.couple(pre, post, dict(body), where)

    def couple(self, pre: str, post: str, body: dict[str, Any], where: tuple[str | int, ...]) -> None:
        own = body.pop("energy", None)
        energy = None if own is None else located((*where, "energy"), lambda: self.energy(own))
        parameters = body.pop("parameters", {}) or {}
        if not isinstance(parameters, Mapping):
            raise DeclarationError(
                Fault("expected a mapping of parameters", "w: {init: zeros}", (*where, "parameters"))
            )
        parameters = {key: dict(value) if isinstance(value, Mapping) else value for key, value in parameters.items()}
        known = {key: body.pop(key) for key in ("term", "name", "kind", "message") if key in body}
        via = body.pop("via", "dense")
        for key, value in body.items():  # constants of initialisers, such as gain
            owners = [
                s.name
                for s in (energy or self.graph.energy).parameters.values()
                if key in s.constants and s.on == "edge"
            ]
            if not owners:
                options = ["via", "name", "energy", "term", "kind", "message", "parameters"]
                options += [c for s in self.graph.energy.parameters.values() if s.on == "edge" for c in s.constants]
                hint = did_you_mean(key, options)
                raise DeclarationError(Fault(f"unknown key '{key}' of an edge", hint, (*where, key), at_key=True))
            for owner in owners:
                parameters[owner] = {key: value, **parameters.get(owner, {})}
        self.graph.couple(pre, post, via, energy=energy, parameters=parameters, **known)

    def costs(self) -> None:
        outputs = [name for name, node in self.schema.nodes.items() if node.role == "output"]
        costs: list[tuple[tuple[str | int, ...], CostSchema]] = [
            (("costs", index), cost) for index, cost in enumerate(self.schema.costs)
        ]
        if self.schema.cost is not None and len(outputs) == 1:
            costs.append((("cost",), CostSchema(node=outputs[0], term=self.schema.cost)))
        elif self.schema.cost is not None:
            self.attempt(lambda: self.refuse_single_cost(len(outputs)))
        for path, cost in costs:
            if cost.node not in self.missing:
                self.attempt(lambda path=path, cost=cost: self.cost(path, cost))

    @staticmethod
    def refuse_single_cost(count: int) -> None:
        raise DeclarationError(
            Fault(f"cost needs exactly one output node, found {count}", "write costs: [{node, term}]", ("cost",))
        )

    def cost(self, path: tuple[str | int, ...], cost: CostSchema) -> None:
        given = {key: getattr(cost, key) for key in cost.model_fields_set - {"node", "term"}}
        try:
            if cost.node is None:
                self.regulariser(cost.term, given, path)
                return
            if "on" in given:
                raise DeclarationError(Fault("a cost on a node has no key on", "remove node, or on", ("", "", "on")))
            self.graph.cost(cost.node, cost.term, **given)
        except DeclarationError as error:  # a single cost is its own term
            rests = ((fault, () if path == ("cost",) else fault.path[2:]) for fault in error.faults)
            raise type(error)(replace(fault, path=(*path, *rest)) for fault, rest in rests) from None
        self.cost_paths.append(path)

    def regulariser(self, term: Any, given: dict[str, Any], path: tuple[str | int, ...]) -> None:
        for key in sorted(given.keys() - {"on", "weight"}):
            fix = "add node: with the name of a free node, or remove it"
            raise DeclarationError(Fault(f"a cost without a node has no {key}", fix, ("", "", key), at_key=True))
        self.graph.regularise(term, **given)
        self.regulariser_paths.append(path)
