"""Equilibria against closed forms and linear algebra; agreement of integrators; stopping per sample; failures."""

from __future__ import annotations

import math
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import ENTRIES, QUICKLY, TIGHT, batch, catalogue_model, pair
from scipy.optimize import brentq, minimize
from torch import Tensor

from physnet.energy import Energy
from physnet.errors import DeclarationError, RelaxationError, RelaxationWarning, ShapeError
from physnet.graph import EnergyGraph
from physnet.integration import choose, integrators
from physnet.model import EnergyModel, compile_energy
from physnet.plots import trace
from physnet.precision import full_precision
from physnet.relaxation import Equilibrium, Relaxation, relax

pytestmark = pytest.mark.usefixtures("float64")


def distance(model: EnergyModel, a: Equilibrium, b: Equilibrium) -> float:
    """The largest difference between two equilibria, angles modulo 2 pi."""
    return max(float(a.problem.domain(name).difference(a[name], b[name]).abs().max()) for name in model.free)


def projected_force(result: Equilibrium) -> float:
    """The largest force that no bound holds: zero at an equilibrium, whatever found it."""
    with torch.no_grad():
        states, force = result.states, result.problem.force(result.states)
    moved = result.problem.project({name: states[name] + force[name] for name in states})
    return max(float((moved[name] - states[name]).abs().max()) for name in states)


@pytest.mark.parametrize("name", QUICKLY)
@pytest.mark.parametrize("nudge", [None, -0.2])
def test_integrators_meet(name: str, nudge: float | None) -> None:
    model = catalogue_model(name, shapes=(2, 3, 2, 2))
    x, y = batch(rows=2, units=2, classes=2)
    phase: dict[str, Any] = {} if nudge is None else {"target": y, "beta": nudge}
    found = {kind: relax(model, kind, image=x, **phase) for kind in ("blocks", "flow")}
    assert distance(model, found["blocks"], found["flow"]) < 1e-6
    for result in found.values():
        assert bool(result.converged.all())
        assert projected_force(result) < 1e-6


@pytest.mark.parametrize("method", ["bosh3", "adaptive_heun", "dopri8"])
def test_methods_of_flow_meet(device: torch.device, method: str) -> None:
    model = catalogue_model("hopfield-smooth").to(device)
    x, _ = batch()
    flow = relax(model, Relaxation("flow", options={"method": method}), image=x)
    assert distance(model, flow, relax(model, "blocks", image=x)) < 1e-6


@pytest.mark.parametrize("name", ENTRIES)
def test_the_equilibrium_is_a_minimum(device: torch.device, name: str) -> None:
    """Small random moves inside the domains never lower the energy."""
    model = catalogue_model(name).to(device)
    result = relax(model, TIGHT, image=batch()[0])
    generator = torch.Generator().manual_seed(0)
    for size in (1e-3, 1e-1):
        draws = {key: torch.randn(value.shape, generator=generator) for key, value in result.states.items()}
        moved = {key: value + size * draws[key].to(device) for key, value in result.states.items()}
        assert (result.problem.energy(result.problem.project(moved)) >= result.energy - 1e-12).all()


@pytest.mark.parametrize("name", ENTRIES)
def test_blocks_find_what_scipy_finds(name: str) -> None:
    model = catalogue_model(name)
    x, _ = batch(rows=1)
    result = relax(model, TIGHT, image=x)
    problem, shapes = result.problem, {key: value.shape for key, value in result.states.items()}

    def unpack(flat: np.ndarray) -> dict[str, Tensor]:
        pieces = torch.tensor(flat).split([shape.numel() for shape in shapes.values()])
        return {key: piece.view(shape) for (key, shape), piece in zip(shapes.items(), pieces, strict=True)}

    bounds = []
    for key, shape in shapes.items():
        pairs = (
            torch.as_tensor(bound).expand(shape).flatten().tolist() for bound in problem.domain(key).bounds(result[key])
        )
        bounds += list(zip(*pairs, strict=True))
    start = np.concatenate([value.numpy().ravel() for value in problem.zero().values()])
    options = {"ftol": 1e-15, "gtol": 1e-10, "maxiter": 10_000, "maxfun": 100_000}
    best = minimize(
        lambda s: problem.energy(unpack(s)).item(), start, bounds=bounds, method="L-BFGS-B", options=options
    )
    assert result.energy.item() == pytest.approx(best.fun, abs=1e-8)
    for key, value in unpack(best.x).items():
        assert problem.domain(key).difference(value, result[key]).abs().max() < 1e-3


