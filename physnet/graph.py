"""The energy graph: nodes, edges and costs over a networkx multigraph.

A graph is a declaration and holds no numbers. `compile_energy` turns it into a module.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import networkx as nx
import sympy as sp

import physnet.convolutions  # noqa: F401 (its connections have names then)
from physnet.chains import parse_connection
from physnet.connections import Connection, Shape
from physnet.consistency import check
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
from physnet.energy import Energy, load_energy, parse_encoding, parse_message, parse_time_constant
from physnet.errors import DeclarationError, Fault, located
from physnet.expressions import names
from physnet.parameters import ParameterSpec
from physnet.serialisation import plain
from physnet.sharing import ties
from physnet.tensors import declared_tensors
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
        return {name: entry for name, entry in declared_tensors(self).items() if not entry[0].share}

    # ---------------------------------------------------------------- checking and identity

    def validate(self) -> None:
        """Check the whole graph.

        Raises:
            DeclarationError: with everything that is wrong, each with its place and fix.
        """
        check(self)

    def declaration(self) -> dict[str, Any]:
        """The whole graph as plain data, everything resolved: what YAML and digest are made of."""
        return plain(self)

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
