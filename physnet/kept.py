"""Results that are kept as long as what they were made of."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

T = TypeVar("T")


class Kept:
    """The last result of a function of tensors, kept until one of them is gone or has changed.

    Tensors are told apart as objects, which costs nothing; where gradients are recorded nothing is kept. A change
    through `.data`, which torch doesn't count, goes unnoticed, as it does in `EnergyModel.check_constraints`.
    Steps of fused optimizers, which it doesn't count either, are counted here.
    """

    def __init__(self) -> None:
        # what it was made of, the result, and what tells whether either has been written to
        self.last: tuple[tuple[weakref.ref[Tensor], ...], Any, tuple[Any, ...]] | None = None

    def __call__(self, arguments: tuple[Tensor, ...], make: Callable[[], T]) -> T:
        if torch.is_inference_mode_enabled() or any(
            item.is_inference() or (torch.is_grad_enabled() and item.requires_grad) for item in arguments
        ):
            return make()
        last = self.last  # read once: another thread may work with the same model
        if last is not None:
            seen, value, written = last
            same = len(seen) == len(arguments) and all(a() is b for a, b in zip(seen, arguments, strict=True))
            if same and written == _written(arguments, value):
                return value
        self.last = last = None  # its memory may serve for the new result
        value = make()
        self.last = tuple(weakref.ref(item, self.forget) for item in arguments), value, _written(arguments, value)
        return value

    def forget(self, gone: object) -> None:
        """Let go of the result of tensors that nobody holds any more."""
        last = self.last
        if last is not None and any(seen is gone for seen in last[0]):
            self.last = None


def _written(arguments: tuple[Tensor, ...], value: Any) -> tuple[Any, ...]:
    """Of the results, too, since they are handed out."""
    made = (value,) if isinstance(value, Tensor) else value
    return tuple(written(item) for item in (*arguments, *made))


def written(tensor: Tensor) -> tuple[int, int]:
    """Where a tensor is and how often it has been written to."""
    return tensor.data_ptr(), tensor._version


def _count_fused_step(optimizer: Optimizer, *_: Any) -> None:
    for group in optimizer.param_groups:
        for parameter in group["params"] if group.get("fused") else ():
            if parameter.grad is not None:
                increment_version(parameter)


register_optimizer_step_post_hook(_count_fused_step)
