"""Photographs that are read while a network trains: as Pillow reads them, and as if they had been in memory."""

from __future__ import annotations

import io
import json
import math
import os
import tarfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import photos
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from test_checkpoints import assert_same, completed, resumed, stopped
from typer.testing import CliRunner

from physnet.cli import app
from physnet.data import load_data
from physnet.declaration import parse_experiment
from physnet.decoding import DRAWS, SMALLEST, Decoder, random_window
from physnet.errors import DataError, DataWarning, DeclarationError
from physnet.photographs import Folder
from physnet.samples import Reading, Samples
from physnet.shards import Shards
from physnet.streaming import Streamed
from physnet.training import Trainer, evaluate, load_run, resume_run

pytestmark = pytest.mark.filterwarnings("ignore::physnet.errors.RelaxationWarning")  # few sweeps, for speed
TEXT = """\
name: photos
energy: hopfield-relu6
nodes:
  image: {shape: [3, 16, 16], role: input}
  first: {shape: [4, 8, 8]}
  label: {shape: 4, role: output}
edges:
  - image -> first: "conv2d(3, stride=2, padding=1)"
  - first -> label
cost: (x - y)**2/2
relax: {max_sweeps: 30}
learn: {protocol: random_sign, beta: 0.2}
train:
  data: DATA
  seed: 3
  threads: 1
  device: cpu
"""
SMALL = {"size": 16, "resize": 18}
READING = Reading(torch.device("cpu"), torch.float32, seed=7)


def text(data: dict[str, Any], **train: str) -> str:
    declared = TEXT.replace("DATA", json.dumps(data))
    settings = {"workers": "0", "epochs": "2", "batch": "5"} | train
    return declared + "".join(f"  {key}: {value}\n" for key, value in settings.items())


def folder_text(folder: Path, options: dict[str, Any] | None = None, **train: str) -> str:
    return text({"imagefolder": {"folder": str(folder), **SMALL, **(options or {})}}, **train)


def memory_text(folder: Path, files: photos.Files, **train: str) -> str:
    """An experiment whose arrays in memory are these images, in this order, as they are evaluated."""
    arrays = dict[str, np.ndarray]()
    for part, split in (("train", "train"), ("val", "test")):
        names = [name for name in files if name.startswith(part)]
        arrays[f"x_{split}"] = photos.inputs(np.stack([photos.middle(files[name]) for name in names]))
        arrays[f"y_{split}"] = np.array([photos.CLASSES.index(name.split("/")[1]) for name in names])
    np.savez(folder / "memory.npz", **arrays)  # type: ignore[arg-type]
    return text({"npz": {"file": str(folder / "memory.npz")}}, **train)


@pytest.fixture(scope="module")
def files() -> photos.Files:
    return photos.photographs()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, files: photos.Files) -> Path:
    return photos.write_folder(tmp_path_factory.mktemp("photos"), files)


def ready(declared: dict[str, Any], split: str = "train", reading: Reading = READING) -> Samples:
    return getattr(load_data(declared), split).ready(reading)


# --------------------------------------------------------------------------- decoding


def test_the_middle_is_that_of_pillow(files: photos.Files) -> None:
    for content in list(files.values())[:5]:
        assert np.array_equal(Decoder(16, 18)(content), photos.middle(content))


@pytest.mark.parametrize("form", ["L", "P", "CMYK", "RGBA"])
def test_other_colours_become_three_channels(form: str) -> None:
    file = io.BytesIO()
    Image.new("RGB", (30, 40), (204, 204, 204)).convert(form).save(file, "JPEG" if form == "CMYK" else "PNG")
    decoded = Decoder(16, 18)(file.getvalue())
    assert decoded.shape == (3, 16, 16)
    assert np.abs(decoded.astype(int) - 204).max() <= 2


