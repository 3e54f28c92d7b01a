"""Settings of dual propagation, and the order of its sweeps. Nothing imports torch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import NoReturn

from physnet.errors import DeclarationError, Fault

VARIANTS = ("transpose", "original")
_SWEEPS = re.compile(r"(bw)|(fw|fwbw)([1-9]\d{0,3})")


@dataclass(frozen=True)
class DualSettings:
    """How the two states of every unit follow from its drive a and the difference D that comes back from above.

        s+ = f(a + up D),    s- = f(a - down D),    mean = alpha s+ + (1 - alpha) s-,    up + down = 1

    Arguments:
        beta: the nudge of the outputs, > 0.
        alpha: weight of s+ in the mean, in [0, 1].
        variant: `transpose`: up = 1 - alpha, which to first order leaves the mean where it is (arXiv 2402.08573);
            `original`: up = alpha (arXiv 2302.01228).
        sweeps: the layers in turn, after one pass forward and the nudge of the outputs: `bw` once from the outputs to
            the inputs; `fw16` 16 times from the inputs to the outputs; `fwbw4` `bw`, then three times forward and back.
        damped: whether each step goes only the way that the norm of the weights above allows (`original` alone).
        fast: one sweep `bw` in which means stay what the pass found: backpropagation with f' replaced by a symmetric
            difference.

    Raises:
        DeclarationError: for what is no such setting.
    """

    beta: float = 0.1
    alpha: float = 0.5
    variant: str = "transpose"
    sweeps: str = "bw"
    damped: bool = False
    fast: bool = False

    def __post_init__(self) -> None:
        if not (_is_number(self.beta) and 0 < self.beta < float("inf")):
            raise DeclarationError(Fault(f"beta is {self.beta!r}", "give a positive number such as 0.1", ("beta",)))
        if not (_is_number(self.alpha) and 0 <= self.alpha <= 1):
            _refuse("alpha", self.alpha, "give a number from 0 to 1, such as 0.5")
        if self.variant not in VARIANTS:
            _refuse("variant", self.variant, f"use {' or '.join(VARIANTS)}")
        if not isinstance(self.sweeps, str) or _SWEEPS.fullmatch(self.sweeps) is None:
            _refuse("sweeps", self.sweeps, "use bw, or with a number fw16 or fwbw4")
        for key in ("damped", "fast"):
            if not isinstance(getattr(self, key), bool):
                _refuse(key, getattr(self, key), "write true or false")
        if self.damped and (self.variant != "original" or self.sweeps == "bw"):
            _refuse("damped", True, "damping is for variant: original, and takes many sweeps, such as fw40")
        if self.fast and (self.alpha != 0.5 or self.sweeps != "bw"):
            _refuse("fast", True, "it is for alpha: 0.5 and sweeps: bw")

    @property
    def up(self) -> float:
        """How much of the difference from above s+ gets."""
        return self.alpha if self.variant == "original" else 1 - self.alpha

    @property
    def down(self) -> float:
        """How much of it s- gets, with the other sign."""
        return 1 - self.up

    @cached_property
    def directions(self) -> tuple[int, ...]:
        """The sweeps one by one: 1 from the inputs to the outputs, -1 back."""
        found = _SWEEPS.fullmatch(self.sweeps)
        assert found is not None
        if found[1]:
            return (-1,)
        count = int(found[3])
        return (1,) * count if found[2] == "fw" else (-1, *(1, -1) * (count - 1))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _refuse(key: str, value: object, fix: str) -> NoReturn:
    raise DeclarationError(Fault(f"{key} is {value!r}", fix, ("options", key)))


__all__ = ["VARIANTS", "DualSettings"]
