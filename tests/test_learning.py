"""Gradients, in float64 and per tensor: against the implicit gradient, finite differences and autograd of F."""

from __future__ import annotations

import copy
import itertools
import pickle
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from networks import ANGULAR, ENTRIES, FOR_ALL, QUICKLY, TIGHT, TIGHT_NUDGED, batch, catalogue_model, close, pair
from test_separation import SEPARABLE
from torch import Tensor

from physnet.energy import Energy
from physnet.errors import DeclarationError, RelaxationError, ShapeError
from physnet.graph import EnergyGraph
from physnet.learning import EquilibriumPropagation, gradients
from physnet.model import EnergyModel, compile_energy
from physnet.relaxation import Relaxation, relax

pytestmark = pytest.mark.usefixtures("float64")
Gradients = dict[str, Tensor]


def learner(model: EnergyModel, beta: float = 0.1, protocol: str = "centered", seed: int = 0) -> EquilibriumPropagation:
    return EquilibriumPropagation(model, beta, protocol, relaxation=TIGHT, nudged=TIGHT_NUDGED, seed=seed)


@cache
def estimate(name: str, beta: float, protocol: str, device: str = "cpu") -> Gradients:
    """The gradient of the standard network; worked out once, since several tests compare it."""
    x, y = batch()
    found = gradients(learner(catalogue_model(name).to(device), beta, protocol), image=x, target=y)
    return {key: value.cpu() for key, value in found.items()}


def error(found: Tensor, exact: Tensor) -> float:
    return float((found - exact).norm() / exact.norm())


def mean_cost(model: EnergyModel, x: Tensor, y: Tensor) -> float:
    """The mean squared error at the equilibrium, written out."""
    label = relax(model, TIGHT, image=x)["label"]
    label = torch.cos(label) if model.graph.energy.name in ANGULAR else label
    return float(((label - torch.eye(label.shape[1])[y]) ** 2 / 2).sum(1).mean())


def slope(value: Callable[[], float], parameter: Tensor, direction: Tensor, h: float = 1e-5) -> float:
    """d value / d parameter along a direction, by central differences."""
    with torch.no_grad():
        parameter.add_(h * direction)
        above = value()
        parameter.sub_(2 * h * direction)
        below = value()
        parameter.add_(h * direction)
    return (above - below) / (2 * h)


def directions(parameter: Tensor, count: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(parameter.shape, generator=generator) for _ in range(count)]


@pytest.mark.parametrize("name", ENTRIES)
def test_no_unit_meets_or_leaves_a_bound(name: str) -> None:
    """What the rates of convergence below take for granted; the boxed networks have units on both sides of it."""
    model, (x, y) = catalogue_model(name), batch()
    ep = learner(model)
    ep(image=x, target=y)
    assert ep.last is not None
    assert ep.last.nudged is not None
    for node in model.free:
        lo, hi = model.graph.node(node).domain.bounds(ep.last.free[node])
        held = (ep.last.free[node] <= lo) | (ep.last.free[node] >= hi)
        nudged = (ep.last.nudged[node] <= lo) | (ep.last.nudged[node] >= hi)
        assert torch.equal(nudged, held.repeat(2, 1))


@pytest.mark.parametrize("name", ENTRIES)
def test_centered_estimate_points_along_the_implicit_gradient(device: torch.device, name: str) -> None:
    exact, found = estimate(name, 0.1, "implicit"), estimate(name, 0.01, "centered", str(device))
    for key, value in exact.items():
        assert value.norm() > 1e-6, key
        cosine = float((value * found[key]).sum() / (value.norm() * found[key].norm()))
        assert cosine >= 0.9999, key
        assert error(found[key], value) < 1e-3, key


@pytest.mark.parametrize("name", ENTRIES)
@pytest.mark.parametrize(("protocol", "power"), [("centered", 2), ("positive", 1), ("negative", 1)])
def test_error_falls_with_its_power_of_beta(name: str, protocol: str, power: int) -> None:
    exact = estimate(name, 0.1, "implicit")
    large, small = (estimate(name, beta, protocol) for beta in (0.02, 0.01))
    for key, value in exact.items():
        assert error(large[key], value) / error(small[key], value) == pytest.approx(2**power, rel=0.2), key


