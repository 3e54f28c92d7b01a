"""Networks over images, in float64: gradients, equilibria and descent, on every device that is there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from images import MAX, compiled, conv_hopfield, photos, resnet13, small
from networks import EDGES, NODES, TIGHT, TIGHT_NUDGED, squared_error
from torch import Tensor

from physnet.checking import relative_error
from physnet.convolved import PooledLink
from physnet.energy import Energy
from physnet.errors import RelaxationError
from physnet.gdu import gradient_descending_updates
from physnet.graph import EnergyGraph
from physnet.learning import EquilibriumPropagation, gradients
from physnet.model import EnergyModel
from physnet.nudging import nudge
from physnet.problem import Problem, State
from physnet.relaxation import Relaxation, relax
from physnet.simulation import simulate

pytestmark = pytest.mark.usefixtures("float64")
Gradients = dict[str, Tensor]
CALM: dict[str, Any] = {"parameters": {"w": {"gain": 0.4}}}
"""Weights so small that there is one equilibrium."""
NETWORKS: dict[str, Callable[[], EnergyGraph]] = {
    "max-pooled": conv_hopfield,
    "average-pooled": lambda: conv_hopfield("avg_pool2d(2)"),
    "overlapping windows": lambda: conv_hopfield("max_pool2d(3, stride=2, padding=1)"),
    "resnet13": resnet13,
}


def estimate(model: EnergyModel, protocol: str, beta: float = 1e-4, seed: int = 0, **batch: Tensor) -> Gradients:
    """The gradient of every parameter and, as `image`, of the images."""
    image = batch.pop("image").clone().requires_grad_()
    ep = EquilibriumPropagation(model, beta, protocol, relaxation=TIGHT, nudged=TIGHT_NUDGED, seed=seed)
    learned = {name: value for name, value in model.tensors.items() if value.requires_grad}
    values = torch.autograd.grad(ep(image=image, **batch), [image, *learned.values()])
    return dict(zip(["image", *learned], values, strict=True))


def worst(found: Gradients, exact: Gradients) -> float:
    """The largest relative error of a tensor, all of which must have a gradient to speak of."""
    assert found.keys() == exact.keys()
    assert all(value.norm() > 1e-7 for value in exact.values())
    return max(relative_error(found[name], value) for name, value in exact.items())


# --------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_are_the_implicit_ones(device: torch.device, name: str) -> None:
    """Of every tensor and of the images; issue: cosine >= .9999 per tensor, which 1e-6 more than meets."""
    model = compiled(NETWORKS[name](), device)
    image, target = photos(model)
    exact = estimate(model, "implicit", image=image, target=target)
    found = estimate(model, "centered", image=image, target=target)
    assert worst(found, exact) < 1e-6
    for key, value in exact.items():
        assert float((found[key] * value).sum() / (found[key].norm() * value.norm())) >= 0.9999


@pytest.mark.parametrize("pool", [MAX, ""])
def test_implicit_gradients_are_finite_differences_of_the_mean_cost(pool: str) -> None:
    model = compiled(small(pool, **CALM))
    image, target = photos(model)
    wanted = torch.eye(3)[target]

    def mean_cost() -> float:
        return float(((relax(model, TIGHT, image=image)["label"] - wanted) ** 2 / 2).sum(1).mean())

    exact = estimate(model, "implicit", image=image, target=target)
    for name, tensor in {**model.tensors, "image": image}.items():
        direction = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(3))
        values = []
        for side in (1e-5, -2e-5):
            with torch.no_grad():
                tensor.add_(side * direction)
            values.append(mean_cost())
        with torch.no_grad():
            tensor.add_(1e-5 * direction)
        expected = (values[0] - values[1]) / 2e-5
        assert float((exact[name] * direction).sum()) == pytest.approx(expected, rel=1e-4, abs=1e-9), name


@pytest.mark.parametrize("pool", [MAX, ""])
@pytest.mark.parametrize(("protocol", "power"), [("positive", 1), ("negative", 1), ("centered", 2)])
def test_errors_fall_with_their_power_of_beta(pool: str, protocol: str, power: int) -> None:
    model = compiled(small(pool, **CALM))
    image, target = photos(model)
    exact = estimate(model, "implicit", image=image, target=target)
    small_beta = 1e-3
    errors = [
        worst(estimate(model, protocol, beta, image=image, target=target), exact)
        for beta in (2 * small_beta, small_beta)
    ]
    assert errors[0] / errors[1] == pytest.approx(2**power, rel=0.1)


@pytest.mark.parametrize("pool", [MAX, ""])
def test_references_agree(pool: str) -> None:
    model = compiled(small(pool, **CALM))
    image, target = photos(model)
    exact = estimate(model, "implicit", image=image, target=target)
    for reference in ("recurrent_backprop", "truncated_backprop(120)"):
        assert worst(estimate(model, reference, image=image, target=target), exact) < 1e-8


@pytest.mark.parametrize("pool", [MAX, ""])
def test_a_readout_on_the_last_image(device: torch.device, pool: str) -> None:
    """Cross-entropy of a dense readout outside the dynamical system, on a node of several axes (science 1.4)."""
    graph = EnergyGraph("hopfield").input("image", (2, 8, 8)).state("c1", (3, 4, 4)).state("c2", (3, 2, 2))
    stride = "" if pool else ", stride=2"
    graph.couple("image", "c1", f"conv2d(3, padding=1{stride}){pool}", **CALM)
    graph.couple("c1", "c2", f"conv2d(3, padding=1{stride}){pool}", **CALM)
    graph.cost("c2", "cross_entropy", readout="dense(3)", name="head")
    model = compiled(graph, device)
    image, target = photos(model)
    exact = estimate(model, "implicit", image=image, target=target)
    assert worst(estimate(model, "centered", image=image, target=target), exact) < 1e-5


@pytest.mark.parametrize("energy", ["resistive", "resistive-diodes", "xy", "hopfield-smooth"])
@pytest.mark.parametrize("chain", ["conv2d(3, padding=1, stride=2)", "avg_pool2d(2) >> conv2d(3, padding=1)"])
def test_other_energies_over_convolutions(energy: str, chain: str) -> None:
    """Several products per coupling, and constants that flow through the kernel to the borders of an image."""
    graph = EnergyGraph(energy).input("image", (2, 8, 8)).state("c1", (2, 4, 4), parameters=NODES[energy])
    graph.output("label", 3, cost=squared_error(energy), parameters=NODES[energy])
    graph.couple("image", "c1", chain, parameters=EDGES[energy]).couple("c1", "label", parameters=EDGES[energy])
    model = compiled(graph)
    image, target = photos(model)
    exact = estimate(model, "implicit", image=image, target=target)
    found = estimate(model, "centered", 1e-3, image=image, target=target)
    for name, value in exact.items():
        if value.norm() > 1e-9:  # bounds may hold all units that a parameter acts on
            assert relative_error(found[name], value) < 1e-4, name


def test_the_energy_of_a_convolution_is_a_sum_over_its_pairs() -> None:
    """Resistors between two images: one for each entry of the kernel and each place where it lies on both."""
    graph = (
        EnergyGraph("resistive").input("image", (2, 4, 3), encode=["x"]).output("out", (3, 2, 2), cost="(x - y)**2/2")
    )
    model = compiled(graph.couple("image", "out", "conv2d(2, stride=2, padding=(0, 1))", name="edge"))
    pre, post = torch.randn(1, 2, 4, 3), torch.randn(1, 3, 2, 2)
    g, i = model.tensors["edge.g"].detach(), model.tensors["out.i"].detach()
    expected = -float((i * post[0]).sum())
    for o, c, y, x, down, across in torch.cartesian_prod(*map(torch.arange, (3, 2, 2, 2, 2, 2))).tolist():
        row, column = 2 * y + down, 2 * x + across - 1
        if 0 <= column < 3:
            expected += float(g[o, c, down, across] * (pre[0, c, row, column] - post[0, o, y, x]) ** 2 / 2)
    found = model.functions["energy"](model.tensors, {"image": pre, "out": post})
    assert float(found.detach()) == pytest.approx(expected)


def test_gradient_descending_updates_of_convolutions() -> None:
    """Nudged steps follow backpropagation through time step by step (science 1.2), up to a multiple of beta."""
    model = compiled(small("", **CALM))
    image, target = photos(model)
    batch = {"image": image, "target": torch.eye(3)[target]}
    errors = [
        max(u.error for u in gradient_descending_updates(model, batch, beta, 8, relaxation=TIGHT))
        for beta in (1e-3, 1e-4)
    ]
    assert errors[1] < 1e-3
    assert errors[1] < 0.2 * errors[0]


@pytest.mark.filterwarnings("ignore:the coupling", "ignore:1 of 2 samples")
def test_holomorphic_estimates_need_a_smooth_network() -> None:
    b, w = {"on": "node", "init": "normal(0, 0.5)"}, {"on": "edge", "init": "uniform(-1, 1)/sqrt(fan_in)"}
    energy = Energy(node="x**2 + x**4/4 - b*x", coupling="-w*pre*post", parameters={"b": b, "w": w})
    model = compiled(small("", energy))
    batch = dict(zip(("image", "target"), photos(model), strict=True))
    exact = estimate(model, "implicit", **batch)
    errors = [worst(estimate(model, "holomorphic(4)", beta, **batch), exact) for beta in (0.1, 0.05)]
    assert errors[0] / errors[1] == pytest.approx(2**4, rel=0.1)
    with pytest.raises(RelaxationError, match="edge 'image_c1' takes maxima"):
        estimate(compiled(small(MAX, energy)), "holomorphic(4)", 0.05, **batch)


# --------------------------------------------------------------------------- places where a pooled edge may stand


def test_a_pooled_edge_into_a_clamped_image() -> None:
    """hidden -> image: the input receives, and its winners are decided by a free node."""
    graph = EnergyGraph("hopfield").input("image", (2, 4, 4)).state("c1", (3, 8, 8)).state("c2", (3, 4, 4))
    graph.couple("c1", "image", "conv2d(3, padding=1) >> max_pool2d(2)", **CALM)
    graph.couple("c1", "c2", "conv2d(3, padding=1) >> max_pool2d(2)", **CALM)
    graph.output("label", 3, cost="(x - y)**2/2").couple("c2", "label")
    model = compiled(graph)
    image, target = photos(model)
    exact = estimate(model, "implicit", image=image, target=target)
    assert worst(estimate(model, "centered", image=image, target=target), exact) < 1e-6


def test_products_with_functions_of_pre_pass_a_pooled_edge() -> None:
    graph = small(energy="hopfield", term="-w*tanh(pre)*post", **CALM)
    model = compiled(graph)
    image, target = photos(model)
    exact = estimate(model, "implicit", image=image, target=target)
    assert worst(estimate(model, "centered", image=image, target=target), exact) < 1e-6


def test_weights_that_are_functions_of_parameters_pass_a_pooled_edge() -> None:
    parameters = {"w": {"gain": 0.6}, "c": {"on": "edge", "shape": "scalar", "init": "0.7*ones()"}}
    model = compiled(small(term="-c*tanh(w)*pre*post", parameters=parameters))
    image, target = photos(model)
    exact = estimate(model, "implicit", image=image, target=target)
    assert worst(estimate(model, "centered", image=image, target=target), exact) < 1e-6


# --------------------------------------------------------------------------- equilibria


@pytest.mark.parametrize("pool", [MAX, ""])
@pytest.mark.parametrize(
    ("integrator", "options"),
    [("flow", {}), ("descent", {}), ("newton", {}), ("fixed_point", {}), ("blocks", {"omega": 1.7})],
)
def test_integrators_agree(device: torch.device, pool: str, integrator: str, options: dict[str, Any]) -> None:
    model = compiled(small(pool, **CALM), device)
    image, _ = photos(model)
    expected = relax(model, TIGHT, image=image)
    settings = Relaxation(integrator, tolerance=1e-10, max_sweeps=5000, options=options)
    found = relax(model, settings, image=image)
    assert bool(found.converged.all())
    for name in model.free:
        assert torch.allclose(found[name], expected[name], atol=1e-8)


@pytest.mark.parametrize("pool", [MAX, ""])
def test_a_simulation_ends_in_the_equilibrium(pool: str) -> None:
    model = compiled(small(pool, **CALM))
    image, _ = photos(model)
    expected, path = relax(model, TIGHT, image=image), simulate(model, None, image=image)
    assert bool(path.converged.all())
    assert float((path.energy[1:] - path.energy[:-1]).max()) < 1e-9
    for name in model.free:
        assert torch.allclose(path[name][-1], expected[name], atol=2e-3)


def test_the_blocks_of_resnet13_take_three_colours() -> None:
    """A skip edge closes a triangle, so that two are too few; the parity sweep of the authors' code has two."""
    model = compiled(resnet13())
    assert len(model.plan.blocks) == 3
    joined = {frozenset((edge.pre, edge.post)) for edge in model.graph.edges()}
    for block in model.plan.blocks:
        assert not any({one.node, other.node} in joined for one in block for other in block if one != other)
    assert len(compiled(conv_hopfield()).plan.blocks) == 2


