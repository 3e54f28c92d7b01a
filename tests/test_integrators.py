"""Every integrator on every energy of the catalogue; what each one promises; saddles, stiffness, noise, diodes."""

from __future__ import annotations

import math
import warnings
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import ENTRIES, QUICKLY, TIGHT, batch, catalogue_model, pair
from scipy.optimize import brentq
from scipy.special import lambertw
from torch import Tensor

from physnet.energy import Energy, catalogue
from physnet.errors import DeclarationError, RelaxationError, RelaxationWarning
from physnet.graph import EnergyGraph
from physnet.integration import choose, integrators
from physnet.integrators import fixed_point, newton
from physnet.model import EnergyModel, compile_energy
from physnet.problem import Problem
from physnet.relaxation import Equilibrium, Relaxation, relax
from physnet.stability import lowest_curvature

pytestmark = pytest.mark.usefixtures("float64")

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in integrators()},
    "sigma_delta": ("sigma_delta", {"quantiser": "identity", "steps": 100, "step_size": 0.6}),
    "Radau": ("flow", {"method": "Radau"}),
    "BDF": ("flow", {"method": "BDF"}),
    "LSODA": ("flow", {"method": "LSODA"}),
    "plain map": ("fixed_point", {"depth": 0}),
    "damped map": ("fixed_point", {"depth": 0, "damping": 0.7}),
    "euler": ("descent", {"rate": 0.02}),
    "heavy ball": ("descent", {"rate": 0.02, "momentum": 0.8}),
    "adaptive momentum": ("descent", {"momentum": 0.5}),
}


def distance(a: Equilibrium, b: Equilibrium) -> float:
    """The largest difference between two equilibria, angles modulo 2 pi."""
    return max(float(a.problem.domain(name).difference(a[name], b[name]).abs().max()) for name in a.states)


# --------------------------------------------------------------------------- the product


def test_the_product_covers_the_catalogue() -> None:
    elsewhere = {"kuramoto", "stuart-landau", "predictive"}  # test_oscillators.py, test_predictions.py
    assert set(ENTRIES) == set(catalogue()) - elsewhere
    assert {name for name, _ in VARIANTS.values()} == set(integrators())


@pytest.mark.parametrize("energy", QUICKLY)
@pytest.mark.parametrize("beta", [None, -0.2])
def test_all_integrators_meet(energy: str, beta: float | None) -> None:
    model = catalogue_model(energy, shapes=(5, 4, 3, 3))
    x, y = batch(rows=2)
    phase: dict[str, Any] = {} if beta is None else {"target": y, "beta": beta}
    reference = relax(model, TIGHT, image=x, **phase)
    generator = torch.Generator().manual_seed(3)
    near = reference.problem.project(
        {name: value + 0.05 * torch.randn(value.shape, generator=generator) for name, value in reference.states.items()}
    )
    found = 0
    for variant, (name, options) in VARIANTS.items():
        if integrators()[name].refusal(reference.problem) is not None:
            continue
        settings = Relaxation(name, 1e-8, 10_000, options=options)
        result = relax(model, settings, image=x, start=near, **phase)
        assert bool(result.converged.all()), variant
        assert distance(reference, result) < 1e-6, variant
        found += 1
    assert found >= 2


@pytest.mark.parametrize("energy", ENTRIES)
@pytest.mark.parametrize("name", ["descent", "fixed_point"])
def test_float32_comes_near(energy: str, name: str) -> None:
    model, (x, y) = catalogue_model(energy), batch()
    exact = relax(model, image=x, target=y, beta=0.2)
    result = relax(model.float(), name, image=x.float(), target=y, beta=0.2)
    assert {value.dtype for value in (*result.states.values(), result.residual, result.energy)} == {torch.float32}
    assert max(float((result[name] - exact[name]).abs().max()) for name in exact.states) < 5e-3


@pytest.mark.parametrize("variant", ["descent", "heavy ball", "fixed_point", "plain map", "newton"])
def test_samples_stop_one_by_one(variant: str) -> None:
    """A sample's states and sweeps are the same whatever else is in its batch."""
    model = catalogue_model("hopfield-smooth")
    name, options = VARIANTS[variant]
    x = torch.stack([torch.zeros(5), torch.linspace(-3, 2, 5)])
    settings = Relaxation(name, tolerance=1e-8, max_sweeps=5000, options=options)
    start = {
        key: torch.cat([value, torch.zeros_like(value)]) for key, value in relax(model, image=x[:1]).states.items()
    }
    together = relax(model, settings, image=x, start=start)
    alone = [
        relax(model, settings, image=x[k : k + 1], start={name: value[k : k + 1] for name, value in start.items()})
        for k in range(2)
    ]
    assert together.sweeps.tolist() == [result.sweeps.item() for result in alone]
    assert together.sweeps[0] < together.sweeps[1]
    for k, result in enumerate(alone):
        for node in model.free:
            assert torch.allclose(together[node][k], result[node][0], rtol=0, atol=1e-13)


