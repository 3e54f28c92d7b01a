"""Imperfect hardware: what is frozen in a chip, levels of parameters and read-outs, noise, and learning with them."""

from __future__ import annotations

import copy
import csv
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import TIGHT, TIGHT_NUDGED, batch, catalogue_model, write_tiny
from scipy.special import gamma
from torch import Tensor
from typer.testing import CliRunner

from physnet.cli import app
from physnet.declaration import Experiment, load_experiment, parse_experiment
from physnet.domains import CIRCLE, Domain, Interval, parse_domain
from physnet.energy import Energy
from physnet.errors import DeclarationError, RelaxationError
from physnet.graph import EnergyGraph
from physnet.hardware import LEAST, Chip, make_chip, quantised
from physnet.integration import Occasion, choose
from physnet.learning import EquilibriumPropagation, gradients
from physnet.methods import METHODS
from physnet.model import EnergyModel, compile_energy
from physnet.mounting import mount
from physnet.relaxation import Relaxation, relax
from physnet.robustness import Robustness
from physnet.rows import Share
from physnet.schema import HardwareSchema, NoiseSchema
from physnet.simulation import Simulation, simulate
from physnet.sources import dump_yaml
from physnet.training import Trainer

pytestmark = pytest.mark.usefixtures("float64")

FILE = """\
name: tiny
energy: hopfield
nodes: {image: {shape: 6, role: input}, hidden: {shape: 5}, label: {shape: 3, role: output, domain: [0, 1]}}
edges: [image -> hidden, hidden -> label]
cost: (x - y)**2/2
"""
DATA = """\
train: {data: {npz: {file: tiny.npz}}, epochs: 2, batch: 8, seed: 4, threads: 1, optimizer: {sgd: {lr: 0.1}}}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_tiny(tmp_path, FILE + DATA)


def declared(hardware: str) -> Experiment:
    return parse_experiment(f"{FILE}hardware:\n  {hardware}\n")


def on_chip(model: EnergyModel, number: int = 0, **hardware: Any) -> EnergyModel:
    model.mount(make_chip(HardwareSchema(**hardware), model.graph, number))
    return model


def wide(seed: int = 0) -> EnergyModel:
    graph = EnergyGraph("hopfield").input("image", 200).output("label", 100)
    return compile_energy(graph.couple("image", "label"), seed)


# --------------------------------------------------------------------------- perfect hardware


def test_perfect_hardware_reads_the_programmed_tensors_themselves(file: Path) -> None:
    trainer = Trainer(load_experiment(file))
    for name, value in trainer.model.tensors.items():
        assert trainer.model.physical[name] is value
    assert "hardware" not in trainer.experiment.resolved()
    states = {name: torch.randn(2, 3) for name in trainer.model.free}
    assert all(trainer.model.read(states)[name] is value for name, value in states.items())


def test_the_section_is_read_back() -> None:
    text = "{chip: 3, mismatch: 0.05, dispersion: {hidden.b: 0.1}, bits: {'*.w': 6}, readout_bits: 4, noise: 0.1}"
    experiment = declared(text)
    again = parse_experiment(dump_yaml(experiment.resolved()))
    assert again.hardware == experiment.hardware
    assert again.hardware.mismatch == {"*": 0.05}
    assert again.hardware.noise == NoiseSchema(strength=0.1)


# --------------------------------------------------------------------------- what is frozen in a chip


def test_mismatch_is_normal_frozen_and_that_of_the_chip() -> None:
    model = on_chip(wide(), 5, mismatch={"*.w": 0.1})
    name = "image_label.w"
    xi = (model.physical[name] / model.tensors[name] - 1).detach() / 0.1
    count = xi.numel()
    assert abs(float(xi.mean())) < 4 / math.sqrt(count)
    assert abs(float(xi.var()) - 1) < 4 * math.sqrt(2 / count)
    assert model.physical["label.b"] is model.tensors["label.b"]
    again = on_chip(wide(seed=7), 5, mismatch={"*.w": 0.1})  # another network on the same chip
    torch.testing.assert_close((again.physical[name] / again.tensors[name] - 1).detach() / 0.1, xi)
    other = on_chip(wide(), 6, mismatch={"*.w": 0.1})
    eta = (other.physical[name] / other.tensors[name] - 1).detach() / 0.1
    assert abs(float((xi * eta).mean())) < 4 / math.sqrt(count)
    torch.testing.assert_close(copy.deepcopy(model).physical, model.physical)


def test_dispersion_is_added_in_the_unit_of_the_parameter() -> None:
    graph = EnergyGraph("kuramoto").state("array", 5000).couple("array", "array", "sparse('ring', 5000)")
    model = on_chip(compile_energy(graph), dispersion={"array.omega": 0.3})
    zeta = (model.physical["array.omega"] - model.tensors["array.omega"]).detach() / 0.3
    assert abs(float(zeta.mean())) < 4 / math.sqrt(5000)
    assert abs(float(zeta.var()) - 1) < 4 * math.sqrt(2 / 5000)


def test_no_part_changes_its_sign() -> None:
    model = on_chip(wide(), mismatch=2.0)
    factor = model.physical["image_label.w"] / model.tensors["image_label.w"]
    assert float(factor.detach().min()) == pytest.approx(LEAST)


@pytest.mark.parametrize("energy", ["hopfield-smooth", "xy", "oscillator-ising"])
def test_gradients_of_programmed_values_on_a_chip(energy: str) -> None:
    """Against central differences of the cost of the device."""
    model = on_chip(catalogue_model(energy, shapes=(2, 2, 2, 2)), 1, mismatch=0.2, dispersion={"hidden.*": 0.05})
    x, y = batch(rows=2, units=2, classes=2)
    ep = EquilibriumPropagation(model, 0.001, relaxation=TIGHT, nudged=TIGHT_NUDGED)
    found = gradients(ep, image=x, target=y)
    exact = gradients(EquilibriumPropagation(model, 0.001, "implicit", relaxation=TIGHT), image=x, target=y)

    def cost() -> float:
        with torch.no_grad():
            return float(ep(image=x, target=y))

    for name, value in model.tensors.items():
        slopes = torch.zeros_like(value)
        for index in np.ndindex(*value.shape):
            before = float(value.detach()[index])
            costs = []
            for move in (1e-4, -1e-4):
                value.data[index] = before + move
                costs.append(cost())
            value.data[index] = before
            slopes[index] = (costs[0] - costs[1]) / 2e-4
        assert float((exact[name] - slopes).norm()) <= 1e-6 * float(slopes.norm()) + 1e-9, name
        assert float((found[name] - slopes).norm()) <= 1e-4 * float(slopes.norm()) + 1e-9, name


def programmed_with(model: EnergyModel) -> EnergyModel:
    """The same network on perfect hardware, programmed with what was physical."""
    result = copy.deepcopy(model)
    result.mount(Chip())
    with torch.no_grad():
        for name, value in model.physical.items():
            result.tensors[name].copy_(value)
    return result


@pytest.mark.parametrize("protocol", ["centered", "implicit", "backprop", "dual"])
def test_quantisers_pass_gradients_straight_and_mismatch_by_the_chain_rule(protocol: str) -> None:
    energy = "hopfield" if protocol == "dual" else "hopfield-smooth"
    model = on_chip(catalogue_model(energy), mismatch={"*.w": 0.1}, bits=4)
    x, y = batch()

    def gradient(network: EnergyModel) -> dict[str, Tensor]:
        if protocol in METHODS:
            engine = METHODS[protocol].make(network, 0, None, METHODS[protocol].configured(0.1, {}))
            engine.model.mount(network.chip)
            return gradients(engine, image=x, target=y)
        return gradients(EquilibriumPropagation(network, 0.01, protocol, relaxation=TIGHT), image=x, target=y)

    found, plain = gradient(model), gradient(programmed_with(model))
    for name in found:
        levels = quantised(model.tensors[name].detach(), 4, Interval())
        factor = torch.where(levels == 0, torch.nan, model.physical[name].detach() / levels)
        known = ~factor.isnan()
        torch.testing.assert_close(found[name][known], (factor * plain[name])[known], rtol=1e-6, atol=1e-10)


# --------------------------------------------------------------------------- levels


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(-5, 5), min_size=1, max_size=60),
    st.integers(1, 8),
    st.sampled_from([Interval(), Interval(-5, 5), Interval(0.0), Interval(hi=0.0), Interval(-1, 5), Interval(0.5, 5)]),
)
def test_levels_of_parameters(values: list[float], bits: int, limits: Interval) -> None:
    value = limits.project(torch.tensor(values, dtype=torch.float64))
    levels = quantised(value, bits, limits)
    assert len(levels.unique()) <= 2**bits
    assert bool((limits.project(levels) == levels).all())
    width = span(value, limits) if limits.edges else 2 * float(value.abs().max())
    straddles = bits > 1 and (not limits.edges or (limits.lo < 0 < limits.hi))
    step = width / (2**bits - (2 if straddles else 1))
    assert float((levels - value).abs().max()) <= step / 2 * (1 + 1e-9) + 1e-12
    if straddles:
        assert float(quantised(torch.cat([value, value.new_zeros(1)]), bits, limits)[-1]) == 0.0
    torch.testing.assert_close(quantised(levels, bits, limits), levels, rtol=0, atol=step * 1e-9 + 1e-15)


def span(value: Tensor, limits: Interval) -> float:
    """From end to end of an interval; of a half-line, to the most extreme entry."""
    lo = limits.lo if math.isfinite(limits.lo) else float(value.min())
    hi = limits.hi if math.isfinite(limits.hi) else float(value.max())
    return hi - lo


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(-20, 20), min_size=1, max_size=40),
    st.integers(1, 8),
    st.sampled_from([CIRCLE, Interval(0, 1), Interval(-2, 3)]),
)
def test_levels_of_a_read_out(values: list[float], bits: int, domain: Domain) -> None:
    chip = Chip(readout_bits=bits)
    state = domain.project(torch.tensor(values, dtype=torch.float64)[:, None])
    seen = chip.read(state, domain)
    lo, hi = (-math.pi, math.pi) if domain.period else domain.bounds(state)
    step = 2 * math.pi / 2**bits if domain.period else float(hi - lo) / (2**bits - 1)
    assert len(seen.unique()) <= 2**bits
    assert float(domain.difference(seen, state).abs().max()) <= step / 2 + 1e-9
    torch.testing.assert_close(chip.read(seen, domain), seen, rtol=0, atol=0)
    turned = domain.wrap(chip.read(state + domain.period, domain) - seen)
    assert float(turned.abs().max()) < 1e-9


def test_a_read_out_knows_that_the_circle_closes() -> None:
    chip = Chip(readout_bits=2)
    near = torch.tensor([[math.pi - 0.1], [-math.pi + 0.1], [3 * math.pi], [0.1], [math.pi / 2 + 0.3]])
    assert (chip.read(near, CIRCLE) / (math.pi / 2)).flatten().tolist() == [-2, -2, -2, 0, 1]


def test_a_divided_domain_is_read_part_by_part() -> None:
    chip, domain = Chip(readout_bits=1), parse_domain([[0, 1], [-4, 0]])
    seen = chip.read(torch.tensor([[0.2, 0.8, -0.2, -3.0]]), domain)
    assert seen.tolist() == [[0, 1, 0, -4]]


def test_predictions_are_those_of_the_read_out() -> None:
    """With one bit all states above 1/2 are alike, and the first of them is the prediction."""
    model = on_chip(compile_energy(declared("{readout_bits: 1}").graph), readout_bits=1)
    states = {"hidden": torch.zeros(2, 5), "label": torch.tensor([[0.1, 0.6, 0.9], [0.2, 0.1, 0.7]])}
    assert model.scores(states).argmax(1).tolist() == [1, 2]
    assert set(model.read(states)["label"].flatten().tolist()) == {0.0, 1.0}
    assert model.read(states)["hidden"] is states["hidden"]


# --------------------------------------------------------------------------- bounds


def test_bounds_hold_from_the_beginning_and_after_every_step(file: Path) -> None:
    changes = {"hardware.bounds": "{'*.w': [-0.125, 0.125]}", "train.optimizer": "{sgd: {lr: 5.0}}"}
    trainer = Trainer(load_experiment(file, changes))
    weights = [value for name, value in trainer.model.tensors.items() if name.endswith(".w")]
    assert max(float(w.detach().abs().max()) for w in weights) <= 0.125
    for _ in trainer.epochs():
        assert max(float(w.detach().abs().max()) for w in weights) <= 0.125
    with torch.no_grad():
        weights[0][0, 0] = 1.0
    with pytest.raises(RelaxationError, match=r"violates its constraint \[-0.125, 0.125\]"):
        trainer.model.check_constraints()


# --------------------------------------------------------------------------- noise


def well(node: str, tau: float = 1.0, domain: Any = "real") -> EnergyModel:
    """Single units without neighbours."""
    return compile_energy(EnergyGraph(Energy(node=node)).state("unit", 4, domain=domain, tau=tau))


def settled_with_noise(model: EnergyModel, rows: int, **options: Any) -> Tensor:
    occasion = Occasion((0, 1, "free"))
    return relax(model, Relaxation("thermal", options=options, occasion=occasion), rows=rows)["unit"].flatten()


@pytest.mark.parametrize(("curvature", "tau", "step"), [(1.0, 1.0, None), (3.0, 1.0, 0.3), (1.0, 2.0, 1.0)])
def test_variance_in_a_quadratic_well(curvature: float, tau: float, step: float | None) -> None:
    """That of an Ornstein-Uhlenbeck process, noise^2 tau/(2 curvature); long steps don't add to it."""
    model, noise, rows = well(f"{curvature}*x**2/2 - x", tau), 0.3, 5000
    x = settled_with_noise(model, rows, noise=noise, duration=10 * tau, step=step)
    expected = noise**2 * tau / (2 * curvature)
    assert abs(float(x.var()) / expected - 1) < 4 * math.sqrt(2 / (4 * rows))
    assert abs(float(x.mean()) - 1 / curvature) < 4 * math.sqrt(expected / (4 * rows))


