"""Prediction terms: energies in a drive, their forces and gradients, and the two passes in errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from networks import batch, close
from torch import Tensor

from physnet.declaration import graph_from_yaml, graph_to_yaml
from physnet.energy import Energy
from physnet.errors import DeclarationError, RelaxationError
from physnet.graph import EnergyGraph
from physnet.layers import prediction_layers
from physnet.learning import EquilibriumPropagation, gradients
from physnet.lowering import lower
from physnet.methods import METHODS
from physnet.model import EnergyModel, compile_energy
from physnet.nudging import nudge
from physnet.plots import settling, trace
from physnet.relaxation import Relaxation, relax, run_nudged

PRECISE = Energy(
    node={"state": "p*(x - c*tanh(a))**2/2", "output": "p*(x - a)**2/2"},
    message="tanh(pre)",
    parameters={
        "p": {"on": "node", "init": "uniform(0.5, 2)", "constraint": [0.1, 10]},
        "c": {"on": "node", "init": "uniform(0.5, 1)"},
        "b": {"on": "node", "init": "uniform(-0.5, 0.5)"},
        "w": {"on": "edge", "init": "normal(0, 1/sqrt(fan_in))"},
    },
)


def mlp(
    energy: str | Energy = "predictive", cost: str = "(x - y)**2/2", widths: tuple[int, ...] = (6, 5, 4)
) -> EnergyGraph:
    """image -> h0 -> h1 ... -> label, with a skip edge from image to the last hidden node."""
    graph, before = EnergyGraph(energy).input("image", 5), "image"
    for number, width in enumerate(widths):
        graph.state(f"h{number}", width).couple(before, f"h{number}")
        before = f"h{number}"
    graph.couple("image", before, name="skip")
    return graph.output("label", 3, cost=cost).couple(before, "label")


def conv() -> EnergyGraph:
    """Two convolutions, the first max-pooled, a strided skip edge, and a dense output."""
    graph = EnergyGraph("predictive").input("image", [2, 8, 8]).state("c1", [3, 4, 4]).state("c2", [4, 2, 2])
    graph.state("c3", [4, 2, 2]).output("label", 3, cost="cross_entropy")
    graph.couple("image", "c1", "conv2d(3, padding=1) >> max_pool2d(2)")
    graph.couple("c1", "c2", "conv2d(3, padding=1) >> max_pool2d(2)").couple("c2", "c3", "conv2d(3, padding=1)")
    return graph.couple("c1", "c3", "conv2d(1, stride=2)").couple("c3", "label")


GRAPHS = {"mlp": mlp, "conv": conv, "precise": lambda: mlp(PRECISE), "cross-entropy": lambda: mlp(cost="cross_entropy")}


def compiled(name: str, dtype: torch.dtype = torch.float64) -> tuple[EnergyModel, Tensor, Tensor]:
    model = compile_energy(GRAPHS[name](), 3).to(dtype)
    shape = model.inputs["image"].data_shape
    image = torch.rand(4, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
    return model, image, torch.arange(4) % 3


def backprop(model: EnergyModel, **data: Tensor) -> dict[str, Tensor]:
    engine = METHODS["backprop"].make(model)
    names = [name for name, value in model.tensors.items()]
    found = torch.autograd.grad(engine(**data), [model.tensors[name] for name in names], allow_unused=True)
    return {name: value for name, value in zip(names, found, strict=True) if value is not None}


def by_hand(model: EnergyModel, image: Tensor, beta: float, target: Tensor) -> dict[str, Tensor]:
    """The nudged equilibrium of `mlp` by a thousand steps of gradient descent on autograd's F, then dF/dtheta."""
    p = {name: value.detach().double().requires_grad_() for name, value in model.tensors.items()}
    onehot = torch.nn.functional.one_hot(target, 3).double()

    def energy(h0: Tensor, h1: Tensor, h2: Tensor, label: Tensor) -> Tensor:
        predicted = (
            torch.relu(image @ p["image_h0.w"].T + p["h0.b"]),
            torch.relu(h0 @ p["h0_h1.w"].T + p["h1.b"]),
            torch.relu(h1 @ p["h1_h2.w"].T + image @ p["skip.w"].T + p["h2.b"]),
            h2 @ p["h2_label.w"].T + p["label.b"],
        )
        errors = [(s - f).square().sum() / 2 for s, f in zip((h0, h1, h2, label), predicted, strict=True)]
        return sum(errors) + beta * (label - onehot).square().sum() / 2  # pyright: ignore[reportReturnType]

    start = relax(model, image=image)
    states = [start[name].double().requires_grad_() for name in ("h0", "h1", "h2", "label")]
    for _ in range(3000):
        slopes = torch.autograd.grad(energy(*states), states)
        states = [(s - 0.3 * g).detach().requires_grad_() for s, g in zip(states, slopes, strict=True)]
    found = torch.autograd.grad(energy(*states), list(p.values()))
    return {name: value / len(image) for name, value in zip(p, found, strict=True)}


