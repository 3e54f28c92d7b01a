"""Samples that are read from files and decoded when they are needed, ahead of time by other processes.

A sample is a pure function of the seed, the epoch and its number. Who reads it, and when, therefore changes nothing,
and a run that goes on in the middle of an epoch reads from there.
"""

from __future__ import annotations

import signal
import warnings
import weakref
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from physnet.decoding import DRAWS, Decoder
from physnet.errors import DataError, DataWarning
from physnet.samples import Normalisation, Reading, Samples, as_inputs

if TYPE_CHECKING:
    from torch import Tensor

Request = tuple[int, list[int]]
"""An epoch and the numbers of the samples that are wanted."""
Batch = tuple["Tensor", list[int], dict[int, str]]
"""Images as bytes, the numbers of the samples they are, and why others can't be read."""
NAMED = 10
"""How many unreadable images are named."""


class Files(ABC):
    """Compressed images, numbered from 0.

    Arguments:
        where: for people.
        labels: the class of each, [images].
    """

    where: str
    labels: np.ndarray

    @abstractmethod
    def read(self, number: int) -> bytes:
        """The content of one image; any exception says that it can't be read."""

    @abstractmethod
    def name(self, number: int) -> str:
        """What to call it in a message."""


@dataclass
class Streamed(Samples):
    """Images that are read and decoded when they are picked, with their classes.

    In training the place of an image that can't be read is taken by the next one that can, so that batches keep their
    size. In evaluation it is left out. Either way it is counted.

    Arguments:
        files: where images come from.
        decoder: makes pixels of them.
        scale: how they are normalised; `None` leaves them in [0, 1].
        tolerance: share of the images that may be unreadable.
        rows: which of the images these samples are.
        labels: names of images and classes.
        training: whether others take the places of images that can't be read.
    """

    files: Files
    decoder: Decoder
    scale: Normalisation | None
    tolerance: float
    rows: np.ndarray
    labels: tuple[str, str] = ("x", "y")
    training: bool = True
    reading: Reading | None = None
    unreadable: dict[int, str] = field(default_factory=dict, init=False)

    @property
    def count(self) -> int:
        return len(self.rows)

    @property
    def names(self) -> tuple[str, ...]:
        return self.labels

    def shape(self, name: str) -> tuple[int, ...]:
        return (3, self.decoder.size, self.decoder.size) if name == self.labels[0] else ()

    def classes(self, name: str) -> np.ndarray | None:
        return self.files.labels[self.rows] if name == self.labels[1] else None

    def bounds(self, name: str) -> tuple[float, float]:
        classes = self.classes(name)
        return (0.0, 1.0) if classes is None else (float(classes.min()), float(classes.max()))

    def renamed(self, names: Mapping[str, str]) -> Streamed:
        image, label = (names.get(mine, mine) for mine in self.labels)
        return replace(self, labels=(image, label))

    def part(self, rows: np.ndarray) -> Streamed:
        return replace(self, rows=self.rows[rows])

    def still(self) -> Streamed:
        return replace(self, training=False, decoder=replace(self.decoder, random=False))

    def ready(self, reading: Reading) -> Streamed:
        return replace(self, reading=reading)

    # ------------------------------------------------------------------------ reading

    def expect(self, batches: Sequence[Tensor], epoch: int = 0) -> None:
        if self._reader.reading.workers:
            self._ahead.expect([(epoch, rows.tolist()) for rows in batches])

    def pick(self, rows: Tensor, epoch: int = 0) -> dict[str, Tensor]:
        import torch

        request = (epoch, rows.tolist())
        images, shown, failures = self._ahead.take(request) or self._reader[request]
        self._note(failures)
        labels = torch.from_numpy(self.files.labels[self.rows[shown]]).to(self._reader.reading.device)
        return dict(zip(self.labels, (as_inputs(images, self.scale, self._reader.reading), labels), strict=True))

    def close(self) -> None:
        self._ahead.close()

    @cached_property
    def _reader(self) -> _Reader:
        assert self.reading is not None
        return _Reader(self.files, self.rows, self.decoder, self.training, self.allowed, self.reading)

    @cached_property
    def _ahead(self) -> _Ahead:
        ahead = _Ahead(self._reader)
        # at once, and not when cycles are looked for: then queues are closed before processes are told to end
        weakref.finalize(self, ahead.close)
        return ahead

    # ------------------------------------------------------------------------ what can't be read

    @property
    def allowed(self) -> int:
        """How many images may be unreadable."""
        return int(self.tolerance * self.count)

    def lost(self, rows: Tensor) -> int:
        return sum(row in self.unreadable for row in rows.tolist()) if self.unreadable else 0

    def judge(self, lost: int) -> None:
        if lost <= self.allowed:
            return
        named = "; ".join(f"{self._name(row)} ({why})" for row, why in list(self.unreadable.items())[:NAMED])
        raise DataError(
            f"{self.files.where}: at least {lost} of {self.count} images can't be read, more than {self.allowed}: "
            f"{named or 'other processes name them'}; fetch them again, or raise the data set's tolerance"
        )

    def _note(self, failures: Mapping[int, str]) -> None:
        """Name every unreadable image once, up to so many."""
        for row, why in failures.items():
            if row in self.unreadable:
                continue
            self.unreadable[row] = why
            if len(self.unreadable) <= NAMED:
                end = " (others will only be counted)" if len(self.unreadable) == NAMED else ""
                warnings.warn(f"{self._name(row)} can't be read and is left out: {why}{end}", DataWarning, stacklevel=2)
        self.judge(len(self.unreadable))

    def _name(self, row: int) -> str:
        return self.files.name(int(self.rows[row]))


