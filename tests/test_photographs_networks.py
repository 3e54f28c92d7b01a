"""Predictive coding networks on photographs: VGG10 of the examples, narrow and on small pictures, trains from JPEGs."""

from __future__ import annotations

from pathlib import Path

import pytest
from photos import CLASSES, photographs, write_folder

from physnet.declaration import Experiment, parse_experiment
from physnet.training import Trainer

EXAMPLES = Path(__file__).parent.parent / "examples"
SIZE = 32


def small(name: str, folder: Path, channels: int = 4, epochs: int = 5) -> Experiment:
    """An example for ImageNet with a fraction of its width, for small pictures of a few classes in a folder."""
    text = (EXAMPLES / f"{name}.yaml").read_text()
    for wide in (64, 128, 256, 512):
        text = text.replace(f"shape: [{wide}, ", f"shape: [{wide * channels // 64}, ")
    for side in (224, 112, 56, 28, 14, 7):
        text = text.replace(f", {side}, {side}]", f", {side * SIZE // 224}, {side * SIZE // 224}]")
    text = text.replace("shape: 2048", "shape: 32").replace("shape: 1000", f"shape: {len(CLASSES)}")
    # weights that narrow layers need to pass on anything at all, and a rate for a few steps
    text = (
        text.replace("sqrt(fan_out)", "sqrt(fan_in)")
        .replace("gain: 1}", "gain: 2.449}")
        .replace("lr: 0.02", "lr: 0.01")
    )
    data = f"data: {{imagefolder: {{folder: {folder}, size: {SIZE}}}}}\n  top: 2\n  workers: 0"
    text = text.replace("data: imagenet", data).replace("epochs: 50", f"epochs: {epochs}").replace("256\n", "8\n")
    return parse_experiment(text)


@pytest.mark.filterwarnings("ignore:.*(have not converged|respond in proportion).*")
@pytest.mark.parametrize("name", ["imagenet_pcn_vgg10", "imagenet_pcn_vgg10_skip"])
def test_vgg10_trains_on_a_folder_of_photographs(name: str, tmp_path: Path) -> None:
    """Chance is 75 % of errors among one, 50 % among two; log 4 is the cost of a network that knows nothing."""
    folder = write_folder(tmp_path, photographs(train=4, val=2))
    metrics = list(Trainer(small(name, folder)).epochs())
    assert all(not epoch.unreadable for epoch in metrics)
    assert metrics[-1].train_cost < metrics[0].train_cost
    for epoch in metrics:
        assert epoch.train_error is not None and epoch.test_error is not None
        assert epoch.train_top_error is not None and epoch.test_top_error is not None
        assert epoch.train_top_error <= epoch.train_error and epoch.test_top_error <= epoch.test_error