@pytest.mark.parametrize("name", ENTRIES)
def test_implicit_gradient_is_that_of_finite_differences(name: str) -> None:
    """Of the mean cost at the equilibrium, which is relaxed anew."""
    model, (x, y) = catalogue_model(name), batch()
    for key, value in estimate(name, 0.1, "implicit").items():
        for direction in directions(value):
            expected = slope(lambda: mean_cost(model, x, y), model.tensors[key], direction)
            assert float((value * direction).sum()) == pytest.approx(expected, rel=1e-5, abs=1e-8), key


@pytest.mark.parametrize(
    ("name", "protocol", "betas"),
    [
        *((name, "centered", (0.3, -0.3)) for name in ENTRIES),
        ("hopfield", "positive", (0.3, 0.0)),
        ("hopfield-smooth", "negative", (0.0, -0.3)),
    ],
)
def test_estimate_is_the_gradient_of_the_nudged_objective(name: str, protocol: str, betas: tuple[float, float]) -> None:
    """The envelope theorem: exact at any beta. L = (F*(first) - F*(second)) / (first - second)."""
    model, (x, y) = catalogue_model(name), batch()

    def objective() -> float:
        free = relax(model, TIGHT, image=x)
        lowest = [
            free
            if beta == 0
            else relax(model, Relaxation(tolerance=1e-7), image=x, target=y, beta=beta, start=free.states)
            for beta in betas
        ]
        values = [result.energy.detach().mean() for result in lowest]
        return float((values[0] - values[1]) / (betas[0] - betas[1]))

    found = estimate(name, 0.3, protocol)
    for key, value in found.items():
        expected = slope(objective, model.tensors[key], directions(value)[0], h=1e-4)
        assert float((value * directions(value)[0]).sum()) == pytest.approx(expected, rel=1e-5, abs=1e-7), key


def check_contrast(model: EnergyModel, ep: EquilibriumPropagation, inputs: dict[str, Tensor], y: Tensor) -> None:
    """The estimate against autograd of sum_k c_k F(s_k) with the states held constant."""
    found = gradients(ep, **inputs, target=y)
    record = ep.last
    assert record is not None
    assert record.nudged is not None
    nudge = ep.protocol.fixed_beta or ep.beta
    (alternative,) = [a for a in ep.protocol.alternatives if tuple(m * nudge for m, _ in a) == record.betas]
    rows, total = len(y), torch.zeros(())
    problem = model.problem(**inputs)
    for index, (beta, (_, coefficient)) in enumerate(zip(record.betas, alternative, strict=True)):
        states = {name: value[index * rows :][:rows] for name, value in record.nudged.states.items()}
        phase = problem if ep.protocol.clamps else problem.nudged({"target": y}, [beta])
        total = total + coefficient / nudge * phase.energy(states).mean()
    names = list(found)
    expected = torch.autograd.grad(
        total, [model.tensors[name] for name in names], allow_unused=True, materialize_grads=True
    )
    for name, value in zip(names, expected, strict=True):
        assert close(found[name], value, 1e-10) or value.norm() < 1e-12, name


@pytest.mark.parametrize("name", ENTRIES)
@pytest.mark.parametrize("protocol", FOR_ALL)
def test_contrast_is_autograd_of_the_energies(name: str, protocol: str) -> None:
    model, (x, y) = catalogue_model(name), batch()
    check_contrast(model, learner(model, 0.2, protocol), {"image": x}, y)


@given(SEPARABLE)
@settings(max_examples=10)
def test_contrast_of_random_couplings(coupling: str) -> None:
    model = compile_energy(pair(f"({coupling})/20", node="x**2/2 - b*tanh(x)", domain=[-2, 2]))
    with torch.no_grad():
        for value in model.tensors.values():
            value.abs_().add_(0.1)
    ep = EquilibriumPropagation(model, 0.2, relaxation=Relaxation(tolerance=1e-6))
    check_contrast(model, ep, {"left": torch.linspace(-1, 1, 6).view(2, 3)}, torch.tensor([0, 1]))