# --------------------------------------------------------------------------- closed forms


def test_linear_resistors_obey_kirchhoff() -> None:
    graph = EnergyGraph("resistive").input("rail", 3, encode=[])
    parameters, g = {"i": {"init": "normal(0, 1)"}}, {"g": {"init": "gain*uniform(0.5, 1.5)"}}
    for node, units in (("a", 4), ("b", 2), ("c", 2)):
        graph.state(node, units, domain="real", parameters=parameters)
    for pre, post, via in (
        ("rail", "a", "dense"),
        ("a", "b", "dense"),
        ("b", "c", "identity"),
        ("c", "a", "dense"),
        ("rail", "c", "dense"),
    ):
        graph.couple(pre, post, via, parameters=g)
    model = compile_energy(graph)
    first = {"rail": 0, "a": 3, "b": 7, "c": 9}
    conductance = np.zeros((11, 11))
    current = np.zeros(11)
    for edge in graph.edges():
        w = model.tensors[f"{edge.name}.g"].detach().numpy()
        for i, j in np.ndindex(w.shape) if w.ndim == 2 else ((k, k) for k in range(len(w))):
            a, b, value = first[edge.post] + i, first[edge.pre] + j, w[i, j] if w.ndim == 2 else w[i]
            conductance[a, a] += value
            conductance[b, b] += value
            conductance[a, b] -= value
            conductance[b, a] -= value
    for node in model.free:
        current[first[node] : first[node] + graph.node(node).shape[0]] = model.tensors[f"{node}.i"].detach().numpy()
    rail = np.array([[1.0, -2.0, 0.5], [0.0, 3.0, -1.0]])
    for row, result in enumerate(relax(model, TIGHT, rail=torch.tensor(rail[[k]])) for k in range(2)):
        volts = np.linalg.solve(conductance[3:, 3:], current[3:] - conductance[3:, :3] @ rail[row])
        for node in model.free:
            units = graph.node(node).shape[0]
            assert np.allclose(result[node].numpy()[0], volts[first[node] - 3 :][:units], rtol=1e-9, atol=1e-10)


@given(st.integers(0, 10**6))
@settings(max_examples=20)
def test_diode_network_has_one_equilibrium(seed: int) -> None:
    model, (x, _) = catalogue_model("resistive"), batch()
    reference = relax(model, TIGHT, image=x)
    start = {key: 5 * value for key, value in reference.problem.random(torch.Generator().manual_seed(seed)).items()}
    assert distance(model, reference, relax(model, TIGHT, image=x, start=start)) < 1e-9


@given(*[st.floats(-3, 3)] * 3, st.floats(0.1, 2))
@settings(max_examples=40)
def test_an_oscillator_points_along_the_sum_of_its_fields(u: float, psi: float, w: float, h: float) -> None:
    model = compile_energy(EnergyGraph("xy").input("drive", 1).state("phase", 1).couple("drive", "phase"))
    with torch.no_grad():
        for name, value in (("phase.h", h), ("phase.psi", psi), ("drive_phase.w", w)):
            model.tensors[name].fill_(value)
    field = h * np.exp(1j * psi) + w * np.exp(1j * u)
    if abs(field) < 1e-3:
        return
    result = relax(model, drive=torch.tensor([[u]]))
    assert np.exp(1j * result["phase"].item()) == pytest.approx(field / abs(field), abs=1e-9)
    assert result.energy.item() == pytest.approx(-abs(field))


@pytest.mark.parametrize("integrator", ["blocks", "flow"])
@pytest.mark.parametrize(("tilt", "w"), [(0.8, 0.7), (1.2, 2.0), (0.3, -0.2)])
def test_two_coupled_oscillators(tilt: float, w: float, integrator: str) -> None:
    """E = -cos(a - tilt) - cos(b + tilt) - w cos(a - b): by symmetry a = -b with sin(a - tilt) + w sin(2 a) = 0."""
    model = compile_energy(EnergyGraph("xy").state("a", 1).state("b", 1).couple("a", "b"))
    with torch.no_grad():
        for name, value in (("a.h", 1.0), ("b.h", 1.0), ("a.psi", tilt), ("b.psi", -tilt), ("a_b.w", w)):
            model.tensors[name].fill_(value)
    expected = brentq(
        lambda a: math.sin(a - tilt) + w * math.sin(2 * a), 0 if w > 0 else tilt, tilt if w > 0 else 1.5, xtol=1e-14
    )
    result = relax(model, Relaxation(integrator, tolerance=1e-11, max_sweeps=5000), rows=2)
    assert torch.allclose(result["a"], torch.full((2, 1), expected), atol=1e-8)
    assert torch.allclose(result["b"], torch.full((2, 1), -expected), atol=1e-8)


