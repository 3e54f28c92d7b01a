"""Augmentation: what may come out is known pixel by pixel, and depends on seed, batch and sample alone."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps
from test_checkpoints import assert_same, completed, resumed, stopped
from torch import Tensor

from physnet import randaugment
from physnet.arrays import DataSet, Normalisation
from physnet.augmentations import AUGMENTATIONS, Augmentation, Crop, Flip, RandAugment, find_augmentation
from physnet.augmenting import Augmenter
from physnet.data import DATA
from physnet.declaration import parse_experiment
from physnet.errors import DeclarationError, ShapeError
from physnet.graph import EnergyGraph
from physnet.rows import Share
from physnet.training import Trainer

ALL = ["flip", {"crop": {"padding": 2}}, {"rand_augment": {"operations": 3, "magnitude": 9}}]
WHOLE = Share(24, 0, 1)


def images(count: int = 24, channels: int = 3, height: int = 9, width: int = 7, seed: int = 0) -> Tensor:
    """Pixels with 256 levels."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, channels, height, width), generator=generator).float() / 255


def numbers(augmentation: Augmentation, count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, augmentation.draws, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --------------------------------------------------------------------------- flips and crops


@given(seed=st.integers(0, 999), probability=st.floats(0, 1), channels=st.sampled_from([1, 3, 4]))
def test_a_flip_is_the_image_or_its_mirror(seed: int, probability: float, channels: int) -> None:
    x, augmentation = images(channels=channels, seed=seed), Flip(probability)
    drawn = numbers(augmentation, 24, seed)
    for image, mirror, result, number in zip(x, x.flip(-1), augmentation.apply(x, drawn), drawn, strict=True):
        assert torch.equal(result, mirror if number < probability else image)


@given(
    seed=st.integers(0, 999),
    padding=st.integers(0, 3),
    edge=st.booleans(),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 8), st.integers(1, 8)),
)
def test_a_crop_is_a_window_of_the_padded_image(
    seed: int, padding: int, edge: bool, shape: tuple[int, int, int]
) -> None:
    x, augmentation = images(6, *shape, seed=seed), Crop(padding, edge=edge)
    drawn = numbers(augmentation, 6, seed)
    pads = ((0, 0), (0, 0), (padding, padding), (padding, padding))
    padded = np.pad(x.numpy(), pads, "edge" if edge else "constant")
    for image, result, pair in zip(padded, augmentation.apply(x, drawn), drawn, strict=True):
        row, column = (int(number * (2 * padding + 1)) for number in pair)
        window = image[:, row : row + shape[1], column : column + shape[2]]
        assert np.array_equal(result.numpy(), window)


def test_all_windows_and_mirrors_come_up_alike() -> None:
    """24 x 500 draws: each share within five standard errors of that of a fair die."""
    count = 12_000
    x = torch.arange(25.0).view(1, 1, 5, 5).expand(count, 1, 5, 5)
    crops = Crop(1, edge=False).apply(x + 1, numbers(Crop(), count))[:, 0, 1:4, 1:4]
    found = torch.unique(crops, dim=0, return_counts=True)[1] / count
    assert len(found) == 9
    assert (found - 1 / 9).abs().max() < 5 * math.sqrt(1 / 9 * 8 / 9 / count)
    flipped = (Flip().apply(x, numbers(Flip(), count))[:, 0, 0, 0] == 4).float().mean()
    assert abs(float(flipped) - 0.5) < 5 * 0.5 / math.sqrt(count)


# --------------------------------------------------------------------------- RandAugment


def pillow(name: str, image: Image.Image, sign: float, strength: float) -> Image.Image:
    """The operation by Pillow, with the ranges of torchvision's table."""
    factor, size = 1 + 0.9 * strength * sign, image.size
    s, t = 0.3 * strength * sign, [int(150 / 331 * n * strength) * sign for n in size]
    affine = {"shear_x": (1, s, 0, 0, 1, 0), "shear_y": (1, 0, 0, s, 1, 0)}
    affine |= {"translate_x": (1, 0, t[0], 0, 1, 0), "translate_y": (1, 0, 0, 0, 1, t[1])}
    enhancers = {"brightness": ImageEnhance.Brightness, "color": ImageEnhance.Color}
    enhancers |= {"contrast": ImageEnhance.Contrast, "sharpness": ImageEnhance.Sharpness}
    if name in affine:
        return image.transform(size, Image.Transform.AFFINE, affine[name], Image.Resampling.NEAREST)
    if name in enhancers:
        return enhancers[name](image).enhance(factor)
    match name:
        case "rotate":
            return image.rotate(30 * strength * sign, Image.Resampling.NEAREST)
        case "posterize":
            return ImageOps.posterize(image, 8 - round(4 * strength))
        case "solarize" if strength > 0:  # at no strength Pillow inverts white
            return ImageOps.solarize(image, 255 * (1 - strength))  # type: ignore[arg-type]
        case "auto_contrast":
            return ImageOps.autocontrast(image)
        case "equalize":
            return ImageOps.equalize(image)
    return image


