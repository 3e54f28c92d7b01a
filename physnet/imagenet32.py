"""ImageNet32: ImageNet scaled to 32 x 32 pixels (arXiv 1707.08819), from its batch files, pickled or as .npz.

Pickles can run code. These are read by an unpickler that makes arrays of numbers and plain containers, nothing else.
"""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from physnet.arrays import DataSet, find_folder, refuse_bomb, unreadable
from physnet.errors import DataError
from physnet.photographs import CLASSES, channel_scale, require_whole
from physnet.samples import Bytes

NAME, SIZE = "imagenet32", 32
PIXELS = 3 * SIZE * SIZE
TRAIN, TEST = tuple(f"train_data_batch_{number}" for number in range(1, 11)), ("val_data",)
Part = tuple[np.ndarray, np.ndarray]
"""Images as bytes, [images, 3, 32, 32], and their classes, [images]."""


def imagenet32(folder: str | None = None, limit: int | None = None, normalise: Any = True) -> DataSet:
    """1,281,167 + 50,000 photographs of 1,000 classes, [3, 32, 32]; batch files, pickled or .npz, held as bytes."""
    scale = channel_scale(NAME, normalise)
    if limit is not None:
        require_whole(NAME, "limit", limit, 1, 2**62)
    where = find_folder(NAME, folder, f"{TRAIN[0]} to {TRAIN[-1]} and {TEST[0]}, pickled or .npz")
    parts = []
    for files, most in ((TRAIN, limit), (TEST, None)):
        images, labels = _read([_find(where, name) for name in files], most)
        parts.append(Bytes({"x": images, "y": labels}, {"x": scale}))
    return DataSet(NAME, parts[0], parts[1], {} if scale is None else {"x": scale})


def _find(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.npz"):
        if path.is_file():
            return path
    raise DataError(f"{folder / name} is missing; put it there, as it is or as {name}.npz")


def _read(paths: list[Path], limit: int | None) -> Part:
    """The images of several files, up to so many: in one array, so that no image is in memory twice."""
    room = sum(_bytes_in(path) // PIXELS for path in paths)
    room = room if limit is None else min(room, limit)
    images, labels, count = np.empty((room, 3, SIZE, SIZE), np.uint8), np.empty(room, np.int64), 0
    for found, classes in map(_load, paths):
        here = min(len(found), room - count)
        images[count : count + here], labels[count : count + here] = found[:here], classes[:here]
        count += here
        if count == limit:
            break
    return images[:count], labels[:count]


def _bytes_in(path: Path) -> int:
    """How much a file unpacks to, which is more than its images take."""
    if path.suffix != ".npz":
        return path.stat().st_size
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(item.file_size for item in archive.infolist())
    except Exception as problem:  # readers stumble over damaged files in many ways
        raise unreadable(path, problem) from None
    refuse_bomb(path, size)
    return size


def _load(path: Path) -> Part:
    """The images of one file.

    Raises:
        DataError: if it is damaged, holds something else, or would run code.
    """
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as archive:
                content: Any = {key: archive[key] for key in ("data", "labels") if key in archive}
        else:
            with path.open("rb") as file:
                content = _Unpickler(file, encoding="bytes").load()
    except DataError as problem:
        raise DataError(f"{path}: {problem}") from None
    except Exception as problem:
        raise unreadable(path, problem) from None
    data, labels = (_entry(content, key) for key in ("data", "labels"))
    if not (isinstance(data, np.ndarray) and data.dtype == np.uint8 and data.ndim == 2 and data.shape[1] == PIXELS):
        raise DataError(f"{path}: 'data' is not an array of bytes, [images, {PIXELS}]; fetch it again")
    classes = np.asarray(labels if isinstance(labels, list | np.ndarray) else [])
    if classes.shape != (len(data),) or classes.dtype.kind not in "iu" or not len(classes):
        raise DataError(f"{path}: 'labels' are not one whole number for each of {len(data)} images; fetch it again")
    if not 1 <= classes.min() <= classes.max() <= CLASSES:
        wrong = int(classes[(classes < 1) | (classes > CLASSES)][0])
        raise DataError(f"{path}: the label {wrong} is not one of 1 to {CLASSES}; fetch it again")
    return data.reshape(-1, 3, SIZE, SIZE), classes.astype(np.int64) - 1


def _entry(content: Any, key: str) -> Any:
    """An entry of a dictionary, whose keys Python 2 wrote as bytes."""
    found = content.get(key, content.get(key.encode())) if isinstance(content, dict) else None
    return found.value if isinstance(found, _Array) else found


# --------------------------------------------------------------------------- pickles


class _Type:
    """Stands for `numpy.dtype`: a type of numbers, and their order in memory."""

    def __init__(self, code: Any, align: Any = False, copy: Any = True) -> None:
        text = _text(code)
        if text not in {f"{kind}{size}" for kind in "iuf" for size in (1, 2, 4, 8)}:
            raise pickle.UnpicklingError(f"arrays of {text!r} are not numbers")
        self.dtype = np.dtype(text)

    def __setstate__(self, state: Any) -> None:
        order = _text(state[1])
        self.dtype = self.dtype.newbyteorder(order if order in ("<", ">") else "=")


class _Array:
    """Stands for an array that numpy's own functions would make of unchecked sizes."""

    def __init__(self, *_: Any) -> None:
        self.value: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        *_, shape, kind, columns_first, content = state
        self.value = _array(content, kind, shape, "F" if columns_first else "C")


def _from_buffer(content: Any, kind: Any, shape: Any, order: Any) -> _Array:
    made = _Array()
    made.value = _array(content, kind, shape, order)
    return made


def _array(content: Any, kind: _Type, shape: Any, order: Any) -> np.ndarray:
    return np.frombuffer(content, kind.dtype).reshape(shape, order=order)


def _scalar(kind: _Type, content: bytes) -> Any:
    return np.frombuffer(content, kind.dtype, 1)[0]


def _encode(text: str, encoding: Any) -> bytes:
    """How Python 3 writes bytes for Python 2."""
    if _text(encoding) != "latin1":
        raise pickle.UnpicklingError(f"the encoding {_text(encoding)!r} is not expected")
    return text.encode("latin1")


def _text(value: Any) -> str:
    return (value.decode("latin1") if isinstance(value, bytes) else str(value))[:20]


class _Name:
    """Stands for what a pickle may name, but not call."""

    def __init__(self, *_: Any) -> None:
        raise pickle.UnpicklingError("an array of no content")


_PACKAGES = ("numpy.core", "numpy._core")
_ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _Name,
    ("numpy", "dtype"): _Type,
    ("_codecs", "encode"): _encode,
    **{(f"{package}.multiarray", "_reconstruct"): _Array for package in _PACKAGES},
    **{(f"{package}.multiarray", "scalar"): _scalar for package in _PACKAGES},
    **{(f"{package}.numeric", "_frombuffer"): _from_buffer for package in _PACKAGES},
}
"""All that a pickle may call, in place of what it names."""


class _Unpickler(pickle.Unpickler):
    """Makes arrays of numbers, lists, dictionaries, text and numbers."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ADMITTED:
            raise DataError(f"it asks for {module[:50]}.{name[:50]}, which isn't data: don't trust where it comes from")
        return _ADMITTED[module, name]