def test_noise_samples_the_boltzmann_distribution() -> None:
    """In x^4/4 at the temperature T = noise^2/2: mean of x^2 = 2 sqrt(T) gamma(3/4)/gamma(1/4)."""
    x = settled_with_noise(well("x**4/4 + 1e-9*x**2"), 5000, noise=1.0, duration=15.0, step=0.02)
    expected = 2 * math.sqrt(0.5) * gamma(0.75) / gamma(0.25)
    assert float(x.square().mean()) == pytest.approx(expected, rel=0.04)


def test_noise_in_time_grows_like_an_ornstein_uhlenbeck_process() -> None:
    tau, noise, rows = 2.0, 0.5, 4000
    path = simulate(well("x**2/2", tau), Simulation(4.0, 5, noise=noise, step=0.05), rows=rows)
    expected = noise**2 * tau / 2 * (1 - torch.exp(-2 * path.times / tau))
    found = path["unit"].flatten(1).var(1)
    assert float(found[0]) == 0.0
    torch.testing.assert_close(found[1:], expected[1:], rtol=4 * math.sqrt(2 / (4 * rows)) + 0.02, atol=0)


def test_a_free_phase_diffuses() -> None:
    """Variance noise^2 t, and the order parameter of many falls as exp(-noise^2 t/2)."""
    graph = EnergyGraph("kuramoto").state("array", 4000, parameters={"omega": {"init": "ones"}})
    graph.couple("array", "array", "sparse('ring', 4000)", parameters={"w": {"init": "zeros"}})
    path = simulate(compile_energy(graph), Simulation(3.0, 4, noise=0.6), rows=1)
    turned = path["array"][:, 0] - path.times[:, None]  # omega = 1
    expected = 0.6**2 * path.times
    torch.testing.assert_close(turned.var(1)[1:], expected[1:], rtol=0.1, atol=0)
    torch.testing.assert_close(path.order()[:, 0], torch.exp(-expected / 2), rtol=0.1, atol=0.03)


