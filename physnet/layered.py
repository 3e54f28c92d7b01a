"""The layers of an energy as functions on tensors: one pass forward, and the derivatives that go back through it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from physnet.codegen_layers import generate_layers
from physnet.equilibrium import Equilibrium
from physnet.feedforward import FeedForward
from physnet.layers import Layers, layers
from physnet.plans import Plan
from physnet.problem import Problem, State


class Layered(FeedForward):
    """x = f(a), layer by layer, with the tensors of an energy: a change of one is a change of the other.

    Arguments:
        model: the compiled energy.

    Raises:
        DeclarationError: with a cycle, and every node that is no layer.
    """

    layers: Layers

    def _derive(self, plan: Plan) -> Plan:
        self.layers = layers(plan)
        return self.layers.plan

    def _write(self) -> str:
        return generate_layers(self.layers)

    def empty(
        self, inputs: Mapping[str, Tensor], rows: int | None = None, parameters: Mapping[str, Tensor] | None = None
    ) -> Problem:
        """A batch of which nothing has been worked out; `parameters` are those of the model if not given."""
        clamped, rows = self.clamp(inputs, rows)
        return Problem(self, clamped, rows, fixed={}, parameters=parameters)

    def fixed(self, problem: Problem) -> State:
        """The drives that clamped nodes and parameters alone make, by node."""
        seen = problem.clamped or {"": problem.like}
        return {
            name: self.functions[f"fixed_{name}"](problem.weights, seen)
            for name, layer in self.layers.nodes.items()
            if layer.fixed
        }

    def drive(self, problem: Problem, name: str, state: Mapping[str, Tensor], fixed: Mapping[str, Tensor]) -> Tensor:
        """a of a node."""
        return self.functions[f"drive_{name}"](problem.weights, state, fixed)

    def states(self, inputs: Mapping[str, Tensor], rows: int | None = None, learning: bool = False) -> Equilibrium:
        problem = self.empty(inputs, rows)
        state, _ = self.run(problem, self.fixed(problem))
        return self.passed(problem, {name: state[name] for name in self.layers.nodes})

    def run(self, problem: Problem, fixed: Mapping[str, Tensor]) -> tuple[State, State]:
        """One pass: the states, with those of clamped nodes, and the drives of free ones."""
        state, drives = dict(problem.clamped), State()
        for name in self.layers.nodes:
            drives[name] = self.drive(problem, name, state, fixed)
            state[name] = self.functions[f"activation_{name}"](problem.parameters, drives[name])
        return state, drives

    def passed(self, problem: Problem, states: State) -> Equilibrium:
        """States that a pass has found."""
        one = torch.ones(problem.rows, dtype=torch.long, device=problem.like.device)
        residual = torch.zeros(problem.rows, dtype=problem.like.dtype, device=problem.like.device)
        return Equilibrium(states, residual, one, one.bool(), "feed-forward", problem)
