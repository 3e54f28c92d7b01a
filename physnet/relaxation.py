"""Relaxation: from a problem and a starting state to an equilibrium.

    equilibrium:  F is minimal or stationary in the free states, within their domains

An integrator is a class with `refusal(problem)` and `relax(problem, state, rule)`; it registers itself with
`@integrator`. `relax` picks the first one that doesn't refuse.
"""

from __future__ import annotations

import importlib
import inspect
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.utils import get_total_norm

from physnet.errors import DeclarationError, Fault, RelaxationError, RelaxationWarning, ShapeError, did_you_mean
from physnet.layout import arranged
from physnet.model import check_model
from physnet.nudged import Nudged
from physnet.nudging import nudge
from physnet.problem import Problem, Share, State
from physnet.randomness import stream
from physnet.registry import Registry, subclass_of
from physnet.stopping import StoppingRule, angles, drifting

if TYPE_CHECKING:
    from physnet.model import EnergyModel

INITIAL = ("zero", "forward", "random", "previous")

DRIFT = (
    "drift: some of their angles keep turning, since their drives lie outside of the locking range; use stronger "
    "couplings or natural frequencies that are nearer to each other, or follow them in time with simulate"
)

# Tolerances on the relative residual. A nudged phase is judged by its displacement from the free state, which shrinks
# with beta, so that the same number serves every beta.
_FREE = {torch.float32: 1e-3, torch.float64: 1e-10}
_NUDGED = {torch.float32: 1e-2, torch.float64: 1e-8}


@dataclass(frozen=True)
class Occasion:
    """Which relaxation this is: all that an integrator draws is a pure function of it and of the integrator's seed.

    Arguments:
        keys: such as the seed of the run and the number of the batch.
        share: which rows of the whole batch are relaxed, where processes divide it.
    """

    keys: tuple[int | str, ...] = ()
    share: Share | None = None


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


@dataclass
class Equilibrium:
    """Where a relaxation ended.

    Arguments:
        states: free states by node, [rows, *node]; phases stacked along the rows.
        residual: per row, the largest step that remained, relative to the state (free) or its displacement (nudged).
        sweeps: per row, how many sweeps (for `flow`: evaluations of the force) it took.
        converged: per row, whether the residual met the tolerance.
        integrator: which one was used.
        reason: why that one.
        problem: what was relaxed; gives energies, forces and costs.
        displacement: of a nudged phase: how far it is from the free equilibrium, to the last digit.
        displaced: of a nudged phase: the problem in displacements.
        drifting: per row, whether angles keep turning, outside of the locking range; `None` where no state is one.
    """

    states: State
    residual: Float[Tensor, " rows"]
    sweeps: Int[Tensor, " rows"]
    converged: Bool[Tensor, " rows"]
    integrator: str
    problem: Problem
    reason: str = ""
    displacement: State = field(default_factory=dict)
    displaced: Nudged | None = None
    drifting: Bool[Tensor, " rows"] | None = None

    @property
    def energy(self) -> Float[Tensor, " rows"]:
        """F of every row."""
        with full_precision(self.problem.like.device):
            return self.problem.energy(self.states)

    def __getitem__(self, node: str) -> Tensor:
        return self.states[node]


class Integrator(ABC):
    """One way to an equilibrium. Options are the arguments of its constructor."""

    name: str
    idea: str
    coordinates: str = "states"
    """Of nudged phases: `states`; where a state is predicted also `errors`, or `plain states` in the model's dtype; of
    couplings also `continued`: states that go on where the free phase is."""
    speaks: bool = False
    """Whether nodes tell each other messages, that a `Listener` hears."""
    rests: bool = True
    """Whether phases end at equilibria."""
    occasion: Occasion = Occasion()
    """Which relaxation this is; known from when it begins."""

    @classmethod
    def concerns(cls, problem: Problem) -> bool:
        """Whether it is made for problems of this kind: `auto` passes over it in silence where it isn't."""
        return True

    @classmethod
    @abstractmethod
    def refusal(cls, problem: Problem) -> str | None:
        """Why this integrator can't relax the problem; `None` if it can."""

    @classmethod
    def caveats(cls, problem: Problem) -> tuple[str, ...]:
        """What a user should know before relaxing this problem so; shown by `explain`."""
        return ()

    @abstractmethod
    def relax(self, problem: Problem, state: State, rule: StoppingRule) -> Equilibrium:
        """Relax from a state inside the domains. Runs without autograd."""


