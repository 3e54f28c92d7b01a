"""Checks an installed physnet from outside its checkout: `python smoke.py`, in an empty directory."""

import subprocess
from pathlib import Path

import torch

import physnet
from physnet import EnergyGraph, EquilibriumPropagation, compile_energy, relax
from physnet.energy import catalogue
from physnet.integration import integrators

EXPERIMENT = """\
name: smoke
energy: hopfield
nodes:
  image:  {shape: 64, role: input}
  hidden: {shape: 16}
  label:  {shape: 10, role: output}
edges:
  - image -> hidden: dense
  - hidden -> label: dense
cost: (x - y)**2/2
"""


def command(*words: str) -> str:
    """The output of `physnet ...`, which has to succeed."""
    return subprocess.run(["physnet", *words], check=True, capture_output=True, text=True, timeout=300).stdout


def main() -> None:
    place = Path(physnet.__file__).resolve()
    assert "site-packages" in place.parts, f"{place} is not an installed package"
    assert {"hopfield", "hopfield-smooth", "resistive", "xy"} <= set(catalogue())
    assert {"blocks", "flow"} <= set(integrators())

    graph = EnergyGraph(energy="hopfield")
    graph.input("image", 6)
    graph.state("hidden", 5)
    graph.output("label", 3, cost="(x - y)**2/2")
    graph.couple("image", "hidden")
    graph.couple("hidden", "label")
    model = compile_energy(graph, seed=1)
    image, target = torch.rand(4, 6, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0])
    assert bool(relax(model, image=image).converged.all())

    ep = EquilibriumPropagation(model, beta=0.1, protocol="centered")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ep.attach(optimizer)
    costs = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = ep(image=image, target=target)
        loss.backward()
        optimizer.step()
        costs.append(float(loss.detach()))
    assert costs[-1] < costs[0], f"the cost did not fall: {costs}"

    assert "resistive" in command("list")
    Path("smoke.yaml").write_text(EXPERIMENT)
    explained = command("explain", "smoke.yaml")
    assert "hidden" in explained and "label" in explained
    print(f"smoke test passed: physnet in {place.parent}")


if __name__ == "__main__":
    main()