@given(
    width=st.integers(1, 900),
    height=st.integers(1, 900),
    numbers=st.lists(st.floats(0, 0.999), min_size=41, max_size=41),
)
def test_windows_lie_inside_and_have_allowed_shapes(width: int, height: int, numbers: list[float]) -> None:
    left, top, right, bottom = random_window(width, height, numbers)
    wide, high = right - left, bottom - top
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    # rounding moves each side by half a pixel
    assert (wide + 0.5) * (high + 0.5) >= min(SMALLEST * width * height, 1)
    assert (wide - 0.5) / (high + 0.5) <= 4 / 3 or high == 1
    assert (wide + 0.5) / (high - 0.5) >= 3 / 4 or wide == 1


def test_long_images_give_the_middle_after_ten_attempts() -> None:
    assert random_window(1000, 30, [0.5] * DRAWS) == (480, 0, 520, 30)
    assert random_window(30, 1000, [0.5] * DRAWS) == (0, 480, 30, 520)


def test_areas_and_ratios_are_spread_evenly() -> None:
    """Of a large square: uniform areas, and uniform logarithms of the ratio, within five standard errors."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.rand(2000, DRAWS, generator=generator, dtype=torch.float64).tolist()
    boxes = np.array([random_window(10_000, 10_000, numbers) for numbers in drawn], dtype=float)
    wide, high = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    small = wide * high < 0.5e8  # half of the image: all ratios fit
    area, ratio = (wide * high)[small] / 1e8, np.log(wide / high)[small] / math.log(4 / 3)
    error = 1 / math.sqrt(12 * small.sum())
    assert abs(((area - SMALLEST) / (0.5 - SMALLEST)).mean() - 0.5) < 5 * error
    assert abs(ratio.mean() / 2) < 5 * error
    assert abs(ratio.var() - 1 / 3) < 0.05


@pytest.mark.parametrize("mirrored", [False, True])
def test_the_window_is_cut_out_scaled_and_mirrored(mirrored: bool) -> None:
    """Of a ramp in both directions each scaled pixel is known: it stays a ramp, from border to border of the window."""
    y, x = np.mgrid[:200, :240]
    file = io.BytesIO()
    Image.fromarray(np.stack([x, y, 0 * x], 2).astype(np.uint8)).save(file, "PNG")
    numbers = torch.rand(DRAWS, generator=torch.Generator().manual_seed(5), dtype=torch.float64).tolist()
    numbers[-1] = 0.4 if mirrored else 0.6
    left, top, right, bottom = random_window(240, 200, numbers)
    found = Decoder(16, random=True)(file.getvalue(), numbers)[:, :, :: -1 if mirrored else 1].astype(float)
    places = (np.arange(16) + 0.5) / 16
    inner = slice(1, -1)  # at the border the filter is cut off
    assert np.abs(found[0] - (left + places * (right - left) - 0.5))[inner, inner].max() <= 1
    assert np.abs(found[1].T - (top + places * (bottom - top) - 0.5))[inner, inner].max() <= 1


# --------------------------------------------------------------------------- folders and archives


def test_folders_are_read_in_the_order_of_their_names(folder: Path, files: photos.Files) -> None:
    (folder / "train" / ".hidden").mkdir(exist_ok=True)
    (folder / "train" / "ant" / "._0.JPEG").write_bytes(b"")
    found = Folder(folder / "train")
    names = sorted(name for name in files if name.startswith("train"))
    assert [found.name(number) for number in range(24)] == [str(folder / name) for name in names]
    assert [found.read(number) for number in range(24)] == [files[name] for name in names]
    assert found.labels.tolist() == [number for number in range(4) for _ in range(6)]


@pytest.mark.parametrize("pattern", ["{}-{:03d}.tar", "{}-{:05d}-of-00005.tar"])
def test_archives_hold_the_same_samples(folder: Path, files: photos.Files, tmp_path: Path, pattern: str) -> None:
    some = {name: files[name] for name in files if not name.startswith("val") or "of" not in pattern}
    photos.write_shards(tmp_path, some, 5, pattern)
    found = Shards(tmp_path, "train-*.tar")
    assert [found.read(number) for number in range(24)] == [files[name] for name in files if name.startswith("train")]
    assert np.array_equal(found.labels, Folder(folder / "train").labels)
    assert found.name(7) == f"{found.paths[1]}: bee_1"


def test_both_train_alike(folder: Path, files: photos.Files, tmp_path: Path) -> None:
    photos.write_shards(tmp_path, files)
    declared = text({"imageshards": {"folder": str(tmp_path), **SMALL}}, epochs="1")
    assert_same(completed(declared), completed(folder_text(folder, epochs="1")))


def remove(path: str) -> Callable[[Path], None]:
    return lambda folder: (folder / path).unlink()


def write(path: str, content: bytes = b"") -> Callable[[Path], None]:
    return lambda folder: photos.write_folder(folder, {path: content}) and None


def flatten(folder: Path) -> None:
    """As the validation images of ImageNet come."""
    for path in sorted((folder / "val").glob("*/*")):
        path.rename(folder / "val" / f"{path.parent.name}{path.name}")
    for name in photos.CLASSES:
        (folder / "val" / name).rmdir()


FOLDERS: list[tuple[Callable[[Path], Any], str]] = [
    (lambda folder: (folder / "val").rename(folder / "test"), r"val is missing; make it, with one folder"),
    (flatten, r"val holds no folders but images; sort the images into one folder for each class"),
    (lambda folder: (folder / "train" / "eel").mkdir(), r"train.eel holds no images \(.jpeg.*remove the folder"),
    (write("train/eel/0.jpg"), r"train.eel has no counterpart .*val.eel; give both the same classes"),
    (write("val/eel/0.jpg"), r"val.eel has no counterpart .*train.eel; give both the same classes"),
]


@pytest.mark.parametrize(("spoil", "message"), FOLDERS)
def test_wrong_folders_are_named(tmp_path: Path, spoil: Callable[[Path], Any], message: str) -> None:
    photos.write_folder(tmp_path, photos.photographs(2, 2))
    spoil(tmp_path)
    with pytest.raises(DataError, match=message):
        load_data({"imagefolder": {"folder": str(tmp_path)}})


def test_imagenet_has_a_thousand_classes(folder: Path) -> None:
    with pytest.raises(DataError, match=r"4 classes instead of 1000; add the rest, or write data: imagefolder"):
        load_data({"imagenet": {"folder": str(folder)}})


@pytest.mark.parametrize("archived", [False, True])
def test_imagenet_is_read_from_folders_or_archives(tmp_path: Path, archived: bool) -> None:
    content = photos.photograph(0)
    for part in ("train", "val"):
        if archived:
            with tarfile.open(tmp_path / f"{part}-000.tar", "w") as archive:
                for number in range(1000):
                    photos.add(archive, f"{number:04d}.JPEG", content)
                    photos.add(archive, f"{number:04d}.cls", str(number).encode())
        else:
            photos.write_folder(tmp_path, {f"{part}/n{number:08d}/0.JPEG": content for number in range(1000)})
    data = load_data({"imagenet": {"folder": str(tmp_path), "limit": 500}})
    assert (data.train.count, data.test.count) == (500, 1000)
    found = data.test.ready(READING).pick(torch.tensor([999]))
    assert (found["x"].shape, found["y"].tolist()) == ((1, 3, 224, 224), [999])


def packed(folder: Path) -> None:
    with tarfile.open(folder / "train-001.tar", "w:gz") as archive:
        photos.add(archive, "a.jpg", b"")


def member(name: str, content: bytes, mode: Any = "a") -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        with tarfile.open(folder / "train-001.tar", mode) as archive:
            photos.add(archive, name, content)

    return spoil


SHARDS: list[tuple[Callable[[Path], Any], str]] = [
    (remove("train-001.tar"), r"train-001.tar is missing, though others around it are here"),
    (lambda folder: [path.unlink() for path in folder.glob("val*")], r"val-\*.tar is missing; put the archives there"),
    (packed, r"train-001.tar: can't be read as a tar archive .*unpack it if it is compressed"),
    (write("train-001.tar", b"nonsense" * 200), r"train-001.tar: can't be read as a tar archive"),
    (member("fox.jpg", b""), r"train-001.tar: fox has no class; it needs both fox.jpg and fox.cls"),
    (member("fox.cls", b"1"), r"train-001.tar: fox has no image"),
    (member("fox.cls", b"one"), r"train-001.tar: fox.cls holds b'one' instead of a class"),
    (member("fox.cls", b"-1"), r"fox.cls holds b'-1' instead of a class"),
    (member("note.txt", b"", "w"), r"train-001.tar holds no <key>.jpg with <key>.cls"),
]


@pytest.mark.parametrize(("spoil", "message"), SHARDS)
def test_wrong_archives_are_named(tmp_path: Path, spoil: Callable[[Path], Any], message: str) -> None:
    photos.write_shards(tmp_path, photos.photographs(3, 2))
    spoil(tmp_path)
    with pytest.raises(DataError, match=message):
        load_data({"imageshards": {"folder": str(tmp_path)}})


def test_archives_say_how_many_they_are(tmp_path: Path, files: photos.Files) -> None:
    some = {name: files[name] for name in files if name.startswith("train")}
    photos.write_shards(tmp_path, some, 5, "{}-{:05d}-of-00006.tar")
    with pytest.raises(DataError, match=r"train-00005-of-00006\.tar is missing"):
        Shards(tmp_path, "train-*.tar")


def test_archives_of_other_classes_are_refused(tmp_path: Path, files: photos.Files) -> None:
    photos.write_shards(tmp_path, {name: files[name] for name in files if not name.startswith("val/cat")})
    with pytest.raises(DataError, match=r"train-\*.tar has images of the class 2, .*val-\*.tar has none"):
        load_data({"imageshards": {"folder": str(tmp_path)}})


WRONG: list[tuple[str, Any]] = [
    *(("size", value) for value in (0, 2.0, True, "16")),
    *(("resize", value) for value in (15, 2.0)),
    *(("limit", value) for value in (0, -1, 2.5)),
    *(("augment", value) for value in (1, "yes")),
    *(("tolerance", value) for value in (1, -0.1, True, float("nan"), "1 %")),
    *(
        ("normalise", value)
        for value in ("yes", {"mean": [0, 0, 0]}, {"mean": [0] * 3, "std": [1, 1, 0]}, {"spread": 3})
    ),
    ("normalise", {"mean": [0, 0], "std": [1, 1]}),
    ("normalise", {"mean": [0] * 3, "std": [1] * 3, "more": 1}),
]


@pytest.mark.parametrize(("option", "value"), WRONG)
def test_wrong_options_are_refused_with_their_place(folder: Path, option: str, value: Any) -> None:
    with pytest.raises(DeclarationError) as caught:
        load_data({"imagefolder": {"folder": str(folder), "size": 16, option: value}})
    (fault,) = caught.value.faults
    assert fault.path == ("imagefolder", option)
    assert fault.fix


# --------------------------------------------------------------------------- picking


def test_samples_are_normalised_pixels(folder: Path, files: photos.Files) -> None:
    names = [name for name in files if name.startswith("val")]
    pixels = np.stack([photos.middle(files[name]) for name in names])
    for normalise, expected in (
        (True, photos.inputs(pixels)),
        (False, pixels.astype(np.float32) / 255),
        ({"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}, pixels.astype(np.float32) / 255 * 4 - 2),
    ):
        samples = ready({"imagefolder": {"folder": str(folder), **SMALL, "normalise": normalise}}, "test")
        found = samples.pick(torch.tensor([4, 0, 11]))
        assert np.abs(found["x"].numpy() - expected[[4, 0, 11]]).max() < 1e-6
        assert found["y"].tolist() == [1, 0, 3]


def test_a_limit_is_spread_over_the_classes(folder: Path) -> None:
    data = load_data({"imagefolder": {"folder": str(folder), "limit": 8}})
    classes = data.train.classes("y")
    assert classes is not None
    assert np.bincount(classes).tolist() == [2, 2, 2, 2]
    assert data.test.count == 12


def test_what_is_drawn_depends_on_seed_epoch_and_sample_alone(folder: Path) -> None:
    declared = {"imagefolder": {"folder": str(folder), **SMALL}}
    samples, rows = ready(declared), torch.tensor([3, 17, 5, 20])
    first = samples.pick(rows, 1)["x"]
    assert torch.equal(samples.pick(rows.flip(0), 1)["x"], first.flip(0))
    assert torch.equal(torch.cat([ready(declared).pick(row.view(1), 1)["x"] for row in rows]), first)
    part = load_data(declared).train.part(np.arange(3, 24)).ready(READING)
    assert torch.equal(part.pick(rows - 3, 1)["x"], first)
    other = Reading(READING.device, READING.dtype, seed=8)
    for changed in (samples.pick(rows, 2), ready(declared, reading=other).pick(rows, 1)):
        assert (changed["x"] != first).flatten(1).any(1).all()
    assert torch.equal(samples.still().pick(rows, 1)["x"], samples.still().pick(rows, 2)["x"])


# --------------------------------------------------------------------------- training


def test_training_is_that_of_the_same_pixels_in_memory(folder: Path, files: photos.Files, tmp_path: Path) -> None:
    augment = "[flip, {crop: {padding: 2}}]"
    streamed = completed(folder_text(folder, {"augment": False}, augment=augment, validation="4"))
    held = completed(memory_text(tmp_path, files, augment=augment, validation="4"))
    losses = [item.train_cost for item in streamed.history]
    assert [item.train_cost for item in held.history] == pytest.approx(losses, rel=1e-5)
    # without augmentation, which undoes the normalisation as it rounds, to the last bit
    assert_same(completed(folder_text(folder, {"augment": False})), completed(memory_text(tmp_path, files)))


def test_workers_change_nothing_and_a_resumed_epoch_reads_on_from_where_it_was(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the second epoch after one of its three steps, of two batches each."""
    declared = folder_text(folder, accumulate="2", validation="4", augment="[flip]")
    reference = completed(declared)
    state = torch.random.get_rng_state()
    stopped(declared.replace("workers: 0", "workers: 2"), tmp_path, 3)
    assert torch.equal(state, torch.random.get_rng_state())  # starting processes draws from nobody's numbers
    going_on = resume_run(tmp_path, {"train.workers": "2"})
    picked: list[list[int]] = []
    monkeypatch.setattr(Streamed, "expect", _noted(Streamed.expect, picked))
    list(going_on.epochs())
    assert_same(going_on, reference)
    assert len(picked[0]) == 20 - 10  # what is left of the training images; then come those of the evaluation
    assert len(picked[1]) == 12


