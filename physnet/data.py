"""Data sets: arrays on disk or in a library, split once and for all into training and test.

A data set has inputs and class indices or real targets, as NumPy arrays; `match` gives them the names of a graph.
"""

from __future__ import annotations

import gzip
import inspect
import math
import os
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from physnet.errors import DataError, DeclarationError, Fault, did_you_mean
from physnet.graph import EnergyGraph
from physnet.registry import Registry

Arrays = dict[str, np.ndarray]
MAX_BYTES = 2**32
"""Bytes that a compressed file may unpack to."""


@dataclass(frozen=True)
class DataSet:
    """Training and test samples. `x` and `y` stand for the only input and the only target of a graph."""

    name: str
    train: Arrays
    test: Arrays


def digits() -> DataSet:
    """1,797 handwritten digits, 8 x 8 pixels in [0, 1], from scikit-learn; a stratified 360 of them are for testing."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch: Any = load_digits()
    x, y = (bunch.data / 16).astype(np.float32), bunch.target.astype(np.int64)
    x_train, x_test, y_train, y_test = map(
        np.asarray, train_test_split(x, y, test_size=360, random_state=0, stratify=y)
    )
    return DataSet("digits", {"x": x_train, "y": y_train}, {"x": x_test, "y": y_test})


def fashion_mnist(folder: str | None = None, limit: int | None = None) -> DataSet:
    """60,000 + 10,000 pictures of clothes, 28 x 28 pixels in [0, 1], from IDX files."""
    return _idx_set("fashion_mnist", folder, limit)


def mnist(folder: str | None = None, limit: int | None = None) -> DataSet:
    """60,000 + 10,000 handwritten digits, 28 x 28 pixels in [0, 1], from IDX files."""
    return _idx_set("mnist", folder, limit)


def npz(file: str) -> DataSet:
    """Arrays of your own in one NumPy file: x_train, y_train, x_test, y_test, or <node>_train and so on."""
    arrays = _arrays(_regular_file(file, "it should hold x_train, y_train, x_test and y_test"))
    splits: dict[str, Arrays] = {"train": {}, "test": {}}
    for key, value in arrays.items():
        name, _, split = key.rpartition("_")
        if split not in splits or not name:
            raise DataError(f"{file}: the array '{key}' is not named <name>_train or <name>_test; rename it")
        if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiub" or value.ndim == 0:
            raise DataError(f"{file}: the array '{key}' doesn't hold one number or more for each sample; give numbers")
        splits[split][name] = value.astype(np.float32 if value.dtype.kind == "f" else np.int64)
    for split, found in splits.items():
        sizes = {key: len(value) for key, value in found.items()}
        if not found or len(set(sizes.values())) != 1 or 0 in sizes.values():
            raise DataError(f"{file}: the {split} arrays have sizes {sizes}; give every sample once in each")
        for key, value in found.items():
            if value.dtype.kind == "f" and not np.isfinite(value).all():
                raise DataError(f"{file}: {key}_{split} holds values that aren't finite; clean the data")
    return DataSet(Path(file).stem, splits["train"], splits["test"])


def _regular_file(file: object, fix: str) -> Path:
    """A path that is a file: reading from a pipe may never end."""
    try:
        path = Path(file) if isinstance(file, str | Path) else None
        if path is not None and path.is_file():
            return path
    except (OSError, ValueError):  # a name that no file can have
        pass
    raise DataError(f"{str(file)[:200]!r}: no such file; {fix}")


def _arrays(path: Path) -> Arrays:
    """The arrays of an .npz file. Nothing is unpickled, and nothing unpacked that would not fit."""
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(item.file_size for item in archive.infolist())
        if size > MAX_BYTES:
            raise DataError(f"{path}: unpacks to {size:,} bytes, more than {MAX_BYTES:,}; give a part of it")
        with np.load(path, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}
    except DataError:
        raise
    except Exception as problem:  # readers stumble over damaged files in many ways
        reason = next(iter(str(problem).splitlines()), type(problem).__name__)
        raise DataError(f"{path}: not a readable .npz file ({reason}); write it with numpy.savez") from None


DATA: Registry[Callable[..., DataSet]] = Registry(
    "data set",
    "physnet.data",
    {"digits": digits, "fashion_mnist": fashion_mnist, "mnist": mnist, "npz": npz},
    lambda name, thing: None if callable(thing) else "it must be a function that returns a physnet.data.DataSet",
)
"""Data sets by the name that declarations use."""


def load_data(declared: str | Mapping[str, Any]) -> DataSet:
    """A data set from its declaration: a name, or {name: {options}}.

    Raises:
        DeclarationError: for unknown names and options.
        DataError: for files that are missing, truncated or of the wrong form.
    """
    name, options = check_data(declared)
    try:
        data = DATA[name](**options)
    except OSError as problem:
        raise DataError(f"data {name}: {problem}; check the file") from None
    if not isinstance(data, DataSet):
        raise DataError(f"data {name}: expected a physnet.data.DataSet, found {type(data).__name__}; mend its function")
    return data


def check_data(declared: Any) -> tuple[str, dict[str, Any]]:
    """The name and the options of a data set, without loading it.

    Raises:
        DeclarationError: for unknown names and options.
    """
    if isinstance(declared, str):
        name, options = declared, {}
    elif isinstance(declared, Mapping) and len(declared) == 1:
        ((name, options),) = declared.items()
    else:
        raise DeclarationError(Fault("data is a name, or {name: {options}}", f"use {', '.join(DATA)}"))
    if not isinstance(options, Mapping | None):
        raise DeclarationError(Fault(f"the options of data are a mapping, found {options!r}", f"{name}: {{file: ...}}"))
    if name not in DATA:
        hint = did_you_mean(name, DATA)
        raise DeclarationError(Fault(f"there is no data set '{name}'", hint))
    given = dict(options or {})
    try:
        inspect.signature(DATA[name]).bind(**given)
    except TypeError as problem:
        raise DeclarationError(Fault(f"data {name}: {problem}", f"options: {inspect.signature(DATA[name])}")) from None
    return name, given


def match(data: DataSet, graph: EnergyGraph) -> DataSet:
    """The data set with its arrays named after the inputs and targets of a graph.

    Raises:
        DataError: if an input or target has no array, or one of the wrong size.
    """
    inputs = {node.name: math.prod(node.data_shape) for node in graph.nodes() if not node.free}
    targets = {name: math.prod(target.shape) for name, target in graph.targets().items()}

    def rename(arrays: Arrays) -> Arrays:
        named = dict(arrays)
        for generic, wanted in (("x", inputs), ("y", targets)):
            if generic in named and generic not in wanted and len(wanted) == 1:
                named[next(iter(wanted))] = named.pop(generic)
        missing = (inputs.keys() | targets.keys()) - named.keys()
        if missing:
            raise DataError(
                f"the data set {data.name} has no array for '{sorted(missing)[0]}': it has {', '.join(arrays)}; "
                f"the network needs {', '.join([*inputs, *targets])}"
            )
        for name, units in inputs.items():
            size = math.prod(named[name].shape[1:])
            if size != units:
                raise DataError(f"samples of {data.name} have {size} numbers, but the input '{name}' has {units} units")
        for name, units in targets.items():
            values = named[name]
            if (
                values.dtype.kind in "iu"
                and values.ndim == 1
                and not 0 <= int(values.min()) <= int(values.max()) < units
            ):
                raise DataError(
                    f"{data.name} has classes up to {int(values.max())}, but the target '{name}' has {units} units"
                )
        return {name: named[name] for name in [*inputs, *targets]}

    return DataSet(data.name, rename(data.train), rename(data.test))


# --------------------------------------------------------------------------- IDX files


def _idx_set(name: str, folder: str | None, limit: int | None) -> DataSet:
    where = _find_folder(name, folder)
    splits: list[Arrays] = []
    for prefix in ("train", "t10k"):
        x = read_idx(_find_file(where, f"{prefix}-images-idx3-ubyte"))
        y = read_idx(_find_file(where, f"{prefix}-labels-idx1-ubyte"))
        if x.ndim < 2 or not x.size or y.ndim != 1:
            raise DataError(
                f"{where}: {prefix} images of shape {x.shape} and labels of shape {y.shape}; fetch them again"
            )
        if len(x) != len(y):
            raise DataError(f"{where}: {len(x)} {prefix} images but {len(y)} labels; the files don't belong together")
        splits.append({"x": x.reshape(len(x), -1).astype(np.float32) / 255, "y": y.astype(np.int64)})
    train, test = splits
    if limit is not None:
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
            raise DataError(f"data {name}: limit is {limit!r}; give a number of samples, at least 1")
        train = {key: value[:limit] for key, value in train.items()}
    return DataSet(name, train, test)


def _find_folder(name: str, folder: str | None) -> Path:
    """The folder that was given, or the first known place that exists."""
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
    debian = f" (on Debian: apt install dataset-{package})" if name == "fashion_mnist" else ""
    raise DataError(
        f"the data set {name} is not here: put train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, "
        f"t10k-images-idx3-ubyte.gz and t10k-labels-idx1-ubyte.gz into {places[0]}{debian}, "
        f"or write data: {{{name}: {{folder: ...}}}}"
    )


def _find_file(folder: Path, name: str) -> Path:
    for path in (folder / f"{name}.gz", folder / name):
        if path.is_file():
            return path
    raise DataError(f"{folder / name}.gz is missing; put it there, compressed or not")


def read_idx(path: Path) -> np.ndarray:
    """An array of bytes from an IDX file, compressed or not.

    Raises:
        DataError: if the file is truncated, corrupt, or not an IDX file of unsigned bytes.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
        if len(raw) > MAX_BYTES:
            raise DataError(f"{path}: unpacks to more than {MAX_BYTES:,} bytes; give a part of it")
    except DataError:
        raise
    except Exception as problem:  # readers stumble over damaged files in many ways
        raise DataError(f"{path}: can't be read ({problem}); fetch it again") from None
    if len(raw) < 4 or raw[:3] != b"\0\0\x08":
        raise DataError(f"{path}: not an IDX file of unsigned bytes; fetch it again")
    axes = raw[3]
    start = 4 + 4 * axes
    shape = tuple(int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(axes))
    if len(raw) != start + math.prod(shape):
        raise DataError(
            f"{path}: {len(raw)} bytes instead of {start + math.prod(shape)}; it is truncated, fetch it again"
        )
    return np.frombuffer(raw, np.uint8, offset=start).reshape(shape)