def photograph(size: int, channels: int, seed: int) -> Image.Image:
    """Smooth blobs and a sharp square: histograms and edges as photographs have them."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] / size
    planes = [
        110 + 60 * np.sin(generator.uniform(2, 9) * x + generator.uniform(0, 6)) * np.cos(generator.uniform(2, 9) * y)
        for _ in range(channels)
    ]
    picture = np.clip(np.stack(planes, 2) + generator.normal(0, 12, (size, size, channels)), 0, 255).astype(np.uint8)
    picture[size // 4 : size // 2, size // 3 : size // 2] = generator.integers(0, 256, channels)
    return Image.fromarray(picture if channels == 3 else picture[..., 0])


def as_tensor(image: Image.Image) -> Tensor:
    pixels = torch.from_numpy(np.array(image)).float() / 255
    return pixels[None] if pixels.dim() == 2 else pixels.permute(2, 0, 1)


def operated(name: str, x: Tensor, sign: float, strength: float) -> Tensor:
    """One operation on one image, chosen by the numbers that stand for it."""
    place = (randaugment.OPERATIONS.index(name) + 0.5) / len(randaugment.OPERATIONS)
    which = torch.full((1, 1), place, dtype=torch.float64)
    return randaugment.rand_augment(x[None], which, torch.full((1, 1), 0.25 + 0.5 * (sign > 0)), strength)[0]


@pytest.mark.parametrize("strength", [0.0, 0.3, 0.9, 1.0])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", randaugment.OPERATIONS)
def test_operations_are_those_of_pillow(name: str, channels: int, strength: float) -> None:
    """Colours within the rounding of Pillow's bytes; moved pixels equal but for ties between neighbours."""
    for seed in range(3):
        image = photograph(32, channels, seed)
        for sign in (-1.0, 1.0):
            found = operated(name, as_tensor(image), sign, strength)
            expected = as_tensor(pillow(name, image, sign, strength))
            differing = ((found - expected).abs() > 1.51 / 255).float().mean()
            limit = 0.02 if name in ("rotate", "shear_x", "shear_y") else 0.0
            assert differing <= limit, (name, seed, sign, float(differing))


def test_all_operations_come_up_alike_and_by_themselves() -> None:
    """Each image has its own operation: that of its row, whatever its neighbours have."""
    x, augmentation = images(280, height=8, width=8), RandAugment(2, 15)
    drawn = numbers(augmentation, 280)
    whole = augmentation.apply(x, drawn)
    alone = torch.cat([augmentation.apply(x[i : i + 1], drawn[i : i + 1]) for i in range(280)])
    torch.testing.assert_close(whole, alone, rtol=0, atol=1e-6)
    assert 0 <= whole.min() <= whole.max() <= 1
    chosen = (drawn[:, ::2] * 14).long().flatten().bincount(minlength=14) / 560
    assert (chosen - 1 / 14).abs().max() < 5 * math.sqrt(1 / 14 / 560)


def test_no_operation_draws_for_itself() -> None:
    x, augmentation = images(), RandAugment(3, 9)
    before = torch.random.get_rng_state()
    results = [augmentation.apply(x, numbers(augmentation, 24)) for _ in range(2)]
    assert torch.equal(*results)
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(x, images())  # and what was given stays


def test_blank_images_stay_blank() -> None:
    """Where there is no contrast, there is none to stretch."""
    for name in ("auto_contrast", "equalize", "contrast"):
        blank = torch.full((3, 8, 8), 200 / 255)
        torch.testing.assert_close(operated(name, blank, 1.0, 0.3), blank, rtol=0, atol=1e-6)


