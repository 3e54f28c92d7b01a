"""Image data sets: small files in the published formats are read back as they were written; broken ones are named."""

from __future__ import annotations

import hashlib
import io
import sys
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pyarrow import parquet
from test_data import write_idx

import physnet.arrays
import physnet.cifar
from physnet.data import check_data, load_data, match
from physnet.errors import DataError, DeclarationError
from physnet.graph import EnergyGraph

NAMES = {
    "cifar10": (
        [f"data_batch_{number}.bin" for number in range(1, 6)],
        "test_batch.bin",
        "cifar-10-batches-bin",
        (10,),
    ),
    "cifar100": (["train.bin"], "test.bin", "cifar-100-binary", (20, 100)),
}
ARCHIVES = {"cifar10": "cifar-10-binary.tar.gz", "cifar100": "cifar-100-binary.tar.gz"}


def samples(name: str, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images [count, 3, 32, 32] and labels [count, labels]."""
    generator = np.random.default_rng(seed)
    labels = np.stack([generator.integers(0, classes, count) for classes in NAMES[name][3]], 1)
    return generator.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8), labels.astype(np.uint8)


def binary(images: np.ndarray, labels: np.ndarray) -> bytes:
    """<labels><1024 red><1024 green><1024 blue>, image after image, as the authors describe it."""
    return b"".join(bytes(label) + image.tobytes() for image, label in zip(images, labels, strict=True))


def write_binary(folder: Path, name: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Three images in each file; what was written, by part."""
    train, test, *_ = NAMES[name]
    written = {file: samples(name, 3, seed) for seed, file in enumerate([*train, test])}
    folder.mkdir(parents=True, exist_ok=True)
    for file, content in written.items():
        (folder / file).write_bytes(binary(*content))
    parts = [np.concatenate(pieces) for pieces in zip(*(written[file] for file in train), strict=True)]
    return {"train": (parts[0], parts[1]), "test": written[test]}


def write_archive(folder: Path, name: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    subfolder = NAMES[name][2]
    written = write_binary(folder / "unpacked" / subfolder, name)
    with tarfile.open(folder / ARCHIVES[name], "w:gz") as tar:
        tar.add(folder / "unpacked" / subfolder, arcname=subfolder)
    return written


def png(image: np.ndarray, mode: str = "RGB") -> bytes:
    """An image [3, height, width] as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(image.transpose(1, 2, 0)).convert(mode).save(buffer, "PNG")
    return buffer.getvalue()


def write_table(path: Path, name: str, images: list[Any], labels: np.ndarray, column: str = "img") -> None:
    keys = ["label"] if name == "cifar10" else ["coarse_label", "fine_label"]
    columns = {column: [{"bytes": image, "path": None} for image in images]}
    columns |= {key: labels[:, place].astype(np.int64).tolist() for place, key in enumerate(keys)}
    parquet.write_table(pa.table(columns), path)


def write_tables(folder: Path, name: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    folder.mkdir(parents=True, exist_ok=True)
    written = {"train": samples(name, 5, 0), "test": samples(name, 2, 1)}
    for part, (images, labels) in written.items():
        shards = 2 if part == "train" else 1
        for number in range(shards):
            path = folder / f"{part}-{number:05}-of-{shards:05}.parquet"
            rows = np.array_split(np.arange(len(images)), shards)[number]
            write_table(path, name, [png(image) for image in images[rows]], labels[rows])
    return written


def load(name: str, folder: Path, **options: Any) -> Any:
    return load_data({name: {"folder": str(folder), "checksum": False, **options}})


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
@pytest.mark.parametrize("kind", ["files", "subfolder", "archive", "tables", "named tables"])
def test_what_was_written_is_read(tmp_path: Path, name: str, kind: str) -> None:
    match kind:
        case "files":
            written = write_binary(tmp_path, name)
        case "subfolder":
            written = write_binary(tmp_path / NAMES[name][2], name)
        case "archive":
            written = write_archive(tmp_path, name)
        case "tables":
            written = write_tables(tmp_path, name)
        case _:
            written = write_tables(tmp_path / ("plain_text" if name == "cifar10" else "cifar100"), name)
    data = load(name, tmp_path)
    for part, found in (("train", data.train), ("test", data.test)):
        images, labels = written[part]
        assert found["x"].dtype == np.float32
        assert np.array_equal(np.rint(found["x"] * 255), images)
        assert 0 <= found["x"].min() <= found["x"].max() <= 1
        assert np.array_equal(found["y"], labels[:, -1])
    if name == "cifar100":
        coarse = load(name, tmp_path, labels="coarse")
        assert np.array_equal(coarse.train["y"], written["train"][1][:, 0])


@given(count=st.integers(1, 4), cut=st.integers(1, 3072), seed=st.integers(0, 99))
def test_whole_records_are_read_and_others_refused(
    count: int, cut: int, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("cifar")
    write_binary(folder, "cifar100")
    content = binary(*samples("cifar100", count, seed))
    (folder / "train.bin").write_bytes(content)
    assert load("cifar100", folder).train["x"].shape == (count, 3, 32, 32)
    for damaged in (content[:-cut], content + bytes(cut)):
        (folder / "train.bin").write_bytes(damaged)
        with pytest.raises(DataError, match=r"train\.bin: .* bytes instead of"):
            load("cifar100", folder)


def test_sets_are_looked_for_in_known_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PHYSNET_DATA", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with pytest.raises(DataError, match=r"put cifar-10-binary.tar.gz.*into .*/cifar10,"):
        load_data("cifar10")
    (tmp_path / "cifar10").mkdir()
    with pytest.raises(DataError, match=r"neither data_batch_1.bin nor cifar-10-binary.tar.gz nor parquet"):
        load_data("cifar10")
    write_binary(tmp_path / "cifar10", "cifar10")
    assert len(load_data({"cifar10": {"checksum": False}}).test["x"]) == 3


# --------------------------------------------------------------------------- sums and sizes


def test_published_sizes_are_asked_for(tmp_path: Path) -> None:
    write_binary(tmp_path / "files", "cifar10")
    with pytest.raises(DataError, match=r"data_batch_1.bin: 9,219 bytes instead of 30,730,000.*checksum: false"):
        load("cifar10", tmp_path / "files", checksum=True)
    write_tables(tmp_path / "tables", "cifar100")
    with pytest.raises(DataError, match=r"train-00000.*5 images instead of 50,000.*checksum: false"):
        load("cifar100", tmp_path / "tables", checksum=True)


def test_files_of_the_published_size_are_read(tmp_path: Path) -> None:
    for number in range(1, 6):
        (tmp_path / f"data_batch_{number}.bin").write_bytes(bytes(30_730_000))
    (tmp_path / "test_batch.bin").write_bytes(bytes(30_730_000))
    data = load("cifar10", tmp_path, checksum=True, limit=3)
    assert (data.train["x"].shape, data.test["x"].shape) == ((3, 3, 32, 32), (10_000, 3, 32, 32))


def test_an_archive_must_have_the_published_sum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_archive(tmp_path, "cifar10")
    path = tmp_path / ARCHIVES["cifar10"]
    found = hashlib.md5(path.read_bytes()).hexdigest()
    with pytest.raises(DataError, match=f"tar.gz: its MD5 sum is {found} instead of c32a1d4ab5d03f1284b67883e8d87530"):
        load("cifar10", tmp_path, checksum=True)
    small = replace(physnet.cifar.CIFAR10, md5=found, images={"train": 3, "test": 3})
    monkeypatch.setattr(physnet.cifar, "CIFAR10", small)
    assert len(load("cifar10", tmp_path, checksum=True).train["x"]) == 15


# --------------------------------------------------------------------------- broken files


@pytest.mark.parametrize(
    ("name", "file", "place", "message"),
    [
        ("cifar10", "data_batch_3.bin", 3073, "image 1 has the label 10, of 10 classes"),
        ("cifar100", "test.bin", 1, "image 0 has the label 200, of 100 classes"),
    ],
)
def test_wrong_labels_are_named(tmp_path: Path, name: str, file: str, place: int, message: str) -> None:
    write_binary(tmp_path, name)
    content = bytearray((tmp_path / file).read_bytes())
    content[place] = 10 if name == "cifar10" else 200
    (tmp_path / file).write_bytes(bytes(content))
    with pytest.raises(DataError, match=message) as caught:
        load(name, tmp_path)
    assert str(tmp_path / file) in str(caught.value)


def test_missing_and_empty_files_are_named(tmp_path: Path) -> None:
    write_binary(tmp_path, "cifar10")
    (tmp_path / "data_batch_4.bin").write_bytes(b"")
    with pytest.raises(DataError, match=r"data_batch_4\.bin: 0 bytes"):
        load("cifar10", tmp_path)
    (tmp_path / "data_batch_4.bin").unlink()
    with pytest.raises(DataError, match=r"data_batch_4\.bin is missing"):
        load("cifar10", tmp_path)


def test_truncated_archives_are_named(tmp_path: Path) -> None:
    write_archive(tmp_path, "cifar100")
    path = tmp_path / ARCHIVES["cifar100"]
    whole = path.read_bytes()
    for length in (0, 1, 5, 20, len(whole) // 2, len(whole) - 3000):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"cifar-100-binary\.tar\.gz: "):
            load("cifar100", tmp_path)


def test_an_archive_without_a_file_says_which(tmp_path: Path) -> None:
    write_archive(tmp_path, "cifar10")
    with tarfile.open(tmp_path / ARCHIVES["cifar10"], "w:gz") as tar:
        folder = tmp_path / "unpacked" / "cifar-10-batches-bin"
        tar.add(folder / "data_batch_1.bin", arcname="cifar-10-batches-bin/data_batch_1.bin")
        tar.add(folder / "data_batch_2.bin", arcname="../data_batch_2.bin")
    with pytest.raises(DataError, match=r"cifar-10-batches-bin/data_batch_2\.bin is missing"):
        load("cifar10", tmp_path)
    assert not (tmp_path.parent / "data_batch_2.bin").exists()


def test_bombs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_archive(tmp_path, "cifar10")
    monkeypatch.setattr(physnet.arrays, "MAX_BYTES", 5000)
    with pytest.raises(DataError, match=r"more than 5,000"):
        load("cifar10", tmp_path)


GOOD, LABELS = samples("cifar10", 3, 4)
TABLES: dict[str, tuple[list[Any], np.ndarray, str, str]] = {
    "garbage": ([png(GOOD[0]), b"garbage", png(GOOD[2])], LABELS, "img", "image 1 can't be read"),
    "truncated": ([png(GOOD[0])[:200]] * 3, LABELS, "img", "image 0 can't be read"),
    "no bytes": ([png(GOOD[0]), None, None], LABELS, "img", "image 1 holds no bytes"),
    "small": ([png(GOOD[0]), png(GOOD[1]), png(GOOD[2][:, :31])], LABELS, "img", "image 2 is 32 x 31 RGB"),
    "grey": ([png(GOOD[0], "L")] * 3, LABELS, "img", "image 0 is 32 x 32 L, not 32 x 32 RGB"),
    "label": ([png(image) for image in GOOD], LABELS + 10, "img", "has the label 1[0-9], of 10 classes"),
    "column": ([png(image) for image in GOOD], LABELS, "picture", "column 'img' is missing; it has picture, label"),
}


@pytest.mark.parametrize("name", TABLES)
def test_broken_tables_are_named(tmp_path: Path, name: str) -> None:
    images, labels, column, message = TABLES[name]
    write_tables(tmp_path, "cifar10")
    path = tmp_path / "test-00000-of-00001.parquet"
    write_table(path, "cifar10", images, labels, column)
    with pytest.raises(DataError, match=message) as caught:
        load("cifar10", tmp_path)
    assert str(path) in str(caught.value)


def test_tables_may_call_their_images_image(tmp_path: Path) -> None:
    write_tables(tmp_path, "cifar10")
    write_table(tmp_path / "test-00000-of-00001.parquet", "cifar10", [png(image) for image in GOOD], LABELS, "image")
    assert np.array_equal(np.rint(load("cifar10", tmp_path).test["x"] * 255), GOOD)


def test_tables_that_are_none_or_incomplete_are_named(tmp_path: Path) -> None:
    write_tables(tmp_path, "cifar10")
    path = tmp_path / "test-00000-of-00001.parquet"
    whole = path.read_bytes()
    for content in (b"", b"PAR1", whole[:-9], whole[:40] + bytes(200) + whole[240:]):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"test-00000-of-00001\.parquet"):
            load("cifar10", tmp_path)
    parquet.write_table(pa.table({"img": [b"x"], "label": [0.5]}), path)
    with pytest.raises(DataError, match="whole number"):
        load("cifar10", tmp_path)
    path.unlink()
    with pytest.raises(DataError, match=r"test-\*\.parquet is missing"):
        load("cifar10", tmp_path)
    (tmp_path / "train-00001-of-00002.parquet").unlink()
    with pytest.raises(DataError, match="one of 2 tables, but 1 are here"):
        load("cifar10", tmp_path)


def test_without_pyarrow_it_is_said_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tables(tmp_path, "cifar10")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"physnet\[parquet\]"):
        load("cifar10", tmp_path)


# --------------------------------------------------------------------------- options


@pytest.mark.parametrize("spread", [None, 1, 3.0])
def test_training_images_are_normalised(tmp_path: Path, spread: float | None) -> None:
    """Mean 0 and standard deviation 1/spread in every channel; test images by the same numbers."""
    images, _ = write_binary(tmp_path, "cifar10")["test"]
    data = load("cifar10", tmp_path, normalise=True if spread is None else {"spread": spread}, pad=1)
    train = data.train["x"].astype(np.float64)
    assert np.allclose(train.mean((0, 2, 3)), 0, atol=1e-6)
    assert np.allclose(train.std((0, 2, 3)), 1 / (spread or 1), rtol=1e-6)
    found = data.normalised["x"]
    assert np.allclose((data.test["x"] * found.std + found.mean)[:, :, 1:-1, 1:-1] * 255, images, atol=1e-3)


@pytest.mark.skipif(not Path("/usr/share/datasets/fashion-mnist").is_dir(), reason="the data set is not here")
def test_statistics_are_the_published_ones() -> None:
    """Fashion-MNIST: mean 0.2860, standard deviation 0.3530."""
    found = load_data({"fashion_mnist": {"normalise": True}}).normalised["x"]
    assert (round(float(found.mean[0]), 4), round(float(found.std[0]), 4)) == (0.2860, 0.3530)


def test_limited_sets_are_normalised_by_what_they_keep(tmp_path: Path) -> None:
    write_binary(tmp_path, "cifar10")
    data = load("cifar10", tmp_path, normalise=True, limit=4)
    assert len(data.train["x"]) == 4
    assert np.allclose(data.train["x"].astype(np.float64).std((0, 2, 3)), 1, rtol=1e-6)


@pytest.fixture
def idx(tmp_path: Path) -> tuple[Path, np.ndarray]:
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (7, 28, 28), dtype=np.uint8)
    for prefix, count in (("train", 7), ("t10k", 3)):
        write_idx(tmp_path / f"{prefix}-images-idx3-ubyte.gz", images[:count])
        write_idx(tmp_path / f"{prefix}-labels-idx1-ubyte.gz", generator.integers(0, 10, count))
    return tmp_path, images


def test_pictures_are_padded_with_black(idx: tuple[Path, np.ndarray]) -> None:
    folder, images = idx
    data = load_data({"fashion_mnist": {"folder": str(folder), "pad": 2}})
    assert data.train["x"].shape == (7, 1, 32, 32)
    inside = data.train["x"][:, 0, 2:-2, 2:-2] * 255
    assert np.array_equal(np.rint(inside), images)
    assert np.isclose(data.train["x"].sum(), inside.sum() / 255)


def test_flat_pictures_are_normalised_too(idx: tuple[Path, np.ndarray]) -> None:
    data = load_data({"mnist": {"folder": str(idx[0]), "normalise": True}})
    assert data.train["x"].shape == (7, 784)
    assert np.isclose(data.train["x"].astype(np.float64).std(), 1, rtol=1e-6)
    graph = EnergyGraph("hopfield").input("image", [1, 28, 28]).output("label", 10, cost="(x - y)**2/2")
    assert match(data, graph).normalised["image"] is data.normalised["x"]


def test_images_of_two_sizes_are_refused(idx: tuple[Path, np.ndarray]) -> None:
    write_idx(idx[0] / "t10k-images-idx3-ubyte.gz", np.zeros((3, 14, 56)))
    with pytest.raises(DataError, match=r"\[28, 28\] and \[14, 56\]"):
        load_data({"mnist": {"folder": str(idx[0])}})


def test_blank_images_are_not_normalised(idx: tuple[Path, np.ndarray]) -> None:
    write_idx(idx[0] / "train-images-idx3-ubyte.gz", np.zeros((7, 28, 28)))
    with pytest.raises(DataError, match="leave out normalise"):
        load_data({"mnist": {"folder": str(idx[0]), "normalise": True}})


WRONG = [
    *({"pad": value} for value in (-1, True, 2.0, "2", 10**9)),
    *({"normalise": value} for value in ("yes", 3, {"spread": 0}, {"spread": True}, {"spread": float("nan")}, {})),
    *({"normalise": value} for value in ({"spread": 3, "more": 1}, {"spread": -1.0}, {"spread": "3"}, [3])),
    *({"checksum": value} for value in (1, "no", None)),
    *({"labels": value} for value in ("all", None, 3, ["fine"])),
]


@pytest.mark.parametrize("options", WRONG)
def test_wrong_options_are_declaration_errors_with_their_place(tmp_path: Path, options: dict[str, Any]) -> None:
    write_binary(tmp_path, "cifar100")
    with pytest.raises(DeclarationError) as caught:
        load("cifar100", tmp_path, **options)
    (fault,) = caught.value.faults
    assert fault.path == ("cifar100", *options)
    assert fault.fix


def test_unknown_options_are_found_before_loading() -> None:
    with pytest.raises(DeclarationError, match="checksum"):
        check_data({"cifar10": {"labels": "fine"}})


@pytest.mark.parametrize("limit", [0, -1, True, 2.5, "3"])
def test_wrong_limits_are_refused(tmp_path: Path, limit: Any) -> None:
    write_binary(tmp_path, "cifar10")
    with pytest.raises(DataError, match="limit"):
        load("cifar10", tmp_path, limit=limit)
