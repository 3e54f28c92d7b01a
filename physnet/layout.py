"""How states lie in memory: images with their channels last, as convolutions and their transposes are fastest.

Nothing else changes: shapes are [rows, channels, height, width] everywhere.
"""

from __future__ import annotations

import torch
from torch import Tensor


def arranged(value: Tensor) -> Tensor:
    """The same tensor, with channels last in memory if it is a batch of images."""
    return value.contiguous(memory_format=torch.channels_last) if value.dim() == 4 else value


def repeat(value: Tensor, phases: int) -> Tensor:
    """The same rows for every phase, laid out alike."""
    return value if phases == 1 else torch.cat([value] * phases)


def units(value: Tensor) -> Tensor:
    """[rows, *node] -> [rows, units], in an order that takes no copy: for sums and norms over a node."""
    if value.dim() == 4 and not value.is_contiguous():
        value = value.permute(0, 2, 3, 1)
    return value if value.dim() == 2 else value.flatten(1)