def test_noise_stays_within_the_domain() -> None:
    x = settled_with_noise(well("x**2/2 - x", domain=[0, 1]), 200, noise=2.0)
    assert float(x.min()) == 0.0
    assert float(x.max()) == 1.0


def test_noise_is_a_function_of_seed_and_batch_and_the_same_in_every_share() -> None:
    model = catalogue_model("hopfield-smooth")
    x, y = batch(rows=5)

    def free(step: int, share: Share | None = None, chip: int = 0) -> Tensor:
        ep = EquilibriumPropagation(model, relaxation=TIGHT, nudged=TIGHT_NUDGED)
        mount(ep, HardwareSchema(noise=NoiseSchema(strength=0.1, duration=1.0)), chip)
        ep.share, rows = share, slice(None) if share is None else share.rows
        ep(step=step, image=x[rows], target=y[rows])
        assert ep.last is not None
        assert ep.last.nudged is not None
        return torch.cat([ep.last.free["hidden"], *ep.last.nudged["hidden"].chunk(2)])

    whole = free(1)
    torch.testing.assert_close(free(1), whole, rtol=0, atol=0)
    assert float((free(2) - whole).abs().max()) > 0.01
    assert float((free(1, chip=1) - whole).abs().max()) > 0.01
    plus, minus = whole.chunk(3)[1:]
    assert float((plus - minus).std()) > 0.02  # phases have noise of their own
    for rank in range(2):
        share = Share(5, rank, 2)
        for part, phase in zip(free(1, share).chunk(3), whole.chunk(3), strict=True):
            torch.testing.assert_close(part, phase[share.rows], rtol=0, atol=1e-9)