def test_a_linear_hopfield_net_solves_its_linear_system() -> None:
    graph = (
        EnergyGraph("hopfield")
        .input("i", 3)
        .state("h", 4, domain="real")
        .output("o", 2)
        .couple("i", "h")
        .couple("h", "o")
    )
    model = compile_energy(graph, seed=2)
    p = {name: value.detach().numpy() for name, value in model.tensors.items()}
    x = torch.randn(5, 3)
    w = p["h_o.w"]
    # hidden and bias are one block each: h = W x + b + w^T o and o = w h + b
    right = x.numpy() @ p["i_h.w"].T + p["h.b"] + p["o.b"] @ w
    hidden = np.linalg.solve(np.eye(4) - w.T @ w, right.T).T
    result = relax(model, TIGHT, i=x)
    assert np.allclose(result["h"].numpy(), hidden, atol=1e-10)
    assert np.allclose(result["o"].numpy(), hidden @ w.T + p["o.b"], atol=1e-10)


# --------------------------------------------------------------------------- per sample


def easy_and_hard() -> tuple[EnergyModel, Tensor]:
    """Without biases an input of zeros is at equilibrium from the start; the other one has far to go."""
    graph = EnergyGraph("hopfield-smooth").input("image", 5).state("hidden", 4).output("label", 3, cost="(x - y)**2/2")
    for pre, post in (("image", "hidden"), ("hidden", "label")):
        graph.couple(pre, post, parameters={"w": {"gain": 1.2}})
    return compile_energy(graph, seed=3), torch.stack([torch.zeros(5), torch.linspace(-3, 2, 5)])


def test_samples_do_not_depend_on_their_batch_mates() -> None:
    model, x = easy_and_hard()
    together = relax(model, image=x)
    alone = [relax(model, image=x[k : k + 1]) for k in range(2)]
    assert alone[0].sweeps.item() < alone[1].sweeps.item()
    assert together.sweeps.tolist() == [result.sweeps.item() for result in alone]
    for k, result in enumerate(alone):
        for name in model.free:
            assert torch.allclose(together[name][k], result[name][0], atol=1e-9)


def test_flags_are_per_sample_and_the_warning_gives_advice() -> None:
    model, x = easy_and_hard()
    with pytest.warns(RelaxationWarning, match="1 of 2 samples have not converged.*raise max_sweeps or the tolerance"):
        result = relax(model, Relaxation("blocks", max_sweeps=3), image=x)
    assert result.converged.tolist() == [True, False]
    assert result.residual[0] <= 1e-10 < result.residual[1]
    assert result.sweeps[1] == 3


def test_flow_reports_residuals_per_sample() -> None:
    model, x = easy_and_hard()
    with pytest.warns(RelaxationWarning):
        result = relax(model, Relaxation("flow", max_sweeps=1), image=x)
    assert result.converged.tolist() == [True, False]
    force = result.problem.force(result.states)
    assert max(value[0].abs().max().item() for value in force.values()) == 0
    assert max(value[1].abs().max().item() for value in force.values()) > 1e-6


@pytest.mark.parametrize(("name", "integrator"), [*((name, "blocks") for name in ENTRIES), ("hopfield-smooth", "flow")])
def test_a_smaller_tolerance_gives_a_smaller_force(name: str, integrator: str) -> None:
    model, (x, _) = catalogue_model(name), batch()
    forces = [
        projected_force(relax(model, Relaxation(integrator, tolerance=t, max_sweeps=5000), image=x))
        for t in (1e-3, 1e-9)
    ]
    assert forces[1] < 1e-7
    assert forces[0] < 3e-2


def test_a_trace_shows_the_sweeps_that_the_settings_allow() -> None:
    problem = catalogue_model("hopfield").problem(None, image=batch()[0])
    with torch.no_grad():
        short, long = (trace(problem, problem.zero(), Relaxation("blocks", 1e-6, sweeps)) for sweeps in (3, 1000))
    assert len(short.states) == 4 and 4 < len(long.states) < 60
    assert bool((long.residual[-1] <= 1e-6).all()) and bool((long.residual[:-1] > 1e-6).any(1).all())
    assert bool((long.energy.diff(dim=0) <= 0).all()) and bool((short.energy == long.energy[:4]).all())


def test_convergence_is_silent() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        relax(catalogue_model("xy"), image=batch()[0])