@pytest.mark.filterwarnings("ignore:the coupling")
@pytest.mark.parametrize(
    "coupling",
    ["-c*tanh(w*pre*post)", "tanh(pre*post)/5 - w*pre*post + c*pre", "tanh(pre*post)/5 - c*pre*post + w*post"],
)
def test_contrast_of_an_inseparable_coupling(coupling: str) -> None:
    model = compile_energy(pair(coupling))
    ep = EquilibriumPropagation(model, 0.2, "positive", relaxation=Relaxation(tolerance=1e-6))
    check_contrast(model, ep, {"left": torch.linspace(-1, 1, 6).view(2, 3)}, torch.tensor([0, 1]))


def test_contrast_of_shared_weights_multi_axis_nodes_and_costs_with_parameters() -> None:
    energy = Energy(
        node="x**2/2 - b*tanh(x)",
        coupling="-w*tanh(pre)*tanh(post)/3",
        domain=[-2, 2],
        parameters={
            "b": {"on": "node", "shape": "channel", "init": "normal(0, 1)"},
            "w": {"on": "edge", "init": "normal(0, 1/2)"},
        },
    )
    graph = (
        EnergyGraph(energy)
        .input("i", (2, 2))
        .state("h", (2, 3), parameters={"b": {"shape": "unit"}})
        .state("k", (2, 3))
    )
    parameters = {"b": {"shape": "scalar"}, "r": {"on": "node", "init": "ones", "shape": "channel"}}
    graph.output("o", (2, 2), parameters=parameters, cost="(x - r*y)**2/2 + r**2")
    graph.couple("i", "h", parameters={"w": {"shape": "scalar"}}).couple("h", "k", "identity").couple("k", "o").couple(
        "i", "o", "identity"
    )
    graph.couple("o", "h", term="s*(pre - post)**2/9", parameters={"s": {"shape": "scalar", "init": "ones"}})
    model = compile_energy(graph, seed=2)
    assert {name: tuple(value.shape) for name, value in model.tensors.items()} == {
        "h.b": (2, 3),
        "k.b": (2,),
        "o.b": (),
        "o.r": (2,),
        "i_h.w": (),
        "h_k.w": (2, 3),
        "k_o.w": (4, 6),
        "i_o.w": (2, 2),
        "o_h.s": (),
    }
    for protocol in FOR_ALL:
        ep = EquilibriumPropagation(model, 0.2, protocol, relaxation=Relaxation(tolerance=1e-6))
        check_contrast(model, ep, {"i": torch.randn(3, 2, 2)}, torch.randn(3, 2, 2))


@pytest.mark.parametrize("name", QUICKLY)
@pytest.mark.parametrize("encode", [[], ["2*x", "tanh(x) - x**2"]])
def test_gradients_of_inputs(name: str, encode: list[str]) -> None:
    model, (x, y) = catalogue_model(name, encode=encode), batch(rows=2)
    x.requires_grad_()
    exact, large, small = (
        torch.autograd.grad(learner(model, beta, protocol)(image=x, target=y), x)[0]
        for beta, protocol in ((0.1, "implicit"), (0.02, "centered"), (0.01, "centered"))
    )
    assert error(small, exact) < 1e-3
    assert error(large, exact) / error(small, exact) == pytest.approx(4, rel=0.2)
    value = x.detach().clone()
    direction = directions(value)[0]
    assert float((exact * direction).sum()) == pytest.approx(
        slope(lambda: mean_cost(model, value, y), value, direction), rel=1e-5
    )


@pytest.mark.parametrize("name", QUICKLY)
@pytest.mark.parametrize("protocol", ["centered", "positive", "implicit"])
def test_loss_is_the_mean_cost_at_the_free_equilibrium(name: str, protocol: str) -> None:
    model, (x, y) = catalogue_model(name), batch()
    loss = learner(model, 0.5, protocol)(image=x, target=y)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(mean_cost(model, x, y), rel=1e-10)


def test_random_sign_draws_both_signs_as_a_function_of_seed_and_step() -> None:
    model, (x, y) = catalogue_model("hopfield"), batch()

    def signs(seed: int) -> list[float]:
        ep, drawn = learner(model, 0.1, "random_sign", seed), []
        for step in range(24):
            ep(image=x, target=y, step=step)
            assert ep.last is not None
            drawn.append(sum(ep.last.betas))
        return drawn

    first = signs(0)
    assert set(first) == {-0.1, 0.1}
    assert signs(0) == first
    assert signs(1) != first
    ep = learner(model, 0.1, "random_sign")
    ep(image=x, target=y, step=17)
    assert ep.last is not None
    assert sum(ep.last.betas) == first[17]