def _objection(name: str, thing: Any) -> str | None:
    return subclass_of(Integrator)(name, thing) or (None if thing.name == name else f"it calls itself '{thing.name}'")


INTEGRATORS: Registry[type[Integrator]] = Registry("integrator", "physnet.integrators", {}, _objection)
"""Integrators by name; `integrators()` sees to it that physnet's own are there."""
I = TypeVar("I", bound=type[Integrator])  # noqa: E741


def integrator(kind: I) -> I:
    """Register an integrator under its name; `auto` tries them in the order of registration."""
    INTEGRATORS[getattr(kind, "name", kind.__name__)] = kind
    return kind


def integrators() -> Registry[type[Integrator]]:
    """All integrators by name, in the order in which `auto` tries them."""
    importlib.import_module("physnet.integrators")
    return INTEGRATORS


def find_integrator(name: str) -> type[Integrator]:
    """The integrator of that name.

    Raises:
        DeclarationError: if there is none.
    """
    known = integrators()
    if name not in known:
        raise DeclarationError(
            Fault(f"unknown integrator '{name}'", f"use auto, {', '.join(known)}", ("integrator",), value=name)
        )
    return known[name]


def make_integrator(name: str, options: Mapping[str, Any]) -> Integrator | None:
    """An integrator with its options, checked; `auto` has none of its own to check and gives `None`."""
    if name == "auto":
        if options:
            raise DeclarationError(
                Fault("options need an integrator to belong to", "name one, such as integrator: flow", ("options",))
            )
        return None
    return _construct(find_integrator(name), options)


def _construct(kind: type[Integrator], options: Mapping[str, Any]) -> Integrator:
    try:
        return kind(**options)
    except (TypeError, AttributeError) as error:
        known = list(inspect.signature(kind).parameters)
        wrong = next((name for name in options if name not in known), None)
        if wrong is None:
            fault = Fault(f"an option of '{kind.name}' has the wrong type: {error}", f"see {kind.name}", ("options",))
            raise DeclarationError(fault) from None
        hint = did_you_mean(wrong, known, "it has none")
        message = f"integrator '{kind.name}' has no option '{wrong}'"
        raise DeclarationError(Fault(message, hint, ("options", wrong), at_key=True)) from None


def choose(problem: Problem, name: str = "auto") -> tuple[type[Integrator], str]:
    """The integrator for a problem and why.

    Raises:
        DeclarationError: if there is none of that name.
        RelaxationError: if it refuses the problem.
    """
    if name != "auto":
        kind = find_integrator(name)
        refusal = kind.refusal(problem)
        if refusal is not None:
            raise RelaxationError(f"integrator '{name}' can't relax this energy: {refusal}")
        return kind, "asked for"
    refusals: list[str] = []
    for kind in (kind for _, kind in integrators().usable() if kind.concerns(problem)):
        refusal = kind.refusal(problem)
        if refusal is None:
            return kind, "; ".join([*refusals, f"{kind.name}: {kind.idea}"])
        refusals.append(f"not {kind.name}: {refusal}")
    raise RelaxationError(f"no integrator can relax this energy: {'; '.join(refusals)}")


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


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """A context without autocast, and without TF32, which cuDNN takes for convolutions by default: states, fields and
    contrasts are never in reduced precision."""
    with _NO_TF32, torch.autocast(device.type, enabled=False):
        yield


class _NoTF32:
    """TF32 is off in the whole process: from when the first thread enters until the last one has left."""

    def __init__(self) -> None:
        self.lock, self.inside, self.before = Lock(), 0, True

    def __enter__(self) -> None:
        with self.lock:
            if not self.inside:
                self.before, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
            self.inside += 1

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.inside -= 1
            if not self.inside:
                torch.backends.cudnn.allow_tf32 = self.before


_NO_TF32 = _NoTF32()


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
        problem = nudge(free.problem, free.states, targets, betas, clamps, _coordinates(free.problem, settings))
        result = run(problem, problem.zero(), settings)
        states = problem.states(result.states)
        return replace(result, states=states, problem=problem.plain, displacement=result.states, displaced=problem)