def test_auto_prefers_exact_blocks_and_the_reference() -> None:
    assert list(integrators())[:3] == ["errors", "blocks", "flow"]
    for energy in ENTRIES:
        model = catalogue_model(energy)
        assert choose(model.problem(image=batch()[0]))[0].name in ("blocks", "flow")


# --------------------------------------------------------------------------- descent


@pytest.mark.parametrize("energy", ["hopfield", "resistive-diodes"])
def test_a_rate_makes_the_projected_euler_method(energy: str) -> None:
    """s <- project(s + rate f), written out here; a tolerance that is never met makes exactly that many steps."""
    model, (x, _) = catalogue_model(energy), batch()
    problem = model.problem(image=x)
    state = problem.zero()
    with torch.no_grad():
        for _ in range(7):
            force = problem.force(state)
            state = problem.project({name: state[name] + 0.03 * force[name] for name in state})
    with pytest.warns(RelaxationWarning):
        result = relax(model, Relaxation("descent", 1e-15, 7, options={"rate": 0.03}), image=x)
    assert result.sweeps.tolist() == [7, 7, 7]
    for name in state:
        assert torch.equal(result[name], state[name])


def test_momentum_is_the_heavy_ball() -> None:
    """In a quadratic well, x_{k+1} = (1 - rate + m) x_k - m x_{k-1}, until the motion turns uphill."""
    model = compile_energy(EnergyGraph(Energy(node="x**2/2")).state("x", 1))
    with pytest.warns(RelaxationWarning):
        result = relax(
            model,
            Relaxation("descent", 1e-15, 6, options={"rate": 0.05, "momentum": 0.6}),
            start={"x": torch.ones(1, 1)},
            rows=1,
        )
    before, here = 1.0, 1.0
    for _ in range(6):
        before, here = here, (1 - 0.05 + 0.6) * here - 0.6 * before
    assert here > 0
    assert result["x"].item() == pytest.approx(here, rel=1e-12)


@pytest.mark.slow
@given(st.integers(0, 10**6), st.sampled_from(ENTRIES))
@settings(max_examples=15)
def test_adaptive_descent_never_raises_the_energy(seed: int, energy: str) -> None:
    model, (x, _) = catalogue_model(energy), batch()
    problem = model.problem(image=x)
    start = problem.random(torch.Generator().manual_seed(seed))
    before = problem.energy(start)
    for sweeps in (1, 2, 4, 8, 16):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RelaxationWarning)
            result = relax(model, Relaxation("descent", max_sweeps=sweeps), image=x, start=start)
        assert bool((result.energy <= before + 1e-12 * (1 + before.abs())).all())
        before = result.energy


@pytest.mark.parametrize("rate", [0.02, 0.5])
def test_noise_has_the_variance_of_its_temperature(rate: float) -> None:
    """s' = (1 - rate c) s + noise xi has variance noise^2 / (rate c (2 - rate c)): T/c at small rates."""
    curvature, noise, rows = torch.tensor([0.5, 1.5]), 0.1, 20_000
    energy = Energy(node="c*x**2/2", parameters={"c": {"on": "node"}})
    model = compile_energy(EnergyGraph(energy).state("x", 2))
    with torch.no_grad():
        model.tensors["x.c"].copy_(curvature)
    options = {"rate": rate, "noise": noise}
    with pytest.warns(RelaxationWarning):
        result = relax(model, Relaxation("descent", max_sweeps=int(6 / rate), options=options), rows=rows)
    expected = noise**2 / (rate * curvature * (2 - rate * curvature))
    # the sample variance of n normal numbers scatters by sqrt(2/n), here 1 %
    assert torch.allclose(result["x"].var(0), expected, rtol=0.04)
    assert bool((result["x"].mean(0).abs() < 5 * (expected / rows).sqrt()).all())
    if rate < 0.1:
        assert torch.allclose(result["x"].var(0), noise**2 / (2 * rate) / curvature, rtol=0.05)


def test_noise_is_a_function_of_its_seed() -> None:
    model, (x, _) = catalogue_model("hopfield-smooth"), batch()

    def run(seed: int) -> Tensor:
        options = {"rate": 0.1, "noise": 0.1, "seed": seed}
        with pytest.warns(RelaxationWarning, match="have not converged"):
            return relax(model, Relaxation("descent", max_sweeps=20, options=options), image=x)["hidden"]

    assert torch.equal(run(1), run(1))
    assert not torch.allclose(run(1), run(2), atol=1e-2)


