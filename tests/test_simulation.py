"""Transients in true time, against closed forms, matrix exponentials and the equilibria of `relax`."""

from __future__ import annotations

import csv
import functools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import ENTRIES, QUICKLY, batch, catalogue_model
from scipy.linalg import expm
from typer.testing import CliRunner

from physnet.cli import app
from physnet.declaration import graph_from_yaml, graph_to_yaml
from physnet.domains import parse_domain
from physnet.energy import Energy
from physnet.errors import DeclarationError, RelaxationError, RelaxationWarning
from physnet.graph import EnergyGraph
from physnet.model import EnergyModel, compile_energy
from physnet.motion import METHODS
from physnet.relaxation import relax
from physnet.simulation import Simulation, simulate
from physnet.sources import dump_yaml


def lone(node: str, domain: Any = "real", tau: float = 1.0, **parameters: str) -> EnergyModel:
    """One free unit 'x' with the given node energy and nothing else."""
    declared = {key: {"on": "node", "init": value} for key, value in parameters.items()}
    return compile_energy(EnergyGraph(Energy(node=node, domain=domain, parameters=declared)).state("x", 1, tau=tau))


def at(*values: float) -> dict[str, torch.Tensor]:
    return {"x": torch.tensor(values, dtype=torch.float64)[:, None]}


# --------------------------------------------------------------------------- declarations


def test_time_constants_are_read_written_and_part_of_the_identity() -> None:
    text = "energy: {node: x**2/2, coupling: -w*pre*post, tau: 3, parameters: {w: {on: edge}}}\n"
    text += "nodes: {a: {shape: 2, role: input}, b: {shape: 2, tau: 0.5}, c: {shape: 2}}\nedges: [a -> b, b -> c]\n"
    graph = graph_from_yaml(text)
    assert (graph.node("b").tau, graph.node("c").tau) == (0.5, 3.0)
    assert graph_from_yaml(graph_to_yaml(graph)) == graph
    assert graph_from_yaml(text.replace("tau: 0.5", "tau: 0.6")).digest != graph.digest
    assert graph_from_yaml(text.replace("tau: 3", "tau: 4")).digest != graph.digest
    assert EnergyGraph("hopfield").state("x", 1).digest == EnergyGraph("hopfield").state("x", 1, tau=1).digest
    assert "tau" not in graph_to_yaml(EnergyGraph("hopfield").state("x", 1))


@pytest.mark.parametrize("tau", ["0", "-1", ".nan", ".inf", "true", "fast"])
def test_a_wrong_time_constant_is_pointed_at(tau: str) -> None:
    with pytest.raises(DeclarationError, match=r"^<text>:2:12: the time constant") as caught:
        graph_from_yaml(f"nodes:\n  x: {{tau: {tau}, shape: 1}}\n")
    assert "tau: 2.5" in str(caught.value)
    with pytest.raises(DeclarationError, match=r"^<text>:1:15: the time constant"):
        graph_from_yaml(f"energy: {{tau: {tau}}}\nnodes: {{x: {{shape: 1}}}}\n")


def test_inputs_have_no_time_constant() -> None:
    with pytest.raises(DeclarationError, match="has no tau"):
        graph_from_yaml("nodes: {a: {shape: 1, role: input, tau: 2}, b: {shape: 1}}\nedges: [a -> b]\n")


@pytest.mark.parametrize(
    "wrong",
    [{"duration": 0.0}, {"duration": math.nan}, {"times": 1}, {"within": 1.5}, {"accuracy": 0.0}, {"method": "euler"},
     {"initial": "previous"}, {"max_evaluations": 0}],
)  # fmt: skip
def test_wrong_settings_are_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(DeclarationError, match=f"^{next(iter(wrong))}"):
        Simulation(**wrong)


# --------------------------------------------------------------------------- closed forms