class Winners:
    """How many winners of the pooled edges between free nodes change."""

    def __init__(self, model: EnergyModel) -> None:
        edges = [edge for edge in model.graph.edges() if model.graph.node(edge.pre).free]
        links = [(e.pre, model.functions[f"{e.name}_edge"], model.tensors[f"{e.name}.w"]) for e in edges]
        self.links = [item for item in links if isinstance(item[1], PooledLink)]
        self.seen: list[Tensor] = []

    def changed(self, state: State) -> int:
        now = [link._windows(state[pre], w).winners for pre, link, w in self.links]
        before, self.seen = self.seen or now, now
        return sum(int((a != b).sum()) for a, b in zip(before, now, strict=True))


def descend(problem: Problem, state: State, omega: float, sweeps: int, winners: Winners | None = None) -> int:
    """Sweep, and check that no update raises the energy; returns how many winners changed."""
    changed, energy = 0, problem.energy(state)
    for _ in range(sweeps):
        for block in problem.blocks:
            for node, new in problem.minimise(block, state).items():
                domain = problem.domain(node)
                state[node] = domain.project(state[node] + omega * domain.difference(new, state[node]))
            changed += winners.changed(state) if winners else 0
            before, energy = energy, problem.energy(state)
            assert bool((energy <= before + 1e-12 * (1 + before.abs())).all())
    return changed