def _noted(expect: Any, picked: list[list[int]]) -> Any:
    def noting(self: Streamed, batches: Any, epoch: int = 0) -> None:
        picked.append([row for rows in batches for row in rows.tolist()])
        expect(self, batches, epoch)

    return noting


def test_resuming_needs_no_workers(folder: Path, tmp_path: Path) -> None:
    declared = folder_text(folder)
    stopped(declared, tmp_path, 7)
    assert_same(resumed(tmp_path), completed(declared))


def test_accumulated_batches_of_a_stream_are_one_large_batch(folder: Path) -> None:
    found: list[dict[str, torch.Tensor]] = []
    for batch, accumulate in (("24", "1"), ("5", "5")):
        # a fixed number of sweeps: a sample doesn't depend on the others in its batch
        few = "{max_sweeps: 3, tolerance: 1.0e-13}"
        relax = f"relax: {few}\nlearn: {{protocol: centered, beta: 0.2, nudged: {few}}}\n"
        declared = folder_text(folder, batch=batch, accumulate=accumulate, dtype="float64")
        declared = declared.replace("relax: {max_sweeps: 30}\nlearn: {protocol: random_sign, beta: 0.2}\n", relax)
        trainer = Trainer(parse_experiment(declared))
        trainer.steps.take(torch.arange(24))
        found.append({name: value.grad for name, value in trainer.model.tensors.items() if value.grad is not None})
    assert found[0].keys() == {"first.b", "label.b", "image_first.w", "first_label.w"}
    for name, value in found[0].items():
        assert (found[1][name] - value).abs().max() <= 1e-12 * max(1.0, float(value.abs().max())), name


