"""Backprop twins: the feed-forward net that an energy contains, trained by backpropagation.

    x_i <- argmin over x of  phi(x) + sum_m basis_m(x) h_m,    h_m = sums over edges j -> i alone

The twin has the tensors of the energy. Its units take, in topological order, the exact update that the energy gives
them once whatever comes back along an edge is left out: for a Hopfield energy x_i <- clip(sum_j w_ij x_j + b_i). The
published twin normalises over the batch what arrives, and rectifies it (arXiv 2509.26003, code BrainSeek-Lab).
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from physnet.codegen import generate_activations
from physnet.directed import feed_forward, objection
from physnet.domains import REAL
from physnet.equilibrium import Equilibrium
from physnet.errors import DeclarationError
from physnet.learning import Engine, Record
from physnet.maps import update
from physnet.model import EnergyModel
from physnet.plans import NodePlan, Part, Plan
from physnet.precision import full_precision
from physnet.problem import Problem
from physnet.separation import Quadratic

NORM = "__norm"
"""What the normalisation of a node is called after the node's name; no node can be called so."""


class FeedForward(EnergyModel):
    """The feed-forward net of an energy, with the same tensors: a change of one is a change of the other.

    Arguments:
        model: the compiled energy.

    Raises:
        DeclarationError: if edges run in a cycle; or with every node that has no activation with a gradient.
    """

    def __init__(self, model: EnergyModel) -> None:
        nn.Module.__init__(self)
        self._verified = {}
        self._modules.update(model._modules)
        self.plan, self.graph = self._derive(model.plan), model.graph
        self.source = self._write()
        self._load()

    def _write(self) -> str:
        return generate_activations(self.plan)

    def _derive(self, plan: Plan) -> Plan:
        return feed_forward(plan, objection)

    def problem(self, rows: int | None = None, **inputs: Tensor) -> Problem:
        """Refused: there is nothing to relax."""
        raise DeclarationError("a feed-forward net has no energy to relax", "ask its engine: engine.settle({...})")

    def states(self, inputs: Mapping[str, Tensor], rows: int | None = None, learning: bool = False) -> Equilibrium:
        """One pass from the inputs to the outputs, differentiable.

        Arguments:
            inputs: by name, [rows, *data shape].
            rows: number of samples; only needed without inputs.
            learning: whether what a node knows of the whole data is to be learnt from this batch.
        """
        problem = super().problem(rows, **inputs)
        state, like = problem.zero(), problem.like
        for node in self.plan.nodes:
            state[node] = self.activation(node, update(problem, Part(node), state).to(like.dtype), learning)
        one = torch.ones(problem.rows, dtype=torch.long, device=like.device)
        residual = torch.zeros(problem.rows, dtype=like.dtype, device=like.device)
        return Equilibrium(state, residual, one, one.bool(), "feed-forward", problem)

    def activation(self, node: str, value: Tensor, learning: bool) -> Tensor:
        """What a node sends on, given its exact update."""
        return value

    @property
    def silent(self) -> list[Tensor]:
        """The trained tensors that nothing feed-forward depends on."""
        return [
            value
            for name, value in self.tensors.items()
            if value.requires_grad and NORM not in name and f'p["{name}"]' not in self.source
        ]