@pytest.mark.parametrize("method", METHODS)
def test_a_linear_unit_decays_exponentially(method: str) -> None:
    """F = k x^2/2 - b x:  x(t) = b/k + (x0 - b/k) exp(-k t/tau)."""
    model = lone("k*x**2/2 - b*x", tau=2.5, k="2*ones()", b="3*ones()")
    path = simulate(model, Simulation(7.0, accuracy=1e-8, method=method), start=at(-1.0, 4.0), rows=2)
    x0 = torch.tensor([-1.0, 4.0], dtype=torch.float64)
    exact = 1.5 + (x0 - 1.5) * torch.exp(-2 * path.times / 2.5)[:, None]
    assert path.times[-1] == 7
    assert torch.allclose(path["x"][..., 0], exact, atol=1e-6)
    assert torch.allclose(path.energy, exact**2 - 3 * exact, atol=1e-5)


@pytest.mark.parametrize("tau", [1e-9, 0.4, 1.0, 3e7])
@pytest.mark.parametrize("within", [0.01, 0.3])
def test_the_settling_time_is_tau_times_the_logarithm(tau: float, within: float) -> None:
    model = lone("x**2/2 - b*x", tau=tau, b="ones()")
    path = simulate(model, Simulation(within=within), rows=1)
    assert bool(path.converged.all())
    assert float(path.settling_time) == pytest.approx(tau * math.log(1 / within), rel=1e-4)


def test_two_linear_nodes_follow_the_matrix_exponential() -> None:
    energy = Energy("x**2/2", "-w*pre*post", parameters={"w": {"on": "edge", "init": "uniform(-1, 1)/3"}})
    graph = EnergyGraph(energy).input("u", 3).state("a", 2, tau=0.7).state("b", 3, tau=5.0)
    model = compile_energy(graph.couple("u", "a").couple("a", "b"), 1).double()
    u = torch.tensor([[1.0, -0.5, 2.0]], dtype=torch.float64)
    w, v = (model.tensors[name].detach().numpy() for name in ("u_a.w", "a_b.w"))
    rates = 1 / np.array([0.7, 0.7, 5.0, 5.0, 5.0])
    matrix = rates[:, None] * np.block([[-np.eye(2), v.T], [v, -np.eye(3)]])
    drive = rates * np.concatenate([w @ u[0].numpy(), np.zeros(3)])
    rest = -np.linalg.solve(matrix, drive)
    path = simulate(model, Simulation(9.0, times=31, accuracy=1e-9), u=u)
    found = torch.cat([path["a"][:, 0], path["b"][:, 0]], 1).numpy()
    exact = np.stack([rest - expm(matrix * t) @ rest for t in path.times.numpy()])
    assert np.abs(found - exact).max() < 1e-7


def test_stiff_methods_bridge_time_constants_that_lie_far_apart() -> None:
    """The fast node is slaved to the slow one: both are linear and the matrix exponential is known."""
    energy = Energy("x**2/2 - b*x", "-pre*post/2", parameters={"b": {"on": "node", "init": "ones"}})
    graph = EnergyGraph(energy).state("slow", 1, tau=1e4).state("fast", 1, tau=1e-2).couple("slow", "fast", "identity")
    matrix = np.array([[-1e-4, 5e-5], [50.0, -100.0]])
    path = simulate(compile_energy(graph), Simulation(2e4, 21, accuracy=1e-8, method="BDF"), rows=1)
    exact = np.stack([2 * (1 - expm(matrix * t) @ np.ones(2)) for t in path.times.numpy()])
    # from zero both go to (2, 2); I - exp(Mt) acts on that equilibrium
    assert np.abs(torch.cat([path["slow"][:, 0], path["fast"][:, 0]], 1).numpy() - exact).max() < 1e-4


def test_a_unit_meets_its_bound_when_the_closed_form_does_and_stays() -> None:
    """x(t) = b (1 - exp(-t/tau)) until it meets 1 at t = tau log(b/(b - 1))."""
    model = lone("x**2/2 - b*x", [0, 1], tau=3.0, b="4*ones()")
    path = simulate(model, Simulation(4.0, times=4001, accuracy=1e-9), rows=1)
    x = path["x"][:, 0, 0]
    meets = 3 * math.log(4 / 3)
    assert float(path.times[x >= 1 - 1e-9][0]) == pytest.approx(meets, abs=1.1e-3)
    assert torch.allclose(x, (4 * (1 - torch.exp(-path.times / 3))).clamp(max=1), atol=1e-7)
    assert bool((x[path.times > meets + 2e-3] == 1).all())


