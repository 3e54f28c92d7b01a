"""Relaxation: from a problem and a starting state to an equilibrium.

    equilibrium:  F is minimal or stationary in the free states, within their domains

`integration` says what an integrator is, `equilibrium` where one has ended.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from physnet.equilibrium import Equilibrium, judge
from physnet.errors import DeclarationError, Fault, RelaxationError, ShapeError, caution
from physnet.integration import Integrator, Occasion, choose, construct, integrator
from physnet.layout import arranged
from physnet.model import check_model
from physnet.nudged import Nudged
from physnet.nudging import nudge
from physnet.precision import full_precision
from physnet.problem import Problem, State
from physnet.randomness import stream
from physnet.rows import Share
from physnet.stopping import StoppingRule, angles, drifting

if TYPE_CHECKING:
    from physnet.model import EnergyModel

__all__ = ["Equilibrium", "Integrator", "Relaxation", "StoppingRule", "integrator", "relax"]

INITIAL = ("zero", "forward", "random", "previous")

# Tolerances on the relative residual. A nudged phase is judged by its displacement from the free state, which shrinks
# with beta, so that the same number serves every beta.
_FREE = {torch.float32: 1e-3, torch.float64: 1e-10}
_NUDGED = {torch.float32: 1e-2, torch.float64: 1e-8}


@dataclass(frozen=True)
class Relaxation:
    """How to relax one kind of phase.

    Arguments:
        integrator: a name from `integrators()`, or `auto`.
        tolerance: bound on the relative residual of every sample; `None` takes 1e-3 (free) and 1e-2 (nudged) in
            float32, 1e-10 and 1e-8 in float64.
        max_sweeps: where to give up; `flow` makes 20 evaluations of the force for each.
        initial: where the free phase starts: `zero`, `forward` (one sweep from zero in the order of the signal),
            `random`, or `previous` (the state of the last batch, where it had the same size). Nodes that declare an
            initial state of their own start from it, and not from zero or a random state.
        options: settings of the integrator, by name.
        occasion: which relaxation this is, for integrators that draw random numbers.
    """

    integrator: str = "auto"
    tolerance: float | None = None
    max_sweeps: int = 1000
    initial: str = "zero"
    options: Mapping[str, Any] = field(default_factory=dict)
    occasion: Occasion = field(default_factory=Occasion)

    def __post_init__(self) -> None:
        if self.initial not in INITIAL:
            raise DeclarationError(
                Fault(f"unknown initial state {self.initial!r}", f"use {', '.join(INITIAL)}", ("initial",))
            )
        if self.tolerance is not None and not self.tolerance > 0:
            raise DeclarationError(
                Fault(f"the tolerance {self.tolerance} is not positive", "such as 1e-5", ("tolerance",))
            )
        if self.max_sweeps < 1:
            raise DeclarationError(Fault(f"max_sweeps is {self.max_sweeps}", "at least 1", ("max_sweeps",)))


def relax(
    model: EnergyModel,
    relaxation: Relaxation | str = "auto",
    *,
    target: Mapping[str, Tensor] | Tensor | None = None,
    beta: float | None = None,
    start: Mapping[str, Tensor] | None = None,
    rows: int | None = None,
    seed: int = 0,
    **inputs: Tensor,
) -> Equilibrium:
    """Let a network settle:  s* = argmin E(s)  or, with a target,  argmin E(s) + beta C(s, y).

    Arguments:
        model: the compiled energy.
        relaxation: a `Relaxation`, or the name of an integrator.
        target: for a nudged equilibrium: one tensor, or a mapping by target name. Needs `beta`.
        beta: the nudge. The nudged phase starts from the free equilibrium.
        start: free states to begin with; nodes that it leaves out start as `relaxation.initial` says.
        rows: number of samples, for networks without inputs.
        seed: of random initial states.
        inputs: by name of the input node, [rows, *node].

    Raises:
        RelaxationError: if no equilibrium can be reached; the message says what to change.
    """
    check_model(model, "relax")
    settings = Relaxation(relaxation) if isinstance(relaxation, str) else relaxation
    if not isinstance(settings, Relaxation):
        raise DeclarationError(
            f"relax takes a Relaxation or the name of an integrator, not {relaxation!r}",
            "pass inputs by the names of their nodes, such as relax(model, image=x)",
        )
    with torch.no_grad(), full_precision(model.device):
        problem, state = free_start(model, settings, start, rows, seed, inputs)
        free = run(problem, state, settings)
        if target is None and beta is None:
            return free
        if target is None or beta is None:
            raise RelaxationError("a nudged equilibrium needs both target and beta")
        targets = target if isinstance(target, Mapping) else dict.fromkeys(model.targets, target)
        return run_nudged(free, targets, [beta], settings)


def free_start(
    model: EnergyModel,
    settings: Relaxation,
    start: Mapping[str, Tensor] | None,
    rows: int | None,
    seed: int,
    inputs: Mapping[str, Tensor],
) -> tuple[Problem, State]:
    """The free problem of a batch, and the state inside the domains that it starts from; arguments as for `relax`."""
    problem = model.problem(rows=rows, **inputs)
    state = initial_state(problem, settings.initial, stream(seed, "initial"))
    for name, value in (start or {}).items():
        if name not in state or state[name].shape != value.shape:
            wanted = ", ".join(f"{node}: {list(like.shape)}" for node, like in state.items())
            raise ShapeError(f"the start state of '{name}' has shape {list(value.shape)}", f"states are {wanted}")
        state[name] = value.to(state[name])
    return problem, problem.project(state)


def initial_state(
    problem: Problem,
    initial: str,
    generator: torch.Generator,
    previous: State | None = None,
    share: Share | None = None,
) -> State:
    """The state that a free phase starts from: what nodes declare goes before `zero` and `random`, and `previous` goes
    before that, where it fits."""
    state = problem.random(generator, share) if initial == "random" else problem.zero()
    if initial == "previous" and previous is not None and all(_alike(previous[name], state[name]) for name in state):
        return {name: arranged(value) for name, value in previous.items()}
    state |= problem.declared(generator, share)
    if initial == "forward":
        for node in problem.model.free:
            for block in problem.blocks_of(node):
                state |= problem.minimise(block, state)
    return state


def _alike(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and a.device == b.device


def run_nudged(
    free: Equilibrium,
    targets: Mapping[str, Tensor],
    betas: Sequence[complex],
    settings: Relaxation,
    clamps: bool = False,
) -> Equilibrium:
    """Relax the phases of a protocol, all in one batch, from the free equilibrium.

    A phase at beta = 0 goes along with the others: what the free phase left undone then moves all of them alike and
    cancels in the contrast, where it would otherwise be divided by beta.

    Arguments:
        free: the free equilibrium.
        targets: by name.
        betas: the nudge of every phase.
        settings: how to relax.
        clamps: whether beta is the fraction of the way to the target at which outputs are held.
    """
    with torch.no_grad(), full_precision(free.problem.like.device):
        problem = nudge(free.problem, free.states, targets, betas, clamps, coordinates(free.problem, settings))
        result = run(problem, problem.zero(), settings)
        states = problem.states(result.states)
        return replace(result, states=states, problem=problem.plain, displacement=result.states, displaced=problem)


def coordinates(problem: Problem, settings: Relaxation) -> str:
    """In which coordinates the integrator wants nudged phases; that of `auto` is the one that takes the free phase."""
    return construct(choose(problem, settings.integrator)[0], settings.options).coordinates


def run(problem: Problem, state: State, settings: Relaxation, *, quiet: bool = False) -> Equilibrium:
    """Relax a problem from a state, and judge the result.

    Raises:
        RelaxationError: for states that aren't finite, and what integrators raise.
    """
    chosen, rule, reason = prepared(problem, settings)
    for caveat in chosen.caveats(problem):
        caution(problem.model, caveat)
    with torch.no_grad(), full_precision(problem.like.device):
        result = replace(chosen.relax(problem, state, rule), reason=reason)
        if angles(problem):
            result.drifting = drifting(problem, state, result.states) & ~result.converged
    judge(result, rule, quiet)
    return result


def prepared(problem: Problem, settings: Relaxation) -> tuple[Integrator, StoppingRule, str]:
    """The integrator that these settings mean for a problem, when it is to stop, and why it was chosen."""
    kind, reason = choose(problem, settings.integrator)
    chosen = construct(kind, settings.options)
    chosen.occasion = settings.occasion
    dtype = problem.model.dtype
    default = (_NUDGED if isinstance(problem, Nudged) else _FREE).get(dtype, 1e-3)
    if settings.tolerance is not None and settings.tolerance < torch.finfo(dtype).eps:
        raise RelaxationError(
            f"the tolerance {settings.tolerance:g} is below the resolution of {str(dtype).removeprefix('torch.')}, "
            f"{torch.finfo(dtype).eps:.1g}: use a larger one, or float64"
        )
    return chosen, StoppingRule(problem, settings.tolerance or default, settings.max_sweeps), reason
