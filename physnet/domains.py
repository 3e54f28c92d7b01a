"""Where states live: intervals, circles, and nodes whose units are divided among several domains.

A domain knows how to `project` a state into itself, how far apart two states are, and how to draw a random state. A new
kind of domain is a frozen dataclass with these methods; nothing that computes asks which kind it is. Units are confined
one by one: each to an interval, or to an arc of a circle.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from physnet.calls import parse_call, write_call
from physnet.errors import DeclarationError
from physnet.registry import Registry, subclass_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Domain(ABC):
    """A set that the state of a node is confined to."""

    @abstractmethod
    def project(self, x: Tensor) -> Tensor:
        """The nearest state inside the domain; x has shape [rows, *node]."""

    def wrap(self, x: Tensor) -> Tensor:
        """The canonical representative of a state (differs from x on the circle only)."""
        return x

    def difference(self, x: Tensor, reference: Tensor) -> Tensor:
        """x - reference, along the shortest way."""
        return x - reference

    def between(self, start: Tensor, end: Tensor, share: Tensor | float) -> Tensor:
        """start + share (end - start), along the shortest way; beyond the end for a share above 1."""
        return start + share * self.difference(end, start)

    def magnitude(self, x: Tensor) -> Tensor:
        """What a small step is compared with, up to its sign."""
        return x

    @abstractmethod
    def random(self, shape: tuple[int, ...], generator: torch.Generator, like: Tensor) -> Tensor:
        """A random state of that shape, with the dtype and device of `like`."""

    @abstractmethod
    def bounds(self, x: Tensor) -> tuple[Tensor | float, Tensor | float]:
        """The lowest and highest state, as numbers or tensors that broadcast over x (-inf and inf where open)."""

    @property
    @abstractmethod
    def bounded(self) -> bool:
        """Whether every unit has a finite lowest and highest state, beyond which it can't go."""

    @property
    def edges(self) -> bool:
        """Whether the domain has a boundary at all, so that projection can change a state."""
        return True

    @property
    def period(self) -> float:
        """By how much states differ that are the same; 0 where no two are."""
        return 0.0

    @property
    def sign(self) -> int:
        """1 if no state is negative, -1 if none is positive, else 0."""
        return 0

    def admissible(self, x: Tensor, velocity: Tensor) -> Tensor:
        """The part of a velocity that doesn't lead out of the domain: units at a bound can only move inwards."""
        if not self.edges:
            return velocity
        lo, hi = self.bounds(x)
        return velocity.masked_fill(((x <= lo) & (velocity < 0)) | ((x >= hi) & (velocity > 0)), 0.0)

    def declaration(self) -> Any:
        """The domain as it is written in a file; `parse_domain` reads it back."""
        return write_call(self, NAMED)

    def check(self, shape: tuple[int, ...]) -> None:  # noqa: B027 most domains fit every shape
        """Raise `DeclarationError` if a node of this shape can't have this domain."""


@dataclass(frozen=True)
class Interval(Domain):
    """[lo, hi], either of which may be infinite: the real line, a box, or one half-line (an ideal diode)."""

    lo: float = -math.inf
    hi: float = math.inf

    def project(self, x: Tensor) -> Tensor:
        if self.lo == -math.inf:
            return x if self.hi == math.inf else x.clamp_max(self.hi)
        return x.clamp_min(self.lo) if self.hi == math.inf else x.clamp(self.lo, self.hi)

    def between(self, start: Tensor, end: Tensor, share: Tensor | float) -> Tensor:
        return start.lerp(end, share)

    def random(self, shape: tuple[int, ...], generator: torch.Generator, like: Tensor) -> Tensor:
        import torch

        # drawn on the CPU, so that a seed means the same state on every device
        if self.bounded:
            draw = self.lo + (self.hi - self.lo) * torch.rand(shape, generator=generator, dtype=torch.float64)
        else:
            draw = torch.randn(shape, generator=generator, dtype=torch.float64)
            if self.edges:
                draw = self.lo + draw.abs() if self.hi == math.inf else self.hi - draw.abs()
        return draw.to(like)

    def bounds(self, x: Tensor) -> tuple[float, float]:
        return self.lo, self.hi

    @property
    def bounded(self) -> bool:
        return math.isfinite(self.lo) and math.isfinite(self.hi)

    @property
    def edges(self) -> bool:
        return math.isfinite(self.lo) or math.isfinite(self.hi)

    @property
    def sign(self) -> int:
        return 1 if self.lo >= 0 else -1 if self.hi <= 0 else 0

    def declaration(self) -> Any:
        if not self.edges:
            return "real"
        if self == Interval(0.0):
            return "nonnegative"
        if self == Interval(hi=0.0):
            return "nonpositive"
        return [self.lo, self.hi]


