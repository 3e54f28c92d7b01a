"""Sweeps over the layers of a predictive network: the published relaxations, for comparison with `errors`.

    e = -(1/precision) (beta dC/dx + sum over children of connection^T(dE/da)),        x <- x + rate (x' - x)

    gradient   x' = f(a) + e          a gradient step, of unit length at rate 1; leads to where `errors` does
    pgd        x' = f(a) + e          projected onto x >= 0 where f = relu: stationary within that half-space
    mod_pgd    x' = a + e             projected likewise: the drive stands in for the activation

The three have different fixed points. That of `mod_pgd` is stationary for no scalar: where a < 0 the drive holds a unit
back until e > -a, while F has a force on it as soon as e > 0. It is the rule that was published, taken as it is; it
differs from `pgd` at units with a < 0 < e alone. Outputs, which are linear, take the same step without a projection.

From a free equilibrium, `forward` carries the signal of the outputs by one layer per sweep and `even_odd` by two: until
it arrives, the gradient of the layers before is exactly zero. Source: arXiv 2606.03584 (even, then odd layers; unit
steps; mod-PGD).
"""

from __future__ import annotations

import torch
from torch import Tensor

from physnet.errors import DeclarationError, Fault, RelaxationError
from physnet.expressions import relu, write
from physnet.integrators.errors import free_pass, unpredicted
from physnet.layers import A, Layers
from physnet.predicted import InStates
from physnet.problem import Problem, State
from physnet.relaxation import Equilibrium, Integrator, StoppingRule, integrator

RULES = ("mod_pgd", "pgd", "gradient")
ORDERS = ("even_odd", "forward", "backward", "synchronous")
COORDINATES = {"float64": "states", "model": "plain states"}