@given(value=st.integers(0, 255))
def test_levels_survive_normalisation(value: int) -> None:
    """A pixel that came back from a normalised one keeps its level: k, not k - 1."""
    mean, std = 0.4377, 0.3 * 3
    pixel = (torch.full((3, 8, 8), value / 255) - mean) / std * std + mean
    assert torch.equal((operated("posterize", pixel, 1.0, 0.3) * 255).round(), torch.full((3, 8, 8), value & 0xFE))


# --------------------------------------------------------------------------- batches of a run


def network(shape: Any = (3, 8, 8)) -> EnergyGraph:
    graph = EnergyGraph("hopfield").input("image", list(shape)).output("label", 4, cost="(x - y)**2/2")
    return graph.couple("image", "label")


def data(values: np.ndarray | None = None, normalise: bool = False) -> DataSet:
    x = images(24, 3, 8, 8).numpy() if values is None else values
    arrays = {"image": x, "target": np.arange(len(x)) % 4}
    if not normalise:
        return DataSet("small", arrays, arrays)
    mean, std = (np.array(v, np.float32).reshape(3, 1, 1) for v in ([0.5, 0.4, 0.3], [0.6, 0.7, 0.9]))
    arrays = arrays | {"image": (x - mean) / std}
    return DataSet("small", arrays, arrays, {"image": Normalisation(mean, std)})


def batch(samples: DataSet) -> dict[str, Tensor]:
    return {name: torch.from_numpy(value) for name, value in samples.train.items()}


def test_what_becomes_of_a_sample_depends_on_seed_batch_and_row_alone() -> None:
    samples = data()
    augment = Augmenter(ALL, samples, network(), 5)
    whole = augment(batch(samples), 3, WHOLE)
    again = Augmenter(ALL, samples, network(), 5)(batch(samples), 3, WHOLE)
    assert torch.equal(whole["image"], again["image"])
    assert torch.equal(whole["target"], batch(samples)["target"])
    for other in (augment(batch(samples), 4, WHOLE), Augmenter(ALL, samples, network(), 6)(batch(samples), 3, WHOLE)):
        assert (other["image"] != whole["image"]).flatten(1).any(1).float().mean() > 0.8
    twice = Augmenter([{"crop": {}}, {"crop": {}}], samples, network(), 5)
    once = Augmenter([{"crop": {}}], samples, network(), 5)
    first = once(batch(samples), 3, WHOLE)
    assert not torch.equal(twice(batch(samples), 3, WHOLE)["image"], once(first, 3, WHOLE)["image"])


@given(processes=st.integers(1, 30), normalise=st.booleans())
def test_processes_that_share_a_batch_augment_it_as_one_does(processes: int, normalise: bool) -> None:
    samples = data(normalise=normalise)
    augment = Augmenter(ALL, samples, network(), 5)
    whole = augment(batch(samples), 3, WHOLE)["image"]
    for rank in range(processes):
        share = Share(24, rank, processes)
        part = {name: value[share.rows] for name, value in batch(samples).items()}
        torch.testing.assert_close(augment(part, 3, share)["image"], whole[share.rows], rtol=0, atol=2e-6)


def test_normalised_images_are_changed_as_pixels() -> None:
    """Augmenting the normalised is normalising the augmented; black around an image is black, not grey."""
    plain, normalised = data(), data(normalise=True)
    scale = normalised.normalised["image"]
    for declared in (ALL, [{"crop": {"edge": False}}], [{"rand_augment": {}}]):
        pixels = Augmenter(declared, plain, network(), 5)(batch(plain), 1, WHOLE)["image"]
        found = Augmenter(declared, normalised, network(), 5)(batch(normalised), 1, WHOLE)["image"]
        expected = (pixels - torch.from_numpy(scale.mean)) / torch.from_numpy(scale.std)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_the_node_says_how_flat_samples_are_images() -> None:
    flat = data(images(24, 1, 4, 6).flatten(1).numpy())
    found = Augmenter([{"flip": {"probability": 1}}], flat, network((1, 4, 6)), 0)(batch(flat), 1, WHOLE)["image"]
    assert torch.equal(found.view(24, 4, 6), images(24, 1, 4, 6)[:, 0].flip(-1))


def test_samples_of_a_flat_node_may_be_images() -> None:
    found = Augmenter([{"flip": {"probability": 1}}], data(), network((192,)), 0)(batch(data()), 1, WHOLE)["image"]
    assert torch.equal(found, images(24, 3, 8, 8).flip(-1))