def test_held_out_photographs_are_evaluated_as_test_images_are(folder: Path, files: photos.Files) -> None:
    trainer = Trainer(parse_experiment(folder_text(folder, validation="8")))
    assert trainer.validation is not None
    held = trainer.validation.pick(torch.arange(8))
    assert held["target"].bincount().tolist() == [2, 2, 2, 2]
    known = {photos.inputs(photos.middle(content)).tobytes() for content in files.values()}
    assert all(image.numpy().tobytes() in known for image in held["image"])
    assert trainer.train.count == 16


# --------------------------------------------------------------------------- what can't be read


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory, files: photos.Files) -> Path:
    """Three of 24 training images and one of 12 test images: not an image, cut off, empty, of another kind."""
    folder = photos.write_folder(tmp_path_factory.mktemp("damaged"), files)
    spoiled = {
        "train/ant/5.JPEG": photos.BROKEN,
        "train/bee/0.JPEG": files["train/bee/0.JPEG"][:400],
        "train/dog/5.JPEG": b"",
        "val/cat/1.JPEG": b"GIF89a",
    }
    return photos.write_folder(folder, spoiled)


@pytest.mark.filterwarnings("ignore::physnet.errors.DataWarning")
def test_unreadable_images_are_skipped_and_counted(damaged: Path, files: photos.Files, tmp_path: Path) -> None:
    """In training the next intact one takes the place, the first after the last; a test image is left out."""
    declared = folder_text(damaged, {"augment": False, "tolerance": 0.2})
    trainer = completed(declared)
    assert [item.unreadable for item in trainer.history] == [4, 4]
    instead = {
        "train/ant/5.JPEG": "train/bee/1.JPEG",
        "train/bee/0.JPEG": "train/bee/1.JPEG",
        "train/dog/5.JPEG": "train/ant/0.JPEG",
    }
    shown = {name: files[instead.get(name, name)] for name in files if name != "val/cat/1.JPEG"}
    labels = [photos.CLASSES.index(instead.get(n, n).split("/")[1]) for n in shown if n.startswith("train")]
    memory = memory_text(tmp_path, shown)
    with np.load(tmp_path / "memory.npz") as archive:
        arrays = dict(archive)
    np.savez(tmp_path / "memory.npz", **(arrays | {"y_train": np.array(labels)}))  # type: ignore[arg-type]
    other = completed(memory)
    for name, value in trainer.model.tensors.items():
        assert torch.equal(value, other.model.tensors[name]), name
    for mine, theirs in zip(trainer.history, other.history, strict=True):
        assert (mine.train_cost, mine.test_cost, mine.test_error) == (
            theirs.train_cost,
            theirs.test_cost,
            theirs.test_error,
        )
    stopped(declared, tmp_path / "run", 2)
    assert_same(resumed(tmp_path / "run"), trainer)


