"""The examples declare what they say they declare."""

from __future__ import annotations

import itertools
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
    for method in ("backprop", "backprop_batchnorm"):
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