def test_annealed_noise_ends_at_the_equilibrium() -> None:
    model, (x, _) = catalogue_model("hopfield"), batch()
    options = {"rate": 0.1, "noise": 0.05, "annealing": 100}
    result = relax(model, Relaxation("descent", options=options), image=x)
    assert bool(result.converged.all())
    assert int(result.sweeps.min()) > 100
    assert distance(result, relax(model, TIGHT, image=x)) < 1e-8


# --------------------------------------------------------------------------- saddles

# name -> (coupling, domain, starts): the first start is near the saddle at 0, the second at it
SADDLES: dict[str, tuple[str, Any]] = {
    "interior": ("-2*tanh(pre)*tanh(post)", "real"),
    "at a bound": ("-2*pre*post", [0, 1]),
}


def two_units(coupling: str, domain: Any) -> EnergyModel:
    """E = a^2/2 + b^2/2 + coupling(a, b)."""
    energy = Energy(node="x**2/2", coupling=coupling, domain=domain)
    return compile_energy(EnergyGraph(energy).state("a", 1).state("b", 1).couple("a", "b"))


@pytest.mark.parametrize("kind", SADDLES)
@pytest.mark.parametrize("name", ["fixed_point", "newton"])
def test_saddles_are_not_equilibria(kind: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """0 is stationary, and lower than nothing: the minima are at a = b = 2 tanh(a)/cosh(a)^2, or at the bounds."""
    coupling, domain = SADDLES[kind]
    model = two_units(coupling, domain)
    expected = 1.0 if domain != "real" else brentq(lambda a: a - 2 * math.tanh(a) / math.cosh(a) ** 2, 0.1, 2)
    start = torch.tensor([[0.1], [0.0]])
    result = relax(model, name, start={"a": start, "b": start}, rows=2)
    assert bool(result.converged.all())
    assert torch.allclose(result["a"].abs(), torch.full((2, 1), expected), atol=1e-7)
    assert torch.allclose(result["a"], result["b"], atol=1e-7)
    assert result["a"][0] > 0  # on the side that it started from
    # and the oracle can fail: without the test the saddle is returned
    for module in (fixed_point, newton):
        monkeypatch.setattr(module, "leave_saddles", lambda result, start, descend: result)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RelaxationWarning)
        unchecked = relax(model, name, start={"a": start, "b": start}, rows=2)
    assert bool(unchecked.converged[1])
    assert unchecked["a"][1] == 0


def test_a_corner_with_negative_curvature_may_be_a_minimum() -> None:
    """2ab on the quadrant: negative curvature along (1, -1), which leads out of it from (0, 0)."""
    model = two_units("2*pre*post", "nonnegative")
    for name in ("fixed_point", "newton", "descent"):
        result = relax(model, name, rows=1)
        assert (result["a"].item(), result["b"].item()) == (0, 0)
        assert bool(result.converged.all())


def lowest_eigenvalue(result: Equilibrium, row: int) -> float:
    """Of the Hessian of one sample, by automatic differentiation of the energy."""
    sizes = [value[row].numel() for value in result.states.values()]

    def energy(s: Tensor) -> Tensor:
        pieces = zip(result.states, s.split(sizes), strict=True)
        full = {name: piece.expand(result.problem.rows, -1) for name, piece in pieces}
        return result.problem.energy(full)[row]

    at = torch.cat([value[row].flatten() for value in result.states.values()])
    return float(torch.linalg.eigvalsh(torch.autograd.functional.hessian(energy, at).detach()).min())  # pyright: ignore