@integrator
class LayerSweeps(Integrator):
    """Sweeps over the layers until no unit of a sample would move any more. A free equilibrium is one pass forwards.

    Arguments:
        rule: `mod_pgd`, `pgd` or `gradient`, as above.
        order: `even_odd`, first the second, fourth, ... layer in the order of the signal, then the others, all of a
            half from the same state; `forward` and `backward`, layer after layer (Gauss-Seidel); `synchronous`, all at
            once.
        rate: how much of the unit step is made, in (0, 1].
        dtype: `float64`, for a reference; `model`, the dtype of the model, as published codes have it: what is lost
            where states that differ by about beta are subtracted is then lost here too.

    Raises:
        DeclarationError: for an unknown rule, order or dtype, or a rate outside of (0, 1].
    """

    name = "layer_sweeps"
    idea = "every state is predicted, and layers take steps in turn"

    def __init__(
        self, rule: str = "mod_pgd", order: str = "even_odd", rate: float = 1.0, dtype: str = "float64"
    ) -> None:
        for key, value, known in (("rule", rule, RULES), ("order", order, ORDERS), ("dtype", dtype, COORDINATES)):
            if value not in known:
                raise DeclarationError(Fault(f"unknown {key} {value!r}", f"use {' or '.join(known)}", ("options", key)))
        if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate <= 1:
            raise DeclarationError(
                Fault(f"rate is {rate!r}, outside of (0, 1]", "1 is the published step", ("options", "rate"))
            )
        self.rule, self.order, self.rate, self.coordinates = rule, order, float(rate), COORDINATES[dtype]

    @classmethod
    def refusal(cls, problem: Problem) -> str | None:
        return unpredicted(problem)

    def relax(self, problem: Problem, state: State, rule: StoppingRule) -> Equilibrium:
        self._check(problem)
        if not isinstance(problem, InStates):
            return free_pass(problem, self.name)
        layers = _Layers(problem, state)
        stages, sweep = self._stages(layers.names), 0
        residual = torch.full((problem.rows,), torch.inf, dtype=problem.like.dtype, device=problem.like.device)
        while sweep < rule.max_sweeps and bool((residual > rule.tolerance).any()):
            residual, sweep = torch.zeros_like(residual), sweep + 1
            for stage in stages:
                moved = {name: self._moved(layers, name) for name in stage if name not in problem.held}
                for name, (new, whole) in moved.items():
                    old, there = (value - problem.origin[name] for value in (layers.full[name], whole))
                    residual = torch.maximum(residual, rule.relative(name, old, there))
                    layers.move(name, new)
            if not bool(torch.isfinite(residual).all()):
                break
        sweeps = torch.full((problem.rows,), sweep, dtype=torch.long, device=problem.like.device)
        displacement = {name: layers.full[name] - problem.origin[name] for name in layers.names}
        return Equilibrium(displacement, residual, sweeps, residual <= rule.tolerance, self.name, problem)

    def _moved(self, layers: _Layers, name: str) -> tuple[Tensor, Tensor]:
        """The new state of a layer, and where a whole step would lead."""
        old, drive = layers.full[name], layers.drive(name)
        whole = (drive if self.rule == "mod_pgd" else layers.activation(name, drive)) + layers.error(name)
        new = whole if self.rate == 1 else old + self.rate * (whole - old)
        if self.rule == "gradient":
            return new, whole
        # relu projects onto its own range, and the linear prediction of an output leaves everything where it is
        projected = layers.activation(name, new)
        return projected, projected if self.rate == 1 else layers.activation(name, whole)

    def _stages(self, names: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
        """The layers that move at once, one after the other."""
        if self.order == "even_odd":
            return names[1::2], names[::2]
        if self.order == "synchronous":
            return (names,)
        return tuple((name,) for name in (names if self.order == "forward" else reversed(names)))

    def _check(self, problem: Problem) -> None:
        """Raise `RelaxationError` where there is no half-space to project onto."""
        if self.rule == "gradient":
            return
        for name, layer in layers_of(problem).nodes.items():
            if layer.activation not in (A, relu(A)):
                raise RelaxationError(
                    f"integrator '{self.name}' can't relax this energy: the rule {self.rule} is for predictions "
                    f"relu(a) and a, and that of '{name}' is {write(layer.activation)}; use rule: "
                    "gradient, or integrator: errors"
                )


class _Layers:
    """The states of all layers in the middle of a sweep, and the drives that are still those of these states.

    Arguments:
        problem: the phases that are relaxed.
        displacement: where they stand.
    """

    def __init__(self, problem: InStates, displacement: State) -> None:
        self.problem, self.functions, self.parameters = problem, problem.model.functions, problem.parameters
        self.full: State = {**problem.clamped, **problem.states(displacement)}
        layers = layers_of(problem)
        self.names = tuple(layers.nodes)
        self.children = {
            name: tuple(dict.fromkeys(layer.node.name for layer, _ in layers.children(name))) for name in self.names
        }
        self.drives: State = {}

    def drive(self, name: str) -> Tensor:
        if name not in self.drives:
            self.drives[name] = self.functions[f"drive_{name}"](self.parameters, self.full, self.problem.fixed)
        return self.drives[name]

    def activation(self, name: str, drive: Tensor) -> Tensor:
        return self.functions[f"activation_{name}"](self.parameters, drive)

    def error(self, name: str) -> Tensor:
        """The error at which the state of a layer would be stationary, the states of all others being what they are."""
        problem, slope = self.problem, torch.zeros_like(self.full[name])
        if problem.beta is not None and problem.model.plan.nodes[name].cost != 0:
            nudge = self.functions[f"nudge_{name}"]
            slope = nudge(self.parameters, self.full, problem.targets, problem.beta_for(name))
        if self.children[name]:
            pulls = {
                child: self.functions[f"pull_{child}"](self.parameters, self.full, self.drive(child))
                for child in self.children[name]
            }
            slope = slope + self.functions[f"feedback_{name}"](self.parameters, self.full, pulls)
        return self.functions[f"error_{name}"](self.parameters, slope)

    def move(self, name: str, new: Tensor) -> None:
        self.full[name] = new
        for child in self.children[name]:
            self.drives.pop(child, None)


def layers_of(problem: Problem) -> Layers:
    """The layers of a problem that isn't refused."""
    layers = problem.model.predictions
    assert isinstance(layers, Layers)
    return layers
