"""What an integrator is, and which one relaxes a problem.

An integrator is a class with `refusal(problem)` and `relax(problem, state, rule)`; it registers itself with
`@integrator`. `choose` picks the first one that doesn't refuse.
"""

from __future__ import annotations

import importlib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from physnet.equilibrium import Equilibrium
from physnet.errors import DeclarationError, Fault, RelaxationError, did_you_mean
from physnet.problem import Problem, State
from physnet.registry import Registry, subclass_of
from physnet.rows import Share
from physnet.stopping import StoppingRule

if TYPE_CHECKING:
    from physnet.model import EnergyModel


@dataclass(frozen=True)
class Occasion:
    """Which relaxation this is: all that an integrator draws is a pure function of it and of the integrator's seed.

    Arguments:
        keys: such as the seed of the run and the number of the batch.
        share: which rows of the whole batch are relaxed, where processes divide it.
    """

    keys: tuple[int | str, ...] = ()
    share: Share | None = None


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
    pace: str = "sweep"
    """What one of `max_sweeps` is called."""
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

    def caveats(self, problem: Problem) -> tuple[str, ...]:
        """What a user should know before relaxing this problem so; shown by `explain`, and once as a warning."""
        return ()

    def notes(self, model: EnergyModel) -> tuple[str, ...]:
        """How it relaxes a network, where that isn't as `explain` says otherwise."""
        return ()

    def check(self, model: EnergyModel) -> None:  # noqa: B027 most have nothing to check
        """Raise `DeclarationError` for options that don't fit a network."""

    @abstractmethod
    def relax(self, problem: Problem, state: State, rule: StoppingRule) -> Equilibrium:
        """Relax from a state inside the domains. Runs without autograd."""

    def path(self, problem: Problem, state: State, rule: StoppingRule) -> Iterator[State]:
        """The states after every sweep, to be looked at, until the rule is met."""
        single = StoppingRule(problem, torch.finfo(problem.like.dtype).eps, 1)
        for _ in range(rule.max_sweeps):
            if rule.met(state):
                return
            state = self.relax(problem, state, single).states
            yield state


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
    return construct(find_integrator(name), options)


def construct(kind: type[Integrator], options: Mapping[str, Any]) -> Integrator:
    """An integrator of this kind with its options, checked."""
    try:
        return kind(**options)
    except (TypeError, AttributeError) as error:
        known = list(inspect.signature(kind).parameters)
        wrong = next((name for name in options if name not in known), None)
        if wrong is None:
            fault = Fault(f"an option of '{kind.name}' has the wrong type: {error}", f"see {kind.name}", ("options",))
            raise DeclarationError(fault) from None
        hint = did_you_mean(wrong, known) if known else "it has none"
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
