"""Data sets, and the files that they come from."""

from __future__ import annotations

import gzip
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from physnet.errors import DataError
from physnet.samples import Held, Normalisation, Samples

Arrays = dict[str, np.ndarray]
MAX_BYTES = 2**32
"""Bytes that a compressed file may unpack to."""


@dataclass(frozen=True, init=False)
class DataSet:
    """Training and test samples. `x` and `y` stand for the only input and the only target of a graph.

    Arguments:
        name: for people.
        train, test: samples, or arrays by name, one row per sample.
        normalised: how inputs were normalised, by name; of those that were.
    """

    name: str
    train: Samples
    test: Samples
    normalised: Mapping[str, Normalisation]

    def __init__(
        self,
        name: str,
        train: Samples | Mapping[str, np.ndarray],
        test: Samples | Mapping[str, np.ndarray],
        normalised: Mapping[str, Normalisation] | None = None,
    ) -> None:
        parts = [part if isinstance(part, Samples) else Held(part) for part in (train, test)]
        values = dict(zip(("name", "train", "test", "normalised"), (name, *parts, normalised or {}), strict=True))
        for key, value in values.items():
            object.__setattr__(self, key, value)


def find_folder(name: str, folder: str | None, files: str, hint: str = "") -> Path:
    """The folder that was given, or the first known place that exists.

    Arguments:
        name: of the data set.
        folder: what was declared, if anything.
        files: what belongs into it, for the message.
        hint: another way to get it.

    Raises:
        DataError: saying where to put which files.
    """
    package = name.replace("_", "-")
    if folder is not None and not isinstance(folder, str | Path):
        raise DataError(f"data {name}: {folder!r} is not a folder; give its path")
    places = [Path(folder).expanduser()] if folder else []
    if not folder:
        root = os.environ.get("PHYSNET_DATA")
        places = [Path(root) / name] if root else []
        places += [Path.home() / ".cache" / "physnet" / name, Path("/usr/share/datasets") / package]
    for place in places:
        if place.is_dir():
            return place
    raise DataError(
        f"the data set {name} is not here: put {files} into {places[0]}{hint}, "
        f"or write data: {{{name}: {{folder: ...}}}}"
    )


def regular_file(file: object, fix: str) -> Path:
    """A path that is a file: reading from a pipe may never end.

    Raises:
        DataError: if it isn't one.
    """
    try:
        path = Path(file) if isinstance(file, str | Path) else None
        if path is not None and path.is_file():
            return path
    except (OSError, ValueError):  # a name that no file can have
        pass
    raise DataError(f"{str(file)[:200]!r}: no such file; {fix}")


def refuse_bomb(where: object, size: int) -> None:
    """Raise `DataError` for what would unpack to more than fits."""
    if size > MAX_BYTES:
        raise DataError(f"{where}: unpacks to {size:,} bytes, more than {MAX_BYTES:,}; give a part of it")


def read_bytes(path: Path) -> bytes:
    """A whole file, unpacked if its name ends with .gz.

    Raises:
        DataError: if it can't be read, or unpacks to too much.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except Exception as problem:  # readers stumble over damaged files in many ways
        raise unreadable(path, problem) from None
    if len(raw) > MAX_BYTES:
        raise DataError(f"{path}: unpacks to more than {MAX_BYTES:,} bytes; give a part of it")
    return raw


def unreadable(where: object, problem: Any) -> DataError:
    """The error for a file over which a reader stumbled."""
    reason = next(iter(str(problem).splitlines()), type(problem).__name__)
    return DataError(f"{where}: can't be read ({reason}); fetch it again")