def _coordinates(problem: Problem, settings: Relaxation) -> str:
    """In which coordinates the integrator wants nudged phases; that of `auto` is the one that takes the free phase."""
    return _construct(choose(problem, settings.integrator)[0], settings.options).coordinates


def run(problem: Problem, state: State, settings: Relaxation, *, quiet: bool = False) -> Equilibrium:
    """Relax a problem from a state, and judge the result.

    Raises:
        RelaxationError: for states that aren't finite, and what integrators raise.
    """
    kind, reason = choose(problem, settings.integrator)
    chosen = _construct(kind, settings.options)
    chosen.occasion = settings.occasion
    dtype = problem.model.dtype
    default = (_NUDGED if isinstance(problem, Nudged) else _FREE).get(dtype, 1e-3)
    if settings.tolerance is not None and settings.tolerance < torch.finfo(dtype).eps:
        raise RelaxationError(
            f"the tolerance {settings.tolerance:g} is below the resolution of {str(dtype).removeprefix('torch.')}, "
            f"{torch.finfo(dtype).eps:.1g}: use a larger one, or float64"
        )
    rule = StoppingRule(problem, settings.tolerance or default, settings.max_sweeps)
    with torch.no_grad(), full_precision(problem.like.device):
        result = replace(chosen.relax(problem, state, rule), reason=reason)
        if angles(problem):
            result.drifting = drifting(problem, state, result.states) & ~result.converged
    _judge(result, rule, quiet)
    return result


def blame_data(problem: Problem) -> None:
    """Raise `RelaxationError` if an input or target isn't finite, so that the data are blamed and not the method."""
    for kind, tensors in (("input", problem.clamped), ("target", problem.targets)):
        for name, value in tensors.items():
            if not bool(torch.isfinite(value).all()):
                raise RelaxationError(f"the {kind} '{name}' holds values that are not finite; clean the data")


def _judge(result: Equilibrium, rule: StoppingRule, quiet: bool) -> None:
    if bool(result.converged.all()):
        return
    # one norm of everything is cheap; it may overflow before a state does, and only then are all looked at
    if not bool(torch.isfinite(get_total_norm([result.residual, *result.states.values()]))):
        _blame(result)
    if quiet:
        return
    drifts = 0 if result.drifting is None else int(result.drifting.sum())
    if drifts:
        warnings.warn(f"{drifts} of {len(result.converged)} samples {DRIFT}", RelaxationWarning, stacklevel=3)
    missing = int((~result.converged).sum()) - drifts
    if not missing:
        return
    warnings.warn(
        f"{missing} of {len(result.converged)} samples have not converged with '{result.integrator}' after "
        f"{int(result.sweeps.max())} sweeps: residual {float(result.residual.max()):.2g}, "
        f"tolerance {rule.tolerance:.2g}; raise max_sweeps or the tolerance",
        RelaxationWarning,
        stacklevel=3,
    )


def _blame(result: Equilibrium) -> None:
    """Raise `RelaxationError` for the first thing in an equilibrium that isn't finite; return if all is."""
    for node, value in result.states.items():
        if not bool(torch.isfinite(value).all()):
            blame_data(result.problem)
            raise RelaxationError(
                f"the state of '{node}' is not finite after {int(result.sweeps.max())} sweeps: "
                "look for energies that fall without bound, reduce |beta|, or give the node a bounded domain"
            )
    if bool(torch.isfinite(result.residual).all()):
        return
    blame_data(result.problem)
    for node, value in result.problem.step(result.states).items():
        if not bool(torch.isfinite(value).all()):
            raise RelaxationError(
                f"the exact update of '{node}' is not finite: look for energies that fall without bound, "
                "reduce |beta|, or give the node a bounded domain"
            )
    force = result.problem.force(result.states)
    lost = [node for node, value in force.items() if not bool(torch.isfinite(value).all())]
    what = f"force on '{lost[0]}'" if lost else "residual"
    raise RelaxationError(
        f"the {what} is not finite after {int(result.sweeps.max())} sweeps: "
        "look for inputs that aren't finite, and for roots, logarithms and divisions in the energy"
    )