def test_nobody_gets_noise_without_asking_for_it() -> None:
    model = catalogue_model("hopfield-smooth")
    x, _ = batch()
    assert choose(model.problem(image=x))[0].name != "thermal"
    plain = relax(model, TIGHT, image=x)
    quiet = relax(model, Relaxation("thermal", tolerance=1e-12, max_sweeps=500), image=x)
    assert all(bool((quiet[name] == plain[name]).all()) for name in model.free)


@pytest.mark.parametrize(
    ("options", "place"),
    [
        ({"noise": -1.0}, "options.noise"),
        ({"duration": 0.0}, "options.duration"),
        ({"step": 0.0}, "options.step"),
        ({"integrator": "thermal"}, "options.integrator"),
        ({"integrator": "errors"}, "options.integrator"),
        ({"noise": math.inf}, "options.noise"),
        ({"noise": "strong"}, "wrong type"),
    ],
)
def test_wrong_options_of_noise(options: dict[str, Any], place: str) -> None:
    with pytest.raises(DeclarationError, match=place):
        settled_with_noise(well("x**2/2"), 1, **options)


@pytest.mark.parametrize("protocol", ["single", "centered", "coupled"])
def test_without_noise_gradients_of_predictions_are_what_they_were(protocol: str) -> None:
    """Noise acts on states, so that the phases are not in errors, and another integrator has to relax them."""
    graph = EnergyGraph("predictive").input("image", 5).state("hidden", 4).output("label", 3, cost="(x - y)**2/2")
    model = compile_energy(graph.couple("image", "hidden").couple("hidden", "label"), 2).double()
    x, y = batch()
    tight = Relaxation("thermal", tolerance=1e-12, max_sweeps=5000)
    plain = replace(tight, integrator="flow" if protocol == "coupled" else "errors")
    found, wanted = (
        gradients(EquilibriumPropagation(model, 0.1, protocol, nudged=nudged), image=x, target=y)
        for nudged in (tight, plain)
    )
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-9)