# --------------------------------------------------------------------------- the energy


@pytest.mark.parametrize("name", GRAPHS)
def test_the_free_equilibrium_is_a_forward_pass_without_energy(name: str) -> None:
    model, image, _ = compiled(name)
    found = relax(model, image=image)
    assert found.integrator == "errors" and bool(found.converged.all()) and int(found.sweeps.max()) == 1
    assert float(found.energy.abs().max()) < 1e-28
    force = found.problem.force(found.states)
    assert max(float(value.abs().max()) for value in force.values()) < 1e-14


@pytest.mark.parametrize("name", GRAPHS)
def test_forces_are_minus_the_gradient_of_the_energy(name: str) -> None:
    model, image, target = compiled(name)
    problem = model.problem(image=image).nudged({"target": target}, [0.3])
    state = {node: value.requires_grad_() for node, value in problem.random(torch.Generator().manual_seed(0)).items()}
    slopes = torch.autograd.grad(problem.energy(state).sum(), list(state.values()))
    force = problem.force({node: value.detach() for node, value in state.items()})
    for node, slope in zip(state, slopes, strict=True):
        close(force[node], -slope, 1e-12)


@pytest.mark.parametrize("name", GRAPHS)
def test_errors_are_coordinates_of_the_same_energy(name: str) -> None:
    """-dF/de by automatic differentiation through the states."""
    model, image, target = compiled(name)
    free = relax(model, image=image)
    ep = EquilibriumPropagation(model, beta=0.2)
    ep(image=image, target=target)
    assert ep.last is not None and ep.last.nudged is not None
    problem = ep.last.nudged.displaced
    assert problem is not None and type(problem).__name__ == "InErrors"
    errors = {
        node: 0.1 * torch.randn_like(value.repeat(2, *(1,) * (value.dim() - 1))).requires_grad_()
        for node, value in free.states.items()
    }
    slopes = torch.autograd.grad(problem.energy(errors).sum(), list(errors.values()))
    force = problem.force({node: value.detach() for node, value in errors.items()})
    for node, slope in zip(errors, slopes, strict=True):
        close(force[node], -slope, 1e-11)


# --------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("beta", [0.05, 1e-3])
def test_the_single_protocol_is_the_gradient_at_one_nudged_equilibrium(beta: float) -> None:
    model, image, target = compiled("mlp")
    expected = by_hand(model, image, beta, target)
    found = gradients(EquilibriumPropagation(model, beta, "single"), image=image, target=target)
    for name, value in expected.items():
        close(found[name], value / beta, 1e-6)


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize(("protocol", "order"), [("single", 1), ("positive", 1), ("centered", 2)])
def test_gradients_approach_backprop_as_fast_as_the_protocol_says(name: str, protocol: str, order: int) -> None:
    model, image, target = compiled(name)
    exact = backprop(model, image=image, target=target)
    size = sum(value.square().sum() for value in exact.values()).sqrt()
    settings, errors = Relaxation(tolerance=1e-11), []
    for beta in (4e-4, 2e-4):
        ep = EquilibriumPropagation(model, beta, protocol, relaxation=settings, nudged=settings)
        found = gradients(ep, image=image, target=target)
        errors.append(max(float((found[name] - exact[name]).norm() / size) for name in exact))
    assert errors[1] < 1e-2
    assert 0.8 * 2**order < errors[0] / errors[1] < 1.25 * 2**order