@torch.no_grad()
@given(st.sampled_from(["max-pooled", "resnet13"]), st.integers(0, 100), st.sampled_from([1.0, 1.3, 1.7, 1.99]))
@settings(max_examples=16)
def test_the_energy_never_rises_in_a_sweep(name: str, seed: int, omega: float) -> None:
    """From random states and weights large enough for winners to change, in free and nudged phases."""
    options = (0.9, 1.2, 1.1, 0.8, 0.9)
    model = compiled(conv_hopfield(gains=options) if name == "max-pooled" else resnet13(), seed=seed)
    image, target = photos(model, seed=seed)
    problem = model.problem(image=image)
    state = problem.random(torch.Generator().manual_seed(seed))
    changed = descend(problem, state, omega, 12, Winners(model))
    assert changed > 10 or name == "resnet13"
    displaced = nudge(problem, state, {"target": target}, [0.3, -0.3])
    moved = displaced.project({key: 0.1 * torch.randn_like(value) for key, value in displaced.zero().items()})
    descend(displaced, moved, omega, 6)


@torch.no_grad()
@given(st.integers(0, 50))
@settings(max_examples=10)
def test_a_nudged_problem_of_a_pooled_net_is_the_plain_one(seed: int) -> None:
    """In displacements and in states: energies up to a constant, forces, updates; of some samples, too."""
    model = compiled(small(), seed=seed)
    image, target = photos(model, 3, seed=seed)
    free = relax(model, TIGHT, image=image)
    problem = nudge(free.problem, free.states, {"target": target}, [0.3, -0.2])
    moved = problem.project({key: 0.2 * torch.randn_like(value) for key, value in problem.zero().items()})
    plain, states = problem.plain, problem.states(moved)
    zero = problem.states(problem.zero())
    assert plain.beta is not None
    base = plain.energy(zero) - plain.beta * plain.cost(zero)
    assert torch.allclose(problem.energy(moved), plain.energy(states) - base, atol=1e-12)
    for node, force in plain.force(states).items():
        assert torch.allclose(problem.force(moved)[node], force, atol=1e-12), node
    for node in model.inputs:
        there = problem.force(moved, [node])[node] + plain.force(zero, [node])[node]
        assert torch.allclose(there, plain.force(states, [node])[node], atol=1e-12)
    for block in problem.blocks:
        for node, value in plain.minimise(block, states).items():
            there = problem.origin[node] + problem.minimise(block, moved)[node]
            assert torch.allclose(there, value, atol=1e-10), node
    samples = torch.tensor([2, 0])
    rows, part = problem.rows_of(samples), problem.select(samples)
    some = {key: value[rows] for key, value in moved.items()}
    for node, value in problem.force(moved).items():
        assert torch.allclose(part.force(some)[node], value[rows], atol=1e-12)


def test_float32_gradients_of_a_pooled_net_are_those_of_float64(device: torch.device) -> None:
    """At beta = 1e-3, where plain contrasts lose conv1 (science 0.7)."""
    model = compiled(conv_hopfield(), device)
    narrow = compiled(conv_hopfield(), device).float()
    image, target = photos(model)
    exact = gradients(
        EquilibriumPropagation(model, 1e-3, relaxation=TIGHT, nudged=TIGHT_NUDGED), image=image, target=target
    )
    settings = Relaxation(tolerance=1e-6, max_sweeps=2000), Relaxation(tolerance=1e-5, max_sweeps=2000)
    ep = EquilibriumPropagation(narrow, 1e-3, relaxation=settings[0], nudged=settings[1])
    found = gradients(ep, image=image, target=target)
    for name, value in exact.items():
        assert relative_error(found[name].double(), value) < 1e-3, name
