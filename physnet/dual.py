"""Dual propagation: every unit holds two states, whose difference is its error and whose mean it sends on.

    s+ = f(a + up D),  s- = f(a - down D),    a = sum of connection(mean) + bias,  D = adjoint(s+ - s-) - beta dC/dx
    dL/dtheta = -1/beta <s+ - s-, da/dtheta>                        (arXiv 2302.01228, 2402.08573)

There is one phase. What is kept of a pair are its mean and its error -(s+ - s-)/(beta rows), a gradient. Differences
are worked out from D itself and never by subtracting one state from the other, so that a nudge may be as small as one
likes. Winners of max-pooling are those of the last drives. This is a reference rule: the published Lagrangian variant
is no stationary point of a scalar.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from physnet.dyads import DualSettings
from physnet.equilibrium import Equilibrium
from physnet.errors import DeclarationError, Fault
from physnet.expressions import clip, relu, write
from physnet.layered import Layered
from physnet.layers import A
from physnet.learning import Engine, Record
from physnet.model import EnergyModel
from physnet.precision import full_precision
from physnet.problem import Problem, State

POWER_ITERATIONS = 20
"""Steps that find the norm of the weights above a layer."""


class Dyads:
    """The paired states of a batch.

    Arguments:
        net: the layers.
        settings: how states follow from drives.
        problem: the batch.

    Attributes:
        mean: alpha s+ + (1 - alpha) s-, by node, with the states of clamped nodes.
        drive: a, by node.
        seen: the means that the drives were worked out from, by node.
        errors: -(s+ - s-)/(beta rows), by node: the slope of the mean cost in a drive.
        pushed: the same of D, where parameters shape activations.
        unit: -1/(beta rows)
    """

    def __init__(self, net: PairedNet, settings: DualSettings, problem: Problem) -> None:
        self.net, self.settings, self.problem = net, settings, problem
        self.functions, self.p = net.functions, problem.parameters
        self.fixed = net.fixed(problem)
        self.mean, self.drive = net.run(problem, self.fixed)
        self.seen = dict(self.mean)
        self.lower: State = {}
        self.errors: State = {}
        self.pushed: State = {}
        self.unit = -1 / (settings.beta * problem.rows)

    def pair(self, targets: Mapping[str, Tensor]) -> None:
        """Nudge the outputs and sweep."""
        names = list(self.net.layers.nodes)
        if self.settings.directions[0] > 0 or self.settings.damped:  # some nodes hear of those that had no turn yet
            self.errors = {name: torch.zeros_like(self.mean[name]) for name in names}
            for name in self.net.judged:
                self.update(name, targets)
        for direction in self.settings.directions:
            for name in names[::direction]:
                if direction > 0:
                    self.drive[name] = self.net.drive(self.problem, name, self.mean, self.fixed)
                self.update(name, targets)
            if direction > 0:
                self.seen = dict(self.mean)

    def update(self, name: str, targets: Mapping[str, Tensor]) -> None:
        """The pair of one node, given its drive and the pairs above."""
        push = self.push(name, targets)
        if push is None:
            self.errors[name] = torch.zeros_like(self.mean[name])
            return
        if self.net.shaped:
            self.pushed[name] = push.clone()
        settings, bend = self.settings, self.net.bends.get(name)
        if bend is not None and not settings.fast:
            up, down = (side / (1 + sign * side * settings.beta * bend) for side, sign in self.sides)
            self.settle(name, torch.add(self.drive[name], push, alpha=-down / self.unit), push.mul_(up + down))
            return
        low = torch.add(self.drive[name], push, alpha=-settings.down / self.unit, out=self.spare(name))
        if settings.damped:
            rate = self.damping(name)
            low = torch.lerp(low, self.lower.get(name, self.mean[name]), rate)
            push = torch.lerp(push, self.errors[name], rate)
        lower = None if settings.fast else self.functions[f"activation_{name}"](self.p, low)
        self.settle(name, lower, self.functions[f"error_{name}"](self.p, low, push, self.unit))

    def spare(self, name: str) -> Tensor | None:
        """The memory of a drive that nobody reads again: fresh memory costs more than the sum that goes there."""
        drive = self.drive[name]
        again = len(self.settings.directions) > 1 or self.net.shaped or self.mean[name] is drive
        return None if again or 0 in drive.stride() else drive

    @property
    def sides(self) -> tuple[tuple[float, int], tuple[float, int]]:
        return (self.settings.up, 1), (self.settings.down, -1)

    def settle(self, name: str, lower: Tensor | None, error: Tensor) -> None:
        """Note a pair by its s-, or by its error alone."""
        self.errors[name] = error
        if lower is not None:
            self.mean[name] = torch.add(lower, error, alpha=self.settings.alpha / self.unit)
            if self.settings.damped:
                self.lower[name] = lower

    def push(self, name: str, targets: Mapping[str, Tensor]) -> Tensor | None:
        """-D/(beta rows) of a node; `None` if nothing comes back to it."""
        push = None
        if name in self.net.hearing:
            push = self.functions[f"feedback_{name}"](self.problem.weights, self.mean, self.errors)
            # errors are worked out in place, which needs a number for every unit
            push = push.contiguous() if 0 in push.stride() else push
        if name in self.net.judged:
            predicted = self.functions[f"activation_{name}"](self.p, self.drive[name])
            slope = self.functions[f"cost_slope_{name}"](self.p, {**self.mean, name: predicted}, targets)
            slope = slope * (1 / self.problem.rows)
            push = slope if push is None else push + slope
        return push

    def damping(self, name: str) -> Tensor | float:
        """L/(1 + L), L = max(0, (|W|^2 - 1)/2), where W makes the drives above of the states of a node; per row."""
        if name not in self.net.hearing:
            return 0.0
        children = dict.fromkeys(layer.node.name for layer, _ in self.net.layers.children(name))
        with torch.enable_grad():
            q = {child: torch.randn_like(self.mean[child]).requires_grad_() for child in children}
            back = self.functions[f"feedback_{name}"](self.problem.weights, self.mean, q)
        axes, square = tuple(range(1, back.dim())), torch.ones((), dtype=back.dtype, device=back.device)
        v = back.detach()
        for _ in range(POWER_ITERATIONS):
            v = v / torch.linalg.vector_norm(v, dim=axes, keepdim=True).clamp_min(torch.finfo(v.dtype).tiny)
            forth = torch.autograd.grad(back, list(q.values()), v, retain_graph=True)
            v = self.functions[f"feedback_{name}"](self.problem.weights, self.mean, dict(zip(q, forth, strict=True)))
            square = torch.linalg.vector_norm(v, dim=axes, keepdim=True)
        excess = ((square - 1) / 2).clamp_min(0)
        return excess / (1 + excess)

    # ---------------------------------------------------------------- what is learnt

    def gradients(self, names: Iterable[str], targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """dL/dtheta of the mean cost, for parameters and clamped nodes by name."""
        found: dict[str, Tensor] = {}
        for name in names:
            learn, shape, judge, feedback = map(self.functions.get, _rules(name))
            parts = list[Tensor]()
            if learn is not None:
                parts.append(learn(self.p, self.mean, self.errors, self.seen))
            if shape is not None:
                parts.append(shape(self.p, self.drive, self.pushed))
            if judge is not None:
                parts.append(judge(self.p, self.mean, targets) / self.problem.rows)
            if feedback is not None:
                parts.append(feedback(self.p, self.mean, self.errors))
            if parts:
                found[name] = sum(parts[1:], parts[0])
        return found


def _rules(name: str) -> tuple[str, str, str, str]:
    """What adds up to the gradient of a tensor or an input: through drives, activations, costs, and as an input."""
    key = name.replace(".", "__")
    return f"learn_{key}", f"shape_{key}", f"judged_{key}", f"feedback_{key}"


class PairedNet(Layered):
    """Layers, with what dual propagation asks of them.

    Arguments:
        model: the compiled energy.
        settings: checked against the costs and activations.

    Raises:
        DeclarationError: also for nudges that are too strong for a cost, and damping where it is not known.
    """

    judged: tuple[str, ...]
    """The nodes that carry a cost."""
    hearing: frozenset[str]
    """The nodes that others hear of, to which differences come back."""
    bends: dict[str, float]
    """The curvature of costs for which nudged outputs have a closed form."""

    def __init__(self, model: EnergyModel, settings: DualSettings) -> None:
        super().__init__(model)
        self.judged = tuple(dict.fromkeys(cost.node for cost in self.graph.costs))
        self.hearing = frozenset(node.name for node in self.graph.nodes() if self.layers.children(node.name))
        self.shaped = any(map(self.layers.shapes_activation, self.tensors))
        bends = {name: self.layers.bend(name) for name in self.judged}
        self.bends = {name: bend for name, bend in bends.items() if bend is not None}
        for name, bend in self.bends.items():
            if settings.down * settings.beta * bend >= 1:
                message = (
                    f"beta = {settings.beta:g} nudges s- of '{name}' without bound: its cost has curvature {bend:g}"
                )
                raise DeclarationError(
                    Fault(message, f"use a beta below {1 / (settings.down * bend):g}", ("learn", "beta"))
                )
        if settings.damped:
            for name, layer in self.layers.nodes.items():
                f = layer.activation
                if f not in (A, relu(A)) and not (isinstance(f, clip) and f.args[0] == A):
                    message = f"damping knows activations that clip their drive, not {write(f)} of '{name}'"
                    fault = Fault(message, "leave damped out", ("learn", "options", "damped"))
                    raise DeclarationError(fault)


class DualPropagation(Engine):
    """Dual propagation: `loss = engine(image=x, target=y); loss.backward()`.

    Arguments:
        model: the compiled energy, whose tensors are trained.
        settings: alpha, beta, variant and sweeps.
        seed: taken for the sake of other engines; nothing is drawn.
        precision: of its products: `bfloat16` rounds weights; `None` and `float32` leave them alone.

    Raises:
        DeclarationError: for energies without cost, graphs with cycles, and nodes that are no layers.
    """

    def __init__(
        self,
        model: EnergyModel,
        settings: DualSettings | None = None,
        seed: int = 0,
        precision: str | None = None,
    ) -> None:
        settings = settings or DualSettings()
        super().__init__(PairedNet(model, settings), seed)
        self.settings, self.precision = settings, precision

    @property
    def nudge(self) -> float:
        return self.settings.beta

    @property
    def net(self) -> PairedNet:
        """The layers."""
        return cast(PairedNet, self.model)

    def forward(self, *, step: int | None = None, **batch: Tensor) -> Tensor:
        """The mean cost of a batch, differentiable once."""
        self.count(step)
        inputs, targets = self.parted(batch)
        tensors = self.model.physical
        rows = None if inputs else len(next(iter(targets.values()), ()))
        with full_precision(self.model.device):
            problem = self.batch(inputs, rows, tensors)
            leaves = inputs | tensors
            learns = torch.is_grad_enabled()
            return _Pair.apply(self, problem, targets, tuple(leaves), learns, *leaves.values())  # pyright: ignore

    def settle(self, inputs: Mapping[str, Tensor], rows: int | None = None) -> Equilibrium:
        """The states of a batch after one pass."""
        with torch.no_grad(), full_precision(self.model.device):
            problem = self.batch(inputs, rows, self.model.physical)
            state, _ = self.net.run(problem, self.net.fixed(problem))
            return self.net.passed(problem, {name: state[name] for name in self.net.layers.nodes})

    def batch(self, inputs: Mapping[str, Tensor], rows: int | None, tensors: Mapping[str, Tensor]) -> Problem:
        """A batch, with weights in the precision of products."""
        with torch.no_grad():
            problem = self.net.empty(inputs, rows, tensors)
        return problem.rounded(torch.bfloat16) if self.precision == "bfloat16" else problem


class _Pair(torch.autograd.Function):
    """(inputs, parameters) -> mean cost after one pass; backward: what the pairs say."""

    @staticmethod
    def forward(
        ctx: Any,
        engine: DualPropagation,
        problem: Problem,
        targets: Any,
        names: tuple[str, ...],
        learns: bool,
        *leaves: Tensor,
    ) -> Tensor:
        dyads = Dyads(engine.net, engine.settings, problem)
        states = {name: dyads.mean[name] for name in engine.net.layers.nodes}
        wanted = engine.model.as_targets(targets, problem.rows)
        cost = engine.model.functions["cost"](problem.parameters, states, wanted)
        engine.last = Record(engine.net.passed(problem, states), None, (), cost)
        if learns and any(ctx.needs_input_grad):
            ctx.save_for_backward(*leaves)  # torch then notices parameters that change before backward
            ctx.names, ctx.dyads, ctx.targets = names, dyads, wanted
            dyads.pair(wanted)
        return cost.mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        dyads: Dyads = ctx.dyads
        values = dict(zip(ctx.names, ctx.saved_tensors, strict=True))
        needed = [name for name, need in zip(ctx.names, ctx.needs_input_grad[5:], strict=True) if need]
        with full_precision(dyads.net.device):
            found, scale = dyads.gradients(needed, ctx.targets), grad_outputs[0]
            if scale.is_cuda or float(scale) != 1:  # elsewhere to look costs nothing
                found = {name: value * scale for name, value in found.items()}
            for name in needed:
                if name in dyads.net.inputs:
                    found[name] = dyads.net.decode_gradient(name, values[name], found[name])
                elif name not in found:  # nothing depends on it, but processes wait for the gradient of each
                    found[name] = torch.zeros_like(values[name])
        return (None, None, None, None, None, *(found.get(name) for name in ctx.names))


def dual_propagation(
    model: EnergyModel, seed: int = 0, precision: str | None = None, settings: DualSettings | None = None
) -> DualPropagation:
    """Dual propagation on the layers of an energy."""
    return DualPropagation(model, settings, seed, precision)


__all__ = ["DualPropagation", "Dyads", "PairedNet", "dual_propagation"]
