"""Rows of a batch: which of them a process works on, and the same tensors for several phases or for fewer rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor

from physnet.layout import repeat

K = TypeVar("K")


@dataclass(frozen=True)
class Share:
    """The rows of a batch that one of several processes works on: every one whose number it meets when counting round.

    Arguments:
        total: rows of the whole batch.
        rank: number of the process, from 0.
        processes: how many there are.
    """

    total: int
    rank: int
    processes: int

    @property
    def count(self) -> int:
        """How many rows are counted here; can be 0."""
        return len(range(self.rank, self.total, self.processes))

    @property
    def rows(self) -> slice:
        """Which rows these are; where there is none, the first one stands in, so that there is something to relax."""
        return slice(self.rank, None, self.processes) if self.count else slice(0, 1)


class Repeated(Mapping[K, Tensor]):
    """Tensors with the same rows for every phase, made when they are asked for: most never are.

    Arguments:
        once: the tensors of one phase.
        phases: how many there are.
        rows: if given, only tensors of so many rows are repeated; what all rows share stays.
    """

    def __init__(self, once: Mapping[K, Tensor], phases: int, rows: int | None = None) -> None:
        self.once, self.phases, self.rows = once, phases, rows
        self.made: dict[K, Tensor] = {}

    def __getitem__(self, name: K) -> Tensor:
        if name not in self.made:
            value = self.once[name]
            kept = self.rows is not None and value.shape[0] != self.rows
            self.made[name] = value if kept else repeat(value, self.phases)
        return self.made[name]

    def __iter__(self) -> Iterator[K]:
        return iter(self.once)

    def __len__(self) -> int:
        return len(self.once)


def some_rows(tensors: Mapping[K, Tensor], rows: Tensor, count: int) -> dict[K, Tensor]:
    """Some of the rows; what all rows share stays."""
    return {name: value[rows] if value.shape[0] == count else value for name, value in tensors.items()}
