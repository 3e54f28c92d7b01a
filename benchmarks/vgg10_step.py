"""Time and memory of one training step of VGG10 at 224 x 224, and what 50 epochs of ImageNet would cost.

    python benchmarks/vgg10_step.py [--batch 2] [--rounds 2] [--size 224]

The network of examples/imagenet_pcn_vgg10.yaml at full width, in float32 on one thread, on made-up pictures: one
step of backpropagation, of the protocol `single` and of `centered`. Rounds are those of the integrator `errors`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
from memory import peak_bytes
from torch import Tensor

from physnet import EquilibriumPropagation, Relaxation, compile_energy, load_experiment
from physnet.graph import EnergyGraph
from physnet.methods import METHODS
from physnet.model import EnergyModel

EXAMPLE = Path(__file__).parent.parent / "examples" / "imagenet_pcn_vgg10.yaml"
EPOCHS, PICTURES, BETA = 50, 1_281_167, 0.05
PUBLISHED = {"backprop": 36.0, "single": 240.0, "centered": 432.0}
"""Hours of 50 epochs on one A100 (arXiv 2606.03584)."""


def network(size: int) -> EnergyGraph:
    """VGG10 for pictures of another size."""
    if size == 224:
        return load_experiment(EXAMPLE).graph
    text = EXAMPLE.read_text()
    for side in (224, 112, 56, 28, 14, 7):
        text = text.replace(f", {side}, {side}]", f", {side * size // 224}, {side * size // 224}]")
    from physnet import graph_from_yaml

    return graph_from_yaml(text)


def steps(model: EnergyModel, batch: dict[str, Tensor], rounds: int) -> dict[str, Callable[[], None]]:
    """One step of every method, with the gradients of all parameters."""
    nudged = Relaxation(max_sweeps=rounds)
    engines = {
        "backprop": METHODS["backprop"].make(model),
        "single": EquilibriumPropagation(model, BETA, "single", nudged=nudged, watch=False),
        "centered": EquilibriumPropagation(model, BETA, "centered", nudged=nudged, watch=False),
    }

    def step(name: str) -> None:
        model.zero_grad(set_to_none=True)
        engines[name](**batch).backward()

    return {name: lambda name=name: step(name) for name in engines}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2, help="passes forwards and backwards of a nudged phase")
    parser.add_argument("--size", type=int, default=224)
    given = parser.parse_args()
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    model = compile_energy(network(given.size), seed=0)
    image = torch.randn(given.batch, 3, given.size, given.size, generator=generator)
    batch = {"image": image, "target": torch.randint(1000, (given.batch,), generator=generator)}
    print(f"VGG10, {given.batch} pictures of {given.size} x {given.size}, {given.rounds} rounds, one thread")
    print("| method | seconds | backprop steps | peak, GiB | 50 epochs, backprop | published, backprop | published |")
    print("|---|---|---|---|---|---|---|")
    unit = 0.0
    for name, step in steps(model, batch, given.rounds).items():
        bytes_ = peak_bytes(step, repeats=1)  # its first call warms up
        begun = time.process_time()
        step()
        seconds = time.process_time() - begun
        unit = unit or seconds
        hours = PUBLISHED[name]
        print(
            f"| `{name}` | {seconds:.2f} | {seconds / unit:.2f} | {bytes_ / 2**30:.2f} | "
            f"{seconds / unit * PUBLISHED['backprop']:.0f} h | {hours / PUBLISHED['backprop']:.1f} | {hours:.0f} h |",
            flush=True,
        )


if __name__ == "__main__":
    main()