@dataclass
class _Reader:
    """What the processes that read get: an epoch and numbers of samples become images.

    Arguments:
        files, rows, decoder, training: of the samples.
        allowed: after how many failures to give up.
        reading: gives the seed.
    """

    files: Files
    rows: np.ndarray
    decoder: Decoder
    training: bool
    allowed: int
    reading: Reading

    def __getitem__(self, request: Request) -> Batch:
        """Images as bytes, [found, 3, size, size], the numbers of those shown, and why others can't be."""
        import torch

        epoch, numbers = request
        images, shown, failures = list[np.ndarray](), list[int](), dict[int, str]()
        for number in numbers:
            draws = self._draws(epoch, number)
            # the next one has mostly the same class
            for place in range(number, number + (len(self.rows) if self.training else 1)):
                other = place % len(self.rows)
                if len(failures) > self.allowed:
                    break
                try:
                    images.append(self.decoder(self.files.read(int(self.rows[other])), draws))
                except Exception as problem:  # readers stumble over damaged files in many ways
                    failures[other] = next(iter(str(problem).splitlines()), type(problem).__name__)
                    continue
                shown.append(other)
                break
        size = self.decoder.size
        found = torch.from_numpy(np.stack(images)) if images else torch.empty(0, 3, size, size, dtype=torch.uint8)
        return found, shown, failures

    def _draws(self, epoch: int, number: int) -> list[float]:
        if not self.decoder.random:
            return []
        import torch

        from physnet.randomness import stream

        generator = stream(self.reading.seed, "window", epoch, int(self.rows[number]))
        return torch.rand(DRAWS, generator=generator, dtype=torch.float64).tolist()


class _Ahead:
    """Processes that read what is expected; they stay from epoch to epoch, and each of them decodes whole batches.

    Arguments:
        reader: what they do.
    """

    def __init__(self, reader: _Reader) -> None:
        self.reader, self.plan, self.coming = reader, deque[Request](), iter(())
        self.loader: Any = None

    def expect(self, requests: Sequence[Request]) -> None:
        """Begin to read; what was expected before is given up."""
        import torch
        from torch.utils.data import DataLoader

        reading, self.plan = self.reader.reading, deque(requests)
        if self.loader is None:
            self.requests = _Requests()
            self.loader = DataLoader(
                self.reader,  # pyright: ignore[reportArgumentType]
                batch_size=None,
                sampler=self.requests,
                num_workers=reading.workers,
                persistent_workers=True,
                collate_fn=_as_it_is,
                worker_init_fn=_leave_signals,
                pin_memory=reading.device.type == "cuda",
                generator=torch.Generator(),  # so that no random number of anybody else is drawn
            )
        self.requests.coming = requests
        self.coming = iter(self.loader)

    def take(self, request: Request) -> Batch | None:
        """What was read ahead; `None` if something else is next."""
        if not self.plan or self.plan[0] != request:
            return None
        self.plan.popleft()
        try:
            return next(self.coming)
        except RuntimeError as problem:  # what happens to a single image comes back as a failure
            reason = next(iter(str(problem).splitlines()), type(problem).__name__)
            fix = "perhaps for want of memory: try fewer train.workers, or 0"
            raise DataError(f"{self.reader.files.where}: a process that reads images died ({reason}), {fix}") from None

    def close(self) -> None:
        """Let the processes end."""
        self.plan.clear()
        self.coming, self.loader = iter(()), None


class _Requests:
    """What a loader asks its processes for, one epoch after the other."""

    coming: Sequence[Request] = ()

    def __iter__(self) -> Iterator[Request]:
        return iter(self.coming)


def _as_it_is(item: Any) -> Any:
    return item


def _leave_signals(_: int) -> None:
    """A wish to stop is for the process that trains: it finishes its step first, and those that read go with it."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
