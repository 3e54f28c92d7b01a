"""Images in tar archives, as WebDataset writes them: `<key>.jpg` and `<key>.cls`, a whole number, one after the other.

Archives are indexed once, by the headers of their members; an image is then one read at a known offset, in any order.
"""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from physnet.errors import DataError
from physnet.streaming import Files

IMAGES = (".jpeg", ".jpg", ".png", ".webp", ".bmp")
CLASS = ".cls"
_NUMBER = re.compile(r"(\d+)(?:-of-(\d+))?\.tar$")


@dataclass
class _Member:
    """What belongs to one key: where its image lies, and its class."""

    offset: int = -1
    size: int = 0
    label: int = -1


class Shards(Files):
    """The images of the archives whose names match a pattern, in the order of the names.

    Arguments:
        folder: where they are.
        pattern: such as train-*.tar.

    Raises:
        DataError: if one is missing or damaged, or an image has no class.
    """

    def __init__(self, folder: Path, pattern: str) -> None:
        self.where = str(folder / pattern)
        self.paths = find_shards(folder, pattern)
        keys, members, self._shards = list[str](), list[_Member](), list[int]()
        for number, path in enumerate(self.paths):
            for key, member in _index(path):
                keys.append(key)
                members.append(member)
                self._shards.append(number)
        self._keys = np.array([os.fsencode(key) for key in keys])
        self._shards = np.array(self._shards)
        self._offsets, self._sizes, self.labels = (
            np.array([getattr(member, field) for member in members]) for field in ("offset", "size", "label")
        )

    def read(self, number: int) -> bytes:
        size = int(self._sizes[number])
        with self.paths[self._shards[number]].open("rb") as file:
            file.seek(int(self._offsets[number]))
            content = file.read(size)
        if len(content) < size:
            raise DataError("the archive ends before the image does")
        return content

    def name(self, number: int) -> str:
        return f"{self.paths[self._shards[number]]}: {os.fsdecode(self._keys[number])}"


def find_shards(folder: Path, pattern: str) -> list[Path]:
    """The archives of a pattern; where they are numbered, all numbers must be there.

    Raises:
        DataError: naming the one that is missing.
    """
    try:
        paths = sorted(folder.glob(pattern))
    except (ValueError, NotImplementedError) as problem:
        raise DataError(f"{pattern!r} is no pattern for names ({problem}); write one such as train-*.tar") from None
    if not paths:
        raise DataError(f"{folder / pattern} is missing; put the archives there, or give their pattern")
    found = {int(match[1]): (path.name, match) for path in paths if (match := _NUMBER.search(path.name))}
    if len(found) < len(paths):
        return paths  # of other names, or of several sets
    name, match = next(iter(found.values()))
    total = int(match[2]) if match[2] else 0
    first = min(found) if not total else 1 if max(found) == total else 0
    for number in range(first, first + total if total else max(found)):
        if number not in found:
            missing = f"{name[: match.start(1)]}{number:0{len(match[1])}d}{name[match.end(1) :]}"
            raise DataError(f"{folder / missing} is missing, though others around it are here; put it there")
    return paths


def _index(path: Path) -> Iterator[tuple[str, _Member]]:
    """The keys of an archive and what belongs to them."""
    found: dict[str, _Member] = {}
    try:
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for item in tar:
                if not item.isreg():
                    continue
                # the key of a member ends at the first dot of its name
                stem, dot, suffix = os.path.basename(item.name).partition(".")
                key, kind = os.path.join(os.path.dirname(item.name), stem), f"{dot}{suffix.lower()}"
                if kind in IMAGES:
                    member = found.setdefault(key, _Member())
                    member.offset, member.size = item.offset_data, item.size
                elif kind == CLASS:
                    file.seek(item.offset_data)  # quicker than a file object for every class
                    text = file.read(min(item.size, 32))
                    found.setdefault(key, _Member()).label = _label(path, item.name, text)
    except DataError:
        raise
    except Exception as problem:  # readers stumble over damaged files in many ways
        reason = next(iter(str(problem).splitlines()), type(problem).__name__)
        raise DataError(
            f"{path}: can't be read as a tar archive ({reason}); fetch it again, and unpack it if it is compressed"
        ) from None
    if not found:
        raise DataError(f"{path} holds no <key>.jpg with <key>.cls; write it as WebDataset does")
    for key, member in found.items():
        if member.offset < 0 or member.label < 0:
            what = "image" if member.offset < 0 else "class"
            raise DataError(f"{path}: {key} has no {what}; it needs both {key}.jpg and {key}.cls")
        yield key, member


def _label(path: Path, name: str, content: bytes) -> int:
    try:
        label = int(content.decode("ascii"))
    except ValueError:
        label = -1
    if label < 0:
        raise DataError(f"{path}: {name} holds {content[:20]!r} instead of a class, a whole number from 0")
    return label
