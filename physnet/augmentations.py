"""Random changes of training images, as declared: `train: {augment: [flip, {crop: {padding: 4}}]}`.

An augmentation is a pure function of images and of random numbers that are drawn for it, so many for each image. What
becomes of an image therefore depends neither on the others in its batch nor on the process that works on it.
Nothing here imports torch before it is applied.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, ClassVar

from physnet.errors import DeclarationError, Fault, ShapeError, collected, did_you_mean, located
from physnet.registry import Registry, subclass_of

if TYPE_CHECKING:
    from torch import Tensor


class Augmentation(ABC):
    """images -> a(images, numbers). Derived classes are frozen dataclasses, whose fields are the options."""

    pixels: ClassVar[bool] = False
    """Whether images must be pixels in [0, 1]."""

    @property
    def draws(self) -> int:
        """How many random numbers it takes for each image."""
        return 1

    def check(self, shape: Sequence[int]) -> None:
        """Raise `DeclarationError` if images of this shape, [channels, height, width], can't be changed like this."""
        return

    @abstractmethod
    def apply(self, images: Tensor, numbers: Tensor) -> Tensor:
        """The changed images, of the same shape.

        Arguments:
            images: [images, channels, height, width].
            numbers: uniform in [0, 1), [images, draws], float64 on the CPU.
        """


AUGMENTATIONS: Registry[type[Augmentation]] = Registry(
    "augmentation", "physnet.augmentations", objection=subclass_of(Augmentation)
)
"""Augmentations by the name that declarations use."""


def find_augmentation(declared: Any) -> Augmentation:
    """An augmentation from its declaration: a name, or {name: {options}}.

    Raises:
        DeclarationError: for unknown names, and for options that are unknown or out of range.
    """
    if isinstance(declared, str):
        name, options = declared, {}
    elif isinstance(declared, Mapping) and len(declared) == 1:
        ((name, options),) = declared.items()
    else:
        fix = f"use {', '.join(AUGMENTATIONS)}"
        raise DeclarationError(Fault(f"an augmentation is a name, or {{name: {{options}}}}, found {declared!r}", fix))
    if name not in AUGMENTATIONS:
        raise DeclarationError(Fault(f"there is no augmentation {name!r}", did_you_mean(name, AUGMENTATIONS)))
    kind = AUGMENTATIONS[name]
    signature = inspect.signature(kind)
    if not isinstance(options, Mapping | None):
        fault = Fault(f"the options of {name} are a mapping, found {options!r}", f"options: {signature}", (name,))
        raise DeclarationError(fault)
    try:
        signature.bind(**(options or {}))
        return located((name,), lambda: kind(**(options or {})))
    except DeclarationError:  # a ValueError too
        raise
    except (TypeError, ValueError, ArithmeticError) as problem:
        raise DeclarationError(Fault(f"{name}: {problem}", f"options: {signature}", (name,))) from None


def find_augmentations(declared: Sequence[Any]) -> tuple[Augmentation, ...]:
    """The augmentations of a list, with the faults of all of them at once."""
    return tuple(
        collected(
            *(
                lambda place=place, item=item: located((place,), lambda: find_augmentation(item))
                for place, item in enumerate(declared)
            )
        )
    )


def _require_whole(option: str, value: Any, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        fix = f"give a whole number from {low} to {high}"
        raise DeclarationError(Fault(f"{option} is {value!r}", fix, (option,)))


# --------------------------------------------------------------------------- physnet's own


@AUGMENTATIONS.register("flip")
@dataclass(frozen=True)
class Flip(Augmentation):
    """a(x)[c, i, j] = x[c, i, width - 1 - j] with a probability, else x: left and right change places."""

    probability: float = 0.5

    def __post_init__(self) -> None:
        value: Any = self.probability
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            fault = Fault(f"probability is {value!r}", "give a number from 0 to 1", ("probability",))
            raise DeclarationError(fault)

    def apply(self, images: Tensor, numbers: Tensor) -> Tensor:
        chosen = (numbers < self.probability).to(images.device)
        return images.flip(-1).where(chosen.view(-1, 1, 1, 1), images)


@AUGMENTATIONS.register("crop")
@dataclass(frozen=True)
class Crop(Augmentation):
    """a(x)[c, i, j] = x[c, i + di, j + dj] with di, dj drawn from -padding ... padding.

    Arguments:
        padding: how far a window may reach over the border.
        size: height and width of the window, which are those of the image.
        edge: whether pixels beyond the border are those next to it; black otherwise.
    """

    padding: int = 4
    size: int | None = None
    edge: bool = True

    def __post_init__(self) -> None:
        _require_whole("padding", self.padding, 0, 1024)
        if self.size is not None:
            _require_whole("size", self.size, 1, 2**16)
        if not isinstance(self.edge, bool):
            raise DeclarationError(Fault(f"edge is {self.edge!r}", "write true or false", ("edge",)))

    @property
    def draws(self) -> int:
        return 2

    def check(self, shape: Sequence[int]) -> None:
        if self.size is not None and {self.size} != set(shape[1:]):
            fix = "leave out size, or make it theirs: test images are not cropped"
            raise ShapeError(Fault(f"size is {self.size}, but images are {shape[1]} x {shape[2]}", fix, ("size",)))

    def apply(self, images: Tensor, numbers: Tensor) -> Tensor:
        import torch

        count, channels, height, width = images.shape
        offsets = (numbers * (2 * self.padding + 1)).long() - self.padding
        offsets = offsets.to(images.device)
        rows = offsets[:, :1] + torch.arange(height, device=images.device)
        columns = offsets[:, 1:] + torch.arange(width, device=images.device)
        nearest = rows.clamp(0, height - 1)[:, :, None] * width + columns.clamp(0, width - 1)[:, None]
        places = nearest.view(count, 1, -1).expand(-1, channels, -1)
        window = images.flatten(2).gather(2, places).view_as(images)
        if self.edge:
            return window
        inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None]
        return window * inside[:, None]


@AUGMENTATIONS.register("rand_augment")
@dataclass(frozen=True)
class RandAugment(Augmentation):
    """a = a_n ... a_1, each drawn for each image from 14 operations of one strength (arXiv 1909.13719).

    Arguments:
        operations: n, how many follow each other.
        magnitude: their strength, from 0 to 30.
    """

    operations: int = 2
    magnitude: int = 9
    pixels: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _require_whole("operations", self.operations, 1, 100)
        _require_whole("magnitude", self.magnitude, 0, 30)

    @property
    def draws(self) -> int:
        return 2 * self.operations

    def check(self, shape: Sequence[int]) -> None:
        if find_spec("kornia") is None:
            raise DeclarationError(Fault("rand_augment needs kornia", "pip install 'physnet[images]'"))
        if shape[0] not in (1, 3):
            fix = "augment images of one or three channels, or remove rand_augment"
            raise ShapeError(Fault(f"rand_augment works on grey or RGB images, not on {shape[0]} channels", fix))
        if min(shape[1:]) < 3:  # sharpness looks at the eight neighbours
            raise ShapeError(Fault(f"images of {shape[1]} x {shape[2]} pixels are too small", "remove rand_augment"))

    def apply(self, images: Tensor, numbers: Tensor) -> Tensor:
        from physnet.randaugment import rand_augment

        which, sign = numbers.view(len(images), self.operations, 2).unbind(2)
        return rand_augment(images, which, sign, self.magnitude / 30)
