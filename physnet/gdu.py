"""Gradient-descending updates: each nudged step changes states and dF/dtheta as backpropagation through time says.

    [s_{t+1} - s_t]/beta  ->  -dC/df_{T-t}                          f: a force on a unit, in one step alone
    [dF/dtheta(s_{t+1}) - dF/dtheta(s_t)]/beta  ->  dC/dtheta_{T-t}     theta: a copy of the parameters, for one step

as beta vanishes, for t = 0 .. K-1, where the last K free steps of T stood at the equilibrium. This holds for maps that
derive from F: exact updates of all units at once (prototypical), and Euler steps of the gradient flow (energy-based).
A nudge that is not part of F breaks it. Source: arXiv 1905.13633.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from physnet.errors import DeclarationError, RelaxationError
from physnet.maps import Map, descent, has_exact_updates, safe_rate, synchronous
from physnet.model import EnergyModel
from physnet.problem import Problem, State
from physnet.randomness import stream
from physnet.relaxation import Relaxation, initial_state, run
from physnet.unrolled import leaves

Series = dict[str, Tensor]
"""By name of a node or parameter: [K, ...], one entry per time step."""
FAMILIES = ("auto", "prototypical", "energy")


@dataclass(frozen=True)
class Updates:
    """What one quantity does over time, by equilibrium propagation and by backpropagation.

    Arguments:
        name: of a node, for its states [K, rows, *node], or of a parameter [K, *parameter].
        propagated: the increments of the nudged phase, over beta.
        backpropagated: the contributions to dC/dtheta, or -dC/df; in reversed time.
    """

    name: str
    propagated: Float[Tensor, "steps ..."]
    backpropagated: Float[Tensor, "steps ..."]

    @property
    def error(self) -> float:
        """rms(propagated - backpropagated) / max(rms of either), over all steps and entries."""
        size = max(_rms(self.propagated), _rms(self.backpropagated))
        return _rms(self.propagated - self.backpropagated) / size if size else 0.0

    @property
    def opposite(self) -> float:
        """The fraction of entries that have opposite signs."""
        return float((self.propagated * self.backpropagated < 0).double().mean())


def gradient_descending_updates(
    model: EnergyModel,
    batch: Mapping[str, Tensor],
    beta: float = 1e-3,
    steps: int = 12,
    *,
    family: str = "auto",
    rate: float | None = None,
    centered: bool = False,
    relaxation: Relaxation | str = "auto",
) -> list[Updates]:
    """Compare both sides for the state of every node and for every parameter.

    Arguments:
        model: the network, best in float64.
        batch: inputs and targets by name.
        beta: the nudge; the two sides differ by an amount proportional to it.
        steps: K, at least 1.
        family: `prototypical`, `energy`, or `auto`: prototypical where every unit has an exact update.
        rate: the time of an Euler step of the energy-based map; by default one that is stable.
        centered: take half the difference of the increments at beta and -beta; the two sides then differ by beta^2.
        relaxation: how the free phase relaxes; its tolerance limits the agreement.

    Raises:
        DeclarationError: for a family that doesn't exist, or one that the energy doesn't have.
        RelaxationError: if the free state isn't a fixed point of the map, to a hundredth of the first nudged step.
    """
    if steps < 1 or not beta > 0:
        raise DeclarationError(f"beta = {beta} and steps = {steps} must be positive", "such as beta=0.001, steps=12")
    inputs = {name: value for name, value in batch.items() if name in model.inputs}
    targets = {name: value for name, value in batch.items() if name not in model.inputs}
    settings = Relaxation(relaxation) if isinstance(relaxation, str) else relaxation
    with torch.no_grad():
        problem = model.problem(None if inputs else len(next(iter(targets.values()))), **inputs)
        state = run(problem, initial_state(problem, settings.initial, stream(0, "initial")), settings).states
        nudged = {sign * beta: problem.nudged(targets, [sign * beta]) for sign in ((1, -1) if centered else (1,))}
    step = _map([problem, *nudged.values()], state, family, rate)
    runs = [increments(phase, state, step, steps, nudge) for nudge, phase in nudged.items()]
    propagated = {name: torch.stack([run[name] for run in runs]).mean(0) for name in runs[0]}
    _check_fixed_point(problem, state, step, propagated, beta)
    backpropagated = contributions(problem, state, targets, step, steps)
    outside = model.graph.readouts()  # they act on the cost alone, whatever the number of steps
    names = [name for name in propagated if name.partition(".")[0] not in outside]
    return [Updates(name, propagated[name], backpropagated[name]) for name in names]


def increments(nudged: Problem, state: Mapping[str, Tensor], step: Map, steps: int, beta: float) -> Series:
    """[s_{t+1} - s_t]/beta of every node and [dF/dtheta(s_{t+1}) - dF/dtheta(s_t)]/(beta rows) of every parameter.

    Both terms of a difference are taken at the same beta, so that the cost doesn't enter twice.

    Arguments:
        nudged: the problem under the nudge.
        state: the free equilibrium.
        step: the map.
        steps: K.
        beta: the nudge.
    """
    current, series = dict(state), []
    slopes = _slopes(nudged, current)
    for _ in range(steps):
        with torch.no_grad():
            new = step(nudged, current)
        moved = {node: nudged.domain(node).difference(new[node], current[node]) / beta for node in current}
        following = _slopes(nudged, new)
        changed = {name: (following[name] - slopes[name]) / (beta * nudged.rows) for name in slopes}
        series.append(moved | changed)
        current, slopes = new, following
    return {name: torch.stack([entry[name] for entry in series]) for name in series[0]}


def contributions(
    problem: Problem, state: Mapping[str, Tensor], targets: Mapping[str, Tensor], step: Map, steps: int
) -> Series:
    """-dC/df of every node and dC/dtheta of every parameter, for the forces and parameters of each of the last steps.

    By one backpropagation through `steps` steps, each with forces and parameters of its own; the last step comes first.

    Arguments:
        problem: the free problem.
        state: its equilibrium, where all steps stand.
        targets: by name.
        step: the map.
        steps: K.
    """
    model, copies, pushes = problem.model, [], []
    with torch.enable_grad():
        current = {name: value.detach().requires_grad_() for name, value in state.items()}
        for _ in range(steps):
            copies.append(leaves(problem))
            pushes.append({node: torch.zeros_like(value).requires_grad_() for node, value in state.items()})
            current = step(copies[-1].problem, current, pushes[-1])
        wanted = model.as_targets(targets, problem.rows)
        cost = model.functions["cost"](problem.parameters, {**problem.clamped, **current}, wanted).sum()
    parameters = list(copies[0].parameters)
    sources = [
        leaf for copy, push in zip(copies, pushes, strict=True) for leaf in (*push.values(), *copy.parameters.values())
    ]
    flat = iter(torch.autograd.grad(cost, sources, allow_unused=True, materialize_grads=True))
    series = []
    for _ in range(steps):
        forces = {node: -next(flat) for node in state}
        series.append(forces | {name: next(flat) / problem.rows for name in parameters})
    return {name: torch.stack([entry[name] for entry in reversed(series)]) for name in series[0]}


def _slopes(problem: Problem, state: Mapping[str, Tensor]) -> Series:
    """dF/dtheta at a state, by autograd of F."""
    copies = {name: value.detach().requires_grad_() for name, value in problem.parameters.items()}
    functions, full = problem.model.functions, {**problem.clamped, **state}
    with torch.enable_grad():
        total = functions["energy"](copies, full) + problem.beta * functions["cost"](copies, full, problem.targets)
    found = torch.autograd.grad(total.sum(), list(copies.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(copies, found, strict=True))


def _map(problems: list[Problem], state: State, family: str, rate: float | None) -> Map:
    if family not in FAMILIES:
        raise DeclarationError(f"unknown family '{family}'", f"use {', '.join(FAMILIES)}")
    exact = all(map(has_exact_updates, problems))
    if family == "prototypical" and not exact:
        raise DeclarationError("not every unit has an exact update, so there is no prototypical map", "use 'energy'")
    if exact and family != "energy":
        return synchronous
    return descent(safe_rate(problems[0], state) if rate is None else rate)


def _check_fixed_point(problem: Problem, state: State, step: Map, propagated: Series, beta: float) -> None:
    with torch.no_grad():
        still = step(problem, state)
    drift = max(_rms(problem.domain(node).difference(still[node], state[node])) for node in state)
    signal = max(_rms(propagated[node][0]) for node in state) * beta
    if drift > 0.01 * signal:
        raise RelaxationError(
            f"the free state still moves by {drift:.2g} in a step, the nudge by {signal:.2g}: relax to a lower "
            "tolerance, use float64, or a larger beta"
        )


def _rms(values: Tensor) -> float:
    return float(values.detach().square().mean().sqrt())