def test_nothing_declared_changes_nothing() -> None:
    flat = data(np.zeros((24, 5), np.float32))
    assert Augmenter([], flat, network((5,)), 0)(batch(flat), 1, WHOLE)["image"] is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_dtype_stays(dtype: torch.dtype) -> None:
    samples = {**batch(data(normalise=True)), "image": batch(data(normalise=True))["image"].to(dtype)}
    found = Augmenter(ALL, data(normalise=True), network(), 0)(samples, 1, WHOLE)
    assert found["image"].dtype == dtype


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_devices_agree() -> None:
    augment = Augmenter(ALL, data(normalise=True), network(), 5)
    samples = batch(data(normalise=True))
    there = augment({name: value.cuda() for name, value in samples.items()}, 3, WHOLE)["image"]
    assert there.is_cuda
    expected = augment(samples, 3, WHOLE)["image"]
    assert ((there.cpu() - expected).abs() > 1e-5).float().mean() < 0.01  # ties between pixels, and between levels


# --------------------------------------------------------------------------- what doesn't fit

WRONG: list[tuple[Any, tuple[str | int, ...], str]] = [
    ("flop", (), "did you mean flip"),
    (3, (), "rand_augment"),
    ({"flip": {}, "crop": {}}, (), "flip"),
    ({"flip": 3}, ("flip",), "options"),
    ({"flip": {"chance": 0.5}}, ("flip",), "probability"),
    *(({"flip": {"probability": value}}, ("flip", "probability"), "from 0 to 1") for value in (-0.1, 2, True, "1")),
    *(({"crop": {"padding": value}}, ("crop", "padding"), "whole number") for value in (-1, 2.0, True, 10**9)),
    *(({"crop": {"size": value}}, ("crop", "size"), "whole number") for value in (0, "32")),
    ({"crop": {"edge": 1}}, ("crop", "edge"), "true or false"),
    *(({"rand_augment": {"operations": value}}, ("rand_augment", "operations"), "whole") for value in (0, 101)),
    *(({"rand_augment": {"magnitude": value}}, ("rand_augment", "magnitude"), "0 to 30") for value in (-1, 31, 9.0)),
]


@pytest.mark.parametrize(("declared", "path", "fix"), WRONG)
def test_wrong_declarations_are_refused_with_their_place(declared: Any, path: tuple[str | int, ...], fix: str) -> None:
    with pytest.raises(DeclarationError) as caught:
        find_augmentation(declared)
    (fault,) = caught.value.faults
    assert fault.path == path
    assert fix in fault.fix


TEXT = """\
energy: hopfield
nodes:
  image: {shape: SHAPE, role: input}
  label: {shape: 10, role: output}
edges: [image -> label]
cost: (x - y)**2/2
train:
  data: digits
  epochs: 1
  device: cpu
  augment: AUGMENT
"""


def text(augment: str, shape: str = "[1, 8, 8]") -> str:
    return TEXT.replace("AUGMENT", augment).replace("SHAPE", shape)


@pytest.mark.parametrize(
    ("augment", "shape", "place", "message"),
    [
        ("[flip, flop]", "[1, 8, 8]", (11, 19), "no augmentation 'flop'"),
        ("[{crop: {padding: -1}}]", "[1, 8, 8]", (11, 30), "padding is -1"),
        ("[flip]", "64", (11, 3), "the inputs that are images: none"),
        ("[flip, {crop: {size: 32}}]", "[1, 8, 8]", (11, 33), "images are 8 x 8"),
        ("[rand_augment]", "[4, 4, 4]", (11, 13), "not on 4 channels"),
        ("[rand_augment]", "[1, 2, 32]", (11, 13), "too small"),
    ],
)
def test_what_does_not_fit_is_found_before_training(
    augment: str, shape: str, place: tuple[int, int], message: str
) -> None:
    with pytest.raises(DeclarationError) as caught:
        Trainer(parse_experiment(text(augment, shape), "small.yaml"))
    (fault,) = caught.value.faults
    assert message in fault.message
    assert fault.place is not None
    assert (fault.place.line, fault.place.column) == place
    assert fault.fix


def test_all_faults_are_found_at_once() -> None:
    with pytest.raises(DeclarationError) as caught:
        parse_experiment(text("[flop, {crop: {edge: 2}}, 3]"))
    assert len(caught.value.faults) == 3