def test_what_a_named_integrator_refuses_it_refuses_with_noise_too() -> None:
    x, _ = batch()
    noisy = Relaxation("thermal", options={"integrator": "newton"})
    with pytest.raises(RelaxationError, match="newton"):
        relax(catalogue_model("hopfield").float(), noisy, image=x.float())


def test_an_integrator_that_cannot_have_noise_is_pointed_to(file: Path) -> None:
    changes = {"hardware.noise": "0.1", "relax.integrator": "sigma_delta"}
    with pytest.raises(DeclarationError, match=r"sigma_delta.*noise acts on states") as caught:
        Trainer(load_experiment(file, changes))
    assert str(caught.value).startswith(str(file))


def test_stiff_energies_say_what_to_change() -> None:
    with pytest.raises(RelaxationError, match="shorter duration"):
        settled_with_noise(well("1e6*x**2/2"), 1, noise=0.1)


def test_simulations_with_noise_need_a_duration() -> None:
    with pytest.raises(DeclarationError, match="noise never settles"):
        Simulation(noise=0.1)


# --------------------------------------------------------------------------- declarations


@pytest.mark.parametrize(
    ("hardware", "place", "message"),
    [
        ("bits: 99", "7:9", "less than or equal to 24"),
        ("bits: {'*.w': 0}", "7:17", "greater than or equal to 1"),
        ("mismatch: -0.1", "7:13", "greater than or equal to 0"),
        ("mismatch: {hiden.b: 0.1}", "7:14", "did you mean hidden.b?"),
        ("bounds: {'*.w': [1, 0]}", "7:12", "write the lower one first"),
        ("{readout_bits: 4, readout_range: [1, 1]}", "7:21", "the range"),
        ("{readout_range: [0, 1]}", "7:4", "add readout_bits"),
        ("noise: {strenght: 1}", "7:11", "did you mean strength?"),
        ("bots: 3", "7:3", "did you mean bits?"),
    ],
)
def test_wrong_hardware_is_located(hardware: str, place: str, message: str) -> None:
    with pytest.raises(DeclarationError) as caught:
        declared(hardware)
    assert message in str(caught.value)
    assert f"<text>:{place}:" in str(caught.value)


