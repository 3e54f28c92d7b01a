"""What integrators work on: the energy of one batch with everything but the free states held fixed.

An integrator sees `energy`, `force`, `project`, `blocks` and `minimise`, and never asks what the energy is made of.
`docs/architecture.md` sketches how prediction terms stand behind the same face.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import torch
from torch import Tensor

from physnet.domains import Domain
from physnet.errors import RelaxationError
from physnet.frames import frame_frequency, turning_fields
from physnet.layout import arranged
from physnet.plans import Block, Part
from physnet.rows import Repeated, Share, some_rows
from physnet.separation import GradientOnly

if TYPE_CHECKING:
    from physnet.model import EnergyModel

State = dict[str, Tensor]
Minimiser = Callable[[Mapping[str, Tensor]], Tensor]
P = TypeVar("P", bound="Problem")
FLAT = 1e-6
"""Curvatures below this one say nothing about how far a force would carry a unit."""


class Problem:
    """F(s) = E(s) + beta C(s) for a batch. One row is one sample in one phase.

    Arguments:
        model: where energy and parameters come from.
        clamped: states of the input nodes, [rows, *node].
        rows: number of rows.
        fixed: the fields that don't change during a relaxation; worked out here if not given.
        targets: by name, [rows, *node]; for a nudged problem.
        beta: nudge of every row, [rows], or `None` for the free problem.
        parameters: by name, in place of those of the model.
    """

    phases = 1
    """Phases stacked along the rows."""
    passed: Any = None
    """What the integrator of a free phase has found that nudged phases go on with, such as a pass forwards."""

    def __init__(
        self,
        model: EnergyModel,
        clamped: Mapping[str, Tensor],
        rows: int,
        fixed: Mapping[str, Mapping[int, Tensor]] | None = None,
        targets: Mapping[str, Tensor] | None = None,
        beta: Tensor | None = None,
        parameters: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.model, self.clamped, self.rows = model, clamped, rows
        self.parameters = model.physical if parameters is None else parameters
        self.weights = self.parameters
        self.resolution = 4 * torch.finfo(self.like.dtype).eps  # relative steps below this one are noise
        self.targets, self.beta = targets or {}, beta
        self.fixed = fixed if fixed is not None else self._fixed_fields()

    def nudged(self, targets: Mapping[str, Tensor], betas: Sequence[complex]) -> Problem:
        """The same batch under a nudge: `betas` gives one phase each, stacked along the rows.

        Arguments:
            targets: by name, [rows, *node] or class indices [rows].
            betas: the nudge of each phase.
        """
        phases = len(betas)
        wanted = self.model.as_targets(targets, self.rows)
        return Problem(
            self.model,
            Repeated(self.clamped, phases),
            phases * self.rows,
            {node: Repeated(fields, phases, self.rows) for node, fields in self.fixed.items()},
            Repeated(wanted, phases),
            self._betas(betas).repeat_interleave(self.rows),
            self.parameters,
        )

    def rounded(self: P, dtype: torch.dtype) -> P:
        """The same problem, whose exact updates multiply states by weights of another dtype; states keep theirs.

        Everything that is worked out once, energies and forces stay in the full dtype.
        """
        result = copy.copy(self)
        result.__dict__.pop("_minimisers", None)
        result.weights = self.parameters if dtype == self.like.dtype else self._rounded(dtype)
        result.resolution = torch.finfo(dtype).eps / 2 if dtype != self.like.dtype else 4 * torch.finfo(dtype).eps
        return result

    def _rounded(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """The parameters, with the weights of products in another dtype, laid out as products like them."""
        weights = dict(self.parameters)
        for plan in self.model.plan.edges.values():
            for key in plan.edge.parameters if plan.separated is not None else ():
                name = self.model.plan.tensor_of(plan.edge.name, key)
                value = weights[name]
                if value.dim() >= 2:
                    weights[name] = arranged(value.detach().to(dtype))
        return weights

    def rows_of(self, samples: Tensor) -> Tensor:
        """The rows of some samples, in all phases."""
        count = self.rows // self.phases
        return torch.cat([samples + phase * count for phase in range(self.phases)])

    def select(self, samples: Tensor) -> Problem:
        """The same problem for some of the samples."""
        rows = self.rows_of(samples)
        part = copy.copy(self)
        part.__dict__.pop("_minimisers", None)
        part.rows = len(rows)
        part.clamped, part.targets = some_rows(self.clamped, rows, self.rows), some_rows(self.targets, rows, self.rows)
        part.fixed = {node: some_rows(fields, rows, self.rows) for node, fields in self.fixed.items()}
        part.beta = None if self.beta is None else self.beta[rows]
        return part

    def _betas(self, betas: Sequence[complex]) -> Tensor:
        if any(complex(beta).imag for beta in betas):
            return torch.tensor(betas, dtype=self.like.dtype.to_complex(), device=self.like.device)
        return torch.tensor([complex(beta).real for beta in betas], dtype=self.like.dtype, device=self.like.device)

    @property
    def like(self) -> Tensor:
        """A tensor with the dtype and device of the states."""
        for tensors in (self.parameters, self.clamped):
            for tensor in tensors.values():
                return tensor
        return torch.empty(0)

    def _fixed_fields(self) -> dict[str, dict[int, Tensor]]:
        seed = self.clamped or {"": self.like}
        fixed = {name: self.model.functions[f"fixed_{name}"](self.parameters, seed) for name in self.model.free}
        for nodes in self.model.plan.rotations:
            frequency = frame_frequency(self, nodes, fixed)
            for name, field in turning_fields(self.model.plan, nodes):
                shape = (1,) * (1 + len(self._shape(name)))
                fixed[name][field.index] = self.model.plan.nodes[name].node.tau * frequency.view(shape)
        return fixed

    @cached_property
    def turning(self) -> dict[str, Tensor]:
        """By node that turns freely, the drive that the co-rotating frame takes away: tau times its frequency."""
        return {
            node: self.fixed[node][field.index][:1]
            for nodes in self.model.plan.rotations
            for node, field in turning_fields(self.model.plan, nodes)
        }

    def in_frame(self, state: Mapping[str, Tensor]) -> Tensor | float:
        """What the co-rotating frame adds to the energy of every row: the frequency times the sum of tau x."""
        return sum(((drive * state[node]).flatten(1).sum(1) for node, drive in self.turning.items()), 0.0)

    # ---------------------------------------------------------------- states

    def zero(self) -> State:
        """The state in which every unit is as near to zero as its domain lets it."""
        like = self.like
        return self.project(
            {
                name: arranged(torch.zeros((self.rows, *self._shape(name)), dtype=like.dtype, device=like.device))
                for name in self.model.free
            }
        )

    def random(self, generator: torch.Generator, share: Share | None = None) -> State:
        """A random state, drawn from the domain of every node; of a share, the same as it is in the whole batch."""
        rows, kept = (self.rows, slice(None)) if share is None else (share.total, share.rows)
        return {
            name: arranged(self.domain(name).random((rows, *self._shape(name)), generator, self.like)[kept])
            for name in self.model.free
        }

    def declared(self, generator: torch.Generator, share: Share | None = None) -> State:
        """The states of the nodes that declare where they start, drawn for every row; of a share as in `random`."""
        rows, kept = (self.rows, slice(None)) if share is None else (share.total, share.rows)
        state: State = {}
        for name in self.model.free:
            spec = self.model.plan.nodes[name].node.initial
            if spec is not None:
                drawn = spec.draw(self._shape(name), (1, 1), generator, rows)[kept]
                state[name] = self.domain(name).project(arranged(drawn.to(self.like)))
        return state

    def project(self, state: Mapping[str, Tensor]) -> State:
        """The nearest state inside the domains."""
        return {name: self.domain(name).project(value) for name, value in state.items()}

    def domain(self, node: str) -> Domain:
        """Where the states of a free node live."""
        return self.model.plan.nodes[node].node.domain

    def _shape(self, node: str) -> tuple[int, ...]:
        return self.model.plan.nodes[node].node.shape

    # ---------------------------------------------------------------- the energy and what follows from it

    def energy(self, state: Mapping[str, Tensor]) -> Tensor:
        """F = E + beta C of every row, [rows]; of oscillators that turn freely, in the frame that turns with them."""
        energy = self.model.functions["energy"](self.parameters, {**self.clamped, **state}) + self.in_frame(state)
        return energy if self.beta is None else energy + self.beta * self.cost(state)

    def cost(self, state: Mapping[str, Tensor]) -> Tensor:
        """C of every row, [rows]."""
        return self.model.functions["cost"](self.parameters, {**self.clamped, **state}, self.targets)

    def force(self, state: Mapping[str, Tensor], nodes: Iterable[str] | None = None) -> State:
        """-dF/ds of the free nodes, or of those named (clamped ones too)."""
        full, functions = {**self.clamped, **state}, self.model.functions
        result: State = {}
        for name in self.model.free if nodes is None else nodes:
            if name in self.clamped:
                result[name] = functions[f"force_{name}"](self.parameters, full)
            else:
                force = functions[f"force_{name}__{self._phase(name)}"]
                result[name] = force(self.parameters, full, self.fixed, self.targets, self.beta_for(name))
        return result

    def curvature(self, state: Mapping[str, Tensor], node: str) -> Tensor:
        """d^2F/dx^2 of each unit of a node that has no exact update."""
        function = self.model.functions[f"curvature_{node}__{self._phase(node)}"]
        return function(self.parameters, {**self.clamped, **state}, self.fixed, self.targets, self.beta_for(node))

    def _phase(self, node: str) -> str:
        """Which variant of a node's functions applies: nodes without a cost have one for both phases."""
        return "nudged" if self.beta is not None and self.model.plan.nodes[node].cost != 0 else "free"

    @property
    def blocks(self) -> tuple[Block, ...]:
        """Sets of units that don't interact, in the order in which a signal reaches them."""
        plan = self.model.plan
        return plan.blocks if self.beta is None else plan.nudged_blocks

    def blocks_of(self, node: str) -> tuple[Block, ...]:
        """Sets of units of one node that don't interact; together they are the node."""
        return tuple((part,) for part in self.model.plan.nodes[node].parts)

    def solver(self, node: str):
        """How the units of a node are minimised, given everything else."""
        plan = self.model.plan.nodes[node]
        return plan.free if self.beta is None else plan.nudged

    def minimise(self, block: Block | tuple[str, ...], state: Mapping[str, Tensor]) -> State:
        """The new states of the nodes of a block: each of its units at the minimum of the energy, the rest fixed.

        A node that is given by its bare name moves all its units at once, each as if it moved alone.
        """
        new: State = {}
        for part in block:
            node = part if isinstance(part, str) else part.node
            moved, units = self._minimum(node, state), None if isinstance(part, str) else self.units(part)
            new[node] = moved if units is None else torch.where(units, moved, state[node])
        return new

    def units(self, part: Part) -> Tensor | None:
        """Which units of its node belong to a part, [*node]; `None` for all."""
        colouring = self.model.plan.nodes[part.node].colouring
        return None if part.colour is None or colouring is None else colouring.mask(part.colour, self.like.device)

    @cached_property
    def _minimisers(self) -> dict[str, Minimiser]:
        """Exact updates by node, as far as they have been asked for."""
        return {}

    def _minimum(self, name: str, state: Mapping[str, Tensor]) -> Tensor:
        if name not in self._minimisers:
            if isinstance(self.solver(name), GradientOnly):
                self.refuse_gradient_only(name)
            self._minimisers[name] = self._minimiser(name)
        return self._minimisers[name](state)

    def _minimiser(self, name: str) -> Minimiser:
        """The exact update of a node that has one, prepared; it doesn't know this problem, which a cycle would keep in
        memory."""
        beta = self.beta_for(name)
        functions, fixed, targets = self.model.functions, self.fixed, self.targets
        phase, parameters, weights = self._phase(name), self.parameters, self.weights
        prepared = laid_out(functions[f"prepare_{name}__{phase}"](parameters, fixed, targets, beta))
        update = functions[f"minimise_{name}__{phase}"]
        # through winners that this node decides, a clamped neighbour has a say in every sweep
        seen = {source.neighbour for field in self.model.plan.nodes[name].fields for source in field.live}
        held = {neighbour: self.clamped[neighbour] for neighbour in seen & self.clamped.keys()}
        if held:
            return lambda state: update(weights, {**held, **state}, fixed, prepared, targets, beta)
        return lambda state: update(weights, state, fixed, prepared, targets, beta)

    def refuse_gradient_only(self, name: str) -> NoReturn:
        """Raise `RelaxationError` for a node whose units have no exact update."""
        solver = self.solver(name)
        reason = solver.reason if isinstance(solver, GradientOnly) else "it wasn't derived"
        raise RelaxationError(
            f"the units of '{name}' have no exact update: {reason}; use integrator='flow', or change the energy"
        )

    def beta_for(self, node: str) -> Tensor | float:
        """The nudge, shaped to broadcast over the states of a node."""
        return 0.0 if self.beta is None else self.beta.view(-1, *(1,) * len(self._shape(node)))

    def step(self, state: Mapping[str, Tensor], nodes: Iterable[str] | None = None) -> State:
        """The step that an exact update of each node would make; where there is none, the force by the curvature."""
        steps: State = {}
        for name in self.model.free if nodes is None else nodes:
            domain = self.domain(name)
            if isinstance(self.solver(name), GradientOnly):
                curvature = self.curvature(state, name)
                rate = torch.where(curvature > FLAT, curvature, 1.0).reciprocal()
                target = domain.project(state[name] + rate * self.force(state, [name])[name])
            else:
                target = self._minimum(name, state)
            steps[name] = domain.difference(target, state[name])
        return steps


def laid_out(prepared: tuple[Any, ...]) -> tuple[Any, ...]:
    """What an exact update needs, with images laid out like states."""
    return tuple(arranged(value) if isinstance(value, Tensor) else value for value in prepared)