def test_a_deep_network_ends_at_a_minimum(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mixing takes deep nets to the saddle near zero; what is returned has no direction down, in any sample."""
    graph = EnergyGraph("hopfield-smooth").input("n0", 6)
    for index in range(1, 5):
        graph.state(f"n{index}", 6).couple(f"n{index - 1}", f"n{index}", parameters={"w": {"gain": 2.5}})
    model = compile_energy(graph, seed=4)
    x = 0.01 * torch.rand(3, 6, generator=torch.Generator().manual_seed(1))
    mixed: list[Equilibrium] = []
    leave = fixed_point.leave_saddles
    monkeypatch.setattr(fixed_point, "leave_saddles", lambda first, *rest: mixed.append(first) or leave(first, *rest))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RelaxationWarning)  # one sample wanders, and says so
        result = relax(model, Relaxation("fixed_point", max_sweeps=400), n0=x)
    saddles = [row for row in range(3) if mixed[0].converged[row] and lowest_eigenvalue(mixed[0], row) < -0.1]
    assert saddles
    assert bool(result.converged[saddles].all())
    for row in range(3):
        assert not result.converged[row] or lowest_eigenvalue(result, row) > 0


@given(st.integers(1, 20), st.integers(0, 10**6))
@settings(max_examples=30)
def test_lanczos_finds_the_lowest_curvature(units: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(3, units, units, generator=generator)
    matrix = matrix + matrix.mT
    free = torch.rand(3, units, generator=generator) < 0.8
    free[:, 0] = True
    masked = torch.where(free[:, :, None] & free[:, None, :], matrix, 0)
    like = torch.zeros(3, units)
    value, direction, largest = lowest_curvature(lambda v: torch.einsum("rij,rj->ri", masked, v), free, like)
    for row in range(3):
        inside = masked[row][free[row]][:, free[row]]
        exact = torch.linalg.eigvalsh(inside)
        # an early end knows the sign, and the value within a fifth
        if abs(exact[0]) > 1e-6:
            assert value[row].sign() == exact[0].sign() or int(free[row].sum()) < units
        assert value[row] <= exact[0] + 0.2 * exact.abs().max()
        assert largest[row] <= exact.abs().max() * (1 + 1e-9)
        if value[row] < -1e-6:
            v = direction[row]
            assert float(v @ masked[row] @ v) == pytest.approx(float(value[row]), rel=1e-6)


# --------------------------------------------------------------------------- fixed point


def test_the_plain_map_says_when_it_is_no_contraction() -> None:
    """E = x^2/2 - 2 x y + y^2/2 in a box: both units swap bounds for ever from (0, 1)."""
    model = two_units("4*pre*post", [-1, 1])
    start = {"a": torch.full((1, 1), 0.5), "b": torch.full((1, 1), 0.6)}
    with pytest.warns(RelaxationWarning, match="have not converged with 'fixed_point'"):
        result = relax(model, Relaxation("fixed_point", max_sweeps=50, options={"depth": 0}), start=start, rows=1)
    assert result["a"].abs().item() == result["b"].abs().item() == 1
    assert result.sweeps.item() == 50


def test_mixing_solves_a_linear_network_in_as_many_steps_as_it_has_units() -> None:
    """Anderson mixing on an affine map is GMRES: with the whole history it ends after at most n + 1 steps."""
    graph = EnergyGraph("resistive").input("rail", 3, encode=[])
    for name in ("a", "b"):
        graph.state(name, 2, domain="real", parameters={"i": {"init": "normal(0, 1)"}})
    for pre, post in (("rail", "a"), ("a", "b")):
        graph.couple(pre, post, parameters={"g": {"init": "uniform(0.5, 1.5)"}})
    model, rail = compile_energy(graph), torch.rand(4, 3)
    mixed = relax(model, Relaxation("fixed_point", 1e-9, options={"depth": 4}), rail=rail)
    plain = relax(model, Relaxation("fixed_point", 1e-9, options={"depth": 0}), rail=rail)
    assert int(mixed.sweeps.max()) <= 6
    assert int(plain.sweeps.min()) > 2 * int(mixed.sweeps.max())
    assert distance(mixed, plain) < 1e-7


# --------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("descent", {"rate": 0.0}),
        ("descent", {"momentum": 1.0}),
        ("descent", {"rate": 0.1, "noise": -1.0}),
        ("descent", {"noise": 0.1}),
        ("descent", {"rate": 0.1, "noise": 0.1, "annealing": 0}),
        ("fixed_point", {"depth": -1}),
        ("fixed_point", {"damping": 1.5}),
        ("newton", {"depth": 2}),
        ("flow", {"method": "radau"}),
    ],
)
def test_wrong_options_are_declaration_errors(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(DeclarationError, match="options"):
        relax(catalogue_model("hopfield"), Relaxation(name, options=options), image=batch()[0])


def test_newton_is_a_reference_in_float64() -> None:
    with pytest.raises(RelaxationError, match=r"newton.*float64.*float32"):
        relax(catalogue_model("hopfield").float(), "newton", image=batch()[0].float())
    graph = EnergyGraph("hopfield").input("i", 2).state("h", 2001).couple("i", "h")
    with pytest.raises(RelaxationError, match=r"2001 free units.*at most 2000"):
        relax(compile_energy(graph), "newton", i=torch.rand(1, 2))


def test_the_map_needs_exact_updates() -> None:
    with pytest.warns(UserWarning, match="doesn't separate"):
        model = compile_energy(pair("-tanh(pre*post)"))
    with pytest.raises(RelaxationError, match=r"fixed_point.*'right' has no exact update"):
        relax(model, "fixed_point", left=torch.ones(1, 3))


@pytest.mark.parametrize("node", ["-x**2", "-b*x - 3*x", "x**3 - b*x", "-(x**4)", "-sqrt(1 + x**2)"])
@pytest.mark.parametrize("variant", ["flow", "Radau", "descent", "newton"])
def test_energies_without_a_minimum_end_early(node: str, variant: str) -> None:
    model = compile_energy(pair("-w*pre*post", node=node))
    name, options = VARIANTS[variant]
    with patch.object(Problem, "force", autospec=True, side_effect=Problem.force) as force:
        with pytest.raises(RelaxationError, match=r"'right'.*fall.* without bound"):
            relax(model, Relaxation(name, options=options), left=torch.rand(2, 3))
        assert force.call_count < 2000


# --------------------------------------------------------------------------- stiffness


def test_stiff_methods_need_a_tenth_of_the_evaluations() -> None:
    """Curvatures 1 and 1e5: explicit steps are bounded by the larger, the time to settle is set by the smaller."""
    energy = Energy(
        node="k*x**2/2", coupling="-w*pre*post", parameters={"k": {"on": "node"}, "w": {"on": "edge", "init": "ones"}}
    )
    model = compile_energy(EnergyGraph(energy).input("u", 3).state("x", 2).couple("u", "x"))
    curvature, u = torch.tensor([1.0, 1e5]), torch.rand(4, 3)
    with torch.no_grad():
        model.tensors["x.k"].copy_(curvature)
    exact = u.sum(1, keepdim=True) / curvature
    for method in ("Radau", "BDF", "LSODA"):
        result = relax(model, Relaxation("flow", options={"method": method}), u=u)
        assert bool(result.converged.all())
        assert torch.allclose(result["x"], exact, rtol=1e-8)
        assert int(result.sweeps.max()) < 400
    with pytest.warns(RelaxationWarning):
        explicit = relax(model, Relaxation("flow", max_sweeps=200), u=u)
    assert int(explicit.sweeps.min()) >= 4000
    assert not bool(explicit.converged.any())


# --------------------------------------------------------------------------- diodes


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("start", [0.0, 0.7, -3.0, 40.0])
def test_a_diode_behind_a_resistor_follows_lambert_w(dtype: torch.dtype, start: float) -> None:
    """g (v - V) + i_s (exp(v/v_t) - 1) = 0:  v = V + i_s/g - v_t W(i_s/(g v_t) exp((V + i_s/g)/v_t)).

    From starts at which the exponential overflows, too.
    """
    i_s, v_t = 2.52e-6, 0.0453
    energy = Energy(
        node=f"{i_s}*({v_t}*exp(x/{v_t}) - x)",
        coupling="g*(pre - post)**2/2",
        parameters={"g": {"on": "edge", "init": "ones"}},
    )
    model = compile_energy(EnergyGraph(energy).input("source", 1).state("v", 1).couple("source", "v")).to(dtype)
    volts = np.array([-50.0, -1.0, 0.0, 0.3, 0.5, 1.0, 3.0, 20.0])
    for g in (0.01, 1.0):
        with torch.no_grad():
            model.tensors["source_v.g"].fill_(g)
        level = volts + i_s / g
        exact = level - v_t * lambertw(i_s / (g * v_t) * np.exp(level / v_t)).real
        source = torch.tensor(volts, dtype=dtype)[:, None]
        result = relax(model, "blocks", source=source, start={"v": torch.full_like(source, start)})
        assert bool(result.converged.all())
        tolerance = 1e-12 if dtype == torch.float64 else 1e-6
        assert np.allclose(result["v"][:, 0].double().numpy(), exact, rtol=tolerance, atol=tolerance)


@given(st.floats(-20, 20), st.floats(0.01, 10))
@settings(max_examples=25)
def test_antiparallel_diodes_obey_kirchhoff(volts: float, g: float) -> None:
    """g (v - V) + 2 i_s sinh(v/v_t) = 0, by bisection."""
    model = compile_energy(
        EnergyGraph("resistive-diodes").input("source", 1, encode=[]).state("v", 1).couple("source", "v")
    )
    with torch.no_grad():
        model.tensors["source_v.g"].fill_(g)
    result = relax(model, source=torch.tensor([[volts]]))
    exact = brentq(lambda v: g * (v - volts) + 2 * 2.52e-6 * math.sinh(v / 0.0453), -1.5, 1.5, xtol=1e-15)
    assert result["v"].item() == pytest.approx(exact, rel=1e-10, abs=1e-13)