def test_random_sign_is_one_of_the_one_sided_estimates() -> None:
    model, (x, y) = catalogue_model("hopfield"), batch()
    ep = learner(model, 0.02, "random_sign")
    for _ in range(6):
        found = gradients(ep, image=x, target=y)
        assert ep.last is not None
        expected = estimate("hopfield", 0.02, "positive" if sum(ep.last.betas) > 0 else "negative")
        assert all(close(found[key], expected[key], 1e-7) for key in found)


# --------------------------------------------------------------------------- as a torch module


def test_without_gradients_nothing_is_nudged() -> None:
    model, (x, y) = catalogue_model("hopfield"), batch()
    ep = learner(model)
    with torch.no_grad():
        loss = ep(image=x, target=y)
    assert ep.last is not None
    assert ep.last.nudged is None
    assert not loss.requires_grad
    ep(image=x, target=y)
    assert ep.last.nudged is not None


@pytest.mark.parametrize("protocol", ["centered", "implicit"])
def test_scaling_the_loss_scales_the_gradient(protocol: str) -> None:
    model, (x, y) = catalogue_model("xy"), batch()
    once = gradients(learner(model, protocol=protocol), image=x, target=y)
    (2 * learner(model, protocol=protocol)(image=x, target=y)).backward()
    for key, value in model.tensors.items():
        assert value.grad is not None
        assert close(value.grad, 2 * once[key], 1e-9)


def test_gradients_accumulate() -> None:
    model, (x, y) = catalogue_model("hopfield"), batch(rows=4)
    ep = learner(model, 0.01)
    whole = gradients(ep, image=x, target=y)
    for half in (slice(0, 2), slice(2, 4)):
        (ep(image=x[half], target=y[half]) / 2).backward()
    for key, value in model.tensors.items():
        assert value.grad is not None
        assert close(value.grad, whole[key], 1e-7)


def test_untouched_parameters_get_zeros_and_frozen_ones_nothing() -> None:
    graph = EnergyGraph("hopfield").input("i", 2)
    offset = {"b": {"on": "node"}, "unused": {"on": "node", "init": "ones"}}
    graph.state("h", 2, term="x**2/2 - b*x + unused**2", parameters=offset)
    graph.output("o", 2, cost="(x - y)**2/2", parameters={"b": {"frozen": True}}).couple("i", "h").couple("h", "o")
    model = compile_energy(graph)
    learner(model)(i=torch.ones(1, 2), target=torch.tensor([1])).backward()
    unused = model.tensors["h.unused"].grad
    assert unused is not None
    assert torch.equal(unused, torch.zeros(2))
    assert model.tensors["o.b"].grad is None
    assert not model.tensors["o.b"].requires_grad
    weight = model.tensors["h_o.w"].grad
    assert weight is not None
    assert weight.norm() > 0


def test_a_parameter_changed_before_backward_is_noticed() -> None:
    model, (x, y) = catalogue_model("hopfield"), batch()
    loss = learner(model)(image=x, target=y)
    with torch.no_grad():
        model.tensors["hidden_deep.w"].mul_(2)
    with pytest.raises(RuntimeError, match="inplace"):
        loss.backward()


def test_second_derivatives_are_refused() -> None:
    model, (x, y) = catalogue_model("hopfield"), batch()
    loss = learner(model)(image=x, target=y)
    (found,) = torch.autograd.grad(loss, [model.tensors["hidden.b"]], create_graph=True)
    with pytest.raises(RuntimeError, match=r"once_differentiable|does not require grad"):
        found.sum().backward()


def test_copies_learn_the_same() -> None:
    model, (x, y) = catalogue_model("resistive"), batch()
    found = gradients(learner(copy.deepcopy(model)), image=x, target=y)
    assert all(torch.equal(value, found[key]) for key, value in gradients(learner(model), image=x, target=y).items())


