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
from dataclasses import dataclass, field
from itertools import islice

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torchdiffeq import odeint

from physnet.equilibrium import Equilibrium, blame_data
from physnet.errors import DeclarationError, Fault, RelaxationError, RelaxationWarning
from physnet.langevin import careful_step, normal_numbers, walk
from physnet.model import EnergyModel
from physnet.precision import full_precision
from physnet.problem import Problem, State
from physnet.randomness import stream
from physnet.relaxation import Relaxation, free_start, run
from physnet.stopping import StoppingRule, angles, drifting

STIFF = ("LSODA", "BDF", "Radau")
"""Methods of SciPy; for small networks whose time constants lie far apart."""
METHODS = ("dopri5", *STIFF)
"""dopri5 is torchdiffeq's; its other methods are less exact between their steps than at them."""
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


@dataclass
class Trajectory:
    """How a batch moved.

    Arguments:
        times: [times], from 0, in the declaration's unit of time.
        states: free states by node, [times, rows, *node]. Angles are unwrapped, so that they never jump.
        energy: F, [times, rows]; without noise it never rises. Of oscillators that turn freely, in the frame that turns
            with them.
        residual: relative residual as in `relax`, [times, rows].
        settling_time: per row, when it had settled for good; infinite where it has not.
        converged: per row, whether it has settled.
        equilibrium: what `relax` finds from the last state on; settling is measured by it.
        frame: of nodes of oscillators that turn freely, the frequency of the frame that turns with them.
    """

    times: Float[Tensor, " times"]
    states: State
    energy: Float[Tensor, "times rows"]
    residual: Float[Tensor, "times rows"]
    settling_time: Float[Tensor, " rows"]
    converged: Bool[Tensor, " rows"]
    equilibrium: Equilibrium
    frame: Mapping[str, float] = field(default_factory=dict)

    def __getitem__(self, node: str) -> Tensor:
        return self.states[node]

    def wrapped(self, node: str, *, turning: bool = False) -> Tensor:
        """The states of a node in their canonical form: angles in [-pi, pi).

        Arguments:
            node: its name.
            turning: whether as seen from the frame that turns with its oscillators.
        """
        states = self.states[node]
        if turning and node in self.frame:
            states = states - self.frame[node] * self.times.view(-1, *(1,) * (states.dim() - 1))
        return self.equilibrium.problem.domain(node).wrap(states)

    @property
    def angles(self) -> tuple[str, ...]:
        """The nodes whose states are angles."""
        return angles(self.equilibrium.problem)

    def order(self, node: str | None = None) -> Float[Tensor, "times rows"]:
        """The order parameter  |mean over units of exp(i x)|  of a node, or of all angles together: 1 in synchrony.

        Raises:
            DeclarationError: if the states of that node, or of all, are no angles.
        """
        nodes = self.angles if node is None else self._angular(node)
        if not nodes:
            raise DeclarationError("no state of this network is an angle", "order parameters are for the domain circle")
        x = torch.cat([self.states[name].flatten(2) for name in nodes], 2)
        return torch.polar(torch.ones_like(x), x).mean(2).abs()

    def frequencies(self, node: str) -> Float[Tensor, " rows *node"]:
        """The frequency of every oscillator, its mean velocity over the second half:  (x(T) - x(T/2)) / (T/2).

        Raises:
            DeclarationError: if the states of the node are no angles.
        """
        (node,) = self._angular(node)
        half = len(self.times) // 2
        return (self.states[node][-1] - self.states[node][half]) / (self.times[-1] - self.times[half])

    def _angular(self, node: str) -> tuple[str, ...]:
        if node not in self.angles:
            fix = f"such nodes are {', '.join(self.angles) or 'those with the domain circle'}"
            raise DeclarationError(f"the states of '{node}' are no angles", fix)
        return (node,)


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
        kind = _NoisyMotion if settings.noise else _Motion
        return _follow(kind(problem, state, settings, stream(seed, "noise")))


