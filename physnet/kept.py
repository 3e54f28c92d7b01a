"""Results that are kept as long as what they were made of."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class Kept:
    """The last result of a function of tensors, kept until one of them is gone or has changed.

    Tensors are told apart as objects, which costs nothing; where gradients are recorded nothing is kept.
    """

    def __init__(self) -> None:
        self.seen: tuple[tuple[weakref.ref[Tensor], int], ...] = ()
        self.value: Any = None

    def __call__(self, arguments: tuple[Tensor, ...], make: Callable[[], T]) -> T:
        if any(item.is_inference() or (torch.is_grad_enabled() and item.requires_grad) for item in arguments):
            return make()
        if len(self.seen) == len(arguments) and all(
            seen() is item and version == item._version
            for (seen, version), item in zip(self.seen, arguments, strict=True)
        ):
            return self.value
        self.seen, self.value = (), None
        value = make()  # what it makes may be let go of before this returns, but not by the caller
        self.seen, self.value = tuple((weakref.ref(item, self.forget), item._version) for item in arguments), value
        return value

    def forget(self, gone: object) -> None:
        """Let go of the result of tensors that nobody holds any more."""
        if any(seen is gone for seen, _ in self.seen):
            self.seen, self.value = (), None
