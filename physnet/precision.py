"""Full precision, whatever the surrounding code has asked for."""

from __future__ import annotations

from threading import Lock
from typing import Any

import torch


class full_precision:
    """A context without autocast, and without TF32, which cuDNN takes for convolutions by default: states, fields and
    contrasts are never in reduced precision.

    It is entered several times in a step, and leaves autocast alone where there is none.
    """

    def __init__(self, device: torch.device) -> None:
        self.kind = device.type
        self.autocast: torch.autocast | None = None

    def __enter__(self) -> None:
        _NO_TF32.__enter__()
        if torch.is_autocast_enabled(self.kind):
            self.autocast = torch.autocast(self.kind, enabled=False)
            self.autocast.__enter__()

    def __exit__(self, *error: Any) -> None:
        if self.autocast is not None:
            self.autocast.__exit__(*error)
        _NO_TF32.__exit__(*error)


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