class NormalisedFeedForward(FeedForward):
    """The same topology, with batch normalisation and a rectifier on every hidden node.

    Channels of nodes of shape [channels, ...] and units of vectors are normalised by mean and variance of the batch;
    outside training, and for a single value, by the running ones. The tensors are called `<node>__norm.weight` and
    `<node>__norm.bias`. Outputs keep the activation of the energy.

    Raises:
        DeclarationError: also for hidden nodes whose energy isn't quadratic.
    """

    def __init__(self, model: EnergyModel) -> None:
        super().__init__(model)
        like = next(iter(model.parameters()), torch.empty(0))
        for node in self.hidden:
            channels = self.graph.node(node).shape[0]
            self._modules[node + NORM] = nn.BatchNorm1d(channels, dtype=like.dtype, device=like.device)

    @property
    def hidden(self) -> list[str]:
        """The nodes that no target is compared with."""
        return [node for node in self.plan.nodes if node not in _judged(self.plan)]

    def _derive(self, plan: Plan) -> Plan:
        judged = _judged(plan)
        unbounded = {
            name: replace(node, node=replace(node.node, domain=REAL))
            for name, node in plan.nodes.items()
            if name not in judged
        }

        def normalisable(plan: Plan, node: NodePlan) -> str | None:
            if isinstance(node.free, Quadratic) or node.node.name in judged:
                return objection(plan, node)
            return objection(plan, node) or "its energy isn't quadratic, so that there is no sum to normalise"

        return feed_forward(replace(plan, nodes=plan.nodes | unbounded), normalisable)

    def _load(self) -> None:
        super()._load()
        self.functions |= {f"{node}_domain": REAL for node in self.hidden}

    def activation(self, node: str, value: Tensor, learning: bool) -> Tensor:
        norm = self._modules.get(node + NORM)
        if not isinstance(norm, nn.BatchNorm1d):
            return value
        norm.train(learning and value.numel() > value.shape[1])  # one value has no variance
        return norm(value.flatten(2) if value.dim() > 2 else value).view(value.shape).relu()


def _judged(plan: Plan) -> set[str]:
    """The nodes that a target is compared with, not through a readout."""
    return {cost.node for cost in plan.graph.costs if cost.readout is None}


class Backpropagation(Engine):
    """Backpropagation through a feed-forward net: `loss = engine(image=x, target=y); loss.backward()`.

    Arguments:
        model: the net.
        seed: taken for the sake of other engines; nothing is drawn.
        precision: of its products: `bfloat16` lets autocast choose; `None` and `float32` leave them alone.

    Raises:
        DeclarationError: if the net has no cost.
    """

    def __init__(self, model: FeedForward, seed: int = 0, precision: str | None = None) -> None:
        super().__init__(model, seed)
        self.precision = precision

    @property
    def net(self) -> FeedForward:
        """The net."""
        return cast(FeedForward, self.model)

    def forward(self, *, step: int | None = None, **batch: Tensor) -> Tensor:
        """The mean cost of a batch, differentiable as any loss."""
        self.count(step)
        inputs, targets = self.parted(batch)
        rows = None if inputs else len(next(iter(targets.values()), ()))
        with self._products():
            found = self.net.states(inputs, rows, learning=self.training)
        with full_precision(self.model.device):
            wanted = self.model.as_targets(targets, found.problem.rows)
            cost = self.model.functions["cost"](found.problem.parameters, found.states, wanted)
        kept = replace(found, states={name: value.detach() for name, value in found.states.items()})
        self.last = Record(kept, None, (), cost.detach())
        # all tensors take part, since processes wait for the gradient of each
        return cost.mean() + sum(0.0 * value.sum() for value in self.net.silent)

    def settle(self, inputs: Mapping[str, Tensor], rows: int | None = None) -> Equilibrium:
        """The states of a batch after one pass, with what was learnt of the whole data."""
        with torch.no_grad(), self._products():
            return self.net.states(inputs, rows)

    def _products(self) -> Any:
        device = self.model.device.type
        return torch.autocast(device, torch.bfloat16) if self.precision == "bfloat16" else nullcontext()


def backpropagation(model: EnergyModel, seed: int = 0, precision: str | None = None) -> Backpropagation:
    """Backpropagation through the feed-forward net of an energy."""
    return Backpropagation(FeedForward(model), seed, precision)


def normalised_backpropagation(model: EnergyModel, seed: int = 0, precision: str | None = None) -> Backpropagation:
    """Backpropagation through the published twin of an energy."""
    return Backpropagation(NormalisedFeedForward(model), seed, precision)
