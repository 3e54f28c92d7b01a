"""The motion of a batch in true time, from one moment to a later one.

    tau dx/dt = -dF/dx   within the domain

A unit at a bound that its force pushes outwards stays there; everything else moves with the velocity that energy and
time constants give.
"""

from __future__ import annotations

import math
import warnings
from itertools import islice
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torchdiffeq import odeint

from physnet.equilibrium import blame_data
from physnet.errors import RelaxationError
from physnet.langevin import careful_step, normal_numbers, walk
from physnet.problem import Problem, State

if TYPE_CHECKING:
    from physnet.simulation import Simulation

STIFF = ("LSODA", "BDF", "Radau")
"""Methods of SciPy; for small networks whose time constants lie far apart."""
METHODS = ("dopri5", *STIFF)
"""dopri5 is torchdiffeq's; its other methods are less exact between their steps than at them."""


class Motion:
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


class NoisyMotion(Motion):
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
