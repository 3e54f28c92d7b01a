"""Checkpoints: one safetensors file that holds a moment of a run, tensors as tensors and the rest as JSON.

Nothing is pickled, so that a checkpoint of unknown origin can be read without running its code. A file is either whole
or not there: it is written beside its predecessor, brought to the disk, and only then takes its name.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from physnet.errors import DataError

VERSION = "1"
_PLAIN = (bool, int, float, str, type(None))


@dataclass
class Checkpoint:
    """A moment of a run.

    Arguments:
        tensors: by name, `owner/...`.
        state: everything else, as plain data.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    state: dict[str, Any] = field(default_factory=dict)

    def under(self, owner: str) -> dict[str, Tensor]:
        """The tensors of one owner by their own names."""
        return {name.removeprefix(f"{owner}/"): v for name, v in self.tensors.items() if name.startswith(f"{owner}/")}

    def put(self, owner: str, tensors: Mapping[str, Tensor]) -> None:
        """Add the tensors of one owner."""
        self.tensors |= {f"{owner}/{name}": value for name, value in tensors.items()}

    def write(self, path: Path) -> None:
        """Write to a file, which always holds either this or what it held before.

        Raises:
            DataError: if the disk is full, or the folder can't be written.
        """
        tensors = {name: value.detach().cpu().contiguous() for name, value in self.tensors.items()}
        state = json.dumps(self.state)
        write_atomically(
            path, save(tensors, {"physnet": VERSION, "checksum": _checksum(state, tensors), "state": state})
        )

    @staticmethod
    def read(path: Path) -> Checkpoint:
        """Read from a file.

        Raises:
            DataError: if it is missing, damaged, or written by another version.
        """
        start_anew = "put an intact copy there, or start anew with physnet train"
        try:
            content = path.read_bytes()  # at one go: a run that is still going may replace the file
            # copies, whose memory is aligned as that of any tensor: products then round as before
            tensors = {name: value.clone() for name, value in load(content).items()}
            header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")]).get("__metadata__", {})
        except (SafetensorError, OSError, ValueError) as problem:
            raise DataError(f"{path} can't be read as a checkpoint ({problem}); {start_anew}") from None
        version = header.get("physnet")
        if version is None or "state" not in header:
            raise DataError(f"{path} is not a checkpoint of a run; {start_anew}")
        if version != VERSION:
            raise DataError(
                f"{path} has the checkpoint format {version}, this physnet reads {VERSION}; "
                "go on with the version that wrote it"
            )
        if header.get("checksum") != _checksum(header["state"], tensors):
            raise DataError(f"{path} is damaged: it doesn't match its checksum; {start_anew}")
        return Checkpoint(tensors, json.loads(header["state"]))


def _checksum(state: str, tensors: Mapping[str, Tensor]) -> str:
    total = zlib.crc32(state.encode())
    for name in sorted(tensors):
        content = tensors[name].reshape(-1).view(torch.uint8).numpy().data
        total = zlib.crc32(content, zlib.crc32(name.encode(), total))
    return f"{total:08x}"


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file that, even after a crash or a loss of power, is either the old one or the new one.

    Raises:
        DataError: if it can't be written; what was there stays.
    """
    draft = path.with_name(f".{path.name}.part")
    try:
        with draft.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
        if os.name == "posix":  # the name, too, has to reach the disk
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    except OSError as problem:
        draft.unlink(missing_ok=True)
        raise DataError(
            f"{path} can't be written ({problem.strerror}); make room, then go on with physnet train --resume"
        ) from None


# --------------------------------------------------------------------------- optimizers and schedulers


def optimizer_state(
    optimizer: torch.optim.Optimizer, names: Mapping[Tensor, str]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What an optimizer remembers: tensors by `parameter/entry`, and the numbers among its entries and settings.

    Arguments:
        names: of the parameters.
    """
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {}
    for parameter, entries in optimizer.state.items():
        for key, value in entries.items():
            name = f"{names[parameter]}/{key}"
            if isinstance(value, Tensor):
                tensors[name] = value
            elif isinstance(value, _PLAIN):
                numbers[name] = value
            else:
                raise DataError(
                    f"{type(optimizer).__name__} keeps a {type(value).__name__} as '{key}', which can't be saved; "
                    "choose another optimizer"
                )
    return tensors, {"entries": numbers, "groups": [plain(group) for group in optimizer.param_groups]}


def restore_optimizer(
    optimizer: torch.optim.Optimizer,
    names: Mapping[Tensor, str],
    tensors: Mapping[str, Tensor],
    numbers: Mapping[str, Any],
) -> None:
    """Give an optimizer the memory that `optimizer_state` took."""
    order = [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Any]] = {}
    for name, value in [*tensors.items(), *numbers["entries"].items()]:
        parameter, key = name.rsplit("/", 1)
        state.setdefault(order.index(parameter), {})[key] = value
    fresh = optimizer.state_dict()
    groups = [
        group | _like(group, saved) for group, saved in zip(fresh["param_groups"], numbers["groups"], strict=True)
    ]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def plain(values: Mapping[str, Any], without: Iterable[str] = ("params",)) -> dict[str, Any]:
    """The entries that are numbers, words, or lists of these; all others follow from the declaration."""
    return {key: value for key, value in values.items() if key not in without and _is_plain(value)}


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return isinstance(value, _PLAIN)


def _like(fresh: Mapping[str, Any], saved: Mapping[str, Any]) -> dict[str, Any]:
    """Saved values, with tuples where there were tuples."""
    return {key: tuple(value) if isinstance(fresh.get(key), tuple) else value for key, value in saved.items()}
