"""ImageNet32: its files in every form that they come in, and what pretends to be one."""

from __future__ import annotations

import io
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import photos
import pytest
import torch
from test_checkpoints import assert_same, completed, resumed, stopped

from physnet.arrays import DataSet
from physnet.data import load_data
from physnet.errors import DataError, DeclarationError
from physnet.samples import Reading

PARTS = [*(f"train_data_batch_{number}" for number in range(1, 11)), "val_data"]
Entries = dict[str, Any]


def entries(number: int, count: int = 3) -> Entries:
    """A file as it is distributed: rows of bytes, labels from 1, and the mean of all images, which isn't used."""
    generator = np.random.default_rng(number)
    data = generator.integers(0, 256, (count, 3072), dtype=np.uint8)
    return {"data": data, "labels": generator.integers(1, 1001, count).tolist(), "mean": data.mean(0)}


def python2(content: Entries) -> bytes:
    """The pickle that Python 2 wrote, with text as bytes: protocol 2, opcode by opcode."""

    def text(value: bytes) -> bytes:
        return b"U" + bytes([len(value)]) + value

    data = content["data"]
    raw = data.tobytes()
    array = b"cnumpy.core.multiarray\n_reconstruct\n" + b"cnumpy\nndarray\n" + b"K\x00\x85" + text(b"b") + b"\x87R"
    kind = b"cnumpy\ndtype\n" + text(b"u1") + b"K\x00K\x01\x87R" + b"(K\x03" + text(b"|") + b"NNNJ\xff\xff\xff\xff" * 1
    kind += b"J\xff\xff\xff\xffK\x00tb"
    shape = b"K" + bytes([data.shape[0]]) + b"M" + struct.pack("<H", data.shape[1]) + b"\x86"
    state = b"(K\x01" + shape + kind + b"\x89" + b"T" + struct.pack("<i", len(raw)) + raw + b"tb"
    labels = b"](" + b"".join(b"M" + struct.pack("<H", label) for label in content["labels"]) + b"e"
    return b"\x80\x02}(" + text(b"data") + array + state + text(b"labels") + labels + b"u."


def npz(content: Entries) -> bytes:
    file = io.BytesIO()
    np.savez(file, **content)
    return file.getvalue()


FORMS: dict[str, tuple[str, Callable[[Entries], bytes]]] = {
    **{f"protocol {n}": ("", lambda content, n=n: pickle.dumps(content, n)) for n in range(2, 6)},
    "python 2": ("", python2),
    "npz": (".npz", npz),
    "labels in an array": ("", lambda content: pickle.dumps(content | {"labels": np.array(content["labels"])})),
    "columns first": ("", lambda content: pickle.dumps(content | {"data": np.asfortranarray(content["data"])})),
}


def write(folder: Path, form: str = "protocol 3", count: int = 3) -> list[Entries]:
    ending, dump = FORMS[form]
    found = [entries(number, count) for number in range(11)]
    for name, content in zip(PARTS, found, strict=True):
        (folder / f"{name}{ending}").write_bytes(dump(content))
    return found


def load(folder: Path, **options: Any) -> DataSet:
    return load_data({"imagenet32": {"folder": str(folder), **options}})


READING = Reading(torch.device("cpu"), torch.float32)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_read(tmp_path: Path, form: str) -> None:
    written = write(tmp_path, form)
    data = load(tmp_path, normalise=False)
    for split, contents in (("train", written[:10]), ("test", written[10:])):
        samples = getattr(data, split).ready(READING)
        found = samples.pick(torch.arange(samples.count))
        pixels = np.concatenate([content["data"] for content in contents]).reshape(-1, 3, 32, 32)
        assert np.array_equal(found["x"].numpy(), pixels.astype(np.float32) / 255)
        assert found["y"].tolist() == [label - 1 for content in contents for label in content["labels"]]


def test_images_are_held_as_bytes_and_normalised_when_picked(tmp_path: Path) -> None:
    written = write(tmp_path)
    train = load(tmp_path).train
    assert train["x"].dtype == np.uint8  # type: ignore[index]
    pixels = written[0]["data"].reshape(-1, 3, 32, 32)
    for dtype, bound in ((torch.float32, 0), (torch.float64, 1e-6)):
        found = train.ready(Reading(torch.device("cpu"), dtype)).pick(torch.tensor([2, 0]))["x"]
        assert found.dtype == dtype
        assert np.abs(found.numpy() - photos.inputs(pixels[[2, 0]])).max() <= bound
    kept = train.part(np.array([5, 7])).renamed({"x": "image", "y": "target"}).ready(READING)
    assert torch.equal(kept.pick(torch.tensor([1]))["image"], train.ready(READING).pick(torch.tensor([7]))["x"])


@pytest.mark.parametrize("limit", [1, 4, 30, 100])
def test_a_limit_takes_the_first_images(tmp_path: Path, limit: int) -> None:
    written = write(tmp_path)
    data = load(tmp_path, limit=limit)
    pixels = np.concatenate([content["data"] for content in written[:10]]).reshape(-1, 3, 32, 32)
    assert np.array_equal(data.train["x"], pixels[:limit])  # type: ignore[index]
    assert data.test.count == 3


