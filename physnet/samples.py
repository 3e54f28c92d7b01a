"""Samples that are picked by number, whether they lie in memory or are read when they are needed.

    x = (byte/255 - mean)/std

of images that are held or read as bytes. Nothing here imports torch before samples are made ready for a run.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class Normalisation:
    """What was done to pixels in [0, 1]: x = (pixel - mean) / std.

    Arguments:
        mean, std: one number per channel, of a shape that broadcasts over a sample.
    """

    mean: np.ndarray
    std: np.ndarray


@dataclass(frozen=True)
class Reading:
    """For which run samples are made ready.

    Arguments:
        device, dtype: of the tensors that are picked; whole numbers keep theirs.
        seed: of all that is drawn while reading.
        workers: processes that read ahead; 0 reads in this one. No result depends on it.
    """

    device: torch.device
    dtype: torch.dtype
    seed: int = 0
    workers: int = 0


class Samples(ABC):
    """The samples of one part of a data set, named and numbered from 0.

    This is all that training and evaluation know of data. First come `renamed` and `part`, then `ready`, then `pick`.
    """

    @property
    @abstractmethod
    def count(self) -> int:
        """How many samples there are."""

    @property
    @abstractmethod
    def names(self) -> tuple[str, ...]:
        """What a sample consists of."""

    @abstractmethod
    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of one sample; that of a class is ()."""

    @abstractmethod
    def classes(self, name: str) -> np.ndarray | None:
        """The class index of every sample, [count]; `None` where there are no classes."""

    @abstractmethod
    def bounds(self, name: str) -> tuple[float, float]:
        """The smallest and the largest number in all samples, or bounds on them; infinite for whole numbers."""

    @abstractmethod
    def renamed(self, names: Mapping[str, str]) -> Samples:
        """The same samples under new names, given by old ones; what isn't named is left out."""

    @abstractmethod
    def part(self, rows: np.ndarray) -> Samples:
        """The samples with these numbers, in this order."""

    @abstractmethod
    def ready(self, reading: Reading) -> Samples:
        """The same samples, ready to be picked in a run."""

    @abstractmethod
    def pick(self, rows: Tensor, epoch: int = 0) -> dict[str, Tensor]:
        """The samples with these numbers, [rows, ...] by name: a pure function of seed, epoch and numbers.

        Raises:
            DataError: if too many can't be read.
        """

    def first(self, count: int) -> dict[str, Tensor]:
        """The first samples, or all if there are fewer."""
        import torch

        return self.pick(torch.arange(min(count, self.count)))

    def still(self) -> Samples:
        """The same samples as they are evaluated: nothing about them is random, and what can't be read is left out."""
        return self

    def expect(self, batches: Sequence[Tensor], epoch: int = 0) -> None:  # noqa: B027 - most have nothing to do
        """Say what will be picked next, so that it may be read ahead."""

    def close(self) -> None:  # noqa: B027 - most have nothing to do
        """Let go of what reads ahead, until something is expected again."""

    def lost(self, rows: Tensor) -> int:
        """How many of these samples, which have been picked, couldn't be read."""
        return 0

    def judge(self, lost: int) -> None:  # noqa: B027 - most lose nothing
        """Refuse to go on if so many samples were lost in an epoch.

        Raises:
            DataError: naming some of them, and the share that is tolerated.
        """


class Held(Samples, Mapping[str, Any]):
    """Samples in memory: arrays, and once they are ready tensors, by name, with one row per sample."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = dict(values)

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def _like(self, values: Mapping[str, Any], names: Mapping[str, str] | None = None) -> Held:
        """Others of this kind, whose names were changed if some are given."""
        return Held(values)

    @property
    def count(self) -> int:
        return len(next(iter(self._values.values())))

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._values)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self[name].shape[1:])

    def classes(self, name: str) -> np.ndarray | None:
        values = self[name]
        return values if values.dtype.kind in "iu" and values.ndim == 1 else None

    def bounds(self, name: str) -> tuple[float, float]:
        values = self[name]
        return (float(values.min()), float(values.max())) if values.dtype.kind == "f" else (-math.inf, math.inf)

    def renamed(self, names: Mapping[str, str]) -> Held:
        return self._like({new: self[old] for old, new in names.items()}, names)

    def part(self, rows: np.ndarray) -> Held:
        return self._like({name: value[rows] for name, value in self.items()})

    def ready(self, reading: Reading) -> Held:
        import torch

        values = {name: torch.from_numpy(value).to(reading.device) for name, value in self.items()}
        return self._like({k: v.to(reading.dtype) if v.is_floating_point() else v for k, v in values.items()})

    def pick(self, rows: Tensor, epoch: int = 0) -> dict[str, Tensor]:
        return {name: value[rows] for name, value in self.items()}


class Bytes(Held):
    """Images in memory as bytes, a quarter of what they take as numbers, which they become when they are picked.

    Arguments:
        values: arrays by name, of bytes where they are images.
        scales: how images are normalised, by name; `None` leaves pixels in [0, 1].
    """

    def __init__(self, values: Mapping[str, Any], scales: Mapping[str, Normalisation | None]) -> None:
        super().__init__(values)
        self.scales, self.reading = dict(scales), None

    def _like(self, values: Mapping[str, Any], names: Mapping[str, str] | None = None) -> Bytes:
        return Bytes(values, {(names or {}).get(name, name): scale for name, scale in self.scales.items()})

    def bounds(self, name: str) -> tuple[float, float]:
        return (0.0, 1.0) if name in self.scales else super().bounds(name)

    def ready(self, reading: Reading) -> Held:
        made = super().ready(reading)
        assert isinstance(made, Bytes)
        made.reading = reading
        return made

    def pick(self, rows: Tensor, epoch: int = 0) -> dict[str, Tensor]:
        assert self.reading is not None
        images = {name: as_inputs(self[name][rows], scale, self.reading) for name, scale in self.scales.items()}
        return {name: images[name] if name in images else value[rows] for name, value in self.items()}


def as_inputs(images: Tensor, scale: Normalisation | None, reading: Reading) -> Tensor:
    """Bytes as the network gets them, on its device."""
    import torch

    pixels = images.to(reading.device, non_blocking=True).to(reading.dtype) / 255
    if scale is None:
        return pixels
    mean, std = (torch.from_numpy(value).to(pixels) for value in (scale.mean, scale.std))
    return (pixels - mean) / std