def test_a_unit_leaves_its_bound_when_its_force_turns() -> None:
    """F = a^2/2 - a + b^2 + b/2 - a b with b >= 0: b rests until a = 1 - exp(-t) meets 1/2; then both are linear."""
    graph = EnergyGraph(Energy(domain="nonnegative")).state("a", 1, term="x**2/2 - x").state("b", 1, term="x**2 + x/2")
    model = compile_energy(graph.couple("a", "b", "identity", term="-pre*post"))
    path = simulate(model, Simulation(3.0, times=61, accuracy=1e-9), rows=1)
    found = torch.cat([path["a"][:, 0], path["b"][:, 0]], 1).numpy()
    turn, matrix, rest = math.log(2), np.array([[-1.0, 1.0], [1.0, -2.0]]), np.array([1.5, 0.5])
    for t, state in zip(path.times.numpy(), found, strict=True):
        exact = rest + expm(matrix * (t - turn)) @ (np.array([0.5, 0]) - rest) if t > turn else [1 - math.exp(-t), 0]
        assert np.abs(state - exact).max() < 1e-6


@pytest.mark.parametrize("start", [0.3, -2.0, 3.1])
def test_an_oscillator_follows_the_closed_form(start: float) -> None:
    """-h cos x:  tan(x/2) = tan(x0/2) exp(-h t/tau)."""
    model = lone("-h*cos(x)", "circle", tau=0.5, h="2*ones()")
    path = simulate(model, Simulation(2.0, accuracy=1e-9), start=at(start), rows=1)
    assert torch.allclose(
        torch.tan(path["x"][:, 0, 0] / 2), math.tan(start / 2) * torch.exp(-4 * path.times), atol=1e-6
    )


def test_angles_are_unwrapped_while_they_move_and_wrapped_for_display() -> None:
    """A unit driven round the circle at a constant pace, and one that falls to 2 pi rather than to 0."""
    drifting = lone("-omega*x", "circle", omega="ones()")
    path = simulate(drifting, 10.0, rows=1)
    assert torch.allclose(path["x"][:, 0, 0], path.times, atol=1e-6)
    assert torch.allclose(
        path.wrapped("x")[:, 0, 0], torch.remainder(path.times + math.pi, 2 * math.pi) - math.pi, atol=1e-6
    )
    assert bool(path.converged.all()) and path.frame == {"x": 1.0}  # at rest in the frame that turns with it
    falling = simulate(lone("-cos(x)", "circle"), start=at(4.0), rows=1)
    assert float(falling["x"][-1]) == pytest.approx(2 * math.pi, abs=0.02)
    assert float(falling.wrapped("x")[-1]) == pytest.approx(0, abs=0.02)
    # tan((2 pi - x)/2) = tan((2 pi - 4)/2) exp(-t), and the way is 2 pi - 4 long
    way = 2 * math.pi - 4
    assert float(falling.settling_time) == pytest.approx(math.log(math.tan(way / 2) / math.tan(way / 200)), rel=1e-4)


# --------------------------------------------------------------------------- properties


@pytest.mark.parametrize("name", QUICKLY)
@given(seed=st.integers(0, 10**6), initial=st.sampled_from(["zero", "random"]))
@settings(max_examples=4)
def test_the_energy_never_rises_and_states_stay_in_their_domains(name: str, seed: int, initial: str) -> None:
    model = catalogue(name, seed % 2)
    if name == "resistive-diodes":  # at a random volt the currents are e^20 times those that a net ever sees
        initial = "zero"
    path = simulate(model, Simulation(4.0, times=41, initial=initial), seed=seed, image=batch(2, seed=seed)[0])
    rise = path.energy.diff(dim=0).max()
    assert float(rise) <= 1e-6 * (1 + float(path.energy.abs().max()))
    for node in model.free:
        inside = path.equilibrium.problem.domain(node).project(path[node].flatten(0, 1))
        assert torch.equal(inside, path[node].flatten(0, 1))


