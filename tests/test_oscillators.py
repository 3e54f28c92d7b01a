"""Coupled phase oscillators: against closed forms, Kuramoto's theory, and complex amplitude equations."""

from __future__ import annotations

import csv
import math
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.integrate import solve_ivp
from typer.testing import CliRunner

from physnet.cli import app
from physnet.declaration import parse_experiment
from physnet.domains import CIRCLE
from physnet.energy import Energy
from physnet.errors import DeclarationError, RelaxationError, RelaxationWarning
from physnet.graph import EnergyGraph
from physnet.learning import EquilibriumPropagation, gradients
from physnet.model import EnergyModel, compile_energy
from physnet.parameters import ParameterSpec
from physnet.relaxation import Relaxation, relax
from physnet.scalar import minimise
from physnet.simulation import Simulation, simulate

ROOT = Path(__file__).parent.parent
INTEGRATORS = ("blocks", "flow", "descent", "fixed_point", "newton")


def two(first: float, second: float, coupling: float = 1.0, tau: tuple[float, float] = (1.0, 1.0)) -> EnergyModel:
    """Two oscillators:  theta = b - a  obeys  theta' = second - first - 2 w sin theta  where both tau are 1."""
    graph = EnergyGraph("kuramoto").state("a", 1, tau=tau[0]).state("b", 1, tau=tau[1]).couple("a", "b")
    model = compile_energy(graph).double()
    with torch.no_grad():
        for name, value in (("a.omega", first), ("b.omega", second), ("a_b.w", coupling)):
            model.tensors[name].fill_(value)
    return model


def array(units: int, spread: float, pattern: str | None = None, seed: int = 1, **options: Any) -> EnergyModel:
    omega = {"omega": {"spread": spread}}
    graph = EnergyGraph("kuramoto").state("array", units, parameters=omega)
    graph.couple("array", "array", f"sparse({pattern})" if pattern else "dense", parameters={"w": options})
    return compile_energy(graph, seed).double()


def layered(entry: str, gain: float, sizes: tuple[int, ...] = (16, 24, 24, 6), **more: Any) -> EnergyModel:
    """A net with a field on every unit."""
    own = {"parameters": {"h": {"init": "normal(1, 0.2)"}, **more}}
    graph = EnergyGraph(entry).input("image", sizes[0]).state("h1", sizes[1], **own).state("h2", sizes[2], **own)
    graph.output("label", sizes[3], cost="(cos(x) - y)**2/2", **own)
    for pre, post in (("image", "h1"), ("h1", "h2"), ("h2", "label")):
        graph.couple(pre, post, parameters={"w": {"gain": gain}})
    return compile_energy(graph, 1).double()


