"""What the networks are shown: inputs, classes, and what they are called."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from physnet.data import load_data
from physnet.errors import DataError
from physnet.randomness import stream

Samples = tuple[Tensor, Tensor, str]


def clothes() -> Samples:
    """28 x 28 pictures: Fashion-MNIST where it is installed, else scikit-learn's digits, enlarged."""
    try:
        data = load_data({"fashion_mnist": {"limit": 10_000}})
        return torch.from_numpy(data.train["x"]), torch.from_numpy(data.train["y"]), "fashion_mnist"
    except DataError:
        data = load_data("digits")
        small = torch.from_numpy(data.train["x"]).view(-1, 1, 8, 8)
        return nn.functional.interpolate(small, size=28).flatten(1), torch.from_numpy(data.train["y"]), "digits"


def clothes_as_photos() -> Samples:
    """The same pictures, padded to 32 x 32, in three equal channels, at mean 0 and a standard deviation of 1."""
    x, y, name = clothes()
    x = nn.functional.pad(x.view(-1, 1, 28, 28), (2, 2, 2, 2))
    spread, mean = torch.std_mean(x)
    return ((x - mean) / spread).repeat(1, 3, 1, 1), y, f"{name}, padded"


def smooth(rows: int = 16, side: int = 32, classes: int = 10, seed: int = 0) -> Samples:
    """Random coloured pictures with the spectrum of photographs, amplitude 1/frequency: a stand-in for CIFAR that is
    the same everywhere.

    Normalised as published (arXiv 2509.26003): mean 0, and three standard deviations to the unit.
    """
    generator = stream(seed, "smooth pictures")
    noise = torch.randn(rows, 3, side, side, generator=generator)
    grey = torch.randn(rows, 1, side, side, generator=generator)
    noise = noise + 2 * grey  # the channels of a photograph resemble each other
    frequency = torch.fft.fftfreq(side)
    radius = torch.sqrt(frequency[:, None] ** 2 + frequency**2).clamp_min(1 / side)
    pictures = torch.fft.ifft2(torch.fft.fft2(noise) / radius).real
    spread, mean = torch.std_mean(pictures, (0, 2, 3), keepdim=True)
    return (pictures - mean) / (3 * spread), torch.arange(rows) % classes, "smooth random pictures"
