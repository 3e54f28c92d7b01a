"""CIFAR-10 and CIFAR-100: the binary distribution, packed or not, and tables with PNG images.

60,000 photographs, 32 x 32 pixels in three colours. Krizhevsky, Learning Multiple Layers of Features from Tiny Images,
2009; https://www.cs.toronto.edu/~kriz/cifar.html, where the checksums are published.
"""

from __future__ import annotations

import hashlib
import io
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from physnet.arrays import DataSet, find_folder, read_bytes, refuse_bomb, unreadable
from physnet.errors import DataError, DeclarationError, Fault
from physnet.images import Labelled, image_set

SIZE = 32
PIXELS = 3 * SIZE * SIZE
TABLES = ("", "plain_text", "cifar100", "data")
"""Where in a folder tables are looked for."""


@dataclass(frozen=True)
class _Format:
    """What the distribution of a data set looks like.

    Arguments:
        name: of the data set.
        archive, md5: the packed distribution and its published checksum.
        subfolder: where its files are once it is unpacked.
        files: its binary files, of training and of test images.
        images: how many images each part holds, in one file.
        labels: the labels in the order in which they stand before the pixels: column of a table and number of classes.
    """

    name: str
    archive: str
    md5: str
    subfolder: str
    files: dict[str, tuple[str, ...]]
    images: dict[str, int]
    labels: tuple[tuple[str, int], ...]

    @property
    def record(self) -> int:
        """Bytes of an image with its labels."""
        return len(self.labels) + PIXELS


CIFAR10 = _Format(
    "cifar10",
    "cifar-10-binary.tar.gz",
    "c32a1d4ab5d03f1284b67883e8d87530",
    "cifar-10-batches-bin",
    {"train": tuple(f"data_batch_{number}.bin" for number in range(1, 6)), "test": ("test_batch.bin",)},
    {"train": 10_000, "test": 10_000},
    (("label", 10),),
)
CIFAR100 = _Format(
    "cifar100",
    "cifar-100-binary.tar.gz",
    "03b5dce01913d631647c71ecec9e9cb8",
    "cifar-100-binary",
    {"train": ("train.bin",), "test": ("test.bin",)},
    {"train": 50_000, "test": 10_000},
    (("coarse_label", 20), ("fine_label", 100)),
)


def cifar10(
    folder: str | None = None,
    limit: int | None = None,
    pad: int | None = None,
    normalise: Any = False,
    checksum: bool = True,
) -> DataSet:
    """50,000 + 10,000 photographs of 10 classes, [3, 32, 32] in [0, 1]; binary files, their archive, or parquet."""
    train, test = _read(CIFAR10, folder, 0, checksum)
    return image_set("cifar10", train, test, limit, pad, normalise)


def cifar100(
    folder: str | None = None,
    limit: int | None = None,
    pad: int | None = None,
    normalise: Any = False,
    checksum: bool = True,
    labels: str = "fine",
) -> DataSet:
    """50,000 + 10,000 photographs of 100 classes (labels: coarse, 20), [3, 32, 32] in [0, 1]; files as cifar10."""
    names = ("coarse", "fine")
    if labels not in names:
        raise DeclarationError(Fault(f"labels is {labels!r}", "write labels: fine, or coarse", ("cifar100", "labels")))
    train, test = _read(CIFAR100, folder, names.index(labels), checksum)
    return image_set("cifar100", train, test, limit, pad, normalise)


def _read(form: _Format, folder: str | None, label: int, checksum: Any) -> tuple[Labelled, Labelled]:
    """Training and test images with one of their labels, from whichever files there are.

    With a checksum, the archive must have the published one, and its files and tables the published sizes.
    """
    if not isinstance(checksum, bool):
        fault = Fault(f"checksum is {checksum!r}", "write true or false", (form.name, "checksum"))
        raise DeclarationError(fault)
    first = form.files["train"][0]
    tables = "parquet files called train-*.parquet and test-*.parquet"
    where = find_folder(form.name, folder, f"{form.archive}, its files {first} and so on, or {tables}")
    for place in (where, where / form.subfolder):
        if (place / first).is_file():
            return _parts(form, label, checksum, {file: place / file for part in form.files.values() for file in part})
    if (where / form.archive).is_file():
        return _parts(form, label, checksum, _unpacked(form, where / form.archive, checksum))
    for place in (where / table for table in TABLES):
        train, test = (_Tables(form, place, part, label, checksum) for part in ("train", "test"))
        if train.paths:
            return train.read(), test.read()
    raise DataError(f"{where}: holds neither {first} nor {form.archive} nor {tables}; put one of them there")


def _only(images: np.ndarray, labels: np.ndarray, classes: int, where: object) -> Labelled:
    """Images and labels, if all labels are classes."""
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(wrong):
        row = int(wrong[0])
        raise DataError(f"{where}: image {row} has the label {labels[row]}, of {classes} classes; fetch it again")
    return images, labels.astype(np.int64)


# --------------------------------------------------------------------------- binary files


def _parts(
    form: _Format, label: int, checksum: bool, contents: dict[str, Path] | dict[str, bytes]
) -> tuple[Labelled, Labelled]:
    train, test = ([_records(form, part, file, contents[file], label, checksum) for file in form.files[part]]
                   for part in ("train", "test"))  # fmt: skip
    images, labels = (np.concatenate(pieces) for pieces in zip(*train, strict=True))
    return (images, labels), test[0]