def phases(rows: int, units: int) -> torch.Tensor:
    return 3 * torch.rand(rows, units, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 1.5


# --------------------------------------------------------------------------- what a circle allows


@pytest.mark.parametrize(
    ("node", "coupling", "names"),
    [
        ("x**2/2", "-w*cos(pre - post)", "x"),
        ("-cos(x/2)", "-w*cos(pre - post)", "x"),
        ("-x*cos(x)", "-w*cos(pre - post)", "x"),
        ("-cos(k*x)", "-w*cos(pre - post)", "x"),
        ("-cos(x)", "-w*pre*post", "pre"),
        ("-cos(x)", "-w*pre*cos(post)", "pre"),
        ("-cos(x)", "-w*cos(pre)*cos(post/3)", "post"),
    ],
)
def test_what_is_not_periodic_is_refused_by_its_place(node: str, coupling: str, names: str) -> None:
    parameters = {"k": {"on": "node", "init": "ones"}, "w": {"on": "edge", "init": "ones"}}
    graph = EnergyGraph(Energy(node=node, coupling=coupling, domain="circle", parameters=parameters))
    with pytest.raises(DeclarationError, match=rf"(x|{names}), but 'a' lives on a circle") as caught:
        compile_energy(graph.state("a", 2).state("b", 2).couple("a", "b").couple("b", "a", name="back"))
    assert "not periodic" in str(caught.value) and "cos(pre - post)" in str(caught.value)


@pytest.mark.parametrize(
    "node",
    ["-omega*x", "-omega*x - cos(x)", "-cos(x - omega)**2", "exp(sin(2*x + omega))", "-log(1.5 + cos(3.0*x))",
     "x + sin(x)", "cos(2*(x - omega))*sin(x)"],
)  # fmt: skip
def test_periodic_up_to_a_drive_is_allowed(node: str) -> None:
    parameters = {"omega": {"on": "node", "init": "ones"}} if "omega" in node else {}
    compile_energy(EnergyGraph(Energy(node=node, domain="circle", parameters=parameters)).state("a", 2))


def test_inputs_may_enter_as_fields_of_any_form_and_costs_must_be_periodic() -> None:
    graph = EnergyGraph("oscillator-ising").input("image", 3).output("label", 2, cost="(cos(x) - y)**2/2")
    compile_energy(graph.couple("image", "label", term="-w*pre*cos(post)"))
    with pytest.raises(DeclarationError, match=r"the cost .* is not periodic in x.*\n.*1 - cos"):
        compile_energy(
            EnergyGraph("xy").input("image", 2).output("label", 2, cost="(x - y)**2").couple("image", "label")
        )


def test_a_fault_of_a_file_points_at_its_line() -> None:
    text = "energy: xy\nnodes:\n  a: {shape: 1, role: input}\n  b: {shape: 2, term: x**2}\nedges: [a -> b]\n"
    with pytest.raises(DeclarationError, match=r"^<text>:4:.*x\*\*2 is not periodic"):
        parse_experiment(text)


# --------------------------------------------------------------------------- exact updates


@given(st.integers(0, 10**6), st.floats(0, 1.5), st.floats(0, 0.5))
@settings(max_examples=8)
def test_an_update_descends_into_the_well_that_the_unit_is_in(seed: int, second: float, tilt: float) -> None:
    """-A cos x - B sin x - s cos(2x)/2 - omega x, against descent with steps of 1/(largest curvature), which passes
    no stationary point. Units that it carries round are those that the update lets run on."""
    generator = torch.Generator().manual_seed(seed)
    a, b, s, w, x0 = (2 * torch.rand(5, 64, generator=generator, dtype=torch.float64) - 1).unbind()
    s, w, x0 = second * s, tilt * w, math.pi * x0

    def energy(x: torch.Tensor) -> torch.Tensor:
        return -a * torch.cos(x) - b * torch.sin(x) - s * torch.cos(2 * x) / 2 - w * x

    def slopes(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        slope = a * torch.sin(x) - b * torch.cos(x) + s * torch.sin(2 * x) - w
        return slope, a * torch.cos(x) + b * torch.sin(x) + 2 * s * torch.cos(2 * x)

    found, descended = minimise(energy, slopes, x0, CIRCLE), x0
    for _ in range(3000):
        descended = descended - slopes(descended)[0] / (a.abs() + b.abs() + 2 * s.abs() + 1e-9)
    settled = slopes(descended)[0].abs() < 1e-8
    assert bool((energy(found) <= energy(x0) + 1e-12).all())
    assert bool((slopes(found)[0][settled].abs() < 1e-9).all())
    other = ((found - descended).abs() > 1e-3) & settled
    assert int(other.sum()) <= 1  # a well that is about to vanish may be passed over, downwards
    assert bool((energy(found) <= energy(descended) + 1e-6)[settled].all())


def test_a_unit_on_top_of_its_hill_goes_down() -> None:
    model = compile_energy(
        EnergyGraph("oscillator-ising").state("a", 1, parameters={"s": {"init": "-ones()"}})
    ).double()
    assert abs(relax(model, "blocks", rows=1)["a"].item()) == pytest.approx(math.pi / 2)


def test_injection_makes_phases_binary() -> None:
    """With strong injection phases are 0 or pi, and an antiferromagnetic ring of four finds its ground state."""
    s = {"s": {"init": "3*ones()"}}
    graph = EnergyGraph("oscillator-ising").state("spins", 4, parameters=s)
    graph.couple("spins", "spins", "sparse('ring', 4)", parameters={"w": {"init": "-ones()"}})
    result = relax(compile_energy(graph).double(), Relaxation(initial="random"), rows=64)
    spin = torch.cos(result["spins"])
    assert bool((spin.abs() > 1 - 1e-9).all())
    assert float(result.energy.detach().min()) == pytest.approx(-4 - 6)  # four bonds, and four units at -s/2


@pytest.mark.slow
@pytest.mark.parametrize("entry", ["xy", "oscillator-ising"])
def test_exact_updates_flow_and_descent_agree_on_layered_nets(entry: str) -> None:
    model = layered(entry, 0.4, **({"s": {"init": "uniform(0.05, 0.2)"}} if entry == "oscillator-ising" else {}))
    x = phases(4, 16)
    exact = relax(model, Relaxation("blocks", tolerance=1e-9), image=x)
    for integrator in ("flow", "descent", "newton"):
        other = relax(model, Relaxation(integrator, tolerance=1e-9, max_sweeps=5000), image=x)
        assert bool(other.converged.all())
        for node in model.free:
            assert float(CIRCLE.difference(exact[node], other[node]).abs().max()) < 1e-6


@pytest.mark.slow
def test_exact_updates_are_much_faster_than_flow() -> None:
    """To the same residual on a layered XY net: fewer sweeps than a fifth of the evaluations, and of the time."""
    model, x, spent, counts = layered("xy", 1.0), phases(8, 16), {}, {}
    for integrator in ("blocks", "flow"):
        began = time.process_time()
        result = relax(model, Relaxation(integrator, tolerance=1e-6, max_sweeps=5000), image=x)
        spent[integrator], counts[integrator] = time.process_time() - began, int(result.sweeps.max())
        assert bool(result.converged.all())
    assert 5 * counts["blocks"] <= counts["flow"] and 5 * spent["blocks"] <= spent["flow"]


# --------------------------------------------------------------------------- the frame that turns


@pytest.mark.parametrize("integrator", INTEGRATORS)
@pytest.mark.parametrize("tau", [(1.0, 1.0), (1.0, 3.0)])
def test_two_locked_oscillators(integrator: str, tau: tuple[float, float]) -> None:
    """omega_a - tau_a W + w sin theta = 0 = omega_b - tau_b W - w sin theta,  W = sum omega / sum tau."""
    model = two(1.7, 2.3, 1.5, tau)
    common = 4.0 / sum(tau)
    result = relax(model, Relaxation(integrator, initial="random"), rows=5)
    assert bool(result.converged.all()) and not bool(result.drifting.any())  # pyright: ignore[reportOptionalMemberAccess]
    theta = CIRCLE.wrap(result["b"] - result["a"])
    assert torch.allclose(theta, torch.full_like(theta, math.asin((tau[0] * common - 1.7) / 1.5)), atol=1e-8)


def test_a_simulation_turns_at_the_mean_frequency_and_settles_in_its_frame() -> None:
    """Of theta the closed form is known:  theta' = .5 - 2 sin theta."""
    path = simulate(two(2.0, 2.5), Simulation(20.0, 401, accuracy=1e-9), rows=1)
    theta = (path["b"] - path["a"])[:, 0, 0].numpy()
    exact = solve_ivp(lambda t, y: 0.5 - 2 * np.sin(y), (0, 20), [0], rtol=1e-11, t_eval=path.times.numpy()).y[0]
    assert np.abs(theta - exact).max() < 1e-5
    assert path.frame == {"a": 2.25, "b": 2.25} and bool(path.converged.all())
    assert path.frequencies("a").item() == pytest.approx(2.25, abs=1e-6)
    assert torch.allclose((path["a"] + path["b"])[:, 0, 0], 4.5 * path.times, atol=1e-6)
    assert path.order()[-1].item() == pytest.approx(math.cos(math.asin(0.25) / 2), abs=1e-8)
    assert torch.allclose(path.order("a"), torch.ones(401, 1, dtype=torch.float64))
    assert bool((path.energy.diff(dim=0) <= 1e-9).all())


def test_a_rotation_of_the_start_rotates_the_simulation() -> None:
    model = array(12, 0.2, "'ring', 12, reach=2")
    start = phases(2, 12)
    one, other = (simulate(model, Simulation(30.0), start={"array": start + turn}, rows=2) for turn in (0.0, 1.1))
    assert torch.allclose(other["array"], one["array"] + 1.1, atol=1e-5)
    assert bool(one.converged.all()) and torch.allclose(one.settling_time, other.settling_time, rtol=1e-3)


def test_frequencies_of_a_rotating_pair_outside_of_the_locking_range() -> None:
    """theta' = D - 2 w sin theta has the mean frequency sqrt(D^2 - 4 w^2)."""
    path = simulate(two(2.0, 5.0), Simulation(120.0, 241), rows=1)
    beat = math.sqrt(9 - 4)
    assert not bool(path.converged.any()) and bool(path.equilibrium.drifting.all())  # pyright: ignore
    assert path.frequencies("a").item() == pytest.approx(3.5 - beat / 2, abs=0.06)
    assert path.frequencies("b").item() == pytest.approx(3.5 + beat / 2, abs=0.06)


@pytest.mark.parametrize("integrator", INTEGRATORS)
def test_drift_is_told_and_not_iterated_for_ever(integrator: str) -> None:
    """Beyond |D| = 2 w there is no locked state; just below it there is, and it is found."""
    with pytest.warns(RelaxationWarning, match=r"2 of 2 samples drift.*locking range.*stronger couplings"):
        lost = relax(two(0.0, 2.5), Relaxation(integrator), rows=2)
    assert lost.drifting is not None and bool(lost.drifting.all()) and not bool(lost.converged.any())
    held = relax(two(0.0, 1.9), Relaxation(integrator), rows=2)
    assert bool(held.converged.all()) and not bool(held.drifting.any())  # pyright: ignore[reportOptionalMemberAccess]


def test_a_wound_chain_is_locked_and_no_drift() -> None:
    """Frequencies that grow along a chain: sin(x_i+1 - x_i) is the running sum of the centred ones, over w."""
    units = 60
    graph = EnergyGraph("kuramoto").state("array", units, parameters={"omega": {"init": "evenly(-0.062, 0.062)"}})
    graph.couple("array", "array", f"sparse('lattice', {units})", parameters={"w": {"init": "ones"}})
    model = compile_energy(graph).double()
    omega = model.tensors["array.omega"].detach()
    wanted = torch.asin(-(omega - omega.mean()).cumsum(0)[:-1])
    result = relax(model, Relaxation("newton", tolerance=1e-9), rows=1)
    assert bool(result.converged.all())
    assert torch.allclose(result["array"][0].diff(), wanted, atol=1e-5)
    assert float(result["array"][0].max() - result["array"][0].min()) > 2 * math.pi  # wound, yet locked


def test_gradients_are_refused_where_angles_drift_or_nothing_holds_them() -> None:
    free = EnergyGraph("kuramoto").state("a", 1).output("b", 1, cost="1 - cos(x - y)").couple("a", "b")
    target = torch.zeros(2, 1)
    with pytest.raises(RelaxationError, match="no gradient: the energy depends on differences"):
        gradients(EquilibriumPropagation(compile_energy(free)), target=target)
    held = EnergyGraph("kuramoto").input("a", 1).output("b", 1, cost="1 - cos(x - y)").couple("a", "b")
    model = compile_energy(held).double()
    with torch.no_grad():
        model.tensors["b.omega"].fill_(3.0)
    with pytest.raises(RelaxationError, match="no gradient: 2 of 2 samples drift"), pytest.warns(RelaxationWarning):
        gradients(EquilibriumPropagation(model), a=target, target=target)


def test_the_gradient_of_a_frequency_is_the_displacement_of_the_phase() -> None:
    """x = asin(omega) under a clamped neighbour at 0: d(1 - cos x)/d omega = tan x. arXiv 2604.10272."""
    graph = EnergyGraph("kuramoto").input("a", 1).output("b", 1, cost="1 - cos(x - y)").couple("a", "b")
    model = compile_energy(graph).double()
    with torch.no_grad():
        model.tensors["b.omega"].fill_(0.6)
    zero = torch.zeros(1, 1, dtype=torch.float64)
    found = gradients(EquilibriumPropagation(model, 0.01), a=zero, target=zero)["b.omega"]
    assert found.item() == pytest.approx(math.tan(math.asin(0.6)), rel=3e-4)


def test_order_and_frequencies_are_for_angles() -> None:
    path = simulate(compile_energy(EnergyGraph("hopfield").state("a", 1)), rows=1)
    with pytest.raises(DeclarationError, match="no state of this network is an angle"):
        path.order()
    with pytest.raises(DeclarationError, match="'a' are no angles"):
        path.frequencies("a")


# --------------------------------------------------------------------------- amplitude and phase


@pytest.mark.slow
def test_stuart_landau_oscillators_follow_their_complex_equation() -> None:
    """z' = (mu - |z|^2) z + sum_j w_ij z_j, the real and imaginary parts being two nodes."""
    graph = EnergyGraph("stuart-landau").state("re", 5)
    graph.state("im", 5, parameters={"mu": {"share": "re.mu"}})
    graph.couple("re", "im", "identity", term="pre**2*post**2/2", name="amplitude")
    graph.couple("re", "re", "sparse('ring', 5)", name="real")
    graph.couple("im", "im", "sparse('ring', 5)", name="imaginary", parameters={"w": {"share": "real.w"}})
    model = compile_energy(graph, 3).double()
    start = {"re": phases(1, 5), "im": phases(1, 5).flip(1)}
    path = simulate(model, Simulation(6.0, 31, accuracy=1e-9), start=start, rows=1)
    mu, w = model.tensors["re.mu"].detach().numpy(), model.tensors["real.w"].detach().numpy()
    link = model.functions["real_edge"]
    matrix = np.zeros((5, 5))
    for weight, i, j in zip(w, link.link.pattern.pre, link.link.pattern.post, strict=True):
        matrix[i, j] = matrix[j, i] = weight
    z0 = (start["re"] + 1j * start["im"])[0].numpy()
    exact = solve_ivp(
        lambda t, z: (mu - np.abs(z) ** 2) * z + matrix @ z,
        (0, 6),
        z0,
        rtol=1e-11,
        atol=1e-12,
        t_eval=path.times.numpy(),
    ).y.T
    assert np.abs((path["re"] + 1j * path["im"])[:, 0].numpy() - exact).max() < 1e-6


# --------------------------------------------------------------------------- arrays


def test_evenly_spaced_values_make_quantiles() -> None:
    spec = ParameterSpec("omega", "node", init="gamma*tan(pi*evenly(-1/2, 1/2))", constants={"gamma": 0.5})
    found = spec.draw((2, 3), (1, 1), torch.Generator())
    level = torch.atan(found.flatten() / 0.5) / math.pi + 0.5  # the distribution function of the Lorentzian
    assert torch.allclose(level, (torch.arange(6, dtype=torch.float64) + 0.5) / 6)


@pytest.mark.slow
@pytest.mark.parametrize("coupling", [0.5, 1.5, 2.0, 3.0])
def test_the_order_parameter_is_that_of_theory(coupling: float) -> None:
    """r = sqrt(1 - K_c/K) above K_c, and of order 1/sqrt(N) well below."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import kuramoto

    found = kuramoto.order(kuramoto.all_to_all(2000), coupling, 100.0)
    if coupling < kuramoto.CRITICAL:
        assert found < 2 / math.sqrt(2000)
    else:
        assert found == pytest.approx(kuramoto.theory(coupling), rel=0.05)


def test_a_small_array_against_the_kuramoto_equation() -> None:
    """dx_i/dt = omega_i + (K/N) sum_j sin(x_j - x_i), integrated by SciPy."""
    units, strength = 15, 0.7
    graph = EnergyGraph("kuramoto").state("array", units, parameters={"omega": {"spread": 0.5}})
    graph.couple("array", "array", parameters={"w": {"shape": "scalar", "init": f"{strength}/(fan_in + 1)"}})
    model, start = compile_energy(graph, 2).double(), phases(1, units)
    path = simulate(model, Simulation(20.0, 41, accuracy=1e-8), start={"array": start}, rows=1)
    omega = model.tensors["array.omega"].detach().numpy()

    def velocity(t: float, x: np.ndarray) -> np.ndarray:
        return omega + strength / units * np.sin(x[None, :] - x[:, None]).sum(1)

    exact = solve_ivp(velocity, (0, 20), start[0].numpy(), rtol=1e-11, atol=1e-12, t_eval=path.times.numpy()).y.T
    assert np.abs(path["array"][:, 0].numpy() - exact).max() < 1e-5
    assert np.abs(path.order()[:, 0].numpy() - np.abs(np.exp(1j * exact).mean(1))).max() < 1e-5


ARRAY = """
name: small
energy: kuramoto
nodes: {array: {shape: SHAPE, parameters: {omega: {init: "1 + spread*normal(0, 1)", spread: SPREAD}}}}
edges: [{array -> array: {via: "sparse(PATTERN)", gain: 2.0}}]
relax: {initial: random}
simulate: {duration: 12, times: 13, samples: 3, animate: true}
"""


@pytest.mark.parametrize(
    ("shape", "pattern", "spread"), [("8", "'ring', 8, reach=2", "0.1"), ("[4, 5]", "'lattice', 4, 5", "9.0")]
)
def test_the_command_shows_arrays_without_data(tmp_path: Path, shape: str, pattern: str, spread: str) -> None:
    file, out = tmp_path / "array.yaml", tmp_path / "out"
    file.write_text(ARRAY.replace("SHAPE", shape).replace("PATTERN", pattern).replace("SPREAD", spread))
    result = CliRunner().invoke(app, ["simulate", str(file), "--out", str(out)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "order parameter" in result.output and ("drifts" in result.output) == (spread == "9.0")
    with (out / "simulation.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert len(rows) == 3 * 13 and all(0 <= float(row["order"]) <= 1 for row in rows)
    with (out / "oscillators.csv").open(newline="") as lines:
        oscillators = list(csv.DictReader(lines))
    assert len(oscillators) == 3 * (20 if "[" in shape else 8)
    if spread == "0.1":
        frequencies = [float(row["frequency"]) for row in oscillators]
        assert max(frequencies) - min(frequencies) < 0.1
    assert (out / "simulation.png").read_bytes().startswith(b"\x89PNG")
    with Image.open(out / "phases.gif") as moving:
        assert moving.n_frames == 13  # pyright: ignore[reportAttributeAccessIssue]


# --------------------------------------------------------------------------- costs of phases

CLASSES = {
    "1 - cos(x - pi*y)": lambda x, y: 1 - np.cos(x - np.pi * y),
    "-log(1.00001 + cos(x - pi*y))": lambda x, y: -np.log(1.00001 + np.cos(x - np.pi * y)),
    "(cos(x) - y)**2/2": lambda x, y: (np.cos(x) - y) ** 2 / 2,
}
"""Costs of classes, whose units have the target 1 if true and else 0: here phases 0 and pi, or cosines 0 and 1."""


def readout(cost: str, shift: float = 0.0, units: int = 5) -> tuple[EnergyModel, torch.Tensor]:
    """A net whose outputs stand where fields point to, at random phases that are turned by `shift`."""
    fields = {"h": {"init": "ones"}, "psi": {"init": f"uniform(-pi, pi) + {shift}"}}
    graph = EnergyGraph("xy").input("image", 3).output("label", units, cost=cost, parameters=fields)
    model = compile_energy(graph.couple("image", "label", parameters={"w": {"gain": 3.0}}), 3).double()
    return model, phases(40, 3)


@pytest.mark.parametrize("turns", [0, 1, -3])
@pytest.mark.parametrize("cost", CLASSES)
def test_the_predicted_class_is_the_one_that_costs_least(cost: str, turns: int) -> None:
    """Of every class, the whole cost is worked out in numpy; whole turns of a state change nothing."""
    model, x = readout(cost)
    label = relax(model, image=x)["label"] + 2 * math.pi * turns
    targets = np.eye(5)[:, None]
    costs = CLASSES[cost](label.numpy(), targets).sum(2)  # [classes, rows]
    best = model.scores({"label": label}).argmax(1)
    assert torch.equal(best, torch.as_tensor(costs.argmin(0)))
    assert len(best.unique()) > 2


@pytest.mark.parametrize("cost", [name for name in CLASSES if "pi" in name])
def test_the_predicted_class_is_the_nearest_on_the_circle(cost: str) -> None:
    """The class whose own phase pi is nearest to that of its unit, wherever angles are cut open."""
    model, x = readout(cost)
    label = relax(model, image=x)["label"]
    distance = CIRCLE.difference(label, torch.full_like(label, math.pi)).abs()
    assert torch.equal(model.scores({"label": label}).argmax(1), distance.argmin(1))


@pytest.mark.parametrize("cost", ["1 - cos(x - y)", "-log(1.00001 + cos(x - y))", "(cos(x) - y)**2"])
def test_costs_of_phases_are_plain_expressions(cost: str) -> None:
    """Values by numpy; a nudge turns outputs towards targets that are phases, and exact updates and newton agree."""
    model, x = readout(cost, units=3)
    x = x[:10]
    free = relax(model, Relaxation(tolerance=1e-10), image=x)
    target = free["label"] + phases(10, 3) if "cos(x - y)" in cost else torch.cos(phases(10, 3))
    found = [
        relax(model, Relaxation(integrator, tolerance=1e-8), image=x, target=target, beta=0.1)
        for integrator in ("blocks", "newton")
    ]
    label, y = free["label"].numpy(), target.numpy()
    by_hand = {
        "1 - cos(x - y)": lambda z: (1 - np.cos(z - y)).sum(1),
        "-log(1.00001 + cos(x - y))": lambda z: -np.log(1.00001 + np.cos(z - y)).sum(1),
        "(cos(x) - y)**2": lambda z: ((np.cos(z) - y) ** 2).sum(1),
    }[cost]
    values = model.functions["cost"](model.tensors, free.states, {"target": target}).detach().numpy()
    assert np.allclose(values, by_hand(label), rtol=1e-9)
    nudged = found[0]["label"]
    assert bool((by_hand(nudged.numpy()) < by_hand(label)).all())
    assert float(CIRCLE.difference(nudged, found[1]["label"]).abs().max()) < 1e-6


def test_the_log_cosine_drives_an_output_away_from_the_opposite_phase() -> None:
    """dC/dx = sin d/(1 + eps + cos d): near d = pi the force of 1 - cos vanishes; that of the log-cosine is large."""
    for cost, strong in (("1 - cos(x - y)", False), ("-log(1.00001 + cos(x - y))", True)):
        graph = EnergyGraph("xy").output("label", 1, cost=cost)
        problem = compile_energy(graph).double().problem(rows=1)
        problem = problem.nudged({"target": torch.zeros(1, 1, dtype=torch.float64)}, [1.0])
        d = math.pi - 0.01
        force = problem.force({"label": torch.tensor([[d]], dtype=torch.float64)})["label"].item()
        exact = -math.sin(d) / ((1.00001 + math.cos(d)) if strong else 1)
        assert force == pytest.approx(exact, rel=1e-9) and (abs(force) > 100) == strong