@pytest.mark.parametrize("fused", [False, True])
def test_violated_constraints_are_refused_and_attach_projects(fused: bool) -> None:
    model, (x, y) = catalogue_model("resistive"), batch()
    ep = learner(model)
    ep(image=x, target=y).backward()
    reach = [(value / value.grad)[value.grad > 0].min() for key, value in model.tensors.items() if key.endswith(".g")]
    rate = 1.5 * min(reach).item()  # far enough for one conductance
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, fused=fused)
    before = {key: value.detach().clone() for key, value in model.tensors.items()}
    optimizer.step()
    expected = {key: value.detach().clone() for key, value in model.tensors.items()}
    assert any((value < 0).any() for key, value in expected.items() if key.endswith(".g"))
    with pytest.raises(RelaxationError, match="violates its constraint nonnegative"):
        ep(image=x, target=y)
    model.load_state_dict(before)
    ep.attach(optimizer)
    optimizer.step()
    for key, value in model.tensors.items():
        assert torch.equal(value, expected[key].clamp_min(0) if key.endswith(".g") else expected[key])
    assert np.isfinite(ep(image=x, target=y).item())


def test_training_lowers_the_cost() -> None:
    model, (x, y) = catalogue_model("hopfield"), batch()
    ep = EquilibriumPropagation(model, 0.05)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ep.attach(optimizer)
    costs = []
    for _ in range(15):
        optimizer.zero_grad()
        loss = ep(image=x, target=y)
        loss.backward()
        optimizer.step()
        costs.append(loss.item())
    assert costs == sorted(costs, reverse=True)
    assert costs[-1] < costs[0]


@pytest.mark.parametrize("protocol", ["centered", "positive", "negative"])
@pytest.mark.parametrize("name", QUICKLY)
def test_float32_agrees_with_float64(name: str, protocol: str) -> None:
    model, (x, y) = catalogue_model(name).float(), batch()
    found = gradients(EquilibriumPropagation(model, 0.1, protocol), image=x, target=y)
    for key, value in estimate(name, 0.1, protocol).items():
        assert found[key].dtype == torch.float32
        assert error(found[key].double(), value) < 2e-2, key


@pytest.mark.parametrize("protocol", ["centered", "positive"])
@pytest.mark.parametrize("beta", [0.2, 0.01])
def test_a_deep_float32_network_is_right_at_default_settings(protocol: str, beta: float) -> None:
    """Against the same protocol in float64: what the free phase left undone must not be divided by beta."""
    graph = EnergyGraph("hopfield").input("image", 64)
    names = ["image", *(f"h{index}" for index in range(4))]
    for name in names[1:]:
        graph.state(name, 64)
    graph.output("label", 10, cost="(x - y)**2/2")
    for pre, post in itertools.pairwise([*names, "label"]):
        graph.couple(pre, post)
    model, (x, y) = compile_energy(graph, 3).double(), batch(8, 64, 10)
    exact = gradients(EquilibriumPropagation(model, beta, protocol), image=x, target=y)
    found = gradients(EquilibriumPropagation(copy.deepcopy(model).float(), beta, protocol), image=x, target=y)
    for key, value in exact.items():
        assert error(found[key].double(), value) < 0.03, key


def test_autocast_does_not_reach_the_relaxation() -> None:
    model, (x, y) = catalogue_model("hopfield").float(), batch()
    plain = gradients(EquilibriumPropagation(model, 0.1), image=x, target=y)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = gradients(EquilibriumPropagation(model, 0.1), image=x, target=y)
        assert torch.equal(relax(model, image=x)["label"], relax(copy.deepcopy(model), image=x)["label"])
    for key, value in plain.items():
        assert torch.equal(mixed[key], value)


def test_autocast_does_not_reach_costs_and_energies() -> None:
    """A readout is a product, too; so is the energy of an equilibrium."""
    graph = EnergyGraph("hopfield").input("image", 8).state("hidden", 16).couple("image", "hidden")
    model = compile_energy(graph.cost("hidden", "cross_entropy", readout="dense(3)", name="head"), 0).float()
    x, y = torch.rand(4, 8), torch.arange(4) % 3
    plain, energy = EquilibriumPropagation(model, 0.1)(image=x, target=y), relax(model, image=x).energy
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(EquilibriumPropagation(model, 0.1)(image=x, target=y), plain)
        assert torch.equal(relax(model, image=x).energy, energy)


