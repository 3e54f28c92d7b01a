"""Full precision, whatever the surrounding code has asked for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

import torch


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """A context without autocast, and without TF32, which cuDNN takes for convolutions by default: states, fields and
    contrasts are never in reduced precision."""
    with _NO_TF32, torch.autocast(device.type, enabled=False):
        yield


class _NoTF32:
    """TF32 is off in the whole process: from when the first thread enters until the last one has left."""

    def __init__(self) -> None:
        self.lock, self.inside, self.before = Lock(), 0, True

    def __enter__(self) -> None:
        with self.lock:
            if not self.inside:
                self.before, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
            self.inside += 1

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.inside -= 1
            if not self.inside:
                torch.backends.cudnn.allow_tf32 = self.before


_NO_TF32 = _NoTF32()
