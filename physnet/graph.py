"""The energy graph: nodes, edges and costs over a networkx multigraph.

A graph is a declaration and holds no numbers. `compile_energy` turns it into a module.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import networkx as nx
import sympy as sp

import physnet.convolutions  # noqa: F401 (its connections have names then)
from physnet.chains import parse_connection
from physnet.connections import Connection, Shape
from physnet.costs import Cost, Penalty, Regulariser, Target, make_cost, make_regulariser, penalties
from physnet.domains import parse_domain
from physnet.elements import (
    KEYWORDS,
    Edge,
    Node,
    check_name,
    no_such_node,
    parse_initial,
    parse_shape,
    specialise,
    unused,
)
from physnet.energy import FORMAT, Energy, load_energy, parse_encoding, parse_message, parse_time_constant
from physnet.errors import DeclarationError, Fault, ShapeError, located
from physnet.expressions import names, write
from physnet.parameters import ParameterSpec
from physnet.periodic import aperiodic
from physnet.sharing import tie_faults, ties
from physnet.topologies import inside


class EnergyGraph:
    """A network declared by its energy.

    Arguments:
        energy: the energy of all nodes and edges that don't name another: an entry of the catalogue or an `Energy`.
        name: for people.

    Raises:
        DeclarationError: from any method, when the declaration can't be right whatever follows; from `validate`, with
            everything that is wrong at once.
    """

    def __init__(self, energy: str | Energy | None = None, name: str = "") -> None:
        self.name = name
        self.energy = load_energy(energy) if isinstance(energy, str) else (energy or Energy())
        self.network: nx.MultiDiGraph = nx.MultiDiGraph()
        self.costs: list[Cost] = []
        self.regularisers: list[Regulariser] = []

    # ---------------------------------------------------------------- building

    def input(self, name: str, shape: int | Sequence[int], *, encode: Any = None) -> EnergyGraph:
        """Add a clamped node; `encode` lists expressions in `x` to stack along the first axis."""
        if name in KEYWORDS:
            raise DeclarationError(
                Fault(f"an input can't be called '{name}', which is an argument of relax", "rename it", ("nodes", name))
            )
        return self._add(name, shape, "input", encode=encode)

    def state(self, name: str, shape: int | Sequence[int], **options: Any) -> EnergyGraph:
        """Add a free node.

        Arguments:
            shape: number of units, or the shape with channels first.
            options: `energy` (another energy), `term` (its own node term), `domain`, `tau` (its time constant),
                `initial` (where its states start, such as `pi/2` or `uniform(-pi, pi)`), and `parameters`: changes to
                declared parameters, or new ones, by name.
        """
        return self._add(name, shape, "state", **options)

    def output(
        self, name: str, shape: int | Sequence[int], *, cost: Any = None, target: str = "target", **options: Any
    ) -> EnergyGraph:
        """Add a free node that carries a cost; options as for `state`."""
        self._add(name, shape, "output", **options)
        return self if cost is None else self.cost(name, cost, target=target)

    def couple(
        self,
        pre: str,
        post: str,
        connection: str | Connection = "dense",
        *,
        name: str = "",
        energy: str | Energy | None = None,
        term: Any = None,
        parameters: Mapping[str, Any] | None = None,
        kind: str | None = None,
        message: Any = None,
    ) -> EnergyGraph:
        """Add an edge.

        Arguments:
            energy: another energy for it.
            term: its own coupling.
            parameters: changes to declared parameters, by name, or new ones.
            kind: `coupling`, or `prediction`: then it adds connection(message(pre)) to the drive `a` of post. By
                default it is a prediction if it has no coupling term, and the energy of post is written in `a`.
            message: what a prediction passes on, an expression in `pre`.
        """
        name = name or f"{pre}_{post}"
        path = ("edges", f"{pre} -> {post}")
        check_name(name, path)
        for end in (pre, post):
            if end not in self.network:
                raise no_such_node(end, self.network, path)
        if name in self.owners():
            raise DeclarationError(Fault(f"the name '{name}' is taken", "give the edge a name of its own", path))
        base = load_energy(energy) if isinstance(energy, str) else (energy or self.energy)
        coupling, specs = specialise(base.coupling, base, "edge", {"pre", "post"}, term, parameters, path)
        if kind not in (None, "coupling", "prediction"):
            raise DeclarationError(
                Fault(f"unknown kind {kind!r} of an edge", "coupling or prediction", (*path, "kind"))
            )
        predicts = kind == "prediction" or (kind is None and coupling == 0 and "a" in names(self.node(post).term))
        passed = located((*path, "message"), lambda: parse_message(base.message if message is None else message))
        link = located((*path, "via"), lambda: parse_connection(connection))
        if pre == post:
            link = located((*path, "via"), lambda: inside(link))
        if predicts:
            coupling = sp.Integer(0)
        elif message is not None:
            raise DeclarationError(Fault("a coupling passes no message", "write kind: prediction", (*path, "message")))
        used = {key: spec for key, spec in specs.items() if key in ({"w"} if predicts else names(coupling))}
        if predicts and (not used or used["w"].shape == "scalar"):
            fix = "declare w: {on: edge, init: normal(0, 1/sqrt(fan_in))}"
            raise DeclarationError(Fault("a prediction needs the weights w of its connection", fix, path))
        for key in set(parameters or ()) - set(used):
            raise DeclarationError(unused(key, used, (*path, "parameters", key)))
        edge = Edge(name, pre, post, link, coupling, used, passed if predicts else None)
        self.network.add_edge(pre, post, key=name, edge=edge)
        return self

    def cost(
        self,
        node: str,
        term: Any,
        *,
        target: str = "target",
        weight: float = 1.0,
        readout: str | None = None,
        name: str = "",
        parameters: Mapping[str, Any] | None = None,
    ) -> EnergyGraph:
        """Add weight * sum of term(x, y) over the units of a node, where y is the batch tensor called `target`.

        Arguments:
            term: an expression, or the name of a reduction such as `cross_entropy`.
            readout: such as `dense(10)`: x in the term is then z = connection(state, w) + b, which is no state.
            name: of the readout, which owns its tensors; by default `<node>_readout`.
            parameters: changes to w and b of the readout, by name.
        """
        path = ("costs", node)
        if node not in self.network:
            raise no_such_node(node, self.network, (*path, "node"))
        check_name(target, path)
        cost = make_cost(self.node(node), term, target, weight, readout, name, parameters, path)
        if cost.readout is not None and cost.readout.name in self.owners():
            fault = Fault(f"the name '{cost.readout.name}' is taken", "give the readout another name", (*path, "name"))
            raise DeclarationError(fault)
        self.costs.append(cost)
        return self

    def regularise(self, term: Any, *, on: str | Sequence[str] = (), weight: float = 1.0) -> EnergyGraph:
        """Add weight * sum of term(parameters) to the cost, over the entries of every tensor that is called so.

        Arguments:
            term: an expression in parameters of one node, edge or readout, such as `w**2/2`.
            on: restricts it to these nodes, edges and readouts.
        """
        self.regularisers.append(make_regulariser(term, on, weight, ("costs", "regulariser")))
        return self

    def _add(
        self,
        name: str,
        shape: int | Sequence[int],
        role: str,
        *,
        energy: str | Energy | None = None,
        term: Any = None,
        domain: Any = None,
        parameters: Mapping[str, Any] | None = None,
        encode: Any = None,
        tau: float | None = None,
        initial: Any = None,
    ) -> EnergyGraph:
        path = ("nodes", name)
        check_name(name, path)
        if name in self.owners():
            raise DeclarationError(Fault(f"the name '{name}' is taken", "rename one of the two", path))
        base = load_energy(energy) if isinstance(energy, str) else (energy or self.energy)
        data_shape = located(path, lambda: parse_shape(shape))
        if role == "input":
            codes = located((*path, "encode"), lambda: parse_encoding(encode)) if encode is not None else base.encode
            full = (data_shape[0] * max(len(codes), 1), *data_shape[1:])
            node = Node(name, full, data_shape, role, sp.Integer(0), base.domain_for("state"), {}, tuple(codes))
        else:
            written, specs = specialise(base.term_for(role), base, "node", {"x", "a"}, term, parameters, path)
            lives = (
                base.domain_for(role) if domain is None else located((*path, "domain"), lambda: parse_domain(domain))
            )
            located((*path, "domain"), lambda: lives.check(data_shape))
            overridden = set(parameters or ())
            needed = names(written) | ({"b"} if "a" in names(written) else set())  # a drive contains a bias
            used = {key: spec for key, spec in specs.items() if key in needed or key in overridden}
            constant = base.tau if tau is None else located((*path, "tau"), lambda: parse_time_constant(tau))
            begin = located((*path, "initial"), lambda: parse_initial(initial))
            node = Node(name, data_shape, data_shape, role, written, lives, used, tau=constant, initial=begin)
        self.network.add_node(name, node=node)
        return self

    # ---------------------------------------------------------------- reading

    def node(self, name: str) -> Node:
        return cast(Node, self.network.nodes[name]["node"])

    def nodes(self) -> Iterator[Node]:
        """All nodes, in the order of declaration."""
        return (data["node"] for _, data in self.network.nodes(data=True))

    def edges(self) -> Iterator[Edge]:
        """All edges, in the order of declaration."""
        return (data["edge"] for _, _, data in self.network.edges(data=True))

    def edge(self, name: str) -> Edge:
        return next(edge for edge in self.edges() if edge.name == name)

    def readouts(self) -> dict[str, Cost]:
        """The costs that have a readout, by its name."""
        return {cost.readout.name: cost for cost in self.costs if cost.readout is not None}

    def owners(self) -> dict[str, Mapping[str, ParameterSpec]]:
        """The parameters of every node, edge and readout."""
        elements = [*self.edges(), *self.nodes(), *(cost.readout for cost in self.costs if cost.readout is not None)]
        return {element.name: element.parameters for element in elements}

    def specs(self) -> dict[str, ParameterSpec]:
        """Every declared parameter, tied or not, by `owner.parameter`."""
        return {f"{owner}.{key}": spec for owner, specs in self.owners().items() for key, spec in specs.items()}

    def ties(self) -> dict[str, str]:
        """Tied parameters, and the tensors that they stand for."""
        return ties(self.specs())

    def penalties(self) -> Iterator[Penalty]:
        """The regularisers, owner by owner."""
        owners, tied = self.owners(), self.ties()
        for number, regulariser in enumerate(self.regularisers):
            yield from penalties(regulariser, owners, tied, ("costs", "regulariser", number))

    def targets(self) -> dict[str, Target]:
        """What each target of the batch belongs to."""
        nodes = {cost.target: cost.node for cost in self.costs}
        found = {target: Target(node, node, self.node(node).shape) for target, node in nodes.items()}
        heads = {c.target: Target(c.readout.name, c.node, c.readout.shape) for c in self.costs if c.readout is not None}
        return found | heads

    def tensors(self) -> dict[str, tuple[ParameterSpec, Shape, tuple[int, int]]]:
        """Every parameter tensor: `owner.parameter` -> (declaration, shape, (fan_in, fan_out)); tied ones once."""
        return {name: entry for name, entry in self._all_tensors().items() if not entry[0].share}

    def _all_tensors(self) -> dict[str, tuple[ParameterSpec, Shape, tuple[int, int]]]:
        result: dict[str, tuple[ParameterSpec, Shape, tuple[int, int]]] = {}
        fan_in: dict[str, int] = {}
        fan_out: dict[str, int] = {}
        for edge in self.edges():
            pre, post = self.node(edge.pre), self.node(edge.post)
            fans = edge.connection.fans(pre.shape, post.shape)
            fan_in[edge.post] = max(fans[0], fan_in.get(edge.post, 0))
            fan_out[edge.pre] = max(fans[1], fan_out.get(edge.pre, 0))
            for key, spec in edge.parameters.items():
                shape = () if spec.shape == "scalar" else edge.connection.weight_shape(pre.shape, post.shape)
                result[f"{edge.name}.{key}"] = spec, shape, fans
        for node in self.nodes():
            for key, spec in node.parameters.items():
                shape = {"unit": node.shape, "channel": node.shape[:1], "scalar": ()}[spec.shape]
                result[f"{node.name}.{key}"] = spec, shape, (fan_in.get(node.name, 1), fan_out.get(node.name, 1))
        for name, cost in self.readouts().items():
            assert cost.readout is not None
            connection, pre, post = cost.readout.connection, self.node(cost.node).shape, cost.readout.shape
            shapes = {"connection": connection.weight_shape(pre, post), "unit": post, "channel": post[:1], "scalar": ()}
            for key, spec in cost.readout.parameters.items():
                result[f"{name}.{key}"] = spec, shapes[spec.shape], connection.fans(pre, post)
        return result

    # ---------------------------------------------------------------- checking

    def validate(self) -> None:
        """Check the whole graph.

        Raises:
            DeclarationError: with everything that is wrong, each with its place and fix.
        """
        faults: list[Fault] = []
        shape_faults: list[Fault] = []
        free = [node.name for node in self.nodes() if node.free]
        if not free:
            faults.append(Fault("the graph has no free node", "add a node with role state or output", ("nodes",)))
        for edge in self.edges():
            path = ("edges", f"{edge.pre} -> {edge.post}")
            if not self.node(edge.pre).free and not self.node(edge.post).free:
                faults.append(Fault("both ends of this edge are clamped, so it has no effect", "remove it", path))
            try:
                edge.connection.check(self.node(edge.pre).shape, self.node(edge.post).shape)
            except DeclarationError as error:
                shape_faults.extend(error.under(*path).faults)
        faults.extend(self._target_faults())
        faults.extend(aperiodic({node.name: node for node in self.nodes()}, self.edges(), self.costs))
        faults.extend(self._prediction_faults())
        for node in self.nodes():
            terms = [node.term, *(c.term for c in self.costs if c.node == node.name and not c.external)]
            used = {name for term in terms for name in names(term)} | ({"b"} if node.driven else set())
            for key in sorted(set(node.parameters) - used):
                faults.append(unused(key, used & set(node.parameters), ("nodes", node.name, "parameters", key)))
        inputs = [node.name for node in self.nodes() if not node.free]
        reached = {name for component in self._components() if component & set(inputs) for name in component}
        for name in free:
            if inputs and name not in reached:
                faults.append(
                    Fault(f"'{name}' isn't connected to any input", "add an edge that leads to it", ("nodes", name))
                )
        for error in self._parameter_errors(complete=not shape_faults):
            (shape_faults if isinstance(error, ShapeError) else faults).extend(error.faults)
        if shape_faults and not faults:
            raise ShapeError(shape_faults)
        if faults or shape_faults:
            raise DeclarationError([*faults, *shape_faults])

    def _parameter_errors(self, complete: bool) -> Iterator[DeclarationError]:
        """What is wrong with ties and regularisers; shapes are only known where connections fit."""
        places: dict[str, tuple[str | int, ...]] = {node.name: ("nodes", node.name) for node in self.nodes()}
        places |= {edge.name: ("edges", f"{edge.pre} -> {edge.post}") for edge in self.edges()}
        places |= {c.readout.name: ("costs", "cost", i) for i, c in enumerate(self.costs) if c.readout is not None}
        specs = self.specs()
        shapes = {name: shape for name, (_, shape, _) in self._all_tensors().items()} if complete else {}
        at = {name: (*places[(parts := name.split("."))[0]], "parameters", parts[1]) for name in specs}
        broken = list(tie_faults(specs, at, shapes))
        yield from broken
        try:
            list(() if broken else self.penalties())
        except DeclarationError as error:
            yield error

    def _target_faults(self) -> Iterator[Fault]:
        shapes: dict[str, Shape] = {}
        for number, cost in enumerate(self.costs):
            path = ("costs", "cost", number, "target")
            shape = self.node(cost.node).shape if cost.readout is None else cost.readout.shape
            if cost.target in self.network and not self.node(cost.target).free:
                yield Fault(f"the target '{cost.target}' is called like an input", "rename one of the two", path)
            if cost.target in KEYWORDS - {"target"}:
                yield Fault(f"a target can't be called '{cost.target}', an argument of relax", "rename it", path)
            if shapes.setdefault(cost.target, shape) != shape:
                both = f"{shapes[cost.target]} and {shape}"
                message = f"the target '{cost.target}' belongs to states or readouts of shapes {both}"
                yield Fault(message, "give each its own target", path)

    def _prediction_faults(self) -> Iterator[Fault]:
        """Drives that nothing adds to, and predictions that no energy asks for."""
        predicted = {edge.post for edge in self.edges() if edge.predicts}
        for node in self.nodes():
            if node.free and node.driven and node.name not in predicted:
                fix = f"add an edge that leads to '{node.name}', or give it a term without a"
                yield Fault(f"no edge predicts '{node.name}', whose energy has a drive", fix, ("nodes", node.name))
        for edge in self.edges():
            path = ("edges", f"{edge.pre} -> {edge.post}")
            if edge.predicts and edge.pre == edge.post:
                yield Fault(f"'{edge.pre}' predicts itself", "turn it into a coupling, or remove it", path)
            elif edge.predicts and not self.node(edge.post).driven:
                fix = f"give '{edge.post}' a term in a, such as (x - relu(a))**2/2, or the edge a coupling"
                yield Fault(f"the energy of '{edge.post}' has no drive that could be predicted", fix, path)

    def _components(self) -> Iterator[set[str]]:
        return (set(component) for component in nx.weakly_connected_components(self.network))

    # ---------------------------------------------------------------- identity

    def declaration(self) -> dict[str, Any]:
        """The whole graph as plain data, everything resolved: what YAML and digest are made of."""
        return {
            "physnet": FORMAT,
            "name": self.name,
            "energy": self.energy.declaration(),
            "nodes": {node.name: self._node_declaration(node) for node in self.nodes()},
            "edges": [self._edge_declaration(edge) for edge in self.edges()],
            "costs": [item.declaration() for item in (*self.costs, *self.regularisers)],
        }

    def _node_declaration(self, node: Node) -> dict[str, Any]:
        result: dict[str, Any] = {"shape": list(node.data_shape), "role": node.role}
        if not node.free:
            return result | {"encode": [write(item) for item in node.encode]}
        result["domain"] = node.domain.declaration()
        if node.tau != self.energy.tau:
            result["tau"] = node.tau
        if node.initial is not None:
            result["initial"] = node.initial.init
        if node.term != self.energy.term_for(node.role):
            result["term"] = write(node.term)
        changed = self._changed(node.parameters)
        return result | ({"parameters": changed} if changed else {})

    def _edge_declaration(self, edge: Edge) -> dict[str, Any]:
        body: dict[str, Any] = {"via": edge.connection.declaration(), "name": edge.name}
        if edge.message is not None:
            body |= {"kind": "prediction", "message": write(edge.message)}
        elif edge.term != self.energy.coupling:
            body["term"] = write(edge.term)
        changed = self._changed(edge.parameters)
        if changed:
            body["parameters"] = changed
        return {f"{edge.pre} -> {edge.post}": body}

    def _changed(self, parameters: Mapping[str, ParameterSpec]) -> dict[str, Any]:
        """The parameters that differ from those of the graph's energy; a constraint that was lifted is named."""
        changed: dict[str, Any] = {}
        for key, spec in parameters.items():
            base = self.energy.parameters.get(key)
            if spec != base:
                lifted = base is not None and base.constraint is not None and spec.constraint is None
                if base is not None and spec.share and spec.constraint == base.constraint:
                    spec, lifted = replace(spec, constraint=None), False
                changed[key] = spec.declaration() | ({"constraint": "real"} if lifted else {})
        return changed

    @property
    def digest(self) -> str:
        """SHA-256 of the declaration: the identity of the graph, whatever it is called."""
        content = {key: value for key, value in self.declaration().items() if key != "name"}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, EnergyGraph) and self.declaration() == other.declaration()

    def __hash__(self) -> int:
        return hash(self.digest)

    def _repr_html_(self) -> str:
        return importlib.import_module("physnet.notebook").html(self)

    def _repr_markdown_(self) -> str:
        return importlib.import_module("physnet.notebook").markdown(self)

    def __repr__(self) -> str:
        nodes = ", ".join(f"{node.name}{list(node.shape)}" for node in self.nodes())
        return (
            f"EnergyGraph({self.name or self.energy.name or 'custom'}: {nodes}; {self.network.number_of_edges()} edges)"
        )
