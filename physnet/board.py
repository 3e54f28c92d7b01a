"""TensorBoard: the cost while an epoch runs, and its metrics once it has ended."""

from __future__ import annotations

from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

from physnet.errors import DeclarationError, Fault
from physnet.metrics import Metrics

EVERY = 10
"""Steps between two points of the cost."""


class Board:
    """Writes event files; everything stands over the number of the step.

    Arguments:
        folder: where to.
        step: steps that are done; what an interrupted run wrote about later ones is discarded.

    Raises:
        DeclarationError: if TensorBoard isn't installed.
    """

    def __init__(self, folder: Path, step: int) -> None:
        try:
            from torch.utils.tensorboard.writer import SummaryWriter
        except ImportError:
            raise DeclarationError(
                Fault(
                    "TensorBoard is not installed",
                    "pip install 'physnet[tensorboard]', or tensorboard: false",
                    ("tensorboard",),
                )
            ) from None
        self._open = lambda: SummaryWriter(folder, purge_step=step + 1)

    @cached_property
    def _writer(self) -> Any:
        """Made when it is first needed, which is after the folder of the run."""
        return self._open()

    def cost(self, step: int, cost: float) -> None:
        """The cost of a batch, shown for every tenth step."""
        if step % EVERY == 0:
            self._writer.add_scalar("cost/step", cost, step)

    def epoch(self, step: int, metrics: Metrics) -> None:
        """The metrics of an epoch that ended with this step."""
        for name, value in asdict(metrics).items():
            if value is not None:
                self._writer.add_scalar(f"epoch/{name}", value, step)

    def flush(self) -> None:
        """Bring everything to the disk."""
        self._writer.flush()

    def close(self) -> None:
        """Flush, and release the file."""
        self._writer.close()
