"""The operations of RandAugment (arXiv 1909.13719) on a batch, with ranges as in torchvision and kernels from kornia.

Each image has its own operation and its own sign, so that images are grouped by what is done to them.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from kornia import enhance
from torch import Tensor
from torch.nn import functional

Enhancement = Callable[[Tensor, Tensor, float], Tensor]
"""From images, their signs [images] and the strength in [0, 1] to images."""


def _blended(kernel: Callable[[Tensor, Tensor], Tensor]) -> Enhancement:
    """A kernel whose factor is 1 for no change and 1 - .9 or 1 + .9 at full strength."""
    return lambda images, sign, strength: kernel(images, 1 + 0.9 * strength * sign)


def _on_levels(kernel: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """A kernel that works on 256 levels, and finds them by cutting off fractions: rounding must not change them."""
    levels = (images * 255).round()
    return (kernel((levels + 0.25) / 255) * 255).round() / 255


def _posterize(images: Tensor, sign: Tensor, strength: float) -> Tensor:
    bits = 8 - round(4 * strength)
    return images if bits == 8 else _on_levels(lambda levels: enhance.posterize(levels, bits), images)


def _solarize(images: Tensor, sign: Tensor, strength: float) -> Tensor:
    # pixels at the threshold are inverted too: at no strength white would become black
    return enhance.solarize(images, 1.0 - strength) if strength > 0 else images


def _auto_contrast(images: Tensor, sign: Tensor, strength: float) -> Tensor:
    varied = images.amax((2, 3), keepdim=True) > images.amin((2, 3), keepdim=True)
    return torch.where(varied, enhance.normalize_min_max(images), images)


ENHANCEMENTS: dict[str, Enhancement] = {
    "brightness": _blended(enhance.adjust_brightness_accumulative),
    "color": _blended(enhance.adjust_saturation_with_gray_subtraction),
    "contrast": _blended(enhance.adjust_contrast_with_mean_subtraction),
    "sharpness": _blended(enhance.sharpness),
    "posterize": _posterize,
    "solarize": _solarize,
    "auto_contrast": _auto_contrast,
    "equalize": lambda images, sign, strength: _on_levels(enhance.equalize, images),
}
"""What changes the colours of pixels. Grey images have no `color` to change."""


def _shift(strength: float, size: int) -> int:
    return int(150 / 331 * size * strength)


# dst (x, y), in pixels from the centre, is filled from src (a x + b y + c, d x + e y + f)
MOVES: dict[str, Callable[[float, float, int, int], tuple[float, ...]]] = {
    "shear_x": lambda sign, strength, h, w: (1, 0.3 * strength * sign, 0.3 * strength * sign * h / 2, 0, 1, 0),
    "shear_y": lambda sign, strength, h, w: (1, 0, 0, 0.3 * strength * sign, 1, 0.3 * strength * sign * w / 2),
    "translate_x": lambda sign, strength, h, w: (1, 0, _shift(strength, w) * sign, 0, 1, 0),
    "translate_y": lambda sign, strength, h, w: (1, 0, 0, 0, 1, _shift(strength, h) * sign),
    "rotate": lambda sign, strength, h, w: (
        *(math.cos(strength * math.pi / 6), -sign * math.sin(strength * math.pi / 6), 0),
        *(sign * math.sin(strength * math.pi / 6), math.cos(strength * math.pi / 6), 0),
    ),
}
"""What moves pixels: linear maps, to the nearest pixel, with black around the image."""

OPERATIONS = ("identity", *MOVES, *ENHANCEMENTS)


def rand_augment(images: Tensor, which: Tensor, sign: Tensor, strength: float) -> Tensor:
    """Some operations after each other, drawn for every image.

    Arguments:
        images: pixels in [0, 1], [images, 1 or 3, height, width].
        which: numbers in [0, 1) that choose the operations, [images, operations], on the CPU.
        sign: numbers in [0, 1); below 1/2 an operation that has two directions takes the negative one.
        strength: in [0, 1].
    """
    images = images.clamp(0, 1)
    chosen, signs = (which * len(OPERATIONS)).long(), torch.where(sign < 0.5, -1.0, 1.0)
    for number in range(which.shape[1]):
        images = _operate(images, chosen[:, number], signs[:, number], strength)
    return images


def _operate(images: Tensor, chosen: Tensor, signs: Tensor, strength: float) -> Tensor:
    """One operation on every image. All moves are one sampling."""
    result = images.clone()
    moved = ((chosen >= 1) & (chosen <= len(MOVES))).nonzero()[:, 0]
    if len(moved):
        names = [OPERATIONS[int(choice)] for choice in chosen[moved]]
        rows = moved.to(images.device)
        result[rows] = _moved(images[rows], names, signs[moved].tolist(), strength)
    for name, kernel in ENHANCEMENTS.items():
        mine = (chosen == OPERATIONS.index(name)).nonzero()[:, 0]
        if len(mine):
            rows = mine.to(images.device)
            result[rows] = kernel(images[rows], signs[mine].to(images), strength)
    return result


def _moved(images: Tensor, names: list[str], signs: list[float], strength: float) -> Tensor:
    """Images under linear maps of their own. In torch's coordinates an image reaches from -1 to 1 either way."""
    height, width = images.shape[2:]
    maps = torch.tensor(
        [MOVES[name](sign, strength, height, width) for name, sign in zip(names, signs, strict=True)],
        dtype=torch.float64,
    ).view(-1, 2, 3)
    ratio = torch.tensor([[1, height / width, 2 / width], [width / height, 1, 2 / height]], dtype=torch.float64)
    grid = functional.affine_grid((maps * ratio).to(images), list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, mode="nearest", padding_mode="zeros", align_corners=False)
