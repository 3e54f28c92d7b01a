"""Gradient-descending updates, in float64, against backpropagation through time: science of arXiv 1905.13633."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from networks import QUICKLY, TIGHT, batch, catalogue_model, close
from torch import Tensor
from typer.testing import CliRunner

from physnet.cli import app
from physnet.energy import Energy
from physnet.errors import DeclarationError, RelaxationError
from physnet.gdu import Updates, contributions, gradient_descending_updates, increments
from physnet.graph import EnergyGraph
from physnet.learning import EquilibriumPropagation, gradients
from physnet.maps import synchronous
from physnet.model import EnergyModel, compile_energy
from physnet.problem import Problem
from physnet.relaxation import Relaxation, relax

pytestmark = pytest.mark.usefixtures("float64")
STEPS = 12


def tanh_net() -> EnergyModel:
    """5-7-3 with s = tanh(W s + b): G(s) is the integral of atanh, so that the map is the prototypical one."""
    energy = Energy(
        node="x*atanh(x) + log(1 - x**2)/2 - b*x",
        coupling="-w*pre*post",
        domain=[-0.999999, 0.999999],
        parameters={
            "b": {"on": "node", "init": "normal(0, 0.3)"},
            "w": {"on": "edge", "init": "normal(0, 0.5)/sqrt(fan_in)"},
        },
    )
    graph = EnergyGraph(energy).input("image", 5).state("hidden", 7).output("label", 3, cost="(x - y)**2/2")
    return compile_energy(graph.couple("image", "hidden").couple("hidden", "label"), 1)


def targets(x: Tensor, classes: int = 3) -> Tensor:
    return torch.eye(classes)[torch.arange(len(x)) % classes]


def worst(updates: list[Updates]) -> float:
    return max(update.error for update in updates)


def compared(model: EnergyModel, beta: float, **options) -> list[Updates]:
    x, _ = batch(rows=4)
    return gradient_descending_updates(
        model, {"image": x, "target": targets(x)}, beta, STEPS, relaxation=TIGHT, **options
    )


def test_the_prototypical_map_of_the_tanh_energy_is_tanh() -> None:
    """Worked out in numpy: s_hidden <- tanh(W x + V^T s_label + b), s_label <- tanh(V s_hidden + c)."""
    model, (x, _) = tanh_net(), batch(rows=4)
    w = {key: value.detach().numpy() for key, value in model.tensors.items()}
    state = {"hidden": torch.rand(4, 7) - 0.5, "label": torch.rand(4, 3) - 0.5}
    found = synchronous(model.problem(image=x), state)
    hidden = np.tanh(x.numpy() @ w["image_hidden.w"].T + state["label"].numpy() @ w["hidden_label.w"] + w["hidden.b"])
    label = np.tanh(state["hidden"].numpy() @ w["hidden_label.w"].T + w["label.b"])
    np.testing.assert_allclose(found["hidden"].detach(), hidden, rtol=1e-12)
    np.testing.assert_allclose(found["label"].detach(), label, rtol=1e-12)


@pytest.mark.parametrize("family", ["prototypical", "energy"])
def test_gdu_of_the_tanh_net(family: str) -> None:
    """Row 3 of the acceptance tests: about 7e-4 at beta = 1e-3, linear in beta; at most 1 % opposite signs."""
    model = tanh_net()
    large, small = (compared(model, beta, family=family) for beta in (1e-3, 1e-4))
    assert {update.name for update in small} == {"hidden", "label", *model.tensors}
    for a, b in zip(large, small, strict=True):
        assert float(b.backpropagated.norm()) > 0, b.name
        assert a.error < 2e-3, a.name
        assert a.error / b.error == pytest.approx(10, rel=0.1), a.name
        assert a.opposite <= 0.01, a.name
    if family == "prototypical":
        assert worst(large) > 2e-4


@pytest.mark.parametrize("name", QUICKLY)
@pytest.mark.parametrize("family", ["auto", "energy"])
def test_gdu_of_the_catalogue(name: str, family: str) -> None:
    """Linear in beta, with units that a bound holds (hopfield, resistive) and on the circle (xy)."""
    model = catalogue_model(name)
    large, small = (compared(model, beta, family=family) for beta in (1e-3, 1e-4))
    for a, b in zip(large, small, strict=True):
        assert a.error < 1e-2, a.name
        assert a.error < 1e-7 or a.error / b.error == pytest.approx(10, rel=0.2), a.name
        assert a.opposite <= 0.01, a.name


def test_centered_updates_differ_by_the_square_of_beta() -> None:
    large, small = (compared(tanh_net(), beta, centered=True) for beta in (2e-2, 1e-2))
    for a, b in zip(large, small, strict=True):
        assert a.error / b.error == pytest.approx(4, rel=0.1), a.name


def test_a_nudge_outside_the_activation_fails() -> None:
    """Row 4: s <- tanh(drive) - beta (s - y) leaves an error that no smaller beta removes."""
    model, (x, _) = tanh_net(), batch(rows=4)
    y = targets(x)
    state = relax(model, TIGHT, image=x).states
    free = model.problem(image=x)
    truth = contributions(free, state, {"target": y}, synchronous, STEPS)

    def floors(beta: float) -> list[float]:
        def outside(problem: Problem, s: dict[str, Tensor], push=None) -> dict[str, Tensor]:
            new = synchronous(free, s, push)
            return {**new, "label": new["label"] - beta * (s["label"] - y)}

        found = increments(free.nudged({"target": y}, [beta]), state, outside, STEPS, beta)
        return [Updates(name, found[name], truth[name]).error for name in truth]

    for large, small in zip(floors(1e-3), floors(1e-4), strict=True):
        assert small > 3e-3
        assert small == pytest.approx(large, rel=0.1)


def test_contributions_add_up_to_the_gradient() -> None:
    """Over all steps, until the signal has died away; the cost has no parameters of its own."""
    model, (x, _) = catalogue_model("hopfield-smooth"), batch(rows=4)
    y = targets(x)
    state = relax(model, TIGHT, image=x).states
    found = contributions(model.problem(image=x), state, {"target": y}, synchronous, 80)
    exact = gradients(EquilibriumPropagation(model, protocol="implicit", relaxation=TIGHT), image=x, target=y)
    for name, value in exact.items():
        assert close(found[name].sum(0), value, 1e-8), name


def test_a_signal_needs_a_step_per_edge() -> None:
    """label -> deep -> hidden: the first step moves the label alone, and no weight that only deep layers see."""
    for update in compared(catalogue_model("hopfield-smooth"), 1e-3):
        delay = {"label": 0, "deep": 1, "hidden": 2}.get(update.name)
        if delay is not None:
            for series in (update.propagated, update.backpropagated):
                assert float(series[:delay].abs().sum()) < 1e-8
                assert float(series[delay].abs().max()) > 1e-4


def test_an_energy_without_exact_updates_has_the_energy_based_map_only() -> None:
    graph = EnergyGraph(
        Energy(
            node="x**2/2 - b*x",
            coupling="-tanh(w*pre*post)",
            parameters={"b": {"on": "node", "init": "normal(0, 1)"}, "w": {"on": "edge", "init": "normal(0, 0.3)"}},
        )
    )
    graph.input("image", 5).state("hidden", 3).output("label", 3, cost="(x - y)**2/2")
    with pytest.warns(UserWarning, match="doesn't separate"):
        model = compile_energy(graph.couple("image", "hidden").couple("hidden", "label"))
    assert worst(compared(model, 1e-4)) < 1e-3
    with pytest.raises(DeclarationError, match="no prototypical map"):
        compared(model, 1e-4, family="prototypical")


def test_a_free_state_that_still_moves_is_refused() -> None:
    x, _ = batch()
    loose = Relaxation(tolerance=0.1)
    with pytest.raises(RelaxationError, match="relax to a lower tolerance"):
        gradient_descending_updates(
            catalogue_model("hopfield-smooth"), {"image": x, "target": targets(x)}, 1e-4, relaxation=loose
        )


@pytest.mark.parametrize("options", [{"steps": 0}, {"beta": 0.0}, {"family": "euler"}])
def test_nonsense_is_refused(options) -> None:
    x, _ = batch()
    with pytest.raises(DeclarationError):
        gradient_descending_updates(catalogue_model("xy"), {"image": x, "target": targets(x)}, **options)


def test_check_prints_gradient_descending_updates() -> None:
    example = Path(__file__).parent.parent / "examples" / "digits_hopfield.yaml"
    result = CliRunner().invoke(
        app, ["check", str(example), "--gdu", "--samples", "2", "--set", "nodes.hidden.shape=8"]
    )
    assert result.exit_code == 0, result.output
    for name in ("hidden", "label", "image_hidden.w", "hidden_label.w", "hidden.b", "label.b"):
        (row,) = [line for line in result.output.splitlines() if f" {name} " in line]
        error, fall, opposite = (float(cell.split()[0]) for cell in row.split("│")[2:5])
        assert 0 < error < 0.02
        assert fall == pytest.approx(2, rel=0.05)
        assert opposite <= 1