@pytest.mark.parametrize("initial", ["zero", "forward", "random"])
def test_initial_states_lead_to_the_one_equilibrium(initial: str) -> None:
    model, (x, _) = catalogue_model("hopfield"), batch()
    assert (
        distance(model, relax(model, TIGHT, image=x), relax(model, Relaxation(initial=initial), image=x, seed=4)) < 1e-8
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("integrator", ["blocks", "flow"])
def test_results_have_the_dtype_of_the_model(integrator: str, dtype: torch.dtype) -> None:
    model, (x, y) = catalogue_model("hopfield").to(dtype), batch()
    exact = relax(catalogue_model("hopfield"), image=x)
    for result in (relax(model, integrator, image=x), relax(model, integrator, image=x, target=y, beta=0.1)):
        assert {value.dtype for value in (*result.states.values(), result.residual, result.energy)} == {dtype}
        assert (result.sweeps.dtype, result.converged.dtype) == (torch.int64, torch.bool)
        assert [tuple(result[name].shape) for name in ("hidden", "deep", "label")] == [(3, 4), (3, 3), (3, 3)]
    assert distance(model, relax(model, integrator, image=x), exact) < (1e-3 if dtype == torch.float32 else 1e-8)


# --------------------------------------------------------------------------- failures that speak


@pytest.mark.parametrize("integrator", ["blocks", "flow"])
def test_states_that_are_not_finite_name_the_node(integrator: str) -> None:
    x = torch.full((2, 5), math.nan)
    with pytest.raises(RelaxationError, match=r"input 'image' holds values that are not finite"):
        relax(catalogue_model("hopfield-smooth"), integrator, image=x)


@pytest.mark.parametrize("node", ["x**3 - b*x", "-(x**4) + b*x"])
def test_an_energy_without_a_minimum_is_not_called_settled(node: str) -> None:
    model = compile_energy(pair("-w*pre*post", node=node))
    with pytest.raises(RelaxationError, match=r"'right' is not finite.*fall without bound"):
        relax(model, left=torch.rand(2, 3))


def test_a_nudge_beyond_the_curvature_is_not_called_settled() -> None:
    model, (x, y) = catalogue_model("hopfield-smooth"), batch()
    with pytest.raises(RelaxationError, match="reduce"):
        relax(model, image=x, target=y, beta=-1.5)


def test_a_tolerance_below_the_resolution_is_refused() -> None:
    model, (x, _) = catalogue_model("hopfield").float(), batch()
    with pytest.raises(RelaxationError, match="resolution of"):
        relax(model, Relaxation("flow", tolerance=1e-12), image=x.float())


@pytest.mark.parametrize("depth", [3, 6])
def test_sweeps_follow_the_depth_of_the_network(depth: int) -> None:
    """The nudge travels two nodes per sweep; measuring rarely must not turn that into a thousand."""
    graph = EnergyGraph("hopfield").input("n0", 32)
    for index in range(1, depth + 1):
        graph.state(f"n{index}", 32).couple(f"n{index - 1}", f"n{index}", parameters={"w": {"gain": 0.5}})
    graph.cost(f"n{depth}", "(x - y)**2/2")
    model = compile_energy(graph, 1).float()
    x, y = batch(4, 32, 32)
    with torch.no_grad():
        result = relax(model, n0=x.float(), target=y, beta=0.1)
    assert int(result.sweeps.max()) <= 10 * depth


@pytest.mark.parametrize(
    ("coupling", "node", "expected"),
    [("-w*tanh(pre)*sin(post)", "-cos(x)", "phase"), ("0", "x**2/2 - b*x", "bias"), ("0", "x**2/2 - x", "one")],
)
def test_units_without_live_fields(coupling: str, node: str, expected: str) -> None:
    """atan2(sum_j w_ij tanh(pre_j), 1), b, and 1: one row for every sample."""
    model = compile_energy(pair(coupling, node=node, domain="circle" if expected == "phase" else "real"))
    x = torch.rand(3, 3)
    found = relax(model, left=x)["right"]
    drive = torch.tanh(x) @ model.tensors["left_right.w"].detach().T if expected == "phase" else None
    b = model.tensors["right.b"].detach() if expected == "bias" else None
    wanted = {"phase": lambda: torch.atan2(drive, torch.ones(())), "bias": lambda: b, "one": lambda: torch.ones(())}
    assert torch.allclose(found, wanted[expected]().expand(3, 2))


@pytest.mark.parametrize("beta", [-1.2, -5.0])
def test_negative_curvature_is_refused(beta: float) -> None:
    x, y = batch()
    with pytest.raises(RelaxationError, match=r"'label'.*curvature.*use a smaller \|beta\|"):
        relax(catalogue_model("hopfield"), "blocks", image=x, target=y, beta=beta)


def test_energies_without_a_minimum_are_refused_by_blocks() -> None:
    model = compile_energy(pair("-w*pre*post", node="-b*x"))
    with pytest.raises(RelaxationError, match=r"can't relax this energy.*no minimum"):
        relax(model, "blocks", left=torch.ones(1, 3))


def test_failures_of_torchdiffeq_are_translated() -> None:
    """E = sqrt(4 - pre - post) drives post into 3 with a speed that diverges: the step of the solver underflows."""
    with pytest.warns(UserWarning, match="doesn't separate"):
        model = compile_energy(pair("sqrt(4 - pre - post)", node="0"))
    with pytest.raises(RelaxationError, match=r"flow with dopri5 stopped after.*integrator='blocks'"):
        relax(model, "flow", left=torch.ones(1, 3))


def test_an_undefined_energy_is_no_equilibrium() -> None:
    """E = sqrt(1 - x) has no minimum: staying put would pass for convergence."""
    model = compile_energy(pair("-w*pre*post/100", node="sqrt(1 - x)"))
    for integrator in ("blocks", "flow"):
        with pytest.raises(RelaxationError, match="not finite"):
            relax(model, integrator, left=torch.ones(1, 3))


@pytest.mark.parametrize(
    "make",
    [
        lambda m, x: relax(m, "bloks", image=x),
        lambda m, x: relax(m, Relaxation("flow", options={"method": "euler"}), image=x),
        lambda m, x: relax(m, Relaxation("flow", options={"methd": "dopri5"}), image=x),
        lambda m, x: relax(m, Relaxation("blocks", options={"omega": 2.0}), image=x),
        lambda m, x: Relaxation(initial="warm"),
        lambda m, x: Relaxation(tolerance=0.0),
        lambda m, x: Relaxation(max_sweeps=0),
    ],
)
def test_unknown_settings_are_declaration_errors(make: Any) -> None:
    with pytest.raises(DeclarationError):
        make(catalogue_model("hopfield"), batch()[0])


def test_a_nudge_needs_target_and_beta() -> None:
    x, y = batch()
    for phase in ({"target": y}, {"beta": 0.1}):
        with pytest.raises(RelaxationError, match="both target and beta"):
            relax(catalogue_model("hopfield"), image=x, **phase)
    with pytest.raises(ShapeError, match="holds class 7"):
        relax(catalogue_model("hopfield"), image=x, target=y + 5, beta=0.1)


def test_auto_takes_the_first_valid_integrator_and_says_why() -> None:
    assert list(integrators())[:3] == ["errors", "blocks", "flow"]
    assert choose(catalogue_model("xy").problem(image=batch()[0]))[0].name == "blocks"
    with pytest.warns(UserWarning, match="doesn't separate"):
        model = compile_energy(pair("-w*tanh(pre*post)"))
    kind, reason = choose(model.problem(left=torch.ones(1, 3)))
    assert kind.name == "flow"
    assert "not blocks" in reason
    assert "doesn't separate" in reason


def test_an_inseparable_energy_relaxes_by_flow() -> None:
    """x**2/2 - tanh(u x): x = u (1 - tanh(u x)^2)."""
    energy = Energy(node="x**2/2", coupling="-tanh(pre*post)")
    with pytest.warns(UserWarning, match="doesn't separate"):
        model = compile_energy(EnergyGraph(energy).input("u", 1).state("x", 1).couple("u", "x"))
    u = torch.tensor([[0.5], [1.3], [-0.7]])
    result = relax(model, u=u)
    for k in range(3):
        v = u[k].item()
        root = brentq(lambda x, v=v: x - v * (1 - math.tanh(v * x) ** 2), -2, 2, xtol=1e-14)
        assert result["x"][k].item() == pytest.approx(root, abs=1e-8)


def test_full_precision_of_threads_that_overlap_ends_with_the_last() -> None:
    before, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, True
    try:
        first, second = (full_precision(torch.device("cpu")) for _ in range(2))
        with ThreadPoolExecutor(1) as other:
            first.__enter__()
            other.submit(second.__enter__).result()
            first.__exit__(None, None, None)
            assert not torch.backends.cudnn.allow_tf32
            other.submit(second.__exit__, None, None, None).result()
        assert torch.backends.cudnn.allow_tf32
    finally:
        torch.backends.cudnn.allow_tf32 = before
