"""Small photographs for the tests: folders and archives of them, good and broken ones."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("ant", "bee", "cat", "dog")
BROKEN = b"\xff\xd8\xff\xe0 not much of an image"
Files = dict[str, bytes]
"""Contents by path, such as train/ant/0.JPEG."""


def photograph(seed: int, width: int = 40, height: int = 30, kind: str = "JPEG") -> bytes:
    """A smooth picture with a little noise."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / max(width, height)
    waves = [np.sin(generator.uniform(2, 9) * x + generator.uniform(2, 9) * y + seed) for _ in range(3)]
    pixels = 128 + 90 * np.stack(waves, 2) + generator.normal(0, 6, (height, width, 3))
    file = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, kind)
    return file.getvalue()


def photographs(train: int = 6, val: int = 3, **form: int) -> Files:
    """So many for each of four classes."""
    names = [
        f"{part}/{name}/{number}.JPEG"
        for part, count in (("train", train), ("val", val))
        for name in CLASSES
        for number in range(count)
    ]
    return {name: photograph(seed, **form) for seed, name in enumerate(names)}


def write_folder(folder: Path, files: Mapping[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def write_shards(folder: Path, files: Mapping[str, bytes], size: int = 5, pattern: str = "{}-{:03d}.tar") -> Path:
    """Archives of so many images each, with their classes beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    for part in ("train", "val"):
        chosen = [name for name in files if name.startswith(part)]
        for start in range(0, len(chosen), size):
            with tarfile.open(folder / pattern.format(part, start // size), "w") as archive:
                for name in chosen[start : start + size]:
                    _, label, stem = name.split("/")
                    key = f"{label}_{stem.split('.')[0]}"
                    add(archive, f"{key}.jpg", files[name])
                    add(archive, f"{key}.cls", str(CLASSES.index(label)).encode())
    return folder


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def middle(content: bytes) -> np.ndarray:
    """The 16 x 16 pixels in the middle of a picture of 40 x 30 that was scaled to 24 x 18: bytes, [3, 16, 16]."""
    with Image.open(io.BytesIO(content)) as image:
        scaled = np.asarray(image.resize((24, 18), Image.Resampling.BILINEAR))
    return scaled[1:17, 4:20].transpose(2, 0, 1)


def inputs(pixels: np.ndarray) -> np.ndarray:
    """Bytes normalised by ImageNet's channels."""
    mean, std = (np.array(v, np.float32).reshape(3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    return (pixels.astype(np.float32) / 255 - mean) / std