def _follow(motion: _Motion) -> Trajectory:
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
    settled = _settling_time(clock, distance, settings.within)
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


def _rest(problem: Problem, motion: _Motion, rule: StoppingRule) -> Equilibrium:
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


def _settling_time(times: Tensor, distance: Tensor, within: float) -> Tensor:
    """The first time after which a row stays inside; between two recorded times distances fall exponentially.

    Arguments:
        times: [times].
        distance: from the equilibrium, as a share of the whole way, [times, rows].
    """
    times = times.to(distance)
    outside = distance > within
    last = torch.where(outside, torch.arange(len(times), device=distance.device)[:, None], -1).max(0).values
    before, after = last.clamp(0, len(times) - 1), (last + 1).clamp(max=len(times) - 1)
    rows = torch.arange(distance.shape[1], device=distance.device)
    high, low = distance[before, rows], distance[after, rows].clamp_min(1e-300)
    share = (torch.log(high / within) / torch.log(high / low)).nan_to_num(1.0).clamp(0, 1)
    crossing = times[before] + share * (times[after] - times[before])
    return torch.where(last < 0, 0.0, torch.where(outside[-1], math.inf, crossing))


class _Motion:
    """The velocity of a batch over one matrix [rows, units] of displacements from the start.

    The integrator may carry a displacement slightly out of the domain, by no more than the error of a step; the unit is
    then taken to be at the bound. Time runs in units of the largest time constant.
    """

    def __init__(self, problem: Problem, start: State, settings: Simulation, generator: torch.Generator) -> None:
        self.problem, self.start, self.settings, self.generator = problem, start, settings, generator
        self.sizes = [value[0].numel() for value in start.values()]
        self.tau = {name: problem.model.graph.node(name).tau for name in start}
        self.unit = max(self.tau.values())
        self.moved = torch.zeros_like(self._pack(start))
        self.frame = {name: float(drive) / self.tau[name] for name, drive in problem.turning.items()}
        self.evaluations = 0
        ahead = [float(step.abs().max()) for step in problem.step(start).values()]
        self.scale = max((step for step in ahead if math.isfinite(step)), default=0.0) or 1.0

    def _pack(self, state: State) -> Tensor:
        return torch.cat([value.flatten(1) for value in state.values()], 1)

    def state(self, moved: Tensor) -> State:
        """The states that a displacement leads to."""
        pieces = zip(self.start.items(), moved.split(self.sizes, 1), strict=True)
        return self.problem.project({name: value + piece.view_as(value) for (name, value), piece in pieces})

    def at_rest(self, node: str, path: Tensor, times: Tensor) -> Tensor:
        """The states of a node, [times, rows, *node], as seen by who doesn't turn with its oscillators."""
        return path + self.frame.get(node, 0.0) * times.to(path).view(-1, *(1,) * (path.dim() - 1))

    def velocity(self, time: Tensor, moved: Tensor) -> Tensor:
        self.evaluations += 1
        if self.evaluations > self.settings.max_evaluations:
            raise self._failure(f"{self.settings.max_evaluations} evaluations of the force were not enough", time)
        state = self.state(moved)
        velocity: State = {}
        for name, force in self.problem.force(state).items():
            unbounded = force.expand_as(state[name]) * (self.unit / self.tau[name])
            velocity[name] = self.problem.domain(name).admissible(state[name], unbounded)
        return self._pack(velocity)

    def integrate(self, times: Tensor) -> Tensor:
        """Displacements at these times, [times, rows, units]; goes on from where the last call ended."""
        accuracy, method = self.settings.accuracy, self.settings.method
        stiff = method in STIFF
        grid = times / self.unit
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # SciPy's, about options that torchdiffeq hands to all of its methods
                path = odeint(
                    self.velocity,
                    self.moved,
                    grid.to(self.moved.device),
                    rtol=accuracy,
                    atol=accuracy * self.scale,
                    method="scipy_solver" if stiff else method,
                    options={"solver": method} if stiff else {"norm": _worst_row},
                )
        except (AssertionError, ValueError, RuntimeError) as problem:
            if isinstance(problem, RelaxationError):
                raise
            raise self._failure(str(problem).splitlines()[0][:100]) from None
        assert isinstance(path, Tensor)
        if len(path) != len(times):
            raise self._failure("the step became too small")
        if not bool(torch.isfinite(path).all()):
            raise self._failure("the states are not finite")
        self.moved = path[-1]
        return path

    def _failure(self, reason: str, time: Tensor | None = None) -> RelaxationError:
        blame_data(self.problem)
        at = "" if time is None else f" at time {float(time) * self.unit:.3g}"
        return RelaxationError(
            f"the simulation with {self.settings.method} stopped{at} after {self.evaluations} evaluations of the "
            f"force: {reason}; look for energies that fall without bound and for time constants that lie far apart "
            "(method='LSODA'), or allow a larger accuracy"
        )

    def nearest(self, equilibrium: State) -> State:
        """The copy of an equilibrium, among those whole turns away, that is nearest to where the batch is now; and
        among those that a common rotation leads to, the one that is reached, since the sum of tau x stays."""
        here = self.state(self.moved)
        for nodes in self.problem.model.plan.rotations:
            mean = sum(torch.exp(1j * (equilibrium[name] - here[name])).flatten(1).sum(1) for name in nodes)
            turn = {name: torch.as_tensor(mean).angle().view(-1, *(1,) * (here[name].dim() - 1)) for name in nodes}
            equilibrium = {**equilibrium, **{name: equilibrium[name] - turn[name] for name in nodes}}
        goal = {
            name: value + self.problem.domain(name).difference(equilibrium[name], value) for name, value in here.items()
        }
        for nodes in self.problem.model.plan.rotations:
            off = sum(self.tau[name] * (goal[name] - here[name]).flatten(1).sum(1) for name in nodes)
            inertia = sum(self.tau[name] * here[name][0].numel() for name in nodes)
            for name in nodes:
                goal[name] = goal[name] - torch.as_tensor(off / inertia).view(-1, *(1,) * (here[name].dim() - 1))
        return goal

    def distance(self, path: Tensor, end: State) -> Tensor:
        """How far every row is from its end, as a share of the whole way, [times, rows]."""
        start, goal = self._pack(self.start), self._pack(end)
        left = torch.stack([torch.linalg.vector_norm(self._pack(self.state(moved)) - goal, dim=1) for moved in path])
        whole = torch.linalg.vector_norm(goal - start, dim=1)
        # where there is no way to go, everything is within the resolution of the numbers
        resolution = 1e3 * torch.finfo(path.dtype).eps * (1 + torch.linalg.vector_norm(goal, dim=1))
        return torch.where(whole <= resolution, torch.zeros_like(left), left / whole.clamp_min(resolution))


class _NoisyMotion(_Motion):
    """The same with white noise, in steps of one length."""

    def integrate(self, times: Tensor) -> Tensor:
        begin, strength = self._pack(self.start), self.settings.noise * math.sqrt(self.unit)
        longest = self.settings.step or careful_step(self.problem, self.start)
        apart = float(times[1] - times[0])  # recorded times are equally spaced
        each = max(1, math.ceil(apart / longest))
        way = walk(
            self.moved,
            lambda moved: self.velocity(times[0], moved),
            lambda moved: self._pack(self.state(moved)) - begin,
            apart / each / self.unit,
            strength,
            normal_numbers(self.generator, self.moved),
        )
        path = torch.stack([self.moved, *islice(way, each - 1, each * (len(times) - 1), each)])
        if not bool(torch.isfinite(path).all()):
            raise self._failure("the states are not finite")
        self.moved = path[-1]
        return path


def _worst_row(error: Tensor) -> Tensor:
    """The error of the worst sample, so that no sample is averaged away; of its units it is the root mean square."""
    if error.dim() < 2:
        return error.abs().max()
    return error.square().mean(1).sqrt().max()
