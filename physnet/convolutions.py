"""Connections over images: convolutions, pooling, upsampling. Nodes have shape [channels, height, width]."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from physnet.chains import Chain
from physnet.connections import CONNECTIONS, Connection, Linked, Shape
from physnet.errors import DeclarationError, ShapeError

if TYPE_CHECKING:
    from torch import Tensor

Pair = tuple[int, int]


def pair(name: str, value: Any, least: int) -> Pair:
    """A whole number for both axes, or one for each.

    Raises:
        DeclarationError: for anything else.
    """
    both = tuple(value) if isinstance(value, tuple | list) else (value, value)
    if len(both) != 2 or any(isinstance(v, bool) or not isinstance(v, int) or v < least for v in both):
        raise DeclarationError(f"{name} is {value!r}", f"give a whole number from {least} on, or a pair (3, 5)")
    return both[0], both[1]


class Spatial(Connection):
    """A connection between images, [channels, height, width]."""

    def __rshift__(self, other: Connection) -> Chain:
        return Chain((self,)) >> other

    def check(self, pre: Shape, post: Shape) -> None:
        made = self.makes(pre, *post[:1])
        if made != post:
            raise ShapeError(
                f"{self.declaration()} makes {list(made)} of {list(pre)}, but post has {list(post)}",
                f"give post the shape {list(made)}, or change kernel, stride or padding",
            )

    def places(self, pre: Shape, window: Pair, stride: Pair, padding: Pair) -> Pair:
        """How many places a window takes along both axes."""
        self.image(pre, window, padding)
        high, wide = (
            (size + 2 * pad - span) // step + 1
            for size, pad, span, step in zip(pre[1:], padding, window, stride, strict=True)
        )
        return high, wide

    def image(self, shape: Shape, kernel: Pair = (1, 1), padding: Pair = (0, 0)) -> Shape:
        """The shape, if it is that of an image in which a window fits."""
        name = self.declaration()
        if len(shape) != 3:
            raise ShapeError(
                f"{name} takes images, but the node has shape {list(shape)}", "give it [channels, height, width]"
            )
        if any(size + 2 * pad < window for size, window, pad in zip(shape[1:], kernel, padding, strict=True)):
            raise ShapeError(f"the window of {name} is larger than the image {list(shape)}", "add padding")
        return shape


@dataclass(frozen=True)
class Conv2d(Spatial):
    """A convolution:  apply(u, w)[o, y, x] = sum over c, i, j of w[o, c, i, j] u[c, y stride + i - padding, ...].

    The weight has the shape of that of `torch.nn.Conv2d`: [out channels, in channels / groups, height, width]. Its
    adjoint, the transposed convolution, is worked out to the size of pre whatever the stride.

    Arguments:
        kernel, stride, padding, dilation: whole numbers, or a pair for height and width.
        groups: blocks of channels that are convolved apart.
    """

    kernel: int | Pair
    stride: int | Pair = 1
    padding: int | Pair = 0
    dilation: int | Pair = 1
    groups: int = 1

    def __post_init__(self) -> None:
        for name, least in (("kernel", 1), ("stride", 1), ("padding", 0), ("dilation", 1)):
            pair(name, getattr(self, name), least)
        if isinstance(self.groups, tuple | list):
            raise DeclarationError(f"groups is {self.groups!r}", "give one whole number from 1 on")
        pair("groups", self.groups, 1)

    def window(self) -> Pair:
        """Pixels that the kernel spans."""
        kernel, dilation = pair("kernel", self.kernel, 1), pair("dilation", self.dilation, 1)
        return dilation[0] * (kernel[0] - 1) + 1, dilation[1] * (kernel[1] - 1) + 1

    def makes(self, pre: Shape, channels: int = 1) -> Shape:
        stride, padding = pair("stride", self.stride, 1), pair("padding", self.padding, 0)
        return channels, *self.places(pre, self.window(), stride, padding)

    def check(self, pre: Shape, post: Shape) -> None:
        super().check(pre, post)
        if pre[0] % self.groups or post[0] % self.groups:
            raise ShapeError(f"{pre[0]} and {post[0]} channels don't divide into {self.groups} groups", "change groups")

    def weight_shape(self, pre: Shape, post: Shape) -> Shape:
        return post[0], pre[0] // self.groups, *pair("kernel", self.kernel, 1)

    def fans(self, pre: Shape, post: Shape) -> tuple[int, int]:
        size = math.prod(pair("kernel", self.kernel, 1))
        return pre[0] // self.groups * size, post[0] // self.groups * size

    def bind(self, pre: Shape, post: Shape) -> Linked:
        from physnet.convolved import ConvLink

        settings = {name: pair(name, getattr(self, name), 0) for name in ("stride", "padding", "dilation")}
        shape = self.weight_shape(pre, post)
        return ConvLink(pre, post, shape, self.window(), settings | {"groups": self.groups})


class Fixed(Spatial):
    """A linear map without parameters. In a chain it has no weight; alone it has one weight per channel."""

    weighted = False

    @abstractmethod
    def map(self, u: Tensor) -> Tensor:
        """[rows, *pre] -> [rows, *post]"""

    def adjoint(self, v: Tensor, pre: Shape) -> Tensor:
        """[rows, *post] -> [rows, *pre], the transpose of `map`."""
        import torch

        with torch.inference_mode(False), torch.enable_grad():
            u = v.new_zeros((v.shape[0], *pre)).requires_grad_()
            return torch.autograd.grad(self.map(u), u, v, create_graph=v.requires_grad)[0]

    def weight_shape(self, pre: Shape, post: Shape) -> Shape:
        return (post[0],)

    def fans(self, pre: Shape, post: Shape) -> tuple[int, int]:
        return 1, 1

    def bind(self, pre: Shape, post: Shape) -> Linked:
        from physnet.convolved import ScaledLink

        return ScaledLink(pre, post, self.map, lambda v: self.adjoint(v, pre))

    def bind_member(self, pre: Shape, post: Shape) -> Linked:
        from physnet.convolved import FixedLink

        return FixedLink(pre, post, self.map, lambda v: self.adjoint(v, pre))


@dataclass(frozen=True)
class _Pool(Fixed):
    """Windows of an image.

    Arguments:
        kernel, stride, padding: whole numbers, or a pair for height and width; the stride is that of the kernel if
            not given.
    """

    kernel: int | Pair
    stride: int | Pair | None = None
    padding: int | Pair = 0

    def __post_init__(self) -> None:
        pair("kernel", self.kernel, 1)
        pair("stride", self.steps, 1)
        kernel, padding = pair("kernel", self.kernel, 1), pair("padding", self.padding, 0)
        if any(2 * pad > size for pad, size in zip(padding, kernel, strict=True)):
            raise DeclarationError(f"padding {self.padding} is more than half of the kernel {self.kernel}", "reduce it")

    @property
    def steps(self) -> int | Pair:
        return self.kernel if self.stride is None else self.stride

    @property
    def sizes(self) -> tuple[Pair, Pair, Pair]:
        """Kernel, stride and padding, each for height and width."""
        return pair("kernel", self.kernel, 1), pair("stride", self.steps, 1), pair("padding", self.padding, 0)

    def makes(self, pre: Shape, channels: int = 1) -> Shape:
        kernel, stride, padding = self.sizes
        return pre[0], *self.places(pre, kernel, stride, padding)


@dataclass(frozen=True)
class AvgPool2d(_Pool):
    """The mean of every window: [channels, height, width] -> [channels, height / stride, width / stride]."""

    def map(self, u: Tensor) -> Tensor:
        import torch

        return torch.nn.functional.avg_pool2d(u, self.kernel, self.steps, self.padding)

    def adjoint(self, v: Tensor, pre: Shape) -> Tensor:
        import torch

        like = v.new_empty((v.shape[0], *pre))
        return torch.ops.aten.avg_pool2d_backward(v, like, *map(list, self.sizes), False, True, None)

    def join(self, link: Linked, post: Shape) -> Linked | None:
        from physnet.convolved import AveragedLink, ConvLink

        kernel, stride, padding = self.sizes
        if not isinstance(link, ConvLink) or padding != (0, 0):
            return None
        return AveragedLink(link, post, kernel, stride) if AveragedLink.pays(link, kernel, stride) else None


@dataclass(frozen=True)
class MaxPool2d(_Pool):
    """The largest value of every window; the last member of a chain, such as `conv2d(3) >> max_pool2d(2)`."""

    selects = True

    def map(self, u: Tensor) -> Tensor:
        import torch

        return torch.nn.functional.max_pool2d(u, self.kernel, self.steps, self.padding)

    def select(self, link: Linked, post: Shape) -> Linked:
        from physnet.convolved import PooledLink

        return PooledLink(link, post, self.sizes)


@dataclass(frozen=True)
class Upsample(Fixed):
    """Every pixel `scale` times along both axes: [channels, height, width] -> [channels, scale height, scale width].

    Arguments:
        scale: a whole number, or a pair.
        mode: `nearest` or `bilinear`.
    """

    scale: int | Pair
    mode: str = "nearest"

    def __post_init__(self) -> None:
        pair("scale", self.scale, 1)
        if self.mode not in ("nearest", "bilinear"):
            raise DeclarationError(f"unknown mode {self.mode!r} of upsample", "use 'nearest' or 'bilinear'")

    def makes(self, pre: Shape, channels: int = 1) -> Shape:
        self.image(pre)
        scale = pair("scale", self.scale, 1)
        return pre[0], pre[1] * scale[0], pre[2] * scale[1]

    def map(self, u: Tensor) -> Tensor:
        import torch

        factor = tuple(map(float, pair("scale", self.scale, 1)))
        return torch.nn.functional.interpolate(u, scale_factor=factor, mode=self.mode)


CONNECTIONS["conv2d"] = Conv2d
CONNECTIONS["avg_pool2d"] = AvgPool2d
CONNECTIONS["max_pool2d"] = MaxPool2d
CONNECTIONS["upsample"] = Upsample
