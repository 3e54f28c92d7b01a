"""Data sets: arrays on disk or in a library, split once and for all into training and test.

A data set has inputs and class indices or real targets, as NumPy arrays; `match` gives them the names of a graph.
"""

from __future__ import annotations

import inspect
import math
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from physnet.arrays import Arrays, DataSet, refuse_bomb, regular_file
from physnet.cifar import cifar10, cifar100
from physnet.errors import DataError, DeclarationError, Fault, did_you_mean
from physnet.graph import EnergyGraph
from physnet.imagenet32 import imagenet32
from physnet.images import fashion_mnist, mnist, mnist_small
from physnet.photographs import imagefolder, imagenet, imageshards
from physnet.registry import Registry
from physnet.samples import Samples


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


def xor() -> DataSet:
    """The exclusive or: two bits, and as class whether they differ; the same four samples to train and to test."""
    x = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], np.float32)
    both = {"x": x, "y": np.array([0, 1, 1, 0], np.int64)}
    return DataSet("xor", both, both)


VOWELS = {"hid": (390.0, 1990.0), "hud": (640.0, 1190.0)}
"""Mean first and second formants in Hz, of men (Peterson and Barney, J. Acoust. Soc. Am. 24 (1952) 175)."""


def formants(samples: int = 100, spread: float = 0.12, seed: int = 0) -> DataSet:
    """The first two formants of the vowels of "hid" and "hud", generated around their published means, in [0, 1].

    Arguments:
        samples: of each vowel, to train and as many to test; at least 1.
        spread: standard deviation over speakers, as a part of the mean.
        seed: of the draws.
    """
    if samples < 1 or not 0 <= spread < 1:
        fault = f"data formants: samples is {samples!r} and spread is {spread!r}"
        raise DataError(f"{fault}; give at least 1 sample, and a spread from 0 to 1")
    draws, parts = np.random.default_rng(seed), list[Arrays]()
    low, width = np.array([200.0, 600.0]), np.array([1000.0, 2000.0])  # the range of formants, in Hz
    for _ in ("train", "test"):
        hertz = [np.array(mean) * (1 + spread * draws.standard_normal((samples, 2))) for mean in VOWELS.values()]
        x = ((np.concatenate(hertz) - low) / width).clip(0, 1).astype(np.float32)
        parts.append({"x": x, "y": np.arange(len(VOWELS)).repeat(samples)})
    train, test = parts
    return DataSet("formants", train, test)


def npz(file: str) -> DataSet:
    """Arrays of your own in one NumPy file: x_train, y_train, x_test, y_test, or <node>_train and so on."""
    arrays = _arrays(regular_file(file, "it should hold x_train, y_train, x_test and y_test"))
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


def _arrays(path: Path) -> Arrays:
    """The arrays of an .npz file. Nothing is unpickled, and nothing unpacked that would not fit."""
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(item.file_size for item in archive.infolist())
        refuse_bomb(path, size)
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
    {
        "cifar10": cifar10,
        "cifar100": cifar100,
        "digits": digits,
        "fashion_mnist": fashion_mnist,
        "formants": formants,
        "imagefolder": imagefolder,
        "imagenet": imagenet,
        "imagenet32": imagenet32,
        "imageshards": imageshards,
        "mnist": mnist,
        "mnist_small": mnist_small,
        "npz": npz,
        "xor": xor,
    },
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

    def named(names: Iterable[str]) -> dict[str, str]:
        """New names by old ones."""
        found = {name: name for name in names}
        for generic, wanted in (("x", inputs), ("y", targets)):
            if generic in found and generic not in wanted and len(wanted) == 1:
                found[generic] = next(iter(wanted))
        return found

    def rename(samples: Samples) -> Samples:
        names = {new: old for old, new in named(samples.names).items()}
        missing = (inputs.keys() | targets.keys()) - names.keys()
        if missing:
            raise DataError(
                f"the data set {data.name} has no array for '{sorted(missing)[0]}': it has {', '.join(samples.names)}; "
                f"the network needs {', '.join([*inputs, *targets])}"
            )
        for name, units in inputs.items():
            size = math.prod(samples.shape(names[name]))
            if size != units:
                raise DataError(f"samples of {data.name} have {size} numbers, but the input '{name}' has {units} units")
        for name, units in targets.items():
            values = samples.classes(names[name])
            if values is not None and not 0 <= int(values.min()) <= int(values.max()) < units:
                raise DataError(
                    f"{data.name} has classes up to {int(values.max())}, but the target '{name}' has {units} units"
                )
        return samples.renamed({names[name]: name for name in [*inputs, *targets]})

    normalised = {named(data.normalised)[name]: value for name, value in data.normalised.items()}
    return replace(data, train=rename(data.train), test=rename(data.test), normalised=normalised)
