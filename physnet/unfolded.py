"""Convolutions of small images as one matrix product.

    conv(u, w) = windows(u) W,      conv^T(v, w) = sum over windows of (v W^T)

Where images are small and channels many, a convolution spends its time on rearranging the weight, again in every call.
Here this is done once per weight.
"""

from __future__ import annotations

import torch
from torch import Tensor

from physnet.kept import Kept

MAX_PIXELS = 16
"""Pixels of an image up to which a matrix product that makes it is faster, at batches of 16 and more."""


class Unfolded:
    """A convolution and its transpose between images whose channels come last in memory.

    Arguments:
        pre: [channels, height, width] before it.
        made: height and width behind it.
        stride, padding: for both axes.
    """

    def __init__(
        self, pre: tuple[int, ...], made: tuple[int, ...], stride: tuple[int, int], padding: tuple[int, int]
    ) -> None:
        self.pre, self.made, self.stride, self.padding = pre, made, stride, padding
        self._forward, self._backward = Kept(), Kept()

    @property
    def pays(self) -> bool:
        """Whether it is faster than a convolution."""
        return self.made[0] * self.made[1] <= MAX_PIXELS

    @property
    def adjoint_pays(self) -> bool:
        """Whether it is faster than a transposed convolution."""
        return self.pre[1] * self.pre[2] <= MAX_PIXELS

    def apply(self, u: Tensor, w: Tensor) -> Tensor:
        """[rows, *pre] -> [rows, out channels, *made], in the dtype of w."""
        matrix = self._forward((w,), lambda: w.permute(2, 3, 1, 0).reshape(-1, w.shape[0]).contiguous())
        return (self._windows(u, w) @ matrix).view(len(u), *self.made, -1).permute(0, 3, 1, 2)

    def _windows(self, u: Tensor, w: Tensor) -> Tensor:
        """[rows * pixels, window * channels]"""
        (high, wide), (down, right) = self.padding, self.stride
        rows, pixels, kernel = u.shape[0], self.made, w.shape[2:]
        image = torch.nn.functional.pad(u.permute(0, 2, 3, 1), (0, 0, wide, wide, high, high)).contiguous()
        row, y, x, channel = image.stride()
        shape = (rows, *pixels, *kernel, u.shape[1])
        seen = image.as_strided(shape, (row, y * down, x * right, y, x, channel))
        return seen.reshape(rows * pixels[0] * pixels[1], -1)

    def adjoint(self, v: Tensor, w: Tensor) -> Tensor:
        """[rows, out channels, *made] -> [rows, *pre], in at least float32, since a pixel is a sum over windows."""
        (high, wide), (down, right), rows = self.padding, self.stride, v.shape[0]
        matrix = self._backward((w,), lambda: w.permute(2, 3, 0, 1).contiguous())
        flat = v.permute(0, 2, 3, 1).reshape(-1, v.shape[1])
        channels, height, width = self.pre
        shape = rows, height + 2 * high, width + 2 * wide, channels
        image = torch.zeros(shape, dtype=torch.promote_types(v.dtype, torch.float32), device=v.device)
        for y in range(w.shape[2]):
            for x in range(w.shape[3]):
                seen = image[:, y : y + down * (self.made[0] - 1) + 1 : down]
                seen = seen[:, :, x : x + right * (self.made[1] - 1) + 1 : right]
                seen += (flat @ matrix[y, x]).view(rows, *self.made, channels)
        return image[:, high : high + height, wide : wide + width].permute(0, 3, 1, 2)
