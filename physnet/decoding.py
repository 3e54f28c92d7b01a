"""From a compressed image to pixels.

In training a random window of the image, scaled to a square, and its mirror image half of the time; in evaluation the
square in the middle of the image, whose shorter side was scaled. Both are those of torchvision, with Pillow underneath.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from physnet.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
ATTEMPTS = 10
"""How many windows are drawn before the one in the middle is taken."""
DRAWS = 4 * ATTEMPTS + 1
"""Random numbers for one image."""
SMALLEST = 0.08
"""Share of the area that a window has at least."""
NARROWEST, WIDEST = 3 / 4, 4 / 3
"""Bounds on width / height of a window."""
Box = tuple[int, int, int, int]
"""Left, upper, right and lower border, in pixels."""


@dataclass(frozen=True)
class Decoder:
    """Turns files into arrays of bytes, [3, size, size].

    Arguments:
        size: width and height of the result.
        resize: length of the shorter side before the middle is taken.
        random: whether a random window is taken instead, and mirrored at random.
    """

    size: int = 224
    resize: int = 256
    random: bool = False

    def __call__(self, content: bytes, numbers: Sequence[float] = ()) -> np.ndarray:
        """Decode one image; whatever is raised says that it can't be.

        Arguments:
            content: of the file.
            numbers: uniform in [0, 1), as many as `DRAWS`; for a random window.
        """
        from PIL import Image, UnidentifiedImageError

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of damaged remarks in intact images
                with Image.open(io.BytesIO(content), formats=FORMATS) as file:
                    image = file.convert("RGB")
        except UnidentifiedImageError:
            raise DataError(f"it is none of {', '.join(FORMATS)}") from None
        picture = self._drawn(image, numbers) if self.random else self._middle(image)
        return np.asarray(picture).transpose(2, 0, 1)

    def _drawn(self, image: Image, numbers: Sequence[float]) -> Image:
        from PIL.Image import Resampling, Transpose

        window = image.crop(random_window(*image.size, numbers))
        window = window.resize((self.size, self.size), Resampling.BILINEAR)
        return window.transpose(Transpose.FLIP_LEFT_RIGHT) if numbers[-1] < 0.5 else window

    def _middle(self, image: Image) -> Image:
        from PIL.Image import Resampling

        short = min(image.size)
        width, height = (int(self.resize * side / short) for side in image.size)
        left, top = (round((side - self.size) / 2) for side in (width, height))
        scaled = image.resize((width, height), Resampling.BILINEAR)
        return scaled.crop((left, top, left + self.size, top + self.size))


def random_window(width: int, height: int, numbers: Sequence[float]) -> Box:
    """A window of an image: its area is uniform from `SMALLEST` to 1 of the image, the logarithm of its ratio uniform.

    Arguments:
        width, height: of the image.
        numbers: uniform in [0, 1), four for each attempt.
    """
    for attempt in range(ATTEMPTS):
        area, ratio, x, y = numbers[4 * attempt : 4 * attempt + 4]
        target = width * height * (SMALLEST + (1 - SMALLEST) * area)
        stretch = math.exp(math.log(NARROWEST) + math.log(WIDEST / NARROWEST) * ratio)
        wide, high = round(math.sqrt(target * stretch)), round(math.sqrt(target / stretch))
        if 0 < wide <= width and 0 < high <= height:
            left, top = int(x * (width - wide + 1)), int(y * (height - high + 1))
            return left, top, left + wide, top + high
    wide = min(width, max(1, round(height * WIDEST)))
    high = min(height, max(1, round(width / NARROWEST)))
    left, top = (width - wide) // 2, (height - high) // 2
    return left, top, left + wide, top + high