def test_images_in_two_orders_are_refused() -> None:
    samples = data(images(24, 8, 8, 3).numpy())
    with pytest.raises(ShapeError, match=r"\[8, 8, 3\]"):
        Augmenter(["flip"], samples, network(), 0)


def test_two_image_inputs_are_refused() -> None:
    graph = EnergyGraph("hopfield").input("left", [1, 4, 4]).input("right", [1, 4, 4])
    graph.output("label", 2, cost="(x - y)**2/2").couple("left", "label").couple("right", "label")
    arrays = {name: np.zeros((3, 1, 4, 4), np.float32) for name in ("left", "right")}
    with pytest.raises(DeclarationError, match="'left' and 'right'"):
        Augmenter(["flip"], DataSet("two", arrays, arrays), graph, 0)


NO_PIXELS = [images(height=8, width=8).numpy() * 255, np.ones((24, 3, 8, 8), np.int64), np.full((24, 3, 8, 8), np.nan)]


@pytest.mark.parametrize("values", NO_PIXELS)
def test_operations_on_colours_need_pixels(values: np.ndarray) -> None:
    with pytest.raises(DeclarationError, match=r"pixels in \[0, 1\]"):
        Augmenter(["rand_augment"], data(values), network(), 0)
    Augmenter(["flip", "crop"], data(values), network(), 0)(batch(data(values)), 1, WHOLE)


def test_without_kornia_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kornia", None)
    with pytest.raises(DeclarationError, match=r"physnet\[images\]"):
        Augmenter(["rand_augment"], data(), network(), 0)
    Augmenter(["flip", "crop"], data(), network(), 0)(batch(data()), 1, WHOLE)


# --------------------------------------------------------------------------- runs and plug-ins


def test_training_sees_augmented_samples_and_testing_does_not() -> None:
    """With every image mirrored, training is training on mirrored images."""
    mirrored = Trainer(parse_experiment(text("[{flip: {probability: 1}}]")))
    plain = Trainer(parse_experiment(text("[]")))
    assert torch.equal(mirrored.test["image"], plain.test["image"])
    images = plain.train["image"]
    images.copy_(images.view(-1, 8, 8).flip(-1).flatten(1))
    for found, expected in zip(mirrored.epochs(), plain.epochs(), strict=True):
        assert replace(found, seconds=0) == replace(expected, seconds=0)


@pytest.mark.parametrize("initial", ["zero", "previous"])
def test_a_run_goes_on_exactly(tmp_path: Path, initial: str) -> None:
    declared = text("[flip, {crop: {padding: 1}}, {rand_augment: {operations: 2}}]").replace("epochs: 1", "epochs: 2")
    declared += "  batch: 300\n  threads: 1\n  accumulate: 2\nrelax: {initial: INITIAL}\n".replace("INITIAL", initial)
    stopped(declared, tmp_path, 4)
    assert_same(resumed(tmp_path), completed(declared))


def test_an_augmentation_of_your_own_joins_by_name() -> None:
    @dataclass(frozen=True)
    class Negative(Augmentation):
        """a(x) = 1 - x."""

        rows: int = 8

        def apply(self, images: Tensor, numbers: Tensor) -> Tensor:
            return 1 - images[:, :, : self.rows]

    with pytest.raises(DeclarationError, match="Augmentation"):
        AUGMENTATIONS["identity"] = int  # type: ignore[assignment]
    AUGMENTATIONS["negative"] = Negative
    try:
        found = Augmenter(["negative"], data(), network(), 0)(batch(data()), 1, WHOLE)
        assert torch.equal(found["image"], 1 - images(24, 3, 8, 8))
        with pytest.raises(ShapeError, match=r"Negative made images of shape \[3, 5, 8\] out of \[3, 8, 8\]"):
            Augmenter([{"negative": {"rows": 5}}], data(), network(), 0)(batch(data()), 1, WHOLE)
    finally:
        del AUGMENTATIONS["negative"]


def test_a_normalised_set_is_trained_on_and_tested_alike() -> None:
    """Test images are normalised as training images are: by the numbers of the training set."""
    samples = data(normalise=True)
    DATA["small_pictures"] = lambda: samples
    try:
        declared = text("[flip]", "[3, 8, 8]").replace("digits", "small_pictures").replace("shape: 10", "shape: 4")
        trainer = Trainer(parse_experiment(declared))
        assert torch.equal(trainer.test["image"], batch(samples)["image"])
        assert len(list(trainer.epochs())) == 1
    finally:
        del DATA["small_pictures"]
