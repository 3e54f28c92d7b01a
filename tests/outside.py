"""A plug-in: a connection, a domain, a protocol and a data set from outside of physnet, without torch at import."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from physnet.connections import Connection, Linked, Shape
from physnet.data import DataSet
from physnet.domains import Domain
from physnet.errors import DeclarationError, ShapeError
from physnet.protocols import Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class Circulant(Connection):
    """apply(u, w)_i = sum_k w_k u_(i - k - shift): one weight for each distance around a ring."""

    shift: int = 0

    def check(self, pre: Shape, post: Shape) -> None:
        if len(pre) != 1 or pre != post:
            raise ShapeError(f"circulant joins two rings of one size, not {pre} and {post}", "make them equal")

    def weight_shape(self, pre: Shape, post: Shape) -> Shape:
        return pre

    def fans(self, pre: Shape, post: Shape) -> tuple[int, int]:
        return pre[0], post[0]

    def bind(self, pre: Shape, post: Shape) -> Linked:
        return _Ring(pre, post, self.shift)


class _Ring(Linked):
    def __init__(self, pre: Shape, post: Shape, shift: int) -> None:
        super().__init__(pre, post)
        self.shift = shift

    def apply(self, u: Tensor, w: Tensor) -> Tensor:
        import torch

        size = self.pre[0]
        product = torch.fft.rfft(u) * torch.fft.rfft(w.roll(self.shift))
        return torch.fft.irfft(product, size)


@dataclass(frozen=True)
class Arc(Domain):
    """Angles from lo to hi, an arc of the circle shorter than a turn."""

    lo: float
    hi: float

    def __post_init__(self) -> None:
        if not 0 < self.hi - self.lo < 2 * math.pi:
            raise DeclarationError(
                f"the arc from {self.lo} to {self.hi} is empty or a whole turn", "such as arc(-1, 1)"
            )

    def wrap(self, x: Tensor) -> Tensor:
        import torch

        middle = (self.lo + self.hi) / 2
        return torch.remainder(x - middle + math.pi, 2 * math.pi) - math.pi + middle

    def project(self, x: Tensor) -> Tensor:
        return self.wrap(x).clamp(self.lo, self.hi)

    def difference(self, x: Tensor, reference: Tensor) -> Tensor:
        return self.wrap(x) - self.wrap(reference)

    def magnitude(self, x: Tensor) -> Tensor:
        import torch

        return torch.ones_like(x)

    def random(self, shape: tuple[int, ...], generator: torch.Generator, like: Tensor) -> Tensor:
        import torch

        return (self.lo + (self.hi - self.lo) * torch.rand(shape, generator=generator, dtype=torch.float64)).to(like)

    def bounds(self, x: Tensor) -> tuple[float, float]:
        return self.lo, self.hi

    @property
    def bounded(self) -> bool:
        return True


@dataclass(frozen=True)
class Taper(Domain):
    """[0, ceiling], where the ceiling falls evenly from `first` to `last` over the units."""

    first: float = 1.0
    last: float = 1.0

    def bounds(self, x: Tensor) -> tuple[float, Tensor]:
        import torch

        return 0.0, torch.linspace(self.first, self.last, x.shape[1], dtype=x.dtype, device=x.device)

    def project(self, x: Tensor) -> Tensor:
        return x.clamp_min(0.0).minimum(self.bounds(x)[1])

    def random(self, shape: tuple[int, ...], generator: torch.Generator, like: Tensor) -> Tensor:
        import torch

        draw = torch.rand(shape, generator=generator, dtype=torch.float64)
        return (draw * self.bounds(draw)[1]).to(like)

    @property
    def bounded(self) -> bool:
        return True


# (f(-2) - 8 f(-1) + 8 f(1) - f(2)) / 12
FIVE_POINT = Protocol("five_point", (((-2.0, 1 / 12), (-1.0, -8 / 12), (1.0, 8 / 12), (2.0, -1 / 12)),), "beta^4")


def rings(size: int = 8, samples: int = 64) -> DataSet:
    """A bump on a ring; the class says on which half."""
    generator = np.random.default_rng(0)
    place = generator.integers(0, size, samples)
    x = np.exp(-((np.arange(size) - place[:, None]) ** 2)).astype(np.float32)
    y = (place >= size // 2).astype(np.int64)
    half = samples // 2
    return DataSet("rings", {"x": x[:half], "y": y[:half]}, {"x": x[half:], "y": y[half:]})
