"""Relaxation on a device that is noisy: to an equilibrium, and then on with the noise.

    dx = -(1/tau) dF/dx dt + noise dW,        from the equilibrium that another integrator finds

The state at the end is what a read-out at an arbitrary time meets: a fluctuation about the equilibrium, of variance
noise^2 tau/(2 curvature) in a quadratic well, or wherever the noise has carried the state. Every phase has noise of its
own, so that a gradient contains it divided by beta, as on the device. With one tau and while it is weak, the noise
samples the Boltzmann distribution at the temperature noise^2 tau/2. Source: arXiv 2505.02103 (phase noise).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from physnet.errors import DeclarationError, Fault, RelaxationError
from physnet.integration import choose, make_integrator
from physnet.langevin import careful_step, normal_numbers, time_constants, walk
from physnet.problem import Problem, State
from physnet.randomness import stream
from physnet.relaxation import Equilibrium, Integrator, StoppingRule, integrator
from physnet.vectors import Vectors, not_real

MOST_STEPS = 100_000


@integrator
class Thermal(Integrator):
    """Arguments:
    noise: its strength, in states per square root of the unit of tau; 0 leaves the equilibrium alone.
    duration: how long it acts before the state is read, in the unit of tau.
    step: of time; `None` finds one from the curvature at the equilibrium.
    integrator: which finds the equilibrium; by name, `auto` as in a `Relaxation`.
    options: of that integrator.
    seed: of the noise, along with what the relaxation is for: seed of the run, number of the batch, phase.
    """

    name = "thermal"
    idea = "an equilibrium, and then noise"
    rests = False

    def __init__(
        self,
        noise: float = 0.0,
        duration: float = 10.0,
        step: float | None = None,
        integrator: str = "auto",
        options: Mapping[str, Any] | None = None,
        seed: int = 0,
    ) -> None:
        for key, value, valid, fix in (
            ("noise", noise, 0 <= noise < math.inf, "a strength, at least 0"),
            ("duration", duration, 0 < duration < math.inf, "a positive number"),
            ("step", step, step is None or step > 0, "a positive number, or leave it out"),
        ):
            if not valid:
                raise DeclarationError(Fault(f"{key} is {value}", fix, ("options", key)))
        if integrator == self.name:
            fault = Fault("noise within noise", "name another integrator, or auto", ("options", "integrator"))
            raise DeclarationError(fault)
        self.inner = make_integrator(integrator, options or {})
        if self.inner is not None and self.inner.coordinates != "states":
            message = f"nudged phases of '{integrator}' aren't displaced states at rest, and noise acts on states"
            raise DeclarationError(Fault(message, "use integrator: auto", ("options", "integrator")))
        self.noise, self.duration, self.time_step, self.seed = noise, duration, step, seed

    @classmethod
    def concerns(cls, problem: Problem) -> bool:
        return False  # nobody gets noise without asking for it

    @classmethod
    def refusal(cls, problem: Problem) -> str | None:
        return not_real(problem)

    def relax(self, problem: Problem, state: State, rule: StoppingRule) -> Equilibrium:
        chosen = choose(problem, "auto" if self.inner is None else self.inner.name)[0]
        inner = self.inner or chosen()
        inner.occasion = self.occasion
        found = inner.relax(problem, state, rule)
        return replace(found, states=self._disturbed(problem, found.states)) if self.noise else found

    def _disturbed(self, problem: Problem, state: State) -> State:
        step = self.time_step or careful_step(problem, state)
        steps = max(1, math.ceil(self.duration / step))
        if steps > MOST_STEPS:
            raise RelaxationError(
                f"noise for {self.duration:g} units of time takes {steps} steps of {step:.2g}, since curvatures are "
                "large: use a shorter duration, or set the step"
            )
        vectors = Vectors(problem, state)
        x, tau = vectors.pack(state), time_constants(problem, vectors)
        generator = stream(self.seed, "noise", *self.occasion.keys)
        draws = normal_numbers(generator, x, self.occasion.share)
        path = walk(x, lambda s: vectors.force(s) / tau, vectors.project, self.duration / steps, self.noise, draws)
        for _, x in zip(range(steps), path, strict=False):  # noqa: B007 the last one counts
            pass
        return vectors.unpack(x)
