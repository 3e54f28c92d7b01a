"""Augmentation of the batches of a run.

x = (a(pixel, u) - mean) / std,    u = stream(seed, "augment", batch, a)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from physnet.arrays import DataSet
from physnet.augmentations import find_augmentations
from physnet.errors import DeclarationError, Fault, ShapeError, located
from physnet.graph import EnergyGraph
from physnet.randomness import stream
from physnet.rows import Share


class Augmenter:
    """Changes the images of training batches as declared, on the device on which they are.

    Random numbers are drawn for the whole batch, whoever works on which of its rows. Inputs that were normalised are
    changed as the pixels that they were.

    Arguments:
        declared: the augmentations in their order; may be empty.
        data: the samples, named after the nodes of the graph.
        graph: the network.
        seed: of the run.

    Raises:
        DeclarationError: for what is unknown, or doesn't fit the images.
    """

    def __init__(self, declared: Sequence[Any], data: DataSet, graph: EnergyGraph, seed: int) -> None:
        self.augmentations, self.seed = find_augmentations(declared), seed
        if not self.augmentations:
            return
        self.input, self.shape = _image_input(data, graph)
        found = data.normalised.get(self.input)
        self.scale = None if found is None else (torch.from_numpy(found.mean), torch.from_numpy(found.std))
        for place, augmentation in enumerate(self.augmentations):
            within = (place,) if isinstance(declared[place], str) else (place, *declared[place])
            located(within, lambda augmentation=augmentation: augmentation.check(self.shape))
            if augmentation.pixels and self.scale is None:
                located(within, lambda: _require_pixels(self.input, data))

    def __call__(self, batch: Mapping[str, Tensor], number: int, share: Share) -> dict[str, Tensor]:
        """A batch with its images changed.

        Arguments:
            batch: the rows of the share, by name.
            number: of the batch in the run.
            share: which rows of the whole batch these are.
        """
        if not self.augmentations:
            return dict(batch)
        before = batch[self.input]
        images = self._pixels(before).reshape(-1, *self.shape)
        for place, augmentation in enumerate(self.augmentations):
            generator = stream(self.seed, "augment", number, place)
            numbers = torch.rand(share.total, augmentation.draws, generator=generator, dtype=torch.float64)
            changed = augmentation.apply(images, numbers[share.rows])
            if changed.shape != images.shape:
                fault = Fault(
                    f"{type(augmentation).__name__} made images of shape {list(changed.shape[1:])} out of "
                    f"{list(self.shape)}",
                    "return images of the same shape",
                )
                raise ShapeError(fault)
            images = changed
        return {**batch, self.input: self._inputs(images.reshape(before.shape))}

    def _pixels(self, inputs: Tensor) -> Tensor:
        if self.scale is None:
            return inputs
        mean, std = (value.to(inputs) for value in self.scale)
        return inputs * std + mean

    def _inputs(self, pixels: Tensor) -> Tensor:
        if self.scale is None:
            return pixels
        mean, std = (value.to(pixels) for value in self.scale)
        return (pixels - mean) / std


def _image_input(data: DataSet, graph: EnergyGraph) -> tuple[str, tuple[int, ...]]:
    """The input that holds images, by its samples or by its node, and their shape."""
    found: dict[str, tuple[int, ...]] = {}
    for node in graph.nodes():
        if not node.free:
            shapes = {tuple(node.data_shape), data.train.shape(node.name)}
            images = [shape for shape in shapes if len(shape) == 3]
            if len(images) == 2:
                message = f"samples of {data.name} have shape {list(data.train.shape(node.name))}"
                fix = f"give '{node.name}' that shape, or change the data: {list(node.data_shape)} is another order"
                raise ShapeError(Fault(message, fix))
            if images:
                found[node.name] = images[0]
    if len(found) != 1:
        what = " and ".join(f"'{name}'" for name in found) or "none"
        fix = "augment needs one input of shape [channels, height, width]; declare it so, or remove augment"
        raise DeclarationError(Fault(f"the inputs that are images: {what}", fix))
    return next(iter(found.items()))


def _require_pixels(name: str, data: DataSet) -> None:
    low, high = data.train.bounds(name)
    if not (low >= 0 and high <= 1):  # NaN is neither
        fix = "scale them to [0, 1], and let the data set normalise them"
        raise DeclarationError(Fault(f"it works on pixels in [0, 1], but '{name}' has {low:g} to {high:g}", fix))
