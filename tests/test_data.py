"""Data sets: known files are read back as they were written, and broken ones are named."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from physnet.data import load_data, match
from physnet.errors import DataError, DeclarationError
from physnet.graph import EnergyGraph
from physnet.images import read_idx


def write_idx(path: Path, values: np.ndarray) -> None:
    """The IDX format as its authors describe it: two zeros, type 8, number of axes, big-endian sizes, bytes."""
    header = bytes([0, 0, 8, values.ndim]) + b"".join(size.to_bytes(4, "big") for size in values.shape)
    raw = header + values.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)


@pytest.fixture
def idx_folder(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    for prefix, count, suffix in (("train", 7, ".gz"), ("t10k", 3, "")):
        write_idx(tmp_path / f"{prefix}-images-idx3-ubyte{suffix}", generator.integers(0, 256, (count, 28, 28)))
        write_idx(tmp_path / f"{prefix}-labels-idx1-ubyte{suffix}", generator.integers(0, 10, count))
    return tmp_path


def network(inputs: int = 784, outputs: int = 10) -> EnergyGraph:
    graph = EnergyGraph("hopfield").input("image", inputs).output("label", outputs, cost="(x - y)**2/2")
    return graph.couple("image", "label")


def test_digits_are_the_ones_of_scikit_learn_split_once() -> None:
    data = load_data("digits")
    assert data.train["x"].shape == (1437, 64)
    assert data.test["x"].shape == (360, 64)
    assert 0 <= data.train["x"].min() <= data.train["x"].max() == 1
    counts = np.bincount(data.test["y"])
    assert counts.max() - counts.min() <= 3  # stratified
    again = load_data("digits")
    assert np.array_equal(data.test["x"], again.test["x"])
    seen = {row.tobytes() for row in data.train["x"]}
    assert sum(row.tobytes() in seen for row in data.test["x"]) == 0


def test_five_thousand_digits_are_divided_alike(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5000, 784))
    classes = np.repeat(np.arange(10), 500)
    table = np.column_stack([pixels, classes])
    lines = "\n".join(",".join(map(str, row)) for row in table.tolist())
    (tmp_path / "mnist_5k.csv.gz").write_bytes(gzip.compress(lines.encode(), 1))
    data = load_data({"mnist_small": {"folder": str(tmp_path)}})
    assert data.train["x"].shape == (4000, 784) and data.test["x"].shape == (1000, 784)
    assert np.bincount(data.train["y"]).tolist() == [400] * 10 and np.bincount(data.test["y"]).tolist() == [100] * 10
    assert data.train["y"][:12].tolist() == [*range(10), 0, 1]  # so that a limit takes all classes
    assert np.array_equal(np.round(255 * data.train["x"][13]), pixels[1501])
    assert load_data({"mnist_small": {"folder": str(tmp_path), "pad": 0}}).train["x"].shape == (4000, 1, 28, 28)
    (tmp_path / "mnist_5k.csv.gz").write_bytes(gzip.compress(b"1,2,3\n4,x,6"))
    with pytest.raises(DataError, match=r"mnist_5k\.csv\.gz.*fetch it again"):
        load_data({"mnist_small": {"folder": str(tmp_path)}})


@pytest.mark.parametrize("shape", [(5,), (4, 3), (2, 3, 4)])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_files_are_read_as_written(tmp_path: Path, shape: tuple[int, ...], suffix: str) -> None:
    values = np.random.default_rng(1).integers(0, 256, shape)
    path = tmp_path / f"values{suffix}"
    write_idx(path, values)
    assert np.array_equal(read_idx(path), values)


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_an_idx_set_is_scaled_flattened_and_limited(idx_folder: Path, name: str) -> None:
    data = load_data({name: {"folder": str(idx_folder), "limit": 5}})
    raw = read_idx(idx_folder / "train-images-idx3-ubyte.gz")
    assert np.allclose(data.train["x"] * 255, raw[:5].reshape(5, 784))
    assert data.test["x"].shape == (3, 784)
    assert data.train["y"].dtype == np.int64


def test_a_missing_set_says_where_to_put_which_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PHYSNET_DATA", str(tmp_path / "nowhere"))
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte.gz.*nowhere/mnist"):
        load_data("mnist")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda raw: raw[:-1], "truncated"),
        (lambda raw: b"PNG" + raw[3:], "not an IDX file"),
        (lambda raw: b"", "not an IDX file"),
    ],
)
def test_a_damaged_file_is_named(idx_folder: Path, damage, message: str) -> None:
    path = idx_folder / "t10k-images-idx3-ubyte"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=message) as caught:
        load_data({"mnist": {"folder": str(idx_folder)}})
    assert str(path) in str(caught.value)


def test_a_corrupt_archive_is_named(idx_folder: Path) -> None:
    path = idx_folder / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=path.name):
        load_data({"mnist": {"folder": str(idx_folder)}})


def test_images_and_labels_must_belong_together(idx_folder: Path) -> None:
    write_idx(idx_folder / "t10k-labels-idx1-ubyte", np.zeros(4))
    with pytest.raises(DataError, match="3 t10k images but 4 labels"):
        load_data({"mnist": {"folder": str(idx_folder)}})


def test_own_arrays_are_read_and_named(tmp_path: Path) -> None:
    arrays = {
        "x_train": np.ones((4, 6)),
        "y_train": np.arange(4) % 3,
        "x_test": np.zeros((2, 6)),
        "y_test": np.array([0, 2]),
    }
    np.savez(tmp_path / "own.npz", **arrays)
    data = match(load_data({"npz": {"file": str(tmp_path / "own.npz")}}), network(6, 3))
    assert np.array_equal(data.train["image"], arrays["x_train"])
    assert np.array_equal(data.test["target"], arrays["y_test"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x_test": np.zeros((3, 6))}, "sizes"),
        ({"pixels": np.zeros(3)}, "rename"),
        ({"x_train": np.full((4, 6), np.nan)}, "finite"),
    ],
)
def test_own_arrays_that_do_not_fit_are_refused(tmp_path: Path, change: dict, message: str) -> None:
    arrays = {"x_train": np.ones((4, 6)), "y_train": np.arange(4), "x_test": np.zeros((2, 6)), "y_test": np.arange(2)}
    np.savez(tmp_path / "own.npz", **{**arrays, **change})
    with pytest.raises(DataError, match=message):
        load_data({"npz": {"file": str(tmp_path / "own.npz")}})


def test_files_that_are_no_archives_are_refused(tmp_path: Path) -> None:
    (tmp_path / "own.npz").write_bytes(b"nothing")
    for file in ("own.npz", "absent.npz"):
        with pytest.raises(DataError, match=file):
            load_data({"npz": {"file": str(tmp_path / file)}})


def test_sizes_that_do_not_fit_the_network_are_refused() -> None:
    with pytest.raises(DataError, match=r"64 numbers.*784 units"):
        match(load_data("digits"), network())
    with pytest.raises(DataError, match=r"classes up to 9.*4 units"):
        match(load_data("digits"), network(64, 4))


@pytest.mark.parametrize("declared", ["digit", {"digits": {"size": 3}}, {"a": {}, "b": {}}, 3])
def test_unknown_data_is_a_declaration_error(declared) -> None:
    with pytest.raises(DeclarationError):
        load_data(declared)


def test_the_exclusive_or() -> None:
    data = load_data("xor")
    for samples in (data.train, data.test):
        found = samples.first(4)
        assert found["y"].tolist() == [int(a != b) for a, b in found["x"].tolist()]
        assert {tuple(row) for row in found["x"].tolist()} == {(0, 0), (0, 1), (1, 0), (1, 1)}