def test_a_read_out_of_an_unbounded_state_needs_a_range() -> None:
    text = FILE.replace(", domain: [0, 1]", "")
    with pytest.raises(DeclarationError, match=r"add readout_range: \[lo, hi\]"):
        parse_experiment(text + "hardware: {readout_bits: 4}\n")
    parse_experiment(text + "hardware: {readout_bits: 4, readout_range: [-1, 1]}\n")


def test_a_read_out_of_angles_has_no_range() -> None:
    text = (
        FILE.replace("energy: hopfield", "energy: xy")
        .replace(", domain: [0, 1]", "")
        .replace("(x - y)", "(cos(x) - y)")
    )
    with pytest.raises(DeclarationError, match="levels of angles go round the circle"):
        parse_experiment(text + "hardware: {readout_bits: 4, readout_range: [-1, 1]}\n")


def test_bounds_must_be_those_that_the_energy_allows() -> None:
    text = FILE.replace("energy: hopfield", "energy: resistive") + "hardware: {bounds: {'*.g': [-1, 1]}}\n"
    with pytest.raises(DeclarationError, match="stay within nonnegative"):
        parse_experiment(text)


def test_dispersion_is_not_for_what_has_a_sign() -> None:
    text = FILE.replace("energy: hopfield", "energy: resistive") + "hardware: {dispersion: {image_hidden.g: 0.1}}\n"
    with pytest.raises(DeclarationError, match="use mismatch, which keeps signs"):
        parse_experiment(text)


def test_noise_is_for_networks_that_relax(file: Path) -> None:
    with pytest.raises(DeclarationError, match="noise is for networks that relax"):
        Trainer(load_experiment(file, {"hardware.noise": "0.1", "learn.protocol": "backprop"}))


# --------------------------------------------------------------------------- sweeps


def test_a_sweep_over_hardware(file: Path, tmp_path: Path) -> None:
    runner, run = CliRunner(), tmp_path / "run"
    assert runner.invoke(app, ["train", str(file), "--out", str(run)]).exit_code == 0
    out = tmp_path / "out"
    asked = ["simulate", str(run), "--sweep", "mismatch=0,0.8", "--chips", "3", "--out", str(out)]
    result = runner.invoke(app, asked)
    assert result.exit_code == 0, result.output
    with (out / "hardware-mismatch.csv").open() as written:
        found = list(csv.DictReader(written))
    assert [(row["mismatch"], row["chip"]) for row in found] == [
        ("perfect", "0"), *(("0", str(chip)) for chip in range(3)), *(("0.8", str(chip)) for chip in range(3)),
    ]  # fmt: skip
    costs = [float(row["cost"]) for row in found]
    assert costs[1:4] == [costs[0]] * 3  # no mismatch, no loss
    assert len(set(costs[4:])) == 3
    assert (out / "hardware-mismatch.png").read_bytes()[1:4] == b"PNG"
    worse = ["--hardware", "mismatch=0.8", "--hardware", "chip=2"]
    evaluated = runner.invoke(app, ["evaluate", str(run), *worse])
    assert f"test cost  {costs[-1]:.5f}" in evaluated.output  # the same chip, asked for by itself


def test_chips_are_counted_only_where_they_differ(file: Path) -> None:
    sweep = Robustness(file, "bits=2,24", chips=4)
    trials = sweep.run()
    assert [trial.chip for trial in trials] == [0, 0, 0] == [0] * sweep.count
    assert trials[2].cost == pytest.approx(trials[0].cost, rel=1e-4)
    assert Robustness(file, "noise=0,0.1", chips=4).count == 1 + 1 + 4
    bounded = Robustness(file, "bounds=[-0.01,0.01],[-9,9]").run()  # each value begins with what was trained
    assert bounded[2].cost == bounded[0].cost != bounded[1].cost


@pytest.mark.parametrize(
    ("asked", "message"),
    [("bots=2", "did you mean bits?"), ("bits=", "no values"), ("bits=2,2", "twice"), ("bits=99", "equal to 24")],
)
def test_wrong_sweeps(file: Path, asked: str, message: str) -> None:
    with pytest.raises(DeclarationError, match=message.replace("?", r"\?")):
        Robustness(file, asked)
