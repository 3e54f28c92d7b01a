"""What has to be computed for a graph: the intermediate form between a declaration and code.

The energy of the units of a node, given everything else, is

    E(x) = phi(x) + beta C(x, y) + sum_m basis_m(x) h_m,        h_m = fixed_m + live_m

where the fields h_m are connections applied to functions of the neighbours. `fixed` collects what depends on clamped
nodes and parameters only and is computed once per relaxation; `live` is recomputed in every sweep.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple, cast

import sympy as sp

from physnet.costs import Penalty
from physnet.elements import Edge, Node
from physnet.expressions import derivative, symbol
from physnet.external import BETA, External
from physnet.graph import EnergyGraph
from physnet.periodic import winding
from physnet.separation import Separated, Solver, X
from physnet.topologies import Colouring


@dataclass(frozen=True)
class Source:
    """One contribution to a field: a connection applied to a function of a neighbour.

    Arguments:
        edge: name of the edge.
        adjoint: whether it flows against the direction of the edge.
        kernel: the weight, an expression in edge parameters.
        neighbour: name of the node it comes from.
        function: an expression in `x`, the state of the neighbour; a number if it doesn't depend on it.
    """

    edge: str
    adjoint: bool
    kernel: sp.Expr
    neighbour: str
    function: sp.Expr

    @property
    def constant(self) -> bool:
        return X not in self.function.free_symbols


@dataclass(frozen=True)
class Field:
    """h = fixed + live, which multiplies basis(x) in the energy of a node.

    Arguments:
        turns: whether it is the drive that a frame takes away which turns with the oscillators; `Problem` finds it.
    """

    index: int
    basis: sp.Expr
    fixed: tuple[Source, ...]
    live: tuple[Source, ...]
    turns: bool = False

    @property
    def fixed_symbol(self) -> sp.Symbol:
        return sp.Symbol(f"fixed {self.index}", real=True)

    @property
    def live_symbol(self) -> sp.Symbol:
        return sp.Symbol(f"live {self.index}", real=True)

    @property
    def value(self) -> sp.Expr:
        """fixed + live, without the one that is absent."""
        given = self.fixed or self.turns
        present = [s for s, sources in ((self.fixed_symbol, given), (self.live_symbol, self.live)) if sources]
        return cast(sp.Expr, sp.Add(*present))


A = symbol("a")
"""The drive of a node, in its energy."""


class Part(NamedTuple):
    """The units of a node, or those of one colour."""

    node: str
    colour: int | None = None


Block = tuple[Part, ...]


@dataclass(frozen=True)
class NodePlan:
    """What is to be computed for a free node.

    Arguments:
        cost: its share of C as one unit sees it, in `x` and targets, or zero: what is a sum over units, and a bound
            on what isn't.
        free: the exact update without a nudge.
        nudged: the exact update at any beta.
        mixed: the couplings that don't separate.
        separable: the part of the cost that is a sum over units.
        external: the other costs.
        drive: what the predictions of a node add up to, apart from its bias; its basis is 0, as it multiplies nothing.
        colouring: where units of the node interact: those of one colour don't.
    """

    node: Node
    cost: sp.Expr
    fields: tuple[Field, ...]
    free: Solver
    nudged: Solver
    mixed: tuple[str, ...]
    separable: sp.Expr
    external: tuple[External, ...]
    drive: Field | None = None
    colouring: Colouring | None = field(default=None, compare=False)

    @property
    def parts(self) -> tuple[Part, ...]:
        """Sets of its units that don't interact; together they are the node."""
        name = self.node.name
        return (Part(name),) if self.colouring is None else tuple(Part(name, c) for c in range(self.colouring.count))

    @property
    def all_fields(self) -> tuple[Field, ...]:
        """Its fields, and its drive."""
        return self.fields if self.drive is None else (*self.fields, self.drive)

    @property
    def conditional(self) -> sp.Expr:
        """The energy of a unit given its fields and the nudge, without couplings that don't separate."""
        return conditional(self.node.term, self.cost, self.fields)


@dataclass(frozen=True)
class EdgePlan:
    """A coupling: separated into products, or `None` where it must be broadcast over all pairs."""

    edge: Edge
    separated: tuple[Separated, ...] | None

    @property
    def selects(self) -> bool:
        """Whether its connection passes on the largest of several values."""
        return self.edge.connection.selects

    @property
    def only(self) -> Separated:
        """The single product of an edge that selects."""
        assert self.separated is not None
        return self.separated[0]

    @property
    def passed(self) -> sp.Expr:
        """What pre passes to a prediction, or to a connection that selects: an expression in `pre`."""
        return self.only.pre_factor if self.edge.message is None else self.edge.message


