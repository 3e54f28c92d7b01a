"""Reference gradients, in float64: against each other, finite differences and series written out in numpy."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from networks import QUICKLY, TIGHT, batch, catalogue_model, close, pair
from torch import Tensor

from physnet.declaration import parse_experiment
from physnet.energy import Energy
from physnet.errors import DeclarationError, RelaxationError
from physnet.explaining import explain
from physnet.graph import EnergyGraph
from physnet.learning import EquilibriumPropagation, gradients
from physnet.maps import descent, safe_rate, sweep, synchronous
from physnet.model import EnergyModel, compile_energy
from physnet.references import REFERENCES, Reference, find_method
from physnet.relaxation import Relaxation, relax

pytestmark = pytest.mark.usefixtures("float64")
LONG = "truncated_backprop(400)"
ENOUGH = "truncated_backprop(60)"  # where a sweep is exact


def found(model: EnergyModel, method: str, relaxation: Relaxation = TIGHT, **data: Tensor) -> dict[str, Tensor]:
    """The gradient of every parameter and, as `image`, of the input."""
    data["image"].requires_grad_()
    ep = EquilibriumPropagation(model, 0.1, method, relaxation=relaxation)
    names = [name for name, value in model.tensors.items() if value.requires_grad]
    leaves = [model.tensors[name] for name in names]
    values = torch.autograd.grad(ep(**data), [*leaves, data["image"]])
    return dict(zip([*names, "image"], values, strict=True))


@pytest.mark.parametrize("name", QUICKLY)
@pytest.mark.parametrize("method", ["recurrent_backprop", ENOUGH])
def test_references_agree(name: str, method: str) -> None:
    """Row 6 of the acceptance tests: to 1e-8, for every parameter and the inputs."""
    model, (x, y) = catalogue_model(name, encode=["2*x", "tanh(x) - x**2"]), batch()
    if name == "kuramoto" and method == ENOUGH:  # nothing but neighbours holds these units, so that they are slower
        method = "truncated_backprop(400)"
    exact, other = (found(model, m, image=x, target=y) for m in ("implicit", method))
    assert other.keys() == {"image", *(name for name, value in model.tensors.items() if value.requires_grad)}
    for key, value in exact.items():
        assert value.norm() > 1e-6, key
        assert close(other[key], value, 1e-8), key


@pytest.mark.filterwarnings("ignore:the coupling")
@pytest.mark.parametrize("method", ["recurrent_backprop", LONG])
def test_references_agree_where_no_unit_has_an_exact_update(method: str) -> None:
    """The map is then a projected gradient step; some units are held by a bound."""
    graph = pair("-c*tanh(w*pre*post)", "x**2/2 - b*x", [-0.7, 0.7], shapes=(5, 4), name="edge")
    model = compile_energy(graph, 4)
    x, _ = batch()
    y = torch.linspace(-1, 1, 12).view(3, 4)

    def gradient(method: str) -> dict[str, Tensor]:
        return gradients(EquilibriumPropagation(model, 0.1, method, relaxation=TIGHT), left=x, target=y)

    state = relax(model, TIGHT, left=x)["right"]
    assert 0 < int((state.abs() > 0.7 - 1e-9).sum()) < state.numel()
    other = gradient(method)
    for key, value in gradient("implicit").items():
        assert value.norm() > 1e-6, key
        assert close(other[key], value, 1e-8), key


@pytest.mark.parametrize("method", ["recurrent_backprop", ENOUGH])
def test_a_cost_may_have_parameters_and_some_may_be_frozen(method: str) -> None:
    graph = EnergyGraph("hopfield-smooth").input("image", 4).state("hidden", 5, parameters={"b": {"frozen": True}})
    scale = {"r": {"on": "node", "init": "uniform(1, 2)"}}
    graph.output("label", 3, parameters=scale, cost="(x - r*y)**2/2 + r**2")
    model = compile_energy(graph.couple("image", "hidden").couple("hidden", "label"), 3)
    x, y = batch(units=4)
    exact, other = (found(model, m, image=x, target=y) for m in ("implicit", method))
    assert {"label.r", "image"} <= exact.keys()
    assert "hidden.b" not in exact
    for key, value in exact.items():
        assert close(other[key], value, 1e-8), key


def chain() -> tuple[EnergyModel, np.ndarray, Tensor, Tensor]:
    """x -> a -> b, all linear: s = V s + W x + c, swept as a, b; V is the coupling of a and b."""
    graph = EnergyGraph("hopfield").input("image", 3).state("a", 4, domain="real")
    graph.output("b", 2, cost="(x - y)**2/2").couple("image", "a").couple("a", "b")
    model = compile_energy(graph, 1)
    x, _ = batch(units=3)
    return model, model.tensors["a_b.w"].detach().numpy(), x, torch.linspace(-1, 1, 6).view(3, 2)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_truncation_leaves_that_many_terms_of_the_series(steps: int) -> None:
    """One sweep of a linear net is a <- W^T b + c, b <- W a + d: K of them give the drives of b the gradients
    delta = sum_{k<K} (W W^T)^k (b - y), and those of a W^T delta."""
    model, w, x, y = chain()
    state = relax(model, TIGHT, image=x)
    miss = (state["b"] - y).numpy()
    power = [np.linalg.matrix_power(w @ w.T, k) for k in range(steps)]
    delta = sum(miss @ p for p in power)
    expected = {"b.b": delta.mean(0), "a.b": (delta @ w).mean(0)}
    expected["image_a.w"] = (delta @ w).T @ x.detach().numpy() / 3
    given = found(model, f"truncated_backprop({steps})", image=x, target=y)
    for key, value in expected.items():
        np.testing.assert_allclose(given[key].numpy(), value, rtol=1e-9, atol=1e-12, err_msg=key)


def test_the_error_of_truncation_falls_as_the_slowest_mode_decays() -> None:
    """By the largest eigenvalue of W W^T with every sweep."""
    model, w, x, y = chain()
    exact = found(model, "implicit", image=x, target=y)["b.b"]
    rate = np.linalg.eigvalsh(w @ w.T).max()
    errors = [
        float((found(model, f"truncated_backprop({k})", image=x, target=y)["b.b"] - exact).norm()) for k in (12, 16)
    ]
    assert errors[1] / errors[0] == pytest.approx(rate**4, rel=0.05)


@pytest.mark.parametrize("name", ["hopfield-smooth", "hopfield", "xy", "resistive"])
def test_maps_stand_still_at_an_equilibrium_and_their_pushes_are_forces(name: str) -> None:
    model, (x, _) = catalogue_model(name), batch()
    state = relax(model, TIGHT, image=x).states
    problem = model.problem(image=x)
    for step in (sweep, synchronous, descent(safe_rate(problem, state))):
        for node, value in step(problem, state).items():
            assert problem.domain(node).difference(value, state[node]).abs().max() < 1e-9
    push = {node: torch.zeros_like(value) for node, value in state.items()}
    push["label"] = torch.full_like(state["label"], 1e-4)
    moved = synchronous(problem, state, push)
    assert (moved["label"] - state["label"]).abs().min() > 1e-6
    # the pushed units stand where the energy minus push * x is minimal, given the others as they were
    force = problem.force({**state, "label": moved["label"]}, ["label"])["label"] + push["label"]
    assert force.abs().max() < 1e-7


def test_safe_rate_is_below_the_inverse_of_the_largest_eigenvalue() -> None:
    """Of the Hessian, written out by autograd; and not needlessly small."""
    model, (x, _) = catalogue_model("hopfield-smooth"), batch(rows=1)
    state = relax(model, TIGHT, image=x).states
    problem = model.problem(image=x)
    sizes = [value[0].numel() for value in state.values()]

    def energy(s: Tensor) -> Tensor:
        return problem.energy(dict(zip(state, (p[None] for p in s.split(sizes)), strict=True)))[0]

    whole = torch.cat([value[0] for value in state.values()])
    hessian = torch.autograd.functional.hessian(energy, whole)
    largest = float(torch.linalg.eigvalsh(hessian).max())  # pyright: ignore
    assert 0.8 / largest < safe_rate(problem, state) < 1 / largest


def test_an_unstable_state_has_no_recurrent_backprop() -> None:
    """x = 0 is a saddle of two units that pull each other up with a coupling of 2."""
    energy = Energy(
        node="x**2/2 - b*x",
        coupling="-2*w*pre*post",
        domain=[-5, 5],
        parameters={"b": {"on": "node", "init": "zeros"}, "w": {"on": "edge", "init": "ones"}},
    )
    graph = EnergyGraph(energy).state("a", 1).output("b", 1, cost="(x - y)**2/2").couple("a", "b")
    model = compile_energy(graph)
    with pytest.raises(RelaxationError, match="not a stable equilibrium"):
        gradients(EquilibriumPropagation(model, 0.1, "recurrent_backprop"), target=torch.ones(1, 1))


# --------------------------------------------------------------------------- as declarations


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ("implicit", {}),
        ("truncated_backprop", {"steps": 40}),
        ("truncated_backprop(7)", {"steps": 7}),
        ("truncated_backprop(steps=3)", {"steps": 3}),
    ],
)
def test_arguments_of_references(text: str, arguments: dict[str, int]) -> None:
    method = find_method(text)
    assert isinstance(method, Reference)
    assert method.arguments == arguments
    assert find_method(str(method)) == method


@pytest.mark.parametrize(
    "text",
    [
        "truncated_backprop(0)", "truncated_backprop(2.5)", "truncated_backprop(-1)", "truncated_backprop(1, 2)",
        "truncated_backprop(k=3)", "truncated_backprop(True)", "truncated_backprop(", "truncated_backprop(a)",
        "implicit(3)", "truncated_backprop(*[1])",
    ],
)  # fmt: skip
def test_wrong_arguments_are_refused(text: str) -> None:
    with pytest.raises(DeclarationError, match=r"fix: (it takes whole numbers|write implicit)"):
        find_method(text)


@pytest.mark.parametrize(("typo", "meant"), [("recurent_backprop", "recurrent_backprop"), ("centred", "centered")])
def test_unknown_names_suggest_protocols_and_references(typo: str, meant: str) -> None:
    with pytest.raises(DeclarationError, match=f"did you mean {meant}\\?"):
        find_method(typo)


DECLARED = """
energy: hopfield
nodes:
  image: {shape: 64, role: input}
  label: {shape: 10, role: output}
edges:
  - image -> label
cost: (x - y)**2/2
learn: {protocol: PROTOCOL}
"""


def test_references_are_declared_like_protocols() -> None:
    for name in [*REFERENCES, "truncated_backprop(3)"]:
        experiment = parse_experiment(DECLARED.replace("PROTOCOL", name))
        assert experiment.learn.protocol == name
        assert "centered" in explain(compile_energy(experiment.graph), name).text
    with pytest.raises(DeclarationError, match=r"<text>:9:.*wrong arguments"):
        parse_experiment(DECLARED.replace("PROTOCOL", "truncated_backprop(0)"))


def test_names_of_references_are_checked_without_torch() -> None:
    code = (
        "import sys, physnet.references as r; r.find_method('truncated_backprop(3)'); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_reference_of_ones_own_plugs_in() -> None:
    def zero(problem, state, targets):
        return {name: torch.zeros_like(value) for name, value in {**problem.parameters, **problem.clamped}.items()}

    model, (x, y) = catalogue_model("hopfield"), batch()
    ep = EquilibriumPropagation(model, protocol=Reference("none", "nothing", zero))
    assert all(float(value.norm()) == 0 for value in gradients(ep, image=x, target=y).values())
