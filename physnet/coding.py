"""How a node says its state in spikes, and how neighbours understand it.

    a_t = (u_t - (1 - lambda_t) u_{t-1})/lambda_t,   q_t = quantiser(a_t),   r_t = (1 - lambda_t) r_{t-1} + lambda_t q_t

u is a function of the state, r what has been understood, and r = u if nothing is quantised; u_0 = r_0 = 0. With
lambda = 1 nothing is predicted. Spikes are in units of the largest |u| that the domain of the node allows. Source:
O'Connor, Gavves and Welling, AISTATS 2019 (code QUVA-Lab/spiking-eqprop).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import sympy as sp
import torch
from torch import Tensor

from physnet.domains import Domain
from physnet.errors import DeclarationError, Fault, RelaxationError
from physnet.layout import repeat
from physnet.messages import Channel
from physnet.printing import elementwise
from physnet.quantisers import Quantiser
from physnet.schedules import Schedule
from physnet.separation import X

POINTS = 4097
"""At how many states the range of a message is looked for."""
Range = tuple[float, float]


@dataclass(frozen=True)
class Code:
    """How nodes encode what they say.

    Arguments:
        quantiser: of nodes that aren't named below.
        quantisers: by node.
        smoothing: lambda_t.
        ranges: the lowest and highest state, of nodes whose domain doesn't say, or says too much.
        seed: of random spikes.
    """

    quantiser: Quantiser
    quantisers: tuple[tuple[str, Quantiser], ...]
    smoothing: Schedule
    ranges: tuple[tuple[str, Range], ...]
    seed: int

    def of(self, node: str) -> Quantiser:
        """The quantiser of a node."""
        return dict(self.quantisers).get(node, self.quantiser)

    def range(self, node: str, shape: tuple[int, ...], domain: Domain | None) -> Range:
        """The lowest and highest state of a node of a shape; inputs, which have no domain, are in [0, 1].

        Raises:
            DeclarationError: if nothing says.
        """
        declared = dict(self.ranges).get(node)
        if declared is not None:
            return declared
        if domain is None:
            return 0.0, 1.0
        if domain.period:
            return -domain.period / 2, domain.period / 2
        if domain.bounded:
            lo, hi = (torch.as_tensor(side) for side in domain.bounds(torch.zeros(1, *shape)))
            return float(lo.min()), float(hi.max())
        message = f"the states of '{node}' have no largest value, so that there is no size for its spikes"
        fix = f"give it a bounded domain, or relax.options.ranges: {{{node}: [-1, 2]}}, or the quantiser identity"
        raise DeclarationError(Fault(message, fix, ("options", "ranges")))


@dataclass
class Voice:
    """What is remembered of a channel: what was to say last, what the quantiser remembers, what has been understood."""

    last: Tensor
    memory: list[Tensor]
    decoded: Tensor

    def repeated(self, phases: int) -> Voice:
        """The same for all phases, to go on from."""
        return Voice(
            repeat(self.last, phases),
            [copied(value, phases) for value in self.memory],
            copied(self.decoded, phases),
        )


def copied(value: Tensor, phases: int) -> Tensor:
    """The same rows for every phase, in memory of their own."""
    return value.clone() if phases == 1 else repeat(value, phases)


class Speaker:
    """Encodes one channel.

    Arguments:
        channel: what is said.
        quantiser: how.
        range: the lowest and highest state of the node.
    """

    def __init__(self, channel: Channel, quantiser: Quantiser, range: Range) -> None:
        self.channel, self.quantiser = channel, quantiser
        lo, hi = _reach(channel.function, *range)
        self.lowest, self.highest = -1 if lo < 0 else 0, 1 if hi > 0 else 0
        self.scale = max(abs(lo), abs(hi)) or 1.0
        self._function = None if channel.function == X else elementwise(channel.function)

    def value(self, x: Tensor) -> Tensor:
        """u, what there is to say."""
        return x if self._function is None else self._function(x)

    def begin(self, x: Tensor) -> Voice:
        """Before the first step, nothing has been said."""
        silence = torch.zeros_like(self.value(x))
        memory = [torch.zeros_like(silence) for _ in range(self.quantiser.accumulators)]
        return Voice(silence, memory, torch.zeros_like(silence))

    def say(
        self, voice: Voice, x: Tensor, smoothing: float, uniform: Callable[[], Tensor], into: Tensor | None = None
    ) -> Tensor:
        """One step: what is said, in units of u; what is understood of it goes to the voice.

        Arguments:
            voice: what is remembered, changed in place.
            x: the state.
            smoothing: lambda_t.
            uniform: draws numbers from [0, 1) for the quantiser.
            into: where to put what is understood.
        """
        value = self.value(x)
        if self.quantiser.exact:
            voice.decoded = value if into is None else into.copy_(value)
            return value
        a = torch.lerp(voice.last, value, 1 / smoothing) if smoothing < 1 else value.clone()
        if self.scale != 1:
            a.mul_(1 / self.scale)
        spikes = self.quantiser.emit(a, voice.memory, self.lowest, self.highest, uniform)
        if self.scale != 1:
            spikes = spikes.mul_(self.scale)
        voice.last = value
        if into is None:
            voice.decoded.lerp_(spikes, smoothing)
        else:
            voice.decoded = torch.lerp(voice.decoded, spikes, smoothing, out=into)
        return spikes

    def fits(self, x: Tensor) -> bool:
        """Whether there are spikes for all that there is to say; whether that is finite is for others to judge."""
        lo, hi = (float(side) / self.scale for side in torch.aminmax(self.value(x)))
        said = lo >= self.lowest - 1e-3 and hi <= self.highest + 1e-3
        return said or self.quantiser.exact or not math.isfinite(hi - lo)

    def check(self, x: Tensor) -> None:
        """Raise `RelaxationError` for an input that can't be said."""
        if not self.fits(x):
            node, (lo, hi) = self.channel.node, map(float, torch.aminmax(self.value(x)))
            raise RelaxationError(
                f"the input '{node}' says numbers from {lo:.3g} to {hi:.3g}, and its spikes are for "
                f"{self.lowest * self.scale:.3g} to {self.highest * self.scale:.3g}: give "
                f"relax.options.ranges: {{{node}: [{lo:.3g}, {hi:.3g}]}}, or normalise data otherwise"
            )


@lru_cache(maxsize=1024)
def _reach(function: sp.Expr, lo: float, hi: float) -> Range:
    """The lowest and highest value of a function on an interval."""
    if function == X:
        return lo, hi
    values = elementwise(function)(torch.linspace(lo, hi, POINTS, dtype=torch.float64))
    low, high = float(values.min()), float(values.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise DeclarationError(
            Fault(f"the message {function} isn't finite on [{lo:g}, {hi:g}]", "narrow it", ("options", "ranges"))
        )
    return low, high
