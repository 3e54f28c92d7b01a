# ruff: noqa: E501 the rows of tables are long
"""Data files that anybody may have made: damaged, mislabelled or malicious ones are a `DataError`, and no code runs."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import physnet.arrays
from physnet.data import load_data
from physnet.errors import DataError
from physnet.images import read_idx


class _Payload:
    """An object that runs code when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.canary),)


def good() -> dict[str, np.ndarray]:
    return {f"{name}_{split}": np.ones((4, 3)) for name in "xy" for split in ("train", "test")}


def saved(arrays: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def zipped(name: str, content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return buffer.getvalue()


def header(text: str) -> bytes:
    """A .npy file with a header of one's own and no data."""
    raw = text.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(raw).to_bytes(2, "little") + raw


WRONG: dict[str, dict[str, Any]] = {
    "text": {"x_train": np.array(["a", "b"])},
    "bytes": {"x_train": np.array([b"a", b"b"])},
    "complex": {"x_train": np.ones((4, 3), complex)},
    "dates": {"x_train": np.array(["2026-01-01"] * 4, "datetime64[D]")},
    "records": {"x_train": np.zeros(4, [("a", "f4"), ("b", "i4")])},
    "a number": {"x_train": np.array(3.0)},
    "nothing": {"x_train": np.ones((0, 3))},
    "one sample less": {"x_train": np.ones((3, 3))},
    "not a number": {"x_test": np.full((4, 3), np.nan)},
    "infinite": {"y_test": np.full((4, 3), np.inf)},
    "no split": {"x": np.ones(4)},
    "a strange split": {"x_valid": np.ones(4)},
}
RAW: dict[str, bytes] = {
    "nothing": b"",
    "garbage": bytes(range(256)) * 9,
    "half of it": saved(good())[:700],
    "without an end": saved(good())[:-10],
    "damaged inside": (lambda raw: raw[:200] + bytes(80) + raw[280:])(saved(good())),
    "an empty archive": zipped("nothing.txt", b"")[:0] + b"PK\x05\x06" + bytes(18),
    "an archive of text": zipped("x_train.npy", b"hello"),
    "an absurd shape": zipped("x_train.npy", header("{'descr': '<f8', 'fortran_order': False, 'shape': (2147483647, 999999)}")),
    "a negative shape": zipped("x_train.npy", header("{'descr': '<f8', 'fortran_order': False, 'shape': (-4,)}")),
    "code in a header": zipped("x_train.npy", header("{'descr': __import__('os').mkdir('canary'), 'shape': ()}")),
    "brackets in a header": zipped("x_train.npy", header("(" * 9000)),
    "an unknown type": zipped("x_train.npy", header("{'descr': 'zzz', 'fortran_order': False, 'shape': (4,)}")),
    "a single array": header("{'descr': '<f8', 'fortran_order': False, 'shape': (0,)}"),
    "a path that climbs": zipped("../../x_train.npy", b"hello"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_arrays_of_the_wrong_kind_are_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "data.npz").write_bytes(saved(good() | WRONG[name]))
    with pytest.raises(DataError, match=r"data\.npz"):
        load_data({"npz": {"file": str(tmp_path / "data.npz")}})


@pytest.mark.parametrize("name", RAW)
def test_damaged_archives_are_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data.npz").write_bytes(RAW[name])
    with pytest.raises(DataError, match=r"data\.npz"):
        load_data({"npz": {"file": "data.npz"}})
    assert [item.name for item in tmp_path.iterdir()] == ["data.npz"]


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    canary, path = tmp_path / "canary", tmp_path / "data.npz"
    evil = np.empty(4, object)
    evil[0] = _Payload(canary)
    for content in (saved(good() | {"x_train": evil}), pickle.dumps(_Payload(canary))):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"data\.npz"):
            load_data({"npz": {"file": str(path)}})
    assert not canary.exists()
    pickle.loads(path.read_bytes())  # the payload works
    assert canary.exists()


def test_bombs_are_refused_before_they_are_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(physnet.arrays, "MAX_BYTES", 10_000)
    (tmp_path / "data.npz").write_bytes(zipped("x_train.npy", bytes(50_000)))
    with pytest.raises(DataError, match="more than 10,000"):
        load_data({"npz": {"file": str(tmp_path / "data.npz")}})
    (tmp_path / "images.gz").write_bytes(gzip.compress(bytes(50_000)))
    with pytest.raises(DataError, match="more than 10,000"):
        read_idx(tmp_path / "images.gz")


@pytest.mark.parametrize("file", ["missing", ".", "a\0b", "x" * 5000, "", 3, None, True, ["a"], {"a": 1}, 1.5])
def test_what_is_no_file_is_refused(file: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="no such file"):
        load_data({"npz": {"file": file}})


def test_a_pipe_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.npz")
    with pytest.raises(DataError, match="no such file"):
        load_data({"npz": {"file": str(tmp_path / "pipe.npz")}})


@pytest.mark.parametrize("options", [{"folder": 3}, {"folder": "missing"}, {"folder": "."}, {"folder": ["a"]}])
def test_folders_that_are_none_are_refused(options: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError):
        load_data({"mnist": options})


@given(content=st.binary(max_size=60), packed=st.booleans())
def test_random_bytes_are_an_array_or_refused(content: bytes, packed: bool, tmp_path_factory: Any) -> None:
    path = tmp_path_factory.mktemp("idx") / ("file.gz" if packed else "file")
    path.write_bytes(content)
    try:
        found = read_idx(path)
    except DataError:
        return
    assert found.dtype == np.uint8
    assert content[:3] == b"\0\0\x08"
    assert found.size == len(content) - 4 - 4 * content[3]


def test_truncated_compressed_files_are_refused(tmp_path: Path) -> None:
    whole = gzip.compress(b"\0\0\x08\x01" + (300).to_bytes(4, "big") + bytes(range(250)) + bytes(50))
    path = tmp_path / "labels.gz"
    path.write_bytes(whole)
    assert read_idx(path).shape == (300,)
    for length in range(0, len(whole) - 1, 7):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"labels\.gz"):
            read_idx(path)
    for place in range(10, len(whole), 11):  # beyond the header, where bits don't matter
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        with pytest.raises(DataError, match=r"labels\.gz"):
            read_idx(path)
