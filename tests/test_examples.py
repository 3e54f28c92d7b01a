"""The examples declare what they say they declare."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest

from physnet.declaration import load_experiment

FOLDER = Path(__file__).parent.parent / "examples"
CROP4, CROP2 = {"crop": {"padding": 4}}, {"crop": {"padding": 2}}
CONV = {"image_h1": 0.4, "h1_h2": 0.7, "h2_h3": 0.6, "h3_h4": 0.3, "h4_label": 0.4}
_NAMES = ("image", "h1", "h2", "h3", "h4", "h5", "h6", "h7", "h8")
RESNET = {f"{pre}_{post}": 0.6 for pre, post in itertools.pairwise(_NAMES)} | {"h8_label": 0.8}
RESNET |= {f"{pre}_{post}": 0.7 for pre, post in itertools.pairwise(_NAMES[::2])}  # the skips

# arXiv 2312.15103 (code: SGD with plain momentum) and arXiv 2509.26003 (SGD after Nesterov):
# gains of the weights, beta, whether after Nesterov, weight decay, gradient clip, augmentation
PUBLISHED: dict[str, tuple[dict[str, float], float, bool, float, float | None, list[Any]]] = {
    "cifar10_conv_hopfield": (CONV, 0.1, False, 2.5e-4, None, ["flip", CROP4]),
    "cifar10_hopfield_resnet13": (
        *(RESNET, 0.1, True, 2.5e-4, 1.0),
        ["flip", {"rand_augment": {"operations": 3, "magnitude": 9}}, CROP4],
    ),
    "cifar100_hopfield_resnet13": (
        *(RESNET, 0.15, True, 3.5e-4, 1.0),
        ["flip", {"rand_augment": {"operations": 4, "magnitude": 9}}, CROP4],
    ),
    "fashion_hopfield_resnet13": (RESNET, 0.15, True, 3.5e-4, 1.0, ["flip", CROP2]),
}


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.yaml")))
def test_every_example_is_read_for_every_method_it_names(name: str) -> None:
    file = FOLDER / f"{name}.yaml"
    text = file.read_text()
    assert f"examples/{name}.yaml" in text or "examples/" not in text
    load_experiment(file)
    for method in ("backprop", "backprop_batchnorm", "dual"):
        if f"--method {method}" in text:
            assert load_experiment(file, {"learn.protocol": method}).learn.protocol == method


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_settings(name: str) -> None:
    gains, beta, nesterov, decay, clip, augment = PUBLISHED[name]
    experiment = load_experiment(FOLDER / f"{name}.yaml")
    train = experiment.train
    assert {edge.name: edge.parameters["w"].constants["gain"] for edge in experiment.graph.edges()} == gains
    assert (experiment.learn.protocol, experiment.learn.beta) == ("centered", beta)
    sgd = train.optimizer["sgd"]
    assert (sgd["lr"], sgd["momentum"], sgd.get("nesterov", False), sgd["weight_decay"]) == (0.03, 0.9, nesterov, decay)
    assert train.scheduler == {"cosine_annealing": {"eta_min": 2e-6}}
    assert (train.epochs, train.batch, train.clip) == (300, 128, clip)
    assert train.augment == augment


# arXiv 2606.03584 (predictions) and 2402.08573 (dual propagation): weight layers, protocol, beta, batch, rate, after
# Nesterov, weight decay, last rate, epochs; and the channels, of which the number of parameters follows
PREDICTIONS: dict[str, tuple[int, str, float, int, float, bool, float, float, int]] = {
    "cifar10_pcn_vgg5": (6, "centered", 0.02, 64, 0.01, True, 3e-4, 1e-6, 100),
    "imagenet_pcn_vgg10": (10, "centered", 0.05, 256, 0.02, True, 2e-4, 2e-6, 50),
    "imagenet_pcn_vgg10_skip": (12, "centered", 0.05, 256, 0.02, True, 2e-4, 2e-6, 50),
    "imagenet32_dualprop_vgg16": (16, "dual", 0.01, 250, 0.02, False, 5e-4, 2e-6, 130),
}
CHANNELS = {
    "cifar10_pcn_vgg5": ([3, 128, 256, 512, 512, 512], [2048, 10]),
    "imagenet_pcn_vgg10": ([3, 64, 128, 256, 256, 512, 512, 512, 512], [25088, 2048, 1000]),
    "imagenet32_dualprop_vgg16": ([3, *[64] * 2, *[128] * 2, *[256] * 3, *[512] * 6], [512, 4096, 4096, 1000]),
}


@pytest.mark.parametrize("name", PREDICTIONS)
def test_published_settings_of_predictions(name: str) -> None:
    layers, protocol, beta, batch, rate, nesterov, decay, last, epochs = PREDICTIONS[name]
    experiment = load_experiment(FOLDER / f"{name}.yaml")
    train, sgd = experiment.train, experiment.train.optimizer["sgd"]
    edges = list(experiment.graph.edges())
    assert len(edges) == layers
    assert all(edge.predicts for edge in edges)
    assert (experiment.learn.protocol, experiment.learn.beta) == (protocol, beta)
    assert (train.batch, train.epochs, train.scheduler) == (batch, epochs, {"cosine_annealing": {"eta_min": last}})
    assert (sgd["lr"], sgd["momentum"], sgd.get("nesterov", False), sgd["weight_decay"]) == (rate, 0.9, nesterov, decay)


@pytest.mark.parametrize("name", CHANNELS)
def test_published_widths(name: str) -> None:
    channels, dense = CHANNELS[name]
    graph = load_experiment(FOLDER / f"{name}.yaml").graph
    expected = sum(9 * a * b + b for a, b in itertools.pairwise(channels))
    expected += sum(a * b + b for a, b in itertools.pairwise(dense))
    assert sum(math.prod(shape) for _, shape, _ in graph.tensors().values()) == expected


def test_dual_propagation_and_predictive_coding_train_the_same_network() -> None:
    first, second = (load_experiment(FOLDER / f"{name}.yaml") for name in ("fashion_pcn_mlp10", "fashion_dualprop"))
    assert first.graph.tensors() == second.graph.tensors()
    assert first.train == second.train