def _records(form: _Format, part: str, file: str, content: Path | bytes, label: int, checksum: bool) -> Labelled:
    """The images of a binary file: one after the other, labels before pixels, channels first."""
    where = content if isinstance(content, Path) else f"{form.archive}: {file}"
    if isinstance(content, Path) and not content.is_file():
        raise DataError(f"{content} is missing; put it there")
    raw = read_bytes(content) if isinstance(content, Path) else content
    whole = form.images[part] * form.record
    if len(raw) % form.record or not raw or (checksum and len(raw) != whole):
        raise DataError(
            f"{where}: {len(raw):,} bytes instead of {whole:,}; fetch it again, or write checksum: false if it is a "
            f"file of your own, of {form.record:,} bytes for each image"
        )
    records = np.frombuffer(raw, np.uint8).reshape(-1, form.record)
    images = records[:, len(form.labels) :].reshape(-1, 3, SIZE, SIZE)
    return _only(images, records[:, label], form.labels[label][1], where)


def _unpacked(form: _Format, archive: Path, checksum: bool) -> dict[str, bytes]:
    """The binary files of an archive, by name. Nothing is written."""
    if checksum:
        with archive.open("rb") as file:
            found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
        if found != form.md5:
            raise DataError(
                f"{archive}: its MD5 sum is {found} instead of {form.md5}; fetch it again, or write checksum: false "
                "if it is an archive of your own"
            )
    contents: dict[str, bytes] = {}
    wanted = {f"{form.subfolder}/{file}": file for part in form.files.values() for file in part}
    try:
        with tarfile.open(archive, "r|gz") as tar:
            for member in tar:
                if member.name in wanted and member.isreg():
                    refuse_bomb(f"{archive}: {member.name}", member.size)
                    unpacked = tar.extractfile(member)
                    contents[wanted[member.name]] = b"" if unpacked is None else unpacked.read()
    except DataError:
        raise
    except Exception as problem:  # readers stumble over damaged files in many ways
        raise unreadable(archive, problem) from None
    for name, file in wanted.items():
        if file not in contents:
            raise DataError(f"{archive}: {name} is missing; fetch it again")
    return contents


# --------------------------------------------------------------------------- tables


class _Tables:
    """The parquet files of one part of a data set.

    Arguments:
        form: of the data set.
        folder: where they are.
        part: train or test.
        label: which of the labels to read.
        checksum: whether there must be as many images as published.
    """

    def __init__(self, form: _Format, folder: Path, part: str, label: int, checksum: bool) -> None:
        self.form, self.folder, self.part, self.checksum = form, folder, part, checksum
        self.column, self.classes = form.labels[label]
        self.paths = sorted(folder.glob(f"{part}-*.parquet")) or sorted(folder.glob(f"{part}.parquet"))

    def read(self) -> Labelled:
        """All images and their labels.

        Raises:
            DataError: for tables that are missing, damaged, or of other columns.
        """
        for path in self.paths:
            number = re.search(r"-of-(\d+)\.parquet$", path.name)
            if number and int(number[1]) != len(self.paths):
                raise DataError(
                    f"{path} is one of {int(number[1])} tables, but {len(self.paths)} are here; add the rest"
                )
        if not self.paths:
            raise DataError(f"{self.folder}/{self.part}-*.parquet is missing; put it there")
        images, labels = (np.concatenate(pieces) for pieces in zip(*map(self._table, self.paths), strict=True))
        whole = self.form.images[self.part] * len(self.form.files[self.part])
        if self.checksum and len(images) != whole:
            raise DataError(
                f"{self.paths[0]}: {len(images):,} images instead of {whole:,}; fetch it again, or write "
                "checksum: false if it is a table of your own"
            )
        return images, labels

    def _table(self, path: Path) -> Labelled:
        try:
            from pyarrow import parquet
        except ImportError:
            raise DataError(f"{path}: reading it needs pyarrow; pip install 'physnet[parquet]'") from None
        try:
            columns = parquet.read_schema(path).names
        except Exception as problem:  # readers stumble over damaged files in many ways
            raise unreadable(path, problem) from None
        image = next((name for name in ("img", "image") if name in columns), "img")
        for name in (image, self.column):
            if name not in columns:
                raise DataError(f"{path}: the column '{name}' is missing; it has {', '.join(columns)}")
        try:
            table = parquet.read_table(path, columns=[image, self.column])
            items, labels = table.column(image).to_pylist(), np.array(table.column(self.column).to_pylist())
        except Exception as problem:
            raise unreadable(path, problem) from None
        if not len(labels) or labels.dtype.kind not in "iu" or labels.ndim != 1:
            raise DataError(f"{path}: the column '{self.column}' doesn't hold a whole number for each image")
        images = np.stack(list(self._pictures(path, items)))
        return _only(images, labels, self.classes, path)

    def _pictures(self, path: Path, items: list[Any]) -> Iterator[np.ndarray]:
        """The pictures of a column, each [3, 32, 32]."""
        from PIL import Image

        for row, item in enumerate(items):
            content = item.get("bytes") if isinstance(item, dict) else item
            if not isinstance(content, bytes):
                raise DataError(f"{path}: image {row} holds no bytes; its column must have the bytes of PNG images")
            try:
                with Image.open(io.BytesIO(content), formats=["PNG"]) as picture:
                    form = (*picture.size, picture.mode)
                    pixels = np.asarray(picture) if form == (SIZE, SIZE, "RGB") else None
            except Exception as problem:
                reason = next(iter(str(problem).splitlines()), type(problem).__name__)
                raise DataError(f"{path}: image {row} can't be read ({reason}); fetch it again") from None
            if pixels is None:
                raise DataError(f"{path}: image {row} is {form[0]} x {form[1]} {form[2]}, not 32 x 32 RGB")
            yield pixels.transpose(2, 0, 1)