@dataclass(frozen=True)
class Plan:
    """The intermediate form of a graph.

    Arguments:
        nodes: plans of the free nodes, by name, in the order in which a signal from the inputs reaches them.
        edges: plans of the edges, by name.
        blocks: sets of units that don't interact, in the order of a free sweep; together they hold all free units.
        nudged_blocks: the same, in the order in which the nudge reaches them.
        ties: the tensors that tied parameters stand for.
        penalties: the regularisers, by owner.
        rotations: sets of nodes whose energy a common rotation leaves as it is, up to drives.
    """

    graph: EnergyGraph
    nodes: dict[str, NodePlan]
    edges: dict[str, EdgePlan]
    blocks: tuple[Block, ...]
    nudged_blocks: tuple[Block, ...]
    ties: dict[str, str]
    penalties: tuple[Penalty, ...]
    rotations: tuple[tuple[str, ...], ...] = ()

    @property
    def external(self) -> tuple[External, ...]:
        """All costs that aren't sums over the units of their node."""
        return tuple(external for plan in self.nodes.values() for external in plan.external)

    def tensor_of(self, owner: str, key: str) -> str:
        """The name of the tensor that a parameter stands for: its own, or the one that it shares."""
        name = f"{owner}.{key}"
        return self.ties.get(name, name)

    @cached_property
    def predictive(self) -> bool:
        """Whether the energy of a node is written in its drive."""
        return any(plan.drive is not None for plan in self.nodes.values())

    @cached_property
    def winners_move(self) -> bool:
        """Whether a free node decides the winners of an edge that selects."""
        return any(plan.selects and plan.edge.pre in self.nodes for plan in self.edges.values())

    @cached_property
    def winding(self) -> float:
        """By how many turns angles can be apart that are locked."""
        return winding(self.graph)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a user should know about this energy."""
        slow = (
            f"the coupling {plan.edge.term} of '{plan.edge.name}' doesn't separate into products of pre and post: "
            "each evaluation broadcasts over all pairs of units, for every sample"
            for plan in self.edges.values()
            if plan.separated is None
        )
        return (*slow, *(_rising(plan.edge) for plan in self.edges.values() if self._may_rise(plan)))

    def _may_rise(self, plan: EdgePlan) -> bool:
        """Whether winners that are held are no upper bound:  -v max(z) <= -v z[winner]  only where v >= 0."""
        if not (plan.selects and plan.separated):
            return False
        pre, post = self.graph.node(plan.edge.pre), self.graph.node(plan.edge.post)
        return pre.free and post.free and not plan.only.number * post.domain.sign < 0


def _rising(edge: Edge) -> str:
    return (
        f"the coupling {edge.term} of '{edge.name}' takes maxima, and '{edge.post}' may have the sign with which they "
        f"raise the energy: an update of '{edge.pre}', which holds the winners, may then raise it, too; give "
        f"'{edge.post}' a domain of one sign, such as nonnegative, or use avg_pool2d"
    )


def conditional(term: sp.Expr, cost: sp.Expr, fields: Iterable[Field]) -> sp.Expr:
    return cast(sp.Expr, term + BETA * cost + sp.Add(*(field.basis * field.value for field in fields)))


def roles_of(edge: Edge, node: str) -> tuple[bool, ...]:
    """Whether a node is `pre` (true) or `post` (false) of an edge; for couplings inside it, both."""
    return tuple(adjoint for adjoint, end in ((False, edge.post), (True, edge.pre)) if end == node)


@dataclass(frozen=True)
class Product:
    """One matrix product of an edge's contrast: number * factor ⊙ correlate(u(pre), v(post))."""

    number: sp.Expr
    pre_factor: sp.Expr
    post_factor: sp.Expr


def contrast_products(plan: EdgePlan, parameter: str) -> dict[sp.Expr, list[Product]]:
    """dE/d parameter = sum over factors of factor ⊙ sum_k number_k correlate(u_k, v_k); keyed by factor."""
    groups: dict[sp.Expr, list[Product]] = {}
    for term in plan.separated or ():
        slope = derivative(term.kernel, symbol(parameter))
        if slope == 0:
            continue
        number, factor = cast(tuple[sp.Expr, sp.Expr], sp.factor_terms(slope).as_coeff_Mul())
        groups.setdefault(factor, []).append(Product(term.number * number, term.pre_factor, term.post_factor))
    return groups


def parameter_slope(plan: NodePlan, parameter: str) -> sp.Expr:
    """d(phi + beta C)/d parameter for a node parameter."""
    return derivative(plan.node.term + BETA * plan.cost, symbol(parameter))