@functools.cache
def catalogue(name: str, seed: int) -> EnergyModel:
    return with_tau(catalogue_model(name, seed), hidden=0.3, deep=2.0).double()


def with_tau(model: EnergyModel, **tau: float) -> EnergyModel:
    """The same energy and parameters with other time constants."""
    declared = model.graph.declaration()
    for name, value in tau.items():
        declared["nodes"][name]["tau"] = value
    other = compile_energy(graph_from_yaml(dump_yaml(declared)))
    other.load_state_dict(model.state_dict())
    return other


@pytest.mark.parametrize("name", QUICKLY)
def test_the_end_is_the_equilibrium_whatever_the_time_constants(name: str, float64: None) -> None:
    model = with_tau(catalogue_model(name), hidden=0.2, label=4.0)
    image, _ = batch()
    path, equilibrium = simulate(model, image=image), relax(model, image=image)
    assert bool(path.converged.all())
    for node in model.free:
        domain = path.equilibrium.problem.domain(node)
        way = float(domain.difference(equilibrium[node], path[node][0]).norm())
        assert float(domain.difference(path[node][-1], equilibrium[node]).norm()) <= 2e-3 * max(way, 1.0)


def test_scaling_all_time_constants_stretches_time(float64: None) -> None:
    image, _ = batch()
    model = catalogue_model("hopfield-smooth")
    slow = with_tau(model, hidden=40.0, deep=40.0, label=40.0)
    one, forty = simulate(model, 5.0, image=image), simulate(slow, 200.0, image=image)
    assert torch.allclose(one.times * 40, forty.times)
    assert torch.allclose(one["label"], forty["label"], atol=1e-5)
    assert torch.allclose(one.settling_time * 40, forty.settling_time, rtol=1e-4)


@pytest.mark.parametrize("name", ENTRIES)
def test_a_nudge_starts_at_the_free_equilibrium_and_ends_at_the_nudged_one(name: str, float64: None) -> None:
    model = catalogue_model(name)
    image, target = batch()
    path = simulate(model, target=target, beta=1e-4, image=image)
    free, nudged = relax(model, image=image), relax(model, target=target, beta=1e-4, image=image)
    assert bool(path.converged.all())
    for node in model.free:
        assert torch.allclose(path[node][0], free[node], atol=1e-8)
    moved = torch.cat([path[node][-1] - path[node][0] for node in model.free], 1)
    wanted = torch.cat([nudged[node] - free[node] for node in model.free], 1)
    assert float((moved - wanted).norm()) <= 2e-3 * float(wanted.norm())


def test_rows_do_not_depend_on_each_other(float64: None) -> None:
    model = catalogue_model("resistive")
    image, _ = batch(4)
    together = simulate(model, Simulation(8.0, accuracy=1e-9), image=image)
    alone = simulate(model, Simulation(8.0, accuracy=1e-9), image=image[2:3])
    assert torch.allclose(together["label"][:, 2], alone["label"][:, 0], atol=1e-7)


def test_a_start_decides_the_well() -> None:
    """x^4/4 - x^2/2 - x/10 has two minima, the outer roots of x^3 - x - 1/10."""
    model = lone("x**4/4 - x**2/2 - b*x", b="ones()/10")
    path = simulate(model, Simulation(40.0), start=at(-0.2, 1.5), rows=2)
    roots = np.sort(np.roots([1, 0, -1, -0.1]))
    assert path["x"][-1, :, 0].tolist() == pytest.approx([roots[0], roots[2]], abs=1e-6)
    assert bool(path.converged.all())


