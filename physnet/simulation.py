"""The transients of a network in true time.

    tau dx/dt = -dF/dx   within the domain

A unit at a bound that its force pushes outwards stays there; everything else moves with the velocity that energy and
time constants give. Integrators of `relax` may take any way to an equilibrium; this is the way that the device takes.
Oscillators that nothing outside holds are followed in the frame that turns with them, and their angles given at rest.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from physnet.equilibrium import Equilibrium
from physnet.errors import DeclarationError, Fault, RelaxationError, RelaxationWarning
from physnet.model import EnergyModel
from physnet.motion import METHODS, Motion, NoisyMotion
from physnet.precision import full_precision
from physnet.problem import Problem
from physnet.randomness import stream
from physnet.relaxation import Relaxation, free_start, run
from physnet.stopping import StoppingRule, drifting
from physnet.trajectory import Trajectory, settling_time

STRETCH, LONGEST = 10.0, 1000.0
"""How long the first stretch is, and when waiting for the last sample ends, in units of the largest time constant."""


@dataclass(frozen=True)
class Simulation:
    """How to simulate.

    Arguments:
        duration: how long, in the unit of time that the declaration's `tau` uses; `None` until every sample has
            settled, but at most 1000 of the largest time constants.
        times: how many times to record, equally spaced from 0 to the end; at least 2. Without a duration each stretch
            of the simulation has as many, and each is as long as all before it.
        initial: where the states start: `zero`, `forward` or `random`, as in `Relaxation`.
        within: a sample has settled once it stays nearer to its equilibrium than this share of the way there.
        accuracy: error that a step may make, relative to the way gone and to the steps that exact updates would make.
        method: dopri5 (torchdiffeq); LSODA, BDF or Radau (SciPy) where time constants lie far apart.
        max_evaluations: evaluations of the force after which to give up.
        noise: strength of white noise, in states per square root of the unit of time: dx = -dF/dx dt/tau + noise dW.
            Nothing ever settles then, so that it needs a duration; `accuracy` and `method` don't matter.
        step: of time, with noise; `None` finds one from the curvature at the start.
    """

    duration: float | None = None
    times: int = 101
    initial: str = "zero"
    within: float = 0.01
    accuracy: float = 1e-6
    method: str = "dopri5"
    max_evaluations: int = 1_000_000
    noise: float = 0.0
    step: float | None = None

    def __post_init__(self) -> None:
        def check(name: str, allowed: bool, fix: str) -> None:
            if not allowed:
                raise DeclarationError(Fault(f"{name} is {getattr(self, name)!r}", fix, (name,)))

        check("duration", self.duration is None or 0 < self.duration < math.inf, "a positive number, or None")
        check("times", self.times >= 2, "at least 2: the beginning and the end")
        check("initial", self.initial in ("zero", "forward", "random"), "use zero, forward or random")
        check("within", 0 < self.within < 1, "a share such as 0.01")
        check("accuracy", 1e-13 <= self.accuracy < 1, "a number such as 1e-6, from 1e-13")
        check("method", self.method in METHODS, f"use {', '.join(METHODS)}")
        check("noise", 0 <= self.noise < math.inf, "a strength, at least 0")
        check("duration", not self.noise or self.duration is not None, "a number, since noise never settles")
        check("step", self.step is None or 0 < self.step < math.inf, "a positive number, or None")
        check("max_evaluations", self.max_evaluations >= 1, "at least 1")


def simulate(
    model: EnergyModel,
    simulation: Simulation | float | None = None,
    /,
    *,
    target: Mapping[str, Tensor] | Tensor | None = None,
    beta: float | None = None,
    start: Mapping[str, Tensor] | None = None,
    rows: int | None = None,
    seed: int = 0,
    **inputs: Tensor,
) -> Trajectory:
    """Follow a network in time:  tau dx/dt = -dF/dx  within the domain, in float64.

    Arguments:
        model: the compiled energy; its nodes hold their time constants.
        simulation: a `Simulation`, or a duration; `None` until every sample has settled.
        target: of a nudged simulation: one tensor, or a mapping by target name. Needs `beta`.
        beta: the nudge. It is switched on at time 0, in the free equilibrium.
        start: free states to begin with; nodes that it leaves out start as `simulation.initial` says.
        rows: number of samples, for networks without inputs.
        seed: of random initial states.
        inputs: by name of the input node, [rows, *node].

    Raises:
        RelaxationError: for states that run away, and energies that can't be integrated; says what to change.
    """
    settings = simulation if isinstance(simulation, Simulation) else Simulation(simulation)
    if any(value.dtype != torch.float64 for value in model.parameters()):
        model = copy.deepcopy(model).double()
    inputs = {name: value.double() if torch.is_tensor(value) else value for name, value in inputs.items()}
    with torch.no_grad(), full_precision(model.device):
        problem, state = free_start(model, Relaxation(initial=settings.initial), start, rows, seed, inputs)
        state = {name: value.double() for name, value in state.items()}  # a model without tensors has no dtype
        if (target is None) != (beta is None):
            raise RelaxationError("a nudged simulation needs both target and beta")
        if target is not None and beta is not None:
            state = run(problem, state, Relaxation()).states
            targets = target if isinstance(target, Mapping) else dict.fromkeys(model.targets, target)
            problem = problem.nudged(targets, [beta])
        kind = NoisyMotion if settings.noise else Motion
        return _follow(kind(problem, state, settings, stream(seed, "noise")))


def _follow(motion: Motion) -> Trajectory:
    """Stretch after stretch, until the duration is over or everything has settled."""
    settings, problem = motion.settings, motion.problem
    ends = _stretches(settings.duration, motion.unit)
    rule = StoppingRule(problem, 1.0, 1)
    times, path = [torch.zeros(1, dtype=torch.float64)], [motion.moved.unsqueeze(0)]
    equilibrium, distance = None, torch.empty(0)
    for begin, end in zip([0.0, *ends], ends, strict=False):
        grid = torch.linspace(begin, end, settings.times, dtype=torch.float64)
        times.append(grid[1:])
        path.append(motion.integrate(grid)[1:])
        equilibrium = _rest(problem, motion, rule)
        end = motion.nearest(equilibrium.states)
        # judged here, not where `relax` left it: an angle that runs away looks still once it is huge
        resting = rule.residual(end) <= 1e-2 * settings.within
        distance = motion.distance(torch.cat(path), end).where(resting, math.inf)
        if bool((distance[-1] <= 0.1 * settings.within).all()):  # well inside, so that it can't leave again
            break
    assert equilibrium is not None
    clock, states = torch.cat(times), [motion.state(moved) for moved in torch.cat(path)]
    settled = settling_time(clock, distance, settings.within)
    missing = int((~settled.isfinite()).sum())
    if missing and settings.duration is None:
        warnings.warn(
            f"{missing} of {len(settled)} samples have not settled after {float(clock[-1]):g} units of time; "
            "give a duration, or look for a force that never vanishes",
            RelaxationWarning,
            stacklevel=4,
        )
    return Trajectory(
        times=clock.to(distance),
        states={name: motion.at_rest(name, torch.stack([s[name] for s in states]), clock) for name in states[0]},
        energy=torch.stack([problem.energy(state) for state in states]),
        residual=torch.stack([rule.residual(state) for state in states]),
        settling_time=settled,
        converged=settled.isfinite(),
        equilibrium=equilibrium,
        frame=motion.frame,
    )


def _rest(problem: Problem, motion: Motion, rule: StoppingRule) -> Equilibrium:
    """The equilibrium that a batch moves to; where it is, not converged, if there is none: what drifts or runs away is
    a result of a simulation, too."""
    state = motion.state(motion.moved)
    lost = drifting(problem, motion.start, state)
    if bool(lost.all()):
        residual = rule.residual(state)
        never = torch.zeros(problem.rows, dtype=torch.int64, device=residual.device)
        return Equilibrium(state, residual, never, never > 0, "none", problem, "all samples drift", drifting=lost)
    try:
        return run(problem, state, Relaxation(), quiet=True)
    except RelaxationError as error:
        residual = rule.residual(state)
        never = torch.zeros(problem.rows, dtype=torch.int64, device=residual.device)
        return Equilibrium(state, residual, never, never > 0, "none", problem, str(error))


def _stretches(duration: float | None, unit: float) -> list[float]:
    """When each stretch ends: one for a duration; otherwise each doubles the time."""
    if duration is not None:
        return [duration]
    doublings = math.ceil(math.log2(LONGEST / STRETCH))
    return [min(STRETCH * 2**number, LONGEST) * unit for number in range(doublings + 1)]