def test_unreadable_images_are_named_once(damaged: Path) -> None:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        completed(folder_text(damaged, {"tolerance": 0.2}))
    messages = sorted(str(item.message) for item in said if issubclass(item.category, DataWarning))
    reasons = ("truncated", "truncated", "none of jpeg", "none of jpeg")
    names = ("train/ant/5", "train/bee/0", "train/dog/5", "val/cat/1")
    assert len(messages) == 4
    for message, name, reason in zip(messages, names, reasons, strict=True):
        assert message.startswith(f"{damaged / name}.JPEG can't be read and is left out: "), message
        assert reason in message.lower()


@pytest.mark.filterwarnings("ignore::physnet.errors.DataWarning")
@pytest.mark.parametrize(("tolerance", "part", "numbers"), [(0.1, "train", "3 of 24"), (0.0, "train", "1 of 24")])
def test_too_many_unreadable_images_end_the_run(damaged: Path, tolerance: float, part: str, numbers: str) -> None:
    trainer = Trainer(parse_experiment(folder_text(damaged, {"tolerance": tolerance})))
    with pytest.raises(DataError, match=rf"{part}: at least {numbers} images can't be read, more than \d: .*JPEG"):
        list(trainer.epochs())


@pytest.mark.filterwarnings("ignore::physnet.errors.DataWarning")
def test_a_test_set_that_cannot_be_read_ends_the_run(tmp_path: Path, files: photos.Files) -> None:
    photos.write_folder(tmp_path, {k: v if k.startswith("train") else b"" for k, v in files.items()})
    trainer = Trainer(parse_experiment(folder_text(tmp_path, epochs="1")))
    with pytest.raises(DataError, match=r"val: at least 1 of 12 images can't be read, more than 0: .*tolerance"):
        list(trainer.epochs())