@pytest.mark.parametrize("name", ["mlp", "precise", "cross-entropy"])
@pytest.mark.parametrize("integrator", [pytest.param("flow", marks=pytest.mark.slow), "descent"])
def test_integrators_agree_in_states_and_in_errors(name: str, integrator: str) -> None:
    model, image, target = compiled(name)
    expected = gradients(EquilibriumPropagation(model, 0.02), image=image, target=target)
    settings = Relaxation(integrator, tolerance=1e-7, max_sweeps=5000)
    found = gradients(
        EquilibriumPropagation(model, 0.02, relaxation=settings, nudged=settings), image=image, target=target
    )
    for key, value in expected.items():
        close(found[key], value, 1e-4)


@pytest.mark.parametrize("name", ["mlp", "conv"])
def test_float32_keeps_its_digits_at_any_nudge(name: str) -> None:
    """State differences lose the early layers below 1e-3 (science: published sweeps at 1e-5 have cosine .28)."""
    model, image, target = compiled(name)
    narrow = compiled(name, torch.float32)[0]
    for beta in (1e-2, 1e-5):
        exact = gradients(EquilibriumPropagation(model, beta, "single"), image=image, target=target)
        found = gradients(EquilibriumPropagation(narrow, beta, "single"), image=image.float(), target=target)
        for key, value in exact.items():
            assert float((found[key].double() - value).norm()) < 2e-3 * float(value.norm())


@pytest.mark.parametrize("protocol", ["single", "centered"])
def test_samples_that_have_settled_leave_without_a_trace(protocol: str) -> None:
    """The gradient of a batch is the mean of those of its samples, none of which can leave a batch of one."""
    model, image, target = compiled("precise")
    image = image * torch.tensor([0.01, 0.1, 1, 4], dtype=image.dtype).view(-1, *(1,) * (image.dim() - 1))
    engine = EquilibriumPropagation(model, 0.05, protocol, nudged=Relaxation("errors", 1e-12, 500), watch=0)
    together = gradients(engine, image=image, target=target)
    assert engine.last is not None and engine.last.nudged is not None
    sweeps = engine.last.nudged.sweeps
    assert bool(engine.last.nudged.converged.all()) and int(sweeps.max()) > int(sweeps.min())
    alone = [gradients(engine, image=image[i : i + 1], target=target[i : i + 1]) for i in range(4)]
    for tensor, value in together.items():
        torch.testing.assert_close(value, sum(item[tensor] for item in alone) / 4, rtol=1e-8, atol=1e-11)


def test_the_gradient_of_an_input_is_that_of_the_cost() -> None:
    model, image, target = compiled("conv")
    image = image.requires_grad_()
    (exact,) = torch.autograd.grad(METHODS["backprop"].make(model)(image=image, target=target), image)
    (found,) = torch.autograd.grad(EquilibriumPropagation(model, 1e-3)(image=image, target=target), image)
    close(found, exact, 1e-4)


@pytest.mark.slow
def test_outputs_can_be_clamped_as_in_classical_predictive_coding() -> None:
    """With the output held at its target the hidden states minimise E alone: the reference is descent by hand."""
    model, image, target = compiled("precise")
    settings = Relaxation("flow", tolerance=1e-7, max_sweeps=5000)
    ep = EquilibriumPropagation(model, protocol="contrastive", relaxation=settings, nudged=settings)
    found = gradients(ep, image=image, target=target)
    assert ep.last is not None and ep.last.nudged is not None
    held = ep.last.nudged.states["label"][4:]
    close(held, torch.nn.functional.one_hot(target, 3).double(), 1e-12)
    leaves = {n: v.detach().requires_grad_() for n, v in model.tensors.items()}
    full = {"image": image} | {name: value[4:] for name, value in ep.last.nudged.states.items()}
    slopes = torch.autograd.grad(model.functions["energy"](leaves, full).mean(), list(leaves.values()))
    for name, slope in zip(leaves, slopes, strict=True):
        close(found[name], slope, 1e-8)


