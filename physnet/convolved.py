"""Maps between images: convolutions, fixed maps, chains, and max-pooled chains.

A linear map satisfies  <v, apply(u, w)> = <adjoint(v, w), u> = <correlate(u, v, w), w>.  A max-pooled one,

    apply(u, w) = S_u link(u, w),      S_u picks the winner of every window,

is linear once the winners are known: its adjoint is  link.adjoint(S_u^T v, w),  its correlation
link.correlate(u, S_u^T v, w).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.grad import conv2d_weight

from physnet.connections import Linked, RealLink, Selecting, Shape
from physnet.kept import Kept
from physnet.layout import arranged, repeat
from physnet.unfolded import Unfolded

aten = torch.ops.aten
LARGE = 2**18
"""Numbers in a weight from which on it takes longer to rearrange it than to multiply by it, where images are small."""
Map = Callable[[Tensor], Tensor]


class ConvLink(Linked):
    """A convolution and its transpose, which is worked out to the size of pre. A scalar weight fills its kernel.

    Arguments:
        pre, post: shapes of the nodes.
        weight: shape of the kernel.
        window: pixels that the kernel spans.
        settings: stride, padding, dilation (pairs) and groups.
    """

    def __init__(
        self, pre: Shape, post: Shape, weight: Shape, window: tuple[int, int], settings: dict[str, Any]
    ) -> None:
        super().__init__(pre, post)
        self.weight, self.settings = weight, settings
        sizes = zip(pre[1:], post[1:], settings["stride"], settings["padding"], window, strict=True)
        self.output_padding = tuple(
            size - ((made - 1) * step - 2 * pad + span) for size, made, step, pad, span in sizes
        )

        plain = settings["dilation"] == (1, 1) and settings["groups"] == 1
        self.unfolded = Unfolded(pre, post[1:], settings["stride"], settings["padding"]) if plain else None

    def _unfolds(self, w: Tensor) -> Unfolded | None:
        large = w.numel() >= LARGE and w.device.type == "cpu" and not torch.is_grad_enabled()
        return self.unfolded if large else None

    def apply(self, u: Tensor, w: Tensor) -> Tensor:
        unfolded = self._unfolds(w)
        if unfolded is not None and unfolded.pays:
            return unfolded.apply(u, w)
        return torch.conv2d(u, self._kernel(w), **self.settings)

    def affine(self, u: Tensor, w: Tensor, b: Tensor) -> Tensor:
        unfolded = self._unfolds(w)
        if b.dim() != 3 or b.shape[1:] != (1, 1) or (unfolded is not None and unfolded.pays):
            return self.apply(u, w) + b
        return torch.conv2d(u, self._kernel(w), b.view(-1), **self.settings)

    def adjoint(self, v: Tensor, w: Tensor) -> Tensor:
        unfolded = self._unfolds(w)
        if unfolded is not None and unfolded.adjoint_pays:
            return unfolded.adjoint(v, w)
        kernel = self._kernel(w)
        return torch.nn.functional.conv_transpose2d(v, kernel, output_padding=self.output_padding, **self.settings)

    def _kernel(self, w: Tensor) -> Tensor:
        return w if w.dim() else w.expand(self.weight)

    def correlate(self, u: Tensor, v: Tensor, w: Tensor) -> Tensor:
        found = conv2d_weight(u, self.weight, v, **self.settings)  # pyright: ignore[reportArgumentType]
        return found if w.dim() else found.sum()


class AveragedLink(Linked):
    """A convolution followed by average pooling, as one convolution with a larger kernel and stride:

        mean over windows of conv(u, w) = conv(u, K),      K[i] = sum over d in the window of w[i - d]/(its size)

    Its transpose makes the pixels that share a place within the stride as channels of one plain transposed
    convolution, which is twice as fast as one with a stride.

    Arguments:
        link: the convolution.
        post: shape behind the pooling.
        kernel, stride: of the pooling.
    """

    def __init__(self, link: ConvLink, post: Shape, kernel: tuple[int, int], stride: tuple[int, int]) -> None:
        super().__init__(link.pre, post)
        self.shape, self.kernel, self._larger, self._parts = link.weight, kernel, Kept(), Kept()
        span = link.weight[2] + kernel[0] - 1, link.weight[3] + kernel[1] - 1
        self.link = ConvLink(link.pre, post, (*link.weight[:2], *span), span, link.settings | {"stride": stride})
        self.step = stride[0]
        plain = stride[0] == stride[1] and link.settings["groups"] == 1
        self.divides = plain and not any(size % stride[0] for size in span)

    @staticmethod
    def pays(link: ConvLink, kernel: tuple[int, int], stride: tuple[int, int]) -> bool:
        """Whether there is such a kernel, and whether it takes fewer multiplications."""
        if link.settings["stride"] != (1, 1) or link.settings["dilation"] != (1, 1):
            return False
        (high, wide), (down, right) = link.weight[2:], stride
        return (high + kernel[0] - 1) * (wide + kernel[1] - 1) < high * wide * down * right

    def apply(self, u: Tensor, w: Tensor) -> Tensor:
        return self.link.apply(u, self._averaged(w))

    def affine(self, u: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return self.link.affine(u, self._averaged(w), b)

    def adjoint(self, v: Tensor, w: Tensor) -> Tensor:
        if not self.divides:
            return self.link.adjoint(v, self._averaged(w))
        parts = torch.nn.functional.pixel_shuffle(torch.conv_transpose2d(v, self._parted(w)), self.step)
        (_, height, width), (high, wide) = self.pre, self.link.settings["padding"]
        more = height + high - parts.shape[2], width + wide - parts.shape[3]  # negative: what padding has seen
        whole = not (high or wide or any(more))
        return parts if whole else torch.nn.functional.pad(parts, (-wide, more[1], -high, more[0]))

    def correlate(self, u: Tensor, v: Tensor, w: Tensor) -> Tensor:
        larger = self.link.correlate(u, v, w.expand(self.shape))
        found = torch.nn.functional.avg_pool2d(larger, self.kernel, 1)
        return found if w.dim() else found.sum()

    def _averaged(self, w: Tensor) -> Tensor:
        """K, worked out once per weight."""
        high, wide = (size - 1 for size in self.kernel)

        def made() -> Tensor:
            padded = torch.nn.functional.pad(w.expand(self.shape), (wide, wide, high, high))
            return torch.nn.functional.avg_pool2d(padded, self.kernel, 1)

        return self._larger((w,), made)

    def _parted(self, w: Tensor) -> Tensor:
        """The parts of K that meet each place within the stride, as output channels."""

        def made() -> Tensor:
            out, channels, high, wide = (kernel := self._averaged(w)).shape
            parts = kernel.view(out, channels, high // self.step, self.step, wide // self.step, self.step)
            order = parts.permute(0, 1, 3, 5, 2, 4)
            return order.reshape(out, -1, high // self.step, wide // self.step)

        return self._parts((w,), made)


class FixedLink(Linked):
    """A map without weight; what it is given as one is ignored."""

    def __init__(self, pre: Shape, post: Shape, map: Map, transpose: Map) -> None:
        super().__init__(pre, post)
        self.map, self.transpose = map, transpose

    def apply(self, u: Tensor, w: Tensor) -> Tensor:
        return self.map(u)

    def adjoint(self, v: Tensor, w: Tensor) -> Tensor:
        return self.transpose(v)


class ScaledLink(FixedLink):
    """A map without weight, scaled per channel:  apply(u, w) = w map(u)."""

    def apply(self, u: Tensor, w: Tensor) -> Tensor:
        return _per_channel(w) * super().apply(u, w)

    def adjoint(self, v: Tensor, w: Tensor) -> Tensor:
        return super().adjoint(_per_channel(w) * v, w)

    def correlate(self, u: Tensor, v: Tensor, w: Tensor) -> Tensor:
        products = v * self.map(u)
        return products.sum((0, 2, 3)) if w.dim() else products.sum()


def _per_channel(w: Tensor) -> Tensor:
    return w.view(-1, 1, 1) if w.dim() else w


class ChainLink(Linked):
    """Linear maps one after the other, of which one has the weight.

    Arguments:
        links: in the order in which a signal passes them.
        place: which of them has the weight.
    """

    def __init__(self, links: tuple[Linked, ...], place: int) -> None:
        super().__init__(links[0].pre, links[-1].post)
        self.before, self.weighted, self.behind = links[:place], links[place], links[place + 1 :]
        self.links = links

    def apply(self, u: Tensor, w: Tensor) -> Tensor:
        for link in self.links:
            u = link.apply(u, w)
        return u

    def adjoint(self, v: Tensor, w: Tensor) -> Tensor:
        for link in reversed(self.links):
            v = link.adjoint(v, w)
        return v

    def correlate(self, u: Tensor, v: Tensor, w: Tensor) -> Tensor:
        for link in self.before:
            u = link.apply(u, w)
        for link in reversed(self.behind):
            v = link.adjoint(v, w)
        return self.weighted.correlate(u, v, w)


# --------------------------------------------------------------------------- max-pooling


class Windows(NamedTuple):
    """What max-pooling has seen: the values before it, their largest per window, and where those are."""

    values: Tensor
    largest: Tensor
    winners: Tensor


class PooledLink(Selecting):
    """A linear map followed by max-pooling.

    A sweep asks for `apply` when it updates post, and for `adjoint` at the same state of pre when it updates pre. What
    `apply` found is kept until that state is gone, so that no convolution is computed twice.

    Arguments:
        link: the map before the pooling.
        post: shape behind it.
        sizes: kernel, stride and padding of its windows, each a pair.
    """

    def __init__(self, link: Linked, post: Shape, sizes: Iterable[tuple[int, int]]) -> None:
        super().__init__(link.pre, post)
        self.link, self.sizes = RealLink(link), (*map(list, sizes), [1, 1])
        self._here, self._moved, self._shifted, self._full = Kept(), Kept(), Kept(), Kept()
        self._placed = Kept()

    # ---------------------------------------------------------------- in states

    def apply(self, u: Tensor, w: Tensor) -> Tensor:
        return self._windows(u, w).largest

    def adjoint(self, v: Tensor, w: Tensor, u: Tensor) -> Tensor:
        return self.link.adjoint(self.place(v, w, u), w)

    def correlate(self, u: Tensor, v: Tensor, w: Tensor) -> Tensor:
        return self.link.correlate(u, v, w)

    def place(self, v: Tensor, w: Tensor, u: Tensor) -> Tensor:
        windows = self._windows(u, w)  # a clamped u has the same rows for every phase of v
        parts = [self._spread(part, windows) for part in v.split(u.shape[0])]
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def placed(self, v: Tensor, w: Tensor, u: Tensor) -> Tensor:
        return self._placed((v, w, u), lambda: self.place(v, w, u))

    def _windows(self, u: Tensor, w: Tensor) -> Windows:
        return self._here((u, w), lambda: self._pool(self.link.apply(u, w)))

    def _pool(self, values: Tensor) -> Windows:
        largest, winners = aten.max_pool2d_with_indices(values, *self.sizes, False)
        return Windows(values, largest, winners)

    def _spread(self, v: Tensor, windows: Windows) -> Tensor:
        """S^T v: every value at the place of its winner, zero elsewhere; a clamped v is the same in every phase."""
        phases = windows.winners.shape[0] // v.shape[0]
        return aten.max_pool2d_with_indices_backward(
            repeat(v, phases), windows.values, *self.sizes, False, windows.winners
        )

    # ---------------------------------------------------------------- in displacements

    def apply_change(self, change: Tensor, w: Tensor, u: Tensor) -> Tensor:
        """max(z + dz) - max(z) = dz at the new winner + (z at the new winner - z at the old one), without loss."""
        return self._new_windows(change, w, u).largest

    def adjoint_change(self, change: Tensor, w: Tensor, v: Tensor, moved: Tensor, u: Tensor) -> Tensor:
        return self.link.adjoint(self.place_change(change, w, v, moved, u), w)

    def place_moved(self, v: Tensor, w: Tensor, moved: Tensor, u: Tensor) -> Tensor:
        return self._spread(v, self._new_windows(moved, w, u))

    def place_change(self, change: Tensor, w: Tensor, v: Tensor, moved: Tensor, u: Tensor) -> Tensor:
        def shifted() -> Tensor:  # zero where the winner is the same
            return self._spread(v, new) - self._spread(v, self._old_windows(u, w))

        new = self._new_windows(moved, w, u)
        return self._spread(change, new) + self._shifted((v, w, moved, u), shifted)

    def _old_windows(self, u: Tensor, w: Tensor) -> Windows:
        if w.dtype == u.dtype:
            return self._windows(u, w)
        # products of displacements may be in half precision, states may not
        return self._windows(u, self._full((w,), lambda: w.to(u.dtype)))

    def _new_windows(self, change: Tensor, w: Tensor, u: Tensor) -> Windows:
        def found() -> Windows:
            old, moved = self._old_windows(u, w), self.link.apply(change, w)
            new = self._pool(old.values + moved)
            there = at(moved, new.winners) + (at(old.values, new.winners) - old.largest)
            return Windows(new.values, there, new.winners)

        return self._moved((change, w, u), found)


def at(values: Tensor, winners: Tensor) -> Tensor:
    """The values at the places of the winners: [rows, channels, height, width] -> the shape of the winners."""
    rows, channels, height, width = winners.shape
    last = arranged(values).permute(0, 2, 3, 1).view(rows, -1, channels)
    found = last.gather(1, arranged(winners).permute(0, 2, 3, 1).view(rows, -1, channels))
    return found.view(rows, height, width, channels).permute(0, 3, 1, 2)