@dataclass(frozen=True)
class Circle(Domain):
    """Angles: states that differ by 2 pi are the same. States are kept unwrapped while they move."""

    @property
    def period(self) -> float:
        return 2 * math.pi

    def project(self, x: Tensor) -> Tensor:
        return x

    def wrap(self, x: Tensor) -> Tensor:
        import torch

        return torch.remainder(x + math.pi, 2 * math.pi) - math.pi

    def difference(self, x: Tensor, reference: Tensor) -> Tensor:
        return self.wrap(x - reference)

    def magnitude(self, x: Tensor) -> Tensor:
        import torch

        return torch.ones_like(x)

    def random(self, shape: tuple[int, ...], generator: torch.Generator, like: Tensor) -> Tensor:
        import torch

        return (math.pi * (2 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1)).to(like)

    def bounds(self, x: Tensor) -> tuple[float, float]:
        return -math.inf, math.inf

    @property
    def bounded(self) -> bool:
        return False

    @property
    def edges(self) -> bool:
        return False

    def declaration(self) -> Any:
        return "circle"


@dataclass(frozen=True)
class Partition(Domain):
    """The units of a node divided, along its first axis, among several intervals.

    Arguments:
        parts: the intervals and how many units each takes; counts of `None` share what is left equally.
    """

    parts: tuple[tuple[Interval, int | None], ...]
    _bounds: dict[Any, tuple[Tensor, Tensor]] = field(default_factory=dict, compare=False, repr=False)

    def __reduce__(self) -> tuple[Any, ...]:
        return Partition, (self.parts,)

    @property
    def sign(self) -> int:
        signs = {part.sign for part, _ in self.parts}
        return signs.pop() if len(signs) == 1 else 0

    def counts(self, units: int) -> list[int]:
        fixed = sum(count for _, count in self.parts if count is not None)
        open_parts = [index for index, (_, count) in enumerate(self.parts) if count is None]
        left = units - fixed
        if left < 0 or (left > 0 and not open_parts):
            raise DeclarationError(
                f"the parts of the domain take {fixed} units, the node has {units} along its first axis",
                "make the counts add up, or leave one out",
            )
        share, more = divmod(left, len(open_parts)) if open_parts else (0, 0)
        result = [count or 0 for _, count in self.parts]
        for position, index in enumerate(open_parts):
            result[index] = share + (position < more)
        return result

    def bounds(self, x: Tensor) -> tuple[Tensor, Tensor]:
        import torch

        key = (x.shape[1:], x.dtype, x.device)
        if key not in self._bounds:
            with torch.inference_mode(False):  # the cache outlives the mode that it was filled in
                counts = torch.tensor(self.counts(x.shape[1]))
                view = (-1,) + (1,) * (x.dim() - 2)
                lo, hi = (
                    torch.tensor([getattr(part, side) for part, _ in self.parts], dtype=x.dtype)
                    .repeat_interleave(counts)
                    .view(view)
                    .expand(x.shape[1:])
                    .contiguous()
                    .to(x.device)
                    for side in ("lo", "hi")
                )
            self._bounds[key] = lo, hi
        return self._bounds[key]

    def project(self, x: Tensor) -> Tensor:
        lo, hi = self.bounds(x)
        return x.clamp(lo, hi)

    def random(self, shape: tuple[int, ...], generator: torch.Generator, like: Tensor) -> Tensor:
        import torch

        drawn = [
            part.random((shape[0], count, *shape[2:]), generator, like)
            for (part, _), count in zip(self.parts, self.counts(shape[1]), strict=True)
        ]
        return torch.cat(drawn, 1)

    @property
    def bounded(self) -> bool:
        return all(part.bounded for part, _ in self.parts)

    def declaration(self) -> Any:
        return [part.declaration() if count is None else {_part_name(part): count} for part, count in self.parts]

    def check(self, shape: tuple[int, ...]) -> None:
        self.counts(shape[0] if shape else 1)


