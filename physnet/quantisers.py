"""Quantisers: what turns a number into a spike, and remembers what it has not said yet.

    q_t = quantiser(a_t),    a_t in units of the largest message,    q_t in {lowest, ..., highest}

A message that can't be negative is 0 or 1, one of both signs -1, 0 or 1, and zero is always silence. Quantisers with
accumulators say later what they couldn't say at once. Source: O'Connor, Gavves and Welling, AISTATS 2019 (code
QUVA-Lab/spiking-eqprop).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from physnet.calls import parse_call, write_call
from physnet.errors import DeclarationError, Fault
from physnet.registry import Registry, subclass_of

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

MAX_BITS = 16


@dataclass(frozen=True)
class Quantiser(ABC):
    """Base of all quantisers: a frozen dataclass whose fields are the arguments of its declaration."""

    accumulators: ClassVar[int] = 0
    """How many tensors it remembers per message; each is zero before the first step."""
    exact: ClassVar[bool] = False
    """Whether it says what it is given: there is then nothing to encode or to decode."""

    @abstractmethod
    def emit(
        self,
        a: Float[Tensor, " rows *node"],
        memory: Sequence[Tensor],
        lowest: int,
        highest: int,
        uniform: Callable[[], Tensor],
    ) -> Float[Tensor, " rows *node"]:
        """The spikes of one step.

        Arguments:
            a: what there is to say, in units of the largest message; may be overwritten.
            memory: the accumulators, each like `a`, changed in place.
            lowest, highest: the smallest and largest spike: -1 or 0, 0 or 1.
            uniform: draws numbers from [0, 1), one for each entry of `a`.
        """


@dataclass(frozen=True)
class Identity(Quantiser):
    """q = a: a rate instead of spikes."""

    exact = True

    def emit(
        self, a: Tensor, memory: Sequence[Tensor], lowest: int, highest: int, uniform: Callable[[], Tensor]
    ) -> Tensor:
        return a


@dataclass(frozen=True)
class SigmaDelta(Quantiser):
    """phi' = phi + a,  q = 1[phi' > 1/2],  phi = phi' - q: what was said is at most 1/2 behind while |a| <= 1."""

    accumulators = 1

    def emit(
        self, a: Tensor, memory: Sequence[Tensor], lowest: int, highest: int, uniform: Callable[[], Tensor]
    ) -> Tensor:
        import torch

        (phi,) = memory
        phi.add_(a)
        spikes = torch.round(phi, out=a).clamp_(lowest, highest)
        phi.sub_(spikes)
        return spikes


@dataclass(frozen=True)
class SigmaDelta2(Quantiser):
    """Of second order:  phi_1 += a,  phi_2 += phi_1,  q = 1[phi_2 > 1/2],  and q is subtracted from both."""

    accumulators = 2

    def emit(
        self, a: Tensor, memory: Sequence[Tensor], lowest: int, highest: int, uniform: Callable[[], Tensor]
    ) -> Tensor:
        import torch

        first, second = memory
        first.add_(a)
        second.add_(first)
        spikes = torch.round(second, out=a).clamp_(lowest, highest)
        first.sub_(spikes)
        second.sub_(spikes)
        return spikes


@dataclass(frozen=True)
class Bernoulli(Quantiser):
    """q = sign(a) with probability |a|, else 0."""

    def emit(
        self, a: Tensor, memory: Sequence[Tensor], lowest: int, highest: int, uniform: Callable[[], Tensor]
    ) -> Tensor:
        return a.sign().mul_(a.abs() > uniform()).clamp_(lowest, highest)


@dataclass(frozen=True)
class NBit(Quantiser):
    """q = the nearest of 2^n evenly spaced levels; of messages of both signs, n bits say how large they are.

    Arguments:
        bits: n, 1 to 16.
    """

    bits: int = 4

    def __post_init__(self) -> None:
        if isinstance(self.bits, bool) or not isinstance(self.bits, int) or not 1 <= self.bits <= MAX_BITS:
            raise DeclarationError(
                f"nbit({self.bits!r}) has no such number of bits", f"a whole number, 1 to {MAX_BITS}"
            )

    def emit(
        self, a: Tensor, memory: Sequence[Tensor], lowest: int, highest: int, uniform: Callable[[], Tensor]
    ) -> Tensor:
        steps = 2**self.bits - 1
        return a.mul_(steps).round_().div_(steps).clamp_(lowest, highest)


@dataclass(frozen=True)
class Threshold(Quantiser):
    """q = 1[a > 1/2]."""

    def emit(
        self, a: Tensor, memory: Sequence[Tensor], lowest: int, highest: int, uniform: Callable[[], Tensor]
    ) -> Tensor:
        return a.round_().clamp_(lowest, highest)


QUANTISERS: Registry[type[Quantiser]] = Registry(
    "quantiser",
    "physnet.quantisers",
    {
        "identity": Identity,
        "sigma_delta": SigmaDelta,
        "sigma_delta2": SigmaDelta2,
        "bernoulli": Bernoulli,
        "threshold": Threshold,
        "nbit": NBit,
    },
    subclass_of(Quantiser),
)
"""Quantisers by the name that declarations use."""


def parse_quantiser(declared: object) -> Quantiser:
    """A quantiser from its declaration, such as `sigma_delta` or `nbit(4)`.

    Raises:
        DeclarationError: for unknown names and wrong arguments, with a caret.
    """
    if isinstance(declared, Quantiser):
        return declared
    if not isinstance(declared, str):
        raise DeclarationError(
            Fault(f"expected a quantiser, found {declared!r}", f"use one of {', '.join(QUANTISERS)}")
        )
    return parse_call(declared, QUANTISERS)


def write_quantiser(quantiser: Quantiser) -> str:
    """A quantiser as it is declared."""
    return write_call(quantiser, QUANTISERS)
