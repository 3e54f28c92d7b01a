"""Photographs of any size, in folders or in archives: ImageNet and sets that are laid out like it.

    x = (pixel - mean) / std,    mean = (.485, .456, .406),    std = (.229, .224, .225)

the means and deviations of ImageNet's channels, unless others are given. Images are read when they are needed.
"""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np

from physnet.arrays import DataSet, find_folder
from physnet.decoding import Decoder
from physnet.errors import DataError, DeclarationError, Fault
from physnet.samples import Normalisation
from physnet.shards import Shards
from physnet.streaming import Files, Streamed

SUFFIXES = (".jpeg", ".jpg", ".png", ".webp", ".bmp")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLASSES = 1000
"""Classes of ImageNet."""


@dataclass
class Options:
    """What all sets of photographs may be told.

    Arguments:
        name: of the data set.
        size: width and height of the samples.
        resize: shorter side of test images before their middle is taken; 8/7 of the size if it isn't given.
        normalise: true for ImageNet's channels, false for pixels in [0, 1], or {mean: [...], std: [...]}.
        limit: how many training images to use, spread evenly over all; all by default.
        augment: whether training images are random windows, mirrored at random.
        tolerance: share of the images that may be unreadable.

    Raises:
        DeclarationError: for options out of range.
    """

    name: str
    size: int = 224
    resize: int | None = None
    normalise: Any = True
    limit: int | None = None
    augment: bool = True
    tolerance: float = 0.01

    def __post_init__(self) -> None:
        require_whole(self.name, "size", self.size, 1, 2**14)
        self.shorter = round(self.size * 8 / 7) if self.resize is None else self.resize
        require_whole(self.name, "resize", self.shorter, self.size, 2**15)
        if self.limit is not None:
            require_whole(self.name, "limit", self.limit, 1, 2**62)
        self.scale = channel_scale(self.name, self.normalise)
        if not isinstance(self.augment, bool):
            fault = Fault(f"augment is {self.augment!r}", "write true or false", (self.name, "augment"))
            raise DeclarationError(fault)
        share = isinstance(self.tolerance, int | float) and not isinstance(self.tolerance, bool)
        if not (share and 0 <= self.tolerance < 1):
            message, fix = f"tolerance is {self.tolerance!r}", "give a share of images, such as 0.01"
            raise DeclarationError(Fault(message, fix, (self.name, "tolerance")))

    def data(self, train: Files, test: Files) -> DataSet:
        """The data set of these files."""
        _require_same_classes(train, test)
        rows = np.arange(len(train.labels))
        if self.limit is not None and self.limit < len(rows):
            rows = rows[np.arange(self.limit) * len(rows) // self.limit]
        learned = Decoder(self.size, self.shorter, self.augment)
        shown = Decoder(self.size, self.shorter)
        return DataSet(
            self.name,
            Streamed(train, learned, self.scale, float(self.tolerance), rows),
            Streamed(test, shown, self.scale, float(self.tolerance), np.arange(len(test.labels)), training=False),
            {} if self.scale is None else {"x": self.scale},
        )


def _with_options(read: Callable[..., DataSet]) -> Callable[..., DataSet]:
    """A data set whose function takes `Options` first, as one that takes them one by one after its own arguments."""
    (_, *own), (_, *shared) = (inspect.signature(call).parameters.values() for call in (read, Options))
    whole = inspect.signature(read).replace(parameters=[*own, *shared])

    @wraps(read)
    def made(*arguments: Any, **given: Any) -> DataSet:
        found = whole.bind(*arguments, **given).arguments
        options = {option.name: found.pop(option.name) for option in shared if option.name in found}
        return read(Options(read.__name__, **options), **found)

    made.__signature__ = whole  # pyright: ignore[reportAttributeAccessIssue]
    return made


@_with_options
def imagefolder(options: Options, folder: str) -> DataSet:
    """Photographs of your own, in train/<class>/ and val/<class>/; read and decoded when they are needed."""
    return options.data(*_folders(find_folder("imagefolder", folder, "folders train and val")))


@_with_options
def imageshards(options: Options, folder: str, train: str = "train-*.tar", val: str = "val-*.tar") -> DataSet:
    """Photographs in tar archives as WebDataset writes them, <key>.jpg beside <key>.cls; read when they are needed."""
    where = find_folder("imageshards", folder, f"archives {train} and {val}")
    return options.data(Shards(where, train), Shards(where, val))


@_with_options
def imagenet(options: Options, folder: str | None = None) -> DataSet:
    """1,281,167 + 50,000 photographs of 1,000 classes, [3, 224, 224]; folders as imagefolder, or imageshards."""
    where = find_folder("imagenet", folder, "folders train and val, or archives train-*.tar and val-*.tar")
    shards = not (where / "train").is_dir() and any(where.glob("train-*.tar"))
    train, test = (Shards(where, "train-*.tar"), Shards(where, "val-*.tar")) if shards else _folders(where)
    found = len(np.unique(train.labels))
    if found != CLASSES:
        raise DataError(f"{where}: {found} classes instead of {CLASSES}; add the rest, or write data: imagefolder")
    return options.data(train, test)


def require_whole(name: str, option: str, value: Any, low: int, high: int) -> int:
    """A whole number within bounds.

    Raises:
        DeclarationError: naming the option.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        fix = f"give a whole number, at least {low}"
        raise DeclarationError(Fault(f"{option} is {value!r}", fix, (name, option)))
    return value


def channel_scale(name: str, normalise: Any) -> Normalisation | None:
    """The declared normalisation of three channels; `None` where pixels stay as they are.

    Raises:
        DeclarationError: for anything but true, false, and {mean, std} with three numbers each.
    """
    match normalise:
        case None | False:
            return None
        case True:
            return _scale(MEAN, STD)
        case {"mean": [*mean], "std": [*std], **rest} if not rest and _channels(mean, -math.inf) and _channels(std, 0):
            return _scale(mean, std)
    fix = "write normalise: true, false, or {mean: [0.5, 0.5, 0.5], std: [0.2, 0.2, 0.2]}, with std above 0"
    raise DeclarationError(Fault(f"normalise is {normalise!r}", fix, (name, "normalise")))


def _channels(values: Sequence[Any], low: float) -> bool:
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    return len(values) == 3 and numbers and all(low < value < math.inf for value in values)


def _scale(mean: Sequence[float], std: Sequence[float]) -> Normalisation:
    first, second = (np.array(values, np.float32).reshape(3, 1, 1) for values in (mean, std))
    return Normalisation(first, second)


def _require_same_classes(train: Files, test: Files) -> None:
    """Classes that only one of the parts has would be learned for nothing, or tested without having been learned."""
    here, there = (set(np.unique(files.labels).tolist()) for files in (train, test))
    if here == there:
        return
    number = min(here ^ there)
    has, lacks = (train, test) if number in here else (test, train)
    raise DataError(
        f"{has.where} has images of the class {number}, {lacks.where} has none; give both the same classes "
        f"({len(here)} and {len(there)} were found)"
    )


# --------------------------------------------------------------------------- folders


def _folders(folder: Path) -> tuple[Folder, Folder]:
    """The training and the test images of a folder."""
    train = Folder(folder / "train")
    return train, Folder(folder / "val", train.classes)


class Folder(Files):
    """Images in folders that are named after their classes; a class is its place in the order of the names.

    Arguments:
        folder: the folder of the folders.
        classes: names that there must be; any are taken if they aren't given.

    Raises:
        DataError: if there are no images, or a class has none.
    """

    def __init__(self, folder: Path, classes: list[str] | None = None) -> None:
        self.folder, self.where = folder, str(folder)
        if not folder.is_dir():
            raise DataError(f"{folder} is missing; make it, with one folder of images for each class")
        with os.scandir(folder) as entries:
            self.classes = sorted(entry.name for entry in entries if entry.is_dir() and not _hidden(entry.name))
        if not self.classes:
            loose = " but images" if _images(folder) else ""
            raise DataError(
                f"{folder} holds no folders{loose}; sort the images into one folder for each class, such as "
                f"{folder / 'n01440764' / 'image.JPEG'}"
            )
        if classes is not None and classes != self.classes:
            raise self._other_classes(classes)
        names = [_images(folder / name) for name in self.classes]
        for name, found in zip(self.classes, names, strict=True):
            if not found:
                raise DataError(
                    f"{folder / name} holds no images ({', '.join(SUFFIXES)}); put them there, or remove the folder"
                )
        self.labels = np.repeat(np.arange(len(names)), [len(found) for found in names])
        # a million strings in one array, which processes that are forked share
        self._names = np.array([os.fsencode(name) for found in names for name in found])

    def read(self, number: int) -> bytes:
        return self._path(number).read_bytes()

    def name(self, number: int) -> str:
        return str(self._path(number))

    def _path(self, number: int) -> Path:
        return self.folder / self.classes[self.labels[number]] / os.fsdecode(self._names[number])

    def _other_classes(self, classes: list[str]) -> DataError:
        other = self.folder.parent / "train"
        for name in sorted(set(classes) ^ set(self.classes)):
            here, there = (self.folder, other) if name in self.classes else (other, self.folder)
            return DataError(f"{here / name} has no counterpart {there / name}; give both the same classes")
        raise AssertionError("the same classes")


def _images(folder: Path) -> list[str]:
    """The names of the images in a folder, sorted."""
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if e.name.lower().endswith(SUFFIXES) and not _hidden(e.name))


def _hidden(name: str) -> bool:
    return name.startswith(".")
