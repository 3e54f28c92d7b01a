"""Published figures that a correct implementation reproduces, on tiny systems in float64."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from networks import TIGHT, TIGHT_NUDGED
from torch import Tensor

from physnet.checking import relative_error
from physnet.graph import EnergyGraph
from physnet.learning import EquilibriumPropagation, gradients
from physnet.model import EnergyModel, compile_energy
from physnet.relaxation import Relaxation, relax

pytestmark = pytest.mark.usefixtures("float64")


def finite_differences(model: EnergyModel, h: float = 1e-5, **batch: Tensor) -> dict[str, Tensor]:
    """The gradient of the mean cost at the free equilibrium, entry by entry."""

    def cost() -> float:
        free = relax(model, TIGHT, image=batch["image"])
        return float(model.functions["cost"](model.tensors, free.states, {"target": batch["target"]}).mean())

    found = {}
    with torch.no_grad():
        for name, value in model.tensors.items():
            gradient, flat = torch.zeros_like(value).flatten(), value.view(-1)
            for index in range(value.numel()):
                before = float(flat[index])
                values = []
                for sign in (1, -1):
                    flat[index] = before + sign * h
                    values.append(cost())
                flat[index] = before
                gradient[index] = (values[0] - values[1]) / (2 * h)
            found[name] = gradient.view_as(value)
    return found


def resistive() -> tuple[EnergyModel, Tensor]:
    """A 6-8-3 network of resistors with ideal diodes (arXiv 2402.11674), every node with a path to a source."""
    graph = EnergyGraph("resistive").input("image", 3).state("hidden", 8).output("label", 3, cost="(x - y)**2/2")
    conductances = {"g": {"init": "uniform(0.6, 3)"}}
    graph.couple("image", "hidden", parameters=conductances).couple("hidden", "label", parameters=conductances)
    return compile_energy(graph, seed=2), 2 * torch.rand(4, 3) - 1


def test_a_resistive_network_has_one_state_wherever_it_starts() -> None:
    model, image = resistive()
    one = relax(model, TIGHT, image=image)
    for seed in range(5):
        other = relax(model, Relaxation(tolerance=1e-12, initial="random"), image=image, seed=seed)
        for node in model.free:
            assert torch.allclose(one[node], other[node], atol=1e-10)


def test_sweeps_of_a_resistive_network_contract() -> None:
    """Published errors after 1, 2, ... sweeps: .07, .01, 2e-3, 3e-4, 6e-5, 1e-5: about a fifth of the last one each."""
    model, image = resistive()
    exact = relax(model, TIGHT, image=image)
    problem = model.problem(image=image)
    state, errors = problem.zero(), []
    with torch.no_grad():
        for _ in range(6):
            for block in problem.blocks:
                state |= problem.minimise(block, state)
            errors.append(max(float((state[node] - exact[node]).abs().max()) for node in model.free))
    ratios = [b / a for a, b in itertools.pairwise(errors)]
    assert max(ratios) < 0.35
    assert errors[-1] < 1e-3


def test_gradients_of_a_resistive_network_by_finite_differences() -> None:
    """Published for centered: 9e-4 at beta = .1 and 9e-6 at .01; for one-sided: .026 and .0027."""
    model, image = resistive()
    batch = {"image": image, "target": torch.rand(4, 3) - 0.5}
    exact = finite_differences(model, **batch)
    for protocol, beta, bound in (("centered", 0.1, 2e-3), ("centered", 0.01, 2e-5), ("positive", 0.01, 1e-2)):
        ep = EquilibriumPropagation(model, beta, protocol, relaxation=TIGHT, nudged=TIGHT_NUDGED)
        for name, value in gradients(ep, **batch).items():
            assert relative_error(value, exact[name]) < bound, (protocol, beta, name)


FIELDS = {"h": {"init": "normal(1, 0.3)"}}
OSCILLATORS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "xy": (FIELDS, {}, "1 - cos(x - y)"),
    "oscillator-ising": (FIELDS | {"s": {"init": "uniform(0.1, 0.4)"}}, {}, "(cos(x) - y)**2/2"),
    "kuramoto": ({"omega": {"spread": 0.2}}, {"w": {"init": "uniform(0.5, 1)"}}, "-log(1.00001 + cos(x - y))"),
}
"""By entry of the catalogue: the parameters of free nodes and of edges, and a cost."""


@pytest.mark.parametrize("entry", OSCILLATORS)
def test_gradients_of_an_oscillator_network_by_finite_differences(entry: str) -> None:
    """Published for couplings, fields and their phases, centered at beta = .01: at most 3e-4 (arXiv 2402.08579); for
    injections 5e-6 (2505.02103); for natural frequencies 1e-4 at .005 (2604.10272)."""
    own, weights, cost = OSCILLATORS[entry]
    graph = EnergyGraph(entry).input("image", 2).state("hidden", 3, parameters=own)
    graph.output("label", 2, cost=cost, parameters=own)
    for pre, post in (("image", "hidden"), ("hidden", "label"), ("image", "label")):
        graph.couple(pre, post, parameters=weights)
    model = compile_energy(graph, seed=1)
    batch = {"image": 2 * torch.rand(4, 2) - 1, "target": torch.rand(4, 2)}
    exact = finite_differences(model, **batch)
    ep = EquilibriumPropagation(model, 0.01, relaxation=TIGHT, nudged=TIGHT_NUDGED)
    found = gradients(ep, **batch)
    assert {name.split(".")[1] for name in found} == {"w", *own, *(("psi",) if entry == "xy" else ())}
    for name, value in found.items():
        assert exact[name].norm() > 1e-4, name
        assert relative_error(value, exact[name]) < 3e-4, name
