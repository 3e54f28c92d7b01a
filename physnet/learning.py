"""Equilibrium propagation: from two equilibria to a gradient.

    dL/dtheta = d/dbeta dF/dtheta(s_beta) at beta = 0        (arXiv 1602.05179)

The loss has the value of the mean cost at the free equilibrium, and as its gradient the protocol's estimate, with the
states held constant. It is one once-differentiable function of the parameters and the inputs, so optimizers,
schedulers, clipping, accumulation and data parallelism work unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from physnet.branches import find_jumps
from physnet.equilibrium import DRIFT, Equilibrium
from physnet.errors import DeclarationError, Fault, RelaxationError, ShapeError
from physnet.integration import Occasion, find_integrator
from physnet.model import EnergyModel, check_model
from physnet.nudged import Ended
from physnet.precision import full_precision
from physnet.problem import Problem, State
from physnet.protocols import Protocol
from physnet.randomness import stream
from physnet.references import Reference, find_method, protocol_of
from physnet.relaxation import Relaxation, initial_state, run, run_nudged
from physnet.rows import Share


@dataclass
class Record:
    """What happened in the last forward: the equilibria, for progress reports and diagnostics.

    Arguments:
        free: the free equilibrium.
        nudged: the nudged equilibria, phases stacked along the rows; `None` without gradients.
        betas: the nudge of each phase.
        cost: C of every sample at the free equilibrium.
        jumped: per sample, whether a nudged phase has left the branch of the free state; `None` where that was not
            looked at.
    """

    free: Equilibrium
    nudged: Equilibrium | None
    betas: tuple[complex, ...]
    cost: Tensor
    jumped: Tensor | None = None


class Engine(nn.Module):
    """What trains a network: gives batches a loss, and settles inputs into states.

    Arguments:
        model: the network.
        seed: of random signs and random initial states.

    Raises:
        DeclarationError: if the network has no cost.
    """

    def __init__(self, model: EnergyModel, seed: int = 0) -> None:
        super().__init__()
        check_model(model, type(self).__name__)
        if not model.graph.costs:
            raise DeclarationError("the graph has no cost", "give the output node one: cost='(x - y)**2/2'")
        self.model, self.seed, self.batches = model, seed, 0
        self.last: Record | None = None
        self.previous: State | None = None  # where `initial: previous` goes on from
        self.share: Share | None = None  # which rows of the whole batch forward gets, where processes divide it

    def forward(self, *, step: int | None = None, **batch: Tensor) -> Tensor:
        """The mean cost of a batch, whose backward leaves gradients in `.grad`.

        Arguments:
            step: number of this batch, from which all that is random is drawn; counted if not given.
            batch: inputs by node and targets by name, [rows, ...]; class indices stand for one-hot targets.
        """
        raise NotImplementedError

    def settle(self, inputs: Mapping[str, Tensor], rows: int | None = None) -> Equilibrium:
        """The states that the network answers with; `rows` is for networks without inputs."""
        raise NotImplementedError

    def repeated(self, batch: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """A batch with as many rows as the states that the network answers with."""
        return batch

    @property
    def rows_per_sample(self) -> int:
        """How many states the network answers with for one sample."""
        return 1

    def per_sample(self, values: Tensor) -> Tensor:
        """What was found of every state that the network answered with, [rows, ...], as one value per sample."""
        return values

    @property
    def nudge(self) -> float | None:
        """The size of the nudge, of engines that have one."""
        return None

    @property
    def carried(self) -> State:
        """The states of the last batch, where the next one starts from them."""
        return {}

    @property
    def relaxations(self) -> Mapping[tuple[str, ...], Relaxation]:
        """How phases relax, by where an experiment says so."""
        return {}

    def count(self, step: int | None) -> None:
        """Note the number of a batch."""
        self.batches = self.batches + 1 if step is None else step

    def parted(self, batch: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The inputs and the targets of a batch.

        Raises:
            ShapeError: for what is neither.
        """
        model = self.model
        unknown = batch.keys() - model.targets.keys() - model.inputs.keys()
        if unknown:
            raise ShapeError(
                f"'{min(unknown)}' is neither an input nor a target",
                f"inputs: {', '.join(model.inputs)}; targets: {', '.join(model.targets)}",
            )
        targets = {name: value for name, value in batch.items() if name in model.targets}
        return {name: torch.as_tensor(batch[name]) for name in batch if name not in targets}, targets

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles leave out what happened in the last forward."""
        return {**self.__dict__, "last": None, "previous": None, "share": None}

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """Project constrained parameters after every step of this optimizer."""
        optimizer.register_step_post_hook(lambda *_: self.model.project_parameters())


class EquilibriumPropagation(Engine):
    """Wraps a model: `loss = ep(image=x, target=y); loss.backward()` leaves local gradients in `.grad`.

    Arguments:
        model: the compiled energy.
        beta: the nudge, > 0.
        protocol: a name from `PROTOCOLS` or `REFERENCES` (such as `truncated_backprop(40)`), or such an object.
        relaxation: how the free phase relaxes; a `Relaxation` or the name of an integrator.
        nudged: how nudged phases relax; by default like the free phase, with the tolerance of nudged phases.
        seed: of random signs and random initial states.
        watch: in which batches to look for samples whose nudged phase has left the branch of the free state, at the
            price of about a sweep: the first and every `watch`-th one, or none for 0.

    Raises:
        DeclarationError: for unknown protocols, a beta that isn't positive, or a model without a cost.
    """

    def __init__(
        self,
        model: EnergyModel,
        beta: float = 0.1,
        protocol: str | Protocol | Reference = "centered",
        *,
        relaxation: Relaxation | str = "auto",
        nudged: Relaxation | str | None = None,
        seed: int = 0,
        watch: int = 20,
    ) -> None:
        super().__init__(model, seed)
        if isinstance(beta, bool) or not isinstance(beta, int | float):
            raise DeclarationError(Fault(f"beta is {beta!r}, it must be a number", "such as 0.1", ("beta",)))
        if not 0 < beta < float("inf"):
            raise DeclarationError(
                Fault(f"beta is {beta}, it must be positive", "the protocol chooses the sign of the nudge", ("beta",))
            )
        self.beta, self.watch = float(beta), watch
        method = find_method(protocol)
        self.protocol = protocol_of(method)
        self.reference = method if isinstance(method, Reference) else None
        if self.protocol.predictive and isinstance(model.predictions, str):
            message = f"the protocol '{self.protocol.name}' takes the free phase to have no gradient"
            raise DeclarationError(Fault(f"{message}, but {model.predictions}", "use centered", ("protocol",)))
        self.relaxation = Relaxation(relaxation) if isinstance(relaxation, str) else relaxation
        nudged = replace(self.relaxation, tolerance=None) if nudged is None else nudged
        self.nudged = Relaxation(nudged) if isinstance(nudged, str) else nudged

    def forward(self, *, step: int | None = None, **batch: Tensor) -> Tensor:
        """Relax all phases of a batch.

        Arguments:
            step: number of this batch, from which random signs and states are drawn; counted if not given.
            batch: inputs by node and targets by name, [rows, ...]; class indices stand for one-hot targets.

        Returns:
            The mean cost at the free equilibrium, differentiable once.
        """
        self.count(step)
        inputs, targets = self.parted(batch)
        leaves = (*inputs.values(), *self.model.physical.values())
        with full_precision(self.model.device):
            return _Equilibrate.apply(self, inputs, targets, torch.is_grad_enabled(), *leaves)  # pyright: ignore

    def settle(self, inputs: Mapping[str, Tensor], rows: int | None = None) -> Equilibrium:
        """The free equilibrium of a batch, from the declared initial state; `rows` is for networks without inputs."""
        return self.free_phase(inputs, rows)

    def free_phase(self, inputs: Mapping[str, Tensor], rows: int | None = None) -> Equilibrium:
        """The free equilibrium of the rows of a batch as they are."""
        with torch.no_grad(), full_precision(self.model.device):
            problem = self.model.problem(rows, **inputs)
            return run(problem, self.begin(problem), self._now(self.relaxation, "free"))

    def _now(self, settings: Relaxation, phase: str) -> Relaxation:
        """The settings of a phase of this batch, with what random numbers are drawn from."""
        return replace(settings, occasion=Occasion((self.seed, self.batches, phase), self.share))

    def begin(self, problem: Problem) -> State:
        """The state that a free phase starts from."""
        generator = stream(self.seed, "initial", self.batches)
        return initial_state(problem, self.relaxation.initial, generator, self.previous, self.share)

    def watches(self, nudged: Equilibrium) -> bool:
        """Whether samples of this batch that have left their branch are looked for: in nudged phases that have one."""
        if not self.watch or self.batches % self.watch != 1 % self.watch or self.protocol.clamps:
            return False
        rests = self.nudged.integrator == "auto" or find_integrator(self.nudged.integrator).rests
        return rests and nudged.displaced is not None and nudged.displaced.branches

    @property
    def nudge(self) -> float:
        return self.beta

    @property
    def relaxations(self) -> Mapping[tuple[str, ...], Relaxation]:
        return {("relax",): self.relaxation, ("learn", "nudged"): self.nudged}

    @property
    def carried(self) -> State:
        return self.previous or {} if self.relaxation.initial == "previous" else {}


class _Equilibrate(torch.autograd.Function):
    """(inputs, parameters) -> mean cost at the free equilibrium; backward: the contrast of the protocol."""

    @staticmethod
    def forward(
        ctx: Any, ep: EquilibriumPropagation, inputs: Any, targets: Any, learns: bool, *leaves: Tensor
    ) -> Tensor:
        free = ep.free_phase(inputs, None if inputs else len(next(iter(targets.values()), ())))
        if learns and any(ctx.needs_input_grad):
            refuse_drift(free)
        wanted = ep.model.as_targets(targets, free.problem.rows)
        cost = ep.model.functions["cost"](free.problem.parameters, free.states, wanted)
        betas, coefficients = ep.protocol.phases(ep.beta, stream(ep.seed, "protocol", ep.batches))
        ep.last, ep.previous = Record(free, None, tuple(betas), cost), free.states
        if learns and any(ctx.needs_input_grad):
            ctx.save_for_backward(*leaves)  # torch then notices parameters that change before backward
            ctx.names = [*inputs, *ep.model.tensors]
            ctx.free, ctx.targets, ctx.reference = free, wanted, ep.reference
            if ep.reference is None:
                ctx.coefficients = coefficients
                ctx.nudged = ep.last.nudged = run_nudged(
                    free, wanted, betas, ep._now(ep.nudged, "nudged"), ep.protocol.clamps
                )
                refuse_drift(ctx.nudged)
                if ep.watches(ctx.nudged):
                    ep.last.jumped = find_jumps(free, ctx.nudged, wanted, betas)
        return cost.mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        with full_precision(ctx.free.problem.model.device):
            return _Equilibrate.gradient(ctx, grad_outputs[0])

    @staticmethod
    def gradient(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        values = dict(zip(ctx.names, ctx.saved_tensors, strict=True))
        needed = [name for name, need in zip(ctx.names, ctx.needs_input_grad[4:], strict=True) if need]
        model = ctx.free.problem.model
        if ctx.reference is not None:
            exact = ctx.reference(ctx.free.problem, ctx.free.states, ctx.targets)
            found = {name: exact[name] * scale for name in needed}
        else:
            found = _contrast(ctx, needed, scale)
        for name in set(needed) & set(model.inputs):
            found[name] = model.decode_gradient(name, values[name], found[name])
        return (None, None, None, None, *(found.get(name) for name in ctx.names))


def refuse_drift(equilibrium: Equilibrium) -> None:
    """Raise `RelaxationError` for states that still drift, or that nothing holds against a common rotation: a gradient
    is one of equilibria."""
    if equilibrium.drifting is not None and bool(equilibrium.drifting.any()):
        raise RelaxationError(
            f"there is no gradient: {int(equilibrium.drifting.sum())} of {equilibrium.problem.rows} samples {DRIFT}"
        )
    plan = equilibrium.problem.model.plan
    for target in equilibrium.problem.model.targets.values():
        if any(target.node in part for part in plan.rotations):
            raise RelaxationError(
                f"there is no gradient: the energy depends on differences of angles alone, so that nothing says where "
                f"those of '{target.node}' are; couple it to an input, or give a unit a field such as -h*cos(x)"
            )


def _contrast(ctx: Any, needed: list[str], scale: Tensor) -> dict[str, Tensor]:
    """Re sum_k c_k dF/dtheta(s_k) / rows for every parameter and encoded input that is needed."""
    free: Problem = ctx.free.problem
    nudged: Equilibrium = ctx.nudged
    assert nudged.displaced is not None
    ended = Ended(free, nudged.displacement, nudged.states, ctx.coefficients, scale / free.rows)
    return nudged.displaced.contrasts(ended, needed)


def gradients(ep: Engine, **batch: Tensor) -> dict[str, Tensor]:
    """The gradient estimate of every parameter for one batch, leaving `.grad` alone."""
    names = [name for name, value in ep.model.tensors.items() if value.requires_grad]
    values = [ep.model.tensors[name] for name in names]
    found = torch.autograd.grad(ep(**batch), values)
    return dict(zip(names, found, strict=True))