@pytest.mark.parametrize("declared", ["real", "circle", "nonnegative", [-1, 2], ["nonpositive", [0, 1]]])
@given(st.lists(st.sampled_from([-2.0, -1.0, 0.0, 0.5, 1.0, 2.0]), min_size=4, max_size=4), st.integers(0, 99))
def test_an_admissible_velocity_is_the_derivative_of_the_projected_motion(
    declared: Any, values: list[float], seed: int
) -> None:
    """The tangent cone of an interval: v is (project(x + e v) - x)/e for small e, where x is inside."""
    domain = parse_domain(declared)
    x = domain.project(torch.tensor([values], dtype=torch.float64))
    v = torch.randn(1, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    assert torch.allclose(domain.admissible(x, v), (domain.project(x + 1e-4 * v) - x) / 1e-4, atol=1e-8)


# --------------------------------------------------------------------------- the command


def test_the_command_writes_a_tidy_table_for_files_and_runs(tmp_path: Path) -> None:
    shrink = ["--set", "nodes.hidden.shape=8", "--set", "nodes.hidden.tau=3"]
    digits = str(Path(__file__).parent.parent / "examples" / "digits_hopfield.yaml")
    run = tmp_path / "run"
    trained = CliRunner().invoke(app, ["train", digits, *shrink, "--set", "train.epochs=1", "--out", str(run)])
    assert trained.exit_code == 0, trained.output
    for source, changes in ((digits, shrink), (str(run), [])):
        out = tmp_path / "out"
        arguments = ["simulate", source, *changes, "--duration", "7", "--samples", "3", "--out", str(out)]
        result = CliRunner().invoke(app, arguments, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        assert "slowest" in result.output
        with (out / "simulation.csv").open(newline="") as lines:
            table = list(csv.DictReader(lines))
        assert len(table) == 3 * Simulation().times
        assert {row["sample"] for row in table} == {"0", "1", "2"}
        energy = [float(row["energy"]) for row in table if row["sample"] == "1"]
        assert energy == sorted(energy, reverse=True)
        assert float(table[-1]["time"]) == 7
        assert (out / "simulation.png").read_bytes().startswith(b"\x89PNG")
    nudged = CliRunner().invoke(app, ["simulate", digits, *shrink, "--nudged", "--samples", "2", "--out", str(out)])
    assert "nudged, beta = 0.2" in nudged.output
    refused = CliRunner().invoke(app, ["simulate", str(run), *shrink])
    assert isinstance(refused.exception, DeclarationError)


# --------------------------------------------------------------------------- what goes wrong


def test_the_model_is_left_as_it_was_and_float32_will_do() -> None:
    model = catalogue_model("hopfield")
    path = simulate(model, image=batch()[0])
    assert path["label"].dtype == torch.float64
    assert all(value.dtype == torch.float32 for value in model.parameters())


def test_a_state_that_runs_away_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(RelaxationError, match="fall without bound"):
        simulate(lone("-x**4"), start=at(1.0), rows=1)


def test_too_many_evaluations_are_an_error_that_names_time_and_fix() -> None:
    with pytest.raises(RelaxationError, match=r"at time .*50 evaluations.*LSODA"):
        simulate(lone("x**2/2"), Simulation(1e9, max_evaluations=50), start=at(1.0), rows=1)


def test_what_never_settles_is_told() -> None:
    with pytest.warns(RelaxationWarning, match="1 of 1 samples have not settled after 1000"):
        graph = EnergyGraph("kuramoto").state("x", 2, parameters={"omega": {"init": "evenly(-1, 1)"}})
        path = simulate(compile_energy(graph), rows=1)
    assert math.isinf(float(path.settling_time))


def test_data_that_are_not_finite_are_blamed() -> None:
    image = torch.full((1, 5), math.nan)
    with pytest.raises(RelaxationError, match="input 'image'"):
        simulate(catalogue_model("hopfield-smooth"), image=image)


def test_a_nudge_needs_a_target_and_a_beta() -> None:
    with pytest.raises(RelaxationError, match="both target and beta"):
        simulate(catalogue_model("hopfield"), beta=0.1, image=batch()[0])


def test_a_start_in_equilibrium_has_settled_at_once() -> None:
    path = simulate(lone("x**2/2"), rows=3)
    assert path.settling_time.tolist() == [0, 0, 0]
