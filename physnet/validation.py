"""Held-out samples: a part of the training set that no gradient sees, to choose an epoch by.

The split is a pure function of the seed. Where targets are classes, it is stratified: each class keeps its share.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import torch

from physnet.errors import DataError
from physnet.randomness import stream

if TYPE_CHECKING:
    from physnet.metrics import Metrics
    from physnet.samples import Samples


def hold_out(
    samples: Samples, declared: float | None, seed: int, targets: Iterable[str]
) -> tuple[Samples, Samples | None]:
    """What is left to train on, and what is held out, if anything: both in the order of the data set.

    Arguments:
        samples: the training samples of the data set.
        declared: a number of samples, a fraction of them, or `None` to hold out none.
        seed: the split is a pure function of it.
        targets: names of targets; the first that holds class indices is stratified.

    Raises:
        DataError: if too few samples are left on either side.
    """
    if declared is None:
        return samples, None
    from sklearn.model_selection import train_test_split  # slow to import

    total = samples.count
    held = round(declared * total) if declared < 1 else int(declared)
    classes = next((found for name in targets if (found := samples.classes(name)) is not None), None)
    number = int(torch.randint(2**31, (1,), generator=stream(seed, "validation")))
    try:
        kept, out = train_test_split(np.arange(total), test_size=held, random_state=number, stratify=classes)
    except ValueError as problem:
        raise DataError(
            f"train.validation: {held} of {total} samples can't be held out ({problem}); hold out another number"
        ) from None
    return samples.part(np.sort(kept)), samples.part(np.sort(out)).still()


def best_epoch(history: Iterable[Metrics]) -> Metrics | None:
    """The epoch with the lowest validation error, or cost where there is none; of equal ones the first."""
    judged = [metrics for metrics in history if metrics.validation_cost is not None]

    def rank(metrics: Metrics) -> tuple[float, int]:
        value = metrics.validation_cost if metrics.validation_error is None else metrics.validation_error
        assert value is not None
        return value, metrics.epoch

    return min(judged, key=rank, default=None)


def results(history: list[Metrics]) -> dict[str, dict[str, float | int | None]]:
    """What a run is judged by: its final epoch and, with held-out samples, the best one there; never the best test."""
    named = {"final": history[-1] if history else None, "best_validation": best_epoch(history)}
    kinds = ("error", "top_error", "cost")
    keys = ("epoch", *(f"{part}_{kind}" for part in ("test", "validation") for kind in kinds))
    return {
        name: {key: value for key in keys if (value := getattr(metrics, key)) is not None}
        for name, metrics in named.items()
        if metrics is not None
    }
