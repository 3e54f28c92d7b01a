"""How a batch moved in time, and when it had settled."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from physnet.equilibrium import Equilibrium
from physnet.errors import DeclarationError
from physnet.problem import State
from physnet.stopping import angles


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


def settling_time(times: Tensor, distance: Tensor, within: float) -> Tensor:
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