TEXT = """\
energy: hopfield-relu6
nodes:
  image: {shape: [3, 32, 32], role: input}
  first: {shape: [2, 8, 8]}
  label: {shape: 1000, role: output}
edges:
  - image -> first: "conv2d(4, stride=4)"
  - first -> label
cost: (x - y)**2/2
train:
  data: DATA
  augment: [flip, {crop: {padding: 4}}]
  epochs: 1
  batch: 8
  threads: 1
  device: cpu
"""


def test_training_is_that_of_numbers_in_memory_and_goes_on_exactly(tmp_path: Path) -> None:
    written = write(tmp_path)
    arrays = dict[str, np.ndarray]()
    for split, contents in (("train", written[:10]), ("test", written[10:])):
        pixels = np.concatenate([content["data"] for content in contents]).reshape(-1, 3, 32, 32)
        arrays[f"x_{split}"] = pixels.astype(np.float32) / 255
        arrays[f"y_{split}"] = np.concatenate([content["labels"] for content in contents]) - 1
    np.savez(tmp_path / "memory.npz", **arrays)  # type: ignore[arg-type]
    declared = TEXT.replace("DATA", f'{{imagenet32: {{folder: "{tmp_path}", normalise: false}}}}')
    run = completed(declared)
    assert_same(run, completed(TEXT.replace("DATA", f'{{npz: {{file: "{tmp_path}/memory.npz"}}}}')))
    stopped(declared, tmp_path / "run", 2)
    assert_same(resumed(tmp_path / "run"), run)
    metrics = run.history[0]  # of 1000 classes the error among five is counted, too
    assert metrics.top == 5
    assert metrics.test_error is not None
    assert metrics.test_top_error is not None
    assert metrics.test_top_error <= metrics.test_error


# --------------------------------------------------------------------------- what is wrong


class Attack:
    """Says in a pickle: call this."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


SAFE = entries(0)
WRONG: dict[str, tuple[bytes, str]] = {
    "a command": (pickle.dumps({"data": Attack(os.system, "touch harmed")}), r"asks for \w+.system, which isn't data"),
    "a builtin": (pickle.dumps({"data": Attack(eval, "1")}), r"asks for builtins.eval, which isn't data"),
    "a function of numpy": (pickle.dumps({"data": Attack(np.load, "x")}), r"asks for numpy.*load, which isn't data"),
    "a huge array": (pickle.dumps({"data": Attack(np.ndarray, (10**15,))}), r"can't be read"),
    "a codec": (pickle.dumps({"data": Attack(__import__("_codecs").encode, "x", "rot13")}), r"encoding 'rot13' is not"),
    "objects": (pickle.dumps(SAFE | {"data": np.array([[None] * 3072])}), r"arrays of 'O8' are not numbers"),
    "a shape that lies": (pickle.dumps(SAFE).replace(b"M\x00\x0c", b"M\x01\x0c"), r"can't be read \("),
    "cut off": (pickle.dumps(SAFE)[:-50], r"can't be read \("),
    "empty": (b"", r"can't be read \("),
    "noise": (b"\x00\xff" * 40, r"can't be read \("),
    "no dictionary": (pickle.dumps([1, 2]), r"'data' is not an array of bytes"),
    "other pixels": (
        pickle.dumps(SAFE | {"data": SAFE["data"][:, :300]}),
        "is not an array of bytes",
    ),
    "other numbers": (pickle.dumps(SAFE | {"data": SAFE["data"] / 255}), r"'data' is not an array of bytes"),
    "labels that lack": (pickle.dumps(SAFE | {"labels": [1, 2]}), r"'labels' are not one whole number for each of 3"),
    "labels in words": (pickle.dumps(SAFE | {"labels": list("abc")}), r"'labels' are not one whole number"),
    "a label 0": (pickle.dumps(SAFE | {"labels": [1, 0, 2]}), r"the label 0 is not one of 1 to 1000"),
    "a label 1001": (pickle.dumps(SAFE | {"labels": [1, 3, 1001]}), r"the label 1001 is not one of 1 to 1000"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_files_are_named_and_run_nothing(tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    content, message = WRONG[case]
    write(tmp_path)
    (tmp_path / PARTS[3]).write_bytes(content)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=rf"{PARTS[3]}: .*{message}"):
        load(tmp_path)
    assert not (tmp_path / "harmed").exists()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / PARTS[6]).unlink()
    with pytest.raises(DataError, match=rf"{PARTS[6]} is missing; put it there, as it is or as {PARTS[6]}\.npz"):
        load(tmp_path)


@pytest.mark.parametrize(("option", "value"), [("limit", 0), ("normalise", {"spread": 3})])
def test_wrong_options_are_refused(tmp_path: Path, option: str, value: Any) -> None:
    with pytest.raises(DeclarationError) as caught:
        load(tmp_path, **{option: value})
    assert caught.value.faults[0].path == ("imagenet32", option)