# --------------------------------------------------------------------------- declarations

TEXT = """
energy: predictive
nodes:
  image: {shape: 5, role: input}
  h: {shape: 4}
  label: {shape: 3, role: output}
edges:
  - image -> h: dense
  - h -> label: {via: dense, kind: prediction, message: tanh(pre)}
cost: (x - y)**2/2
"""


def test_declarations_survive_a_round_trip() -> None:
    graph = graph_from_yaml(TEXT)
    assert graph_from_yaml(graph_to_yaml(graph)) == graph
    assert [edge.predicts for edge in graph.edges()] == [True, True]
    assert graph.edge("h_label").message != graph.edge("image_h").message


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("role: output}", "role: output, term: x**2/2}", "has no drive that could be predicted"),
        ("  - image -> h: dense\n", "", "no edge predicts 'h'"),
        ("kind: prediction", "kind: predicted", "unknown kind"),
        ("message: tanh(pre)", "message: tanh(x)", "'x' has no meaning"),
        ("h -> label: {via", "h -> h: dense\n  - h -> label: {via", "'h' predicts itself"),
        ("kind: prediction, message: tanh(pre)", "kind: coupling, message: tanh(pre)", "passes no message"),
    ],
)
def test_slips_are_named(old: str, new: str, message: str) -> None:
    with pytest.raises(DeclarationError, match=message):
        graph_from_yaml(TEXT.replace(old, new))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"domain": "nonnegative"}, "doesn't live on the whole line"),
        ({"term": "(x - relu(a))**2/2 + cosh(a)" if False else "(x - relu(a))**2/2 + a**2"}, "is left"),
        ({"term": "abs(x - a)"}, "isn't quadratic"),
        ({"term": "p*(x - a)**2/2", "parameters": {"p": {"init": "ones"}}}, "keeps the precision"),
    ],
)
def test_errors_are_refused_where_they_are_no_coordinates(change: dict[str, Any], reason: str) -> None:
    graph = EnergyGraph("predictive").input("image", 3).state("h", 4, **change)
    graph.output("label", 2, cost="(x - y)**2/2").couple("image", "h").couple("h", "label")
    found = prediction_layers(lower(graph))
    assert isinstance(found, str) and reason in found
    image, _ = batch(units=3, classes=2)
    with pytest.raises(RelaxationError, match="errors"):
        relax(compile_energy(graph), "errors", image=image)


def test_the_single_protocol_is_refused_where_the_free_phase_has_a_gradient() -> None:
    graph = EnergyGraph("hopfield").input("image", 3).output("label", 2, cost="(x - y)**2/2").couple("image", "label")
    with pytest.raises(DeclarationError, match="single"):
        EquilibriumPropagation(compile_energy(graph), protocol="single")


@pytest.mark.parametrize("name", ["mlp", "precise", "cross-entropy"])
@pytest.mark.filterwarnings("ignore::physnet.errors.RelaxationWarning")
def test_a_picture_shows_every_round(name: str) -> None:
    model, image, target = compiled(name)
    free = relax(model, image=image)
    phase = nudge(free.problem, free.states, {"target": target}, [0.5], coordinates="errors")
    found = trace(phase, phase.zero(), Relaxation(tolerance=1e-12, max_sweeps=6))
    assert 4 < len(found.states) == len(found.residual) <= 7
    for rounds, errors in enumerate(found.states[1:], 1):
        settings = Relaxation(tolerance=1e-14, max_sweeps=rounds)
        wanted = run_nudged(free, {"target": target}, [0.5], settings).displacement
        assert wanted is not None and all(close(errors[node], wanted[node], 1e-12) for node in wanted)
    picture = settling(EquilibriumPropagation(model, 0.5, "single"), {"image": image, "target": target})[0]
    assert len(picture.states) == 2 and float(picture.residual[-1].max()) == 0