def test_images_that_vanish_are_unreadable_too(tmp_path: Path, files: photos.Files) -> None:
    photos.write_folder(tmp_path, files)
    samples = ready({"imagefolder": {"folder": str(tmp_path), **SMALL, "tolerance": 0.1}})
    os.unlink(tmp_path / "train/cat/2.JPEG")
    with pytest.warns(DataWarning, match=r"cat.2.JPEG can't be read and is left out: .*No such file"):
        found = samples.pick(torch.tensor([13, 14, 15]), 1)
    assert found["y"].tolist() == [2, 2, 2]
    assert samples.lost(torch.tensor([13, 14, 15])) == 1
    assert samples.lost(torch.tensor([13, 15])) == 0


# --------------------------------------------------------------------------- errors among the best classes


@pytest.mark.filterwarnings("ignore::physnet.errors.DataWarning")
def test_the_command_line_shows_the_error_among_the_best_and_what_was_lost(damaged: Path, tmp_path: Path) -> None:
    (tmp_path / "photos.yaml").write_text(folder_text(damaged, {"tolerance": 0.2}, top="2"))
    runner, run = CliRunner(), tmp_path / "run"
    done = runner.invoke(app, ["train", str(tmp_path / "photos.yaml"), "--out", str(run)])
    assert done.exit_code == 0, done.output
    assert "top-2" in done.output
    assert "unreada" in done.output  # cut off by the width of the table
    tested = runner.invoke(app, ["evaluate", str(run)])
    trainer = load_run(run)
    # a class is among the best two if at most one score is larger
    samples = trainer.test.pick(torch.arange(12))
    free = trainer.engine.settle({"image": samples["image"]})
    scores = trainer.energy.scores(free.states).detach().numpy()
    order = np.argsort(-scores, axis=1, kind="stable")
    places = (order == samples["target"].numpy()[:, None]).argmax(1)
    wrong = 100 * np.mean(places >= 2)
    assert f"top-2 error {wrong:.2f} %" in tested.output
    assert f"test error {100 * np.mean(places > 0):.2f} %" in tested.output
    assert "1 of 12 images can't be read" in tested.output
    assert evaluate(trainer.engine, trainer.test)[1] == pytest.approx(100 * np.mean(places > 0), abs=1e-3)