def _part_name(part: Interval) -> str:
    name = part.declaration()
    return name if isinstance(name, str) else f"[{part.lo}, {part.hi}]"


REAL, NONNEGATIVE, NONPOSITIVE, CIRCLE = Interval(), Interval(0.0), Interval(hi=0.0), Circle()
NAMED: Registry[Domain | type[Domain]] = Registry(
    "domain",
    "physnet.domains",
    {"real": REAL, "nonnegative": NONNEGATIVE, "nonpositive": NONPOSITIVE, "circle": CIRCLE},
    lambda name, thing: None if isinstance(thing, Domain) else subclass_of(Domain)(name, thing),
)
"""Domains by the name that declarations use: domains, and classes whose arguments follow the name in brackets."""


def _fix() -> str:
    return f"use {', '.join(NAMED)}, a box [lo, hi], or a list of these that divides the units"


def parse_domain(declared: object) -> Domain:
    """A domain from its declaration.

    Arguments:
        declared: a `Domain`, a name from `NAMED` such as `real` or `circle`, with arguments in brackets where it takes
            some, a box `[lo, hi]`, or a list of parts such as `[nonnegative, nonpositive]` or
            `[{nonnegative: 512}, {nonpositive: 512}]`.

    Raises:
        DeclarationError: if it is none of these.
    """
    if isinstance(declared, Domain):
        return declared
    if isinstance(declared, str) and not declared.startswith("["):
        return parse_call(declared, NAMED, _fix())
    if isinstance(declared, Sequence) and not isinstance(declared, str) and declared:
        if len(declared) == 2 and all(_is_number(item) for item in declared):
            lo, hi = map(float, declared)
            if not lo < hi:
                raise DeclarationError(f"the box [{lo}, {hi}] is empty", "write the lower bound first")
            return Interval(lo, hi)
        return Partition(tuple(map(_parse_part, declared)))
    raise DeclarationError(f"unknown domain {declared!r}", _fix())


def _parse_part(declared: object) -> tuple[Interval, int | None]:
    count: object = None
    if isinstance(declared, Mapping):
        if len(declared) != 1:
            raise DeclarationError(
                f"one part of a domain is written as {{name: count}}, found {dict(declared)!r}", _fix()
            )
        ((declared, count),) = declared.items()
        if isinstance(declared, str) and declared.startswith("["):
            declared = _parse_box(declared)
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise DeclarationError(f"the part {declared} has {count!r} units", "give a whole number, at least 1")
    domain = parse_domain(declared)
    if not isinstance(domain, Interval):
        raise DeclarationError(f"{declared!r} can't be part of a divided domain", "use intervals")
    return domain, count if isinstance(count, int) else None


def _parse_box(text: str) -> list[float]:
    try:
        return [float(item) for item in text.strip("[]").split(",")]
    except ValueError:
        raise DeclarationError(f"unknown domain {text!r}", _fix()) from None


def _is_number(item: object) -> bool:
    return isinstance(item, int | float) and not isinstance(item, bool)