def test_an_engine_can_be_pickled_after_a_forward() -> None:
    model, (x, y) = catalogue_model("xy"), batch()
    ep = EquilibriumPropagation(model, 0.1)
    loss = ep(image=x, target=y)
    assert float(pickle.loads(pickle.dumps(ep))(image=x, target=y).detach()) == pytest.approx(float(loss.detach()))


def test_previous_states_that_do_not_fit_are_left_out() -> None:
    model, (x, y) = catalogue_model("hopfield"), batch()
    ep = EquilibriumPropagation(model, 0.1, relaxation=Relaxation(initial="previous"))
    ep(image=x, target=y)
    model.float()
    assert ep(image=x, target=y).dtype == torch.float32


def test_a_network_without_inputs_learns() -> None:
    graph = EnergyGraph("hopfield").state("a", 3).output("b", 2, cost="(x - y)**2/2").couple("a", "b")
    model = compile_energy(graph, 1).double()
    y = torch.eye(2, dtype=torch.float64)
    found, exact = (gradients(EquilibriumPropagation(model, 0.01, p), target=y) for p in ("centered", "implicit"))
    for key, value in exact.items():
        assert error(found[key], value) < 1e-3 or value.norm() < 1e-9, key


@pytest.mark.parametrize("integrator", ["blocks", "flow"])
def test_the_reference_knows_which_units_a_bound_holds(integrator: str) -> None:
    """exp(x) - b x has its minimum at log(b), beyond the box for some units: those don't respond."""
    energy = Energy(
        node="exp(x) - b*x",
        coupling="-w*pre*post",
        domain=[-1, 1],
        parameters={"b": {"on": "node", "init": "uniform(0.1, 6)"}, "w": {"on": "edge", "init": "uniform(-0.1, 0.1)"}},
    )
    graph = EnergyGraph(energy).input("image", 4).state("hidden", 24).output("label", 3, term="x**2/2", domain="real")
    graph.couple("image", "hidden").couple("hidden", "label").cost("label", "(x - y)**2/2")
    model = compile_energy(graph, 2).double()
    x, y = batch(3, 4, 3)
    exact = gradients(EquilibriumPropagation(model, 0.01, "implicit", relaxation=integrator), image=x, target=y)
    found = gradients(EquilibriumPropagation(model, 0.01, "centered"), image=x, target=y)
    for key, value in exact.items():
        assert error(found[key], value) < 1e-3, key


@pytest.mark.parametrize(
    "make",
    [
        lambda m: EquilibriumPropagation(m, 0.1, "centred"),
        lambda m: EquilibriumPropagation(m, 0.0),
        lambda m: EquilibriumPropagation(m, -0.1),
        lambda m: EquilibriumPropagation(m, float("nan")),
        lambda m: EquilibriumPropagation(
            compile_energy(EnergyGraph("xy").input("a", 1).state("b", 1).couple("a", "b"))
        ),
    ],
)
def test_nonsense_is_refused(make: Callable[[EnergyModel], object]) -> None:
    with pytest.raises(DeclarationError):
        make(catalogue_model("hopfield"))


def test_unknown_protocol_suggests_a_close_name() -> None:
    with pytest.raises(DeclarationError, match="did you mean centered\\?"):
        EquilibriumPropagation(catalogue_model("hopfield"), 0.1, "centred")


def test_a_missing_target_is_refused() -> None:
    with pytest.raises(ShapeError, match="target 'target' is missing"):
        learner(catalogue_model("hopfield"))(image=batch()[0])


def test_previous_states_are_where_the_next_relaxation_starts() -> None:
    model, (x, y) = catalogue_model("hopfield"), batch()
    ep = EquilibriumPropagation(model, relaxation=replace(TIGHT, initial="previous"))
    sweeps = []
    for _ in range(2):
        ep(image=x, target=y)
        assert ep.last is not None
        sweeps.append(int(ep.last.free.sweeps.max()))
    assert sweeps[1] <= 2 < sweeps[0]
