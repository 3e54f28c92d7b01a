"""How large a step is, as a function of the time t = 1, 2, ... since a free phase began; of every unit, or for all.

    s <- s + epsilon_t (p - s)

An expression such as `0.843/t**0.0923` is the same for all units. `osa` gives every unit steps that are as small as its
signal is noisy (optimal step-size annealing). Source: O'Connor, Gavves and Welling, AISTATS 2019 (code
QUVA-Lab/spiking-eqprop).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar

import sympy as sp

from physnet.calls import parse_call, write_call
from physnet.errors import DeclarationError, Fault
from physnet.expressions import parse, symbol
from physnet.registry import Registry, subclass_of

if TYPE_CHECKING:
    from torch import Tensor

T = symbol("t")


@dataclass(frozen=True)
class Annealing(ABC):
    """Base of step sizes: a frozen dataclass whose fields are the arguments of its declaration."""

    remembers: ClassVar[int] = 0
    """How many tensors it remembers per node; each is zero before the first step."""

    def check(self, steps: int) -> None:  # noqa: B027 most have nothing to check
        """Raise `DeclarationError` if it has no value in one of the first steps."""

    @abstractmethod
    def size(self, t: int, error: Tensor, memory: Sequence[Tensor]) -> Tensor | float:
        """epsilon_t, in (0, 1].

        Arguments:
            t: the time, from 1.
            error: p - s, [rows, *node].
            memory: what it remembers, each like `error`, changed in place.
        """


@dataclass(frozen=True)
class Schedule(Annealing):
    """A step size that is an expression in t.

    Arguments:
        text: the expression.
    """

    text: str
    _values: list[float] = field(default_factory=list, compare=False, repr=False)

    def __post_init__(self) -> None:
        expression = parse(self.text)
        if expression.free_symbols - {T}:
            names = ", ".join(sorted(map(str, expression.free_symbols - {T})))
            raise DeclarationError(Fault(f"'{self.text}' depends on {names}", "on t alone, such as 0.89/t**0.43"))
        object.__setattr__(self, "_function", sp.lambdify(T, expression, "math"))
        self(1)

    def __call__(self, t: int) -> float:
        """The value at a time.

        Raises:
            DeclarationError: if it isn't in (0, 1].
        """
        while len(self._values) < t:
            self._values.append(self._checked(len(self._values) + 1))
        return self._values[t - 1]

    def _checked(self, t: int) -> float:
        try:
            value = float(self._function(t))  # pyright: ignore[reportAttributeAccessIssue]
        except (ArithmeticError, ValueError, TypeError):
            value = math.nan
        if not 0 < value <= 1:
            fix = "an expression in t = 1, 2, ... with values in (0, 1], such as 0.89/t**0.43"
            raise DeclarationError(Fault(f"'{self.text}' is {value:g} at t = {t}", fix))
        return value

    def check(self, steps: int) -> None:
        self(steps)

    def size(self, t: int, error: Tensor, memory: Sequence[Tensor]) -> float:
        return self(t)


@dataclass(frozen=True)
class OptimalAnnealing(Annealing):
    """Steps as small as the signal of a unit is noisy, from running moments b, d of its error e = p - s.

        b <- (1 - nu) b + nu e,   d <- (1 - nu) d + nu e^2,   v = (d - b^2)/(1 + l),
        epsilon = 1 - v/d,        l <- (1 - epsilon)^2 l + epsilon^2,       nu <- nu/(1 + nu - target), at first 1

    s is the state as it was left, within its domain; the source takes an average of its own that isn't clipped.

    Arguments:
        target: the rate that nu approaches, in (0, 1).
    """

    target: float = 0.0346
    remembers = 3

    def __post_init__(self) -> None:
        if isinstance(self.target, bool) or not isinstance(self.target, int | float) or not 0 < self.target < 1:
            raise DeclarationError(f"the target rate of osa is {self.target!r}", "a number in (0, 1), such as 0.0346")

    def size(self, t: int, error: Tensor, memory: Sequence[Tensor]) -> Tensor:
        import torch

        mean, square, spread = memory
        rate = _rate(self.target, t)
        mean.lerp_(error, rate)
        square.lerp_(error * error, rate)
        if t == 1:
            spread.fill_(1.0)
            return torch.ones_like(error)
        noise = torch.addcmul(square, mean, mean, value=-1.0).div_(spread + 1.0)
        size = noise.div_(square.clamp_min(torch.finfo(error.dtype).tiny)).neg_().add_(1.0).clamp_(0.0, 1.0)
        spread.mul_((1.0 - size).square_()).addcmul_(size, size)
        return size


@lru_cache(maxsize=4096)
def _rate(target: float, t: int) -> float:
    """nu after t steps."""
    rate = 1.0
    for _ in range(t):
        rate = rate / (1 + rate - target)
    return rate


ANNEALINGS: Registry[type[Annealing]] = Registry(
    "step size", "physnet.annealings", {"osa": OptimalAnnealing}, subclass_of(Annealing)
)
"""Step sizes that aren't expressions, by the name that declarations use."""


@lru_cache(maxsize=256)
def parse_schedule(declared: str | float) -> Schedule:
    """An expression in t.

    Raises:
        DeclarationError: for anything else, and for values outside of (0, 1].
    """
    return Schedule(str(declared) if isinstance(declared, int | float) else declared)


@lru_cache(maxsize=256)
def parse_annealing(declared: str | float) -> Annealing:
    """A step size: an expression in t, or a name from `ANNEALINGS` such as `osa(target=0.0346)`.

    Raises:
        DeclarationError: if it is neither.
    """
    name = declared.split("(")[0].strip() if isinstance(declared, str) else ""
    if name in ANNEALINGS and isinstance(declared, str):
        return parse_call(declared, ANNEALINGS)
    return parse_schedule(declared)


def write_annealing(annealing: Annealing) -> str:
    """A step size as it is declared."""
    return annealing.text if isinstance(annealing, Schedule) else write_call(annealing, ANNEALINGS)
