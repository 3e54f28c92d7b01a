"""Quantised messages, against the published loop in numpy and against what they approximate."""

from __future__ import annotations

import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import ENTRIES, TIGHT, batch, catalogue_model
from torch import Tensor

from physnet.declaration import parse_experiment
from physnet.errors import CaveatWarning, DeclarationError, RelaxationError
from physnet.explaining import explain
from physnet.graph import EnergyGraph
from physnet.integration import make_integrator
from physnet.learning import EquilibriumPropagation, gradients
from physnet.model import EnergyModel, compile_energy
from physnet.plots import settling
from physnet.quantisers import parse_quantiser
from physnet.relaxation import Relaxation, relax, run_nudged
from physnet.rows import Share
from physnet.schedules import OptimalAnnealing, parse_annealing, parse_schedule
from physnet.training import Trainer

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
pytestmark = pytest.mark.usefixtures("float64")


def spiking(**options: Any) -> Relaxation:
    return Relaxation("sigma_delta", options=options)


def distance(a: Any, b: Any) -> float:
    return max(float((a[name] - b[name]).abs().max()) for name in a.states)


# --------------------------------------------------------------------------- quantisers


def emitted(name: str, a: Tensor, steps: int, lowest: int = 0) -> Tensor:
    """The spikes of a constant signal, [steps, units]."""
    quantiser, generator = parse_quantiser(name), torch.Generator().manual_seed(1)
    memory = [torch.zeros_like(a) for _ in range(quantiser.accumulators)]
    uniform = lambda: torch.rand(a.shape, generator=generator, dtype=a.dtype)  # noqa: E731
    return torch.stack([quantiser.emit(a.clone(), memory, lowest, 1, uniform).clone() for _ in range(steps)])


@given(st.lists(st.floats(-1, 1), min_size=3, max_size=40))
def test_what_sigma_delta_has_said_is_never_more_than_half_a_spike_behind(signal: list[float]) -> None:
    quantiser, phi, total = parse_quantiser("sigma_delta"), torch.zeros(1), 0.0
    for count, value in enumerate(signal, 1):
        total += float(quantiser.emit(torch.tensor([value]), [phi], -1, 1, torch.empty))
        assert abs(sum(signal[:count]) - total) <= 0.5 + 1e-9


@settings(deadline=None)
@given(st.floats(0, 1), st.integers(1, 8))
def test_n_bits_are_off_by_half_a_level_at_most(value: float, bits: int) -> None:
    a = torch.tensor([value, -value])
    spikes = emitted(f"nbit({bits})", a, 1, lowest=-1)[0]
    assert float((spikes - a).abs().max()) <= 0.5 / (2**bits - 1) + 1e-12
    assert torch.equal(emitted("threshold", a, 1, -1), emitted("nbit(1)", a, 1, -1))


@pytest.mark.parametrize(("name", "error"), [("sigma_delta", 1e-3), ("sigma_delta2", 2e-3), ("bernoulli", 0.05)])
def test_the_mean_of_spikes_is_the_signal(name: str, error: float) -> None:
    a = torch.tensor([0.0, 0.1, 0.37, 0.5, 0.93, 1.0])
    for lowest, signal in ((0, a), (-1, torch.cat([a, -a]))):
        spikes = emitted(name, signal, 1000, lowest)
        assert set(spikes.unique().tolist()) == {float(v) for v in range(lowest, 2)}
        assert float((spikes.mean(0) - signal).abs().max()) <= error


def test_a_schedule_is_an_expression_in_t() -> None:
    schedule = parse_schedule("0.89/t**0.43")
    assert [schedule(t) for t in (1, 2, 50)] == pytest.approx([0.89 / t**0.43 for t in (1, 2, 50)])
    for wrong, message in (("t", "at t = 2"), ("0.5*k", "depends on k"), ("-1/t", "at t = 1"), ("open('x')", "open")):
        with pytest.raises(DeclarationError, match=message):
            parse_schedule(wrong)(2)


def test_annealing_of_a_constant_signal_in_noise_is_that_of_the_published_equations() -> None:
    generator = np.random.default_rng(0)
    signal, target = 0.4 + 0.1 * generator.standard_normal(60), 0.0346
    rate, mean, square, spread, state, sizes = 1.0, 0.0, 0.0, 1.0, 0.0, []
    for t, value in enumerate(signal, 1):
        rate = rate / (1 + rate - target)
        error = value - state
        mean, square = (1 - rate) * mean + rate * error, (1 - rate) * square + rate * error**2
        size = 1.0 if t == 1 else 1 - (square - mean**2) / (1 + spread) / square
        spread = (1 - size) ** 2 * spread + size**2
        state += size * error
        sizes.append(size)
    osa, memory, s, found = parse_annealing("osa(0.0346)"), [torch.zeros(1) for _ in range(3)], torch.zeros(1), []
    assert isinstance(osa, OptimalAnnealing)
    for t, value in enumerate(signal, 1):
        size = osa.size(t, torch.tensor([value]) - s, memory)
        s = s + size * (value - s)
        found.append(float(size))
    assert found == pytest.approx(sizes, abs=1e-9)


# --------------------------------------------------------------------------- dynamics


def published(model: EnergyModel, x: Tensor, y: Tensor | None, steps: int, beta: float = 0.0, nudged: int = 0) -> Any:
    """The published loop for image -> hidden -> label in [0, 1], cost (x - y)^2/2, by hand in numpy."""
    p = {name: value.detach().numpy() for name, value in model.tensors.items()}
    w, v, b, c = p["image_hidden.w"], p["hidden_label.w"], p["hidden.b"], p["label.b"]
    s = {"image": x.numpy(), "hidden": np.zeros((len(x), len(b))), "label": np.zeros((len(x), len(c)))}
    last, phi, r = ({name: np.zeros_like(value) for name, value in s.items()} for _ in range(3))
    for t in range(1, steps + nudged + 1):
        epsilon, smooth, nudge = 0.843 / t**0.0923, 0.832 / t**0.584, beta if t > steps else 0.0
        for name, value in s.items():
            phi[name] = phi[name] + (value - (1 - smooth) * last[name]) / smooth
            q = (phi[name] > 0.5).astype(float)
            phi[name] = phi[name] - q
            r[name] = (1 - smooth) * r[name] + smooth * q
            last[name] = value
        hidden = r["image"] @ w.T + r["label"] @ v + b
        label = r["hidden"] @ v.T + c
        if y is not None:
            label = (label + nudge * np.eye(len(c))[y.numpy()]) / (1 + nudge)
        s["hidden"] = np.clip((1 - epsilon) * s["hidden"] + epsilon * hidden, 0, 1)
        s["label"] = np.clip((1 - epsilon) * s["label"] + epsilon * label, 0, 1)
    return s


def two_layers(seed: int = 1) -> EnergyModel:
    graph = EnergyGraph("hopfield").input("image", 6).state("hidden", 8)
    graph.output("label", 3, cost="(x - y)**2/2", domain=[0, 1])
    return compile_energy(graph.couple("image", "hidden").couple("hidden", "label"), seed)


def test_the_free_phase_is_the_published_loop() -> None:
    model, (x, _) = two_layers(), batch(units=6)
    found, wanted = relax(model, spiking(steps=30), image=x), published(model, x, None, 30)
    for name in ("hidden", "label"):
        assert np.allclose(found[name].numpy(), wanted[name], atol=1e-12)
    assert bool(found.converged.all()) and found.sweeps.tolist() == [30] * 3


def test_nudged_phases_go_on_where_the_free_one_is_each_for_itself() -> None:
    model, (x, y) = two_layers(), batch(units=6)
    settings = spiking(steps=[30, 12])
    nudged = run_nudged(relax(model, settings, image=x), {"target": y}, [0.5, 0.0, -0.5], settings)
    for phase, beta in enumerate((0.5, 0.0, -0.5)):
        wanted = published(model, x, y, 30, beta, 12)
        for name in ("hidden", "label"):
            assert np.allclose(nudged[name][3 * phase : 3 * phase + 3].numpy(), wanted[name], atol=1e-12)


def test_a_picture_shows_every_step_of_both_phases() -> None:
    model, (x, y) = two_layers(), batch(units=6)
    engine = EquilibriumPropagation(model, 0.5, relaxation=spiking(steps=[30, 12], average=5))
    free, nudged = settling(engine, {"image": x, "target": y})
    assert len(free.states) == 31 and len(nudged.states) == 13
    for count, found in enumerate(free.states):
        assert np.allclose(found["hidden"], published(model, x, None, count)["hidden"], atol=1e-12)
    for count, found in enumerate(nudged.states):
        assert np.allclose(found["label"], published(model, x, y, 30, 0.5, count)["label"], atol=1e-12)
    loose = replace(engine.relaxation, tolerance=0.5)  # phases have a given length
    free, nudged = settling(EquilibriumPropagation(model, 0.5, relaxation=loose), {"image": x, "target": y})
    assert len(free.states) == 31 and len(nudged.states) == 13
    residuals = torch.cat([free.residual, nudged.residual])
    assert bool((residuals <= 1).all())  # of silent units that are about to speak it is anything


def test_states_beyond_the_range_of_their_spikes_are_told_of() -> None:
    model, (x, _) = two_layers(), batch(units=6)
    assert float(relax(model, spiking(ranges={"hidden": [0, 1.5]}), image=x)["hidden"].max()) > 0.2
    with pytest.warns(CaveatWarning, match=r"'hidden' leave the range \[0, 0.1\].*widen options.ranges.hidden"):
        relax(model, spiking(ranges={"hidden": [0, 0.1]}), image=x)
    with warnings.catch_warnings():
        warnings.simplefilter("error", CaveatWarning)  # once is enough
        relax(model, spiking(ranges={"hidden": [0, 0.1]}), image=x)


def test_inputs_that_are_not_finite_are_blamed() -> None:
    model, (x, _) = two_layers(), batch(units=6)
    x[1, 2] = torch.nan
    with pytest.raises(RelaxationError, match="input 'image' holds values that are not finite"):
        relax(model, spiking(steps=5), image=x)


def test_what_inputs_say_ahead_is_what_they_say_step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    model, (x, _) = two_layers(), batch(units=6)
    ahead = relax(model, spiking(steps=20, quantiser="bernoulli"), image=x)
    monkeypatch.setattr("physnet.spiking.AHEAD", 50)  # two steps at once
    assert distance(ahead, relax(model, spiking(steps=20, quantiser="bernoulli"), image=x)) < 1e-12


def test_states_may_be_means_over_the_last_steps() -> None:
    model, (x, _) = two_layers(), batch(units=6)
    last = [relax(model, spiking(steps=steps), image=x)["hidden"] for steps in (18, 19, 20)]
    mean = relax(model, spiking(steps=20, average=3), image=x)["hidden"]
    assert torch.allclose(mean, (last[0] + last[1] + last[2]) / 3, atol=1e-12)


@pytest.mark.parametrize("energy", [name for name in ENTRIES if name not in ("hopfield-relu6",)])
def test_any_energy_whose_couplings_separate_can_be_told_in_spikes(energy: str) -> None:
    """Messages are cos and sin of angles, functions of rates, voltages."""
    model, (x, _) = catalogue_model(energy), batch()
    rest = relax(model, TIGHT, image=x)
    wide = {name: 1.5 * float(value.abs().max()) for name, value in {"image": x, **rest.states}.items()}
    angular = rest.problem.domain("label").period
    ranges = {} if angular else {name: [-size, size] for name, size in wide.items()}
    near = relax(model, spiking(steps=400, ranges=ranges), image=x)
    start = relax(model, spiking(steps=1, ranges=ranges), image=x)
    assert distance(near, rest) < 0.03
    assert distance(near, rest) < 0.2 * distance(start, rest)


@pytest.mark.parametrize("protocol", ["positive", "random_sign", "centered", "contrastive"])
def test_gradients_are_those_of_rates(protocol: str) -> None:
    model, (x, y) = two_layers(), batch(units=6)
    exact = gradients(EquilibriumPropagation(model, 0.5, protocol, relaxation=TIGHT, watch=0), image=x, target=y)
    ways = ("identity", 0.5, 1 - 1e-9), ("sigma_delta", "0.843/t**0.0923", 0.99), ("sigma_delta", "osa", 0.99)
    for quantiser, size, least in ways:
        relaxation = spiking(steps=[200, 100], quantiser=quantiser, step_size=size)
        found = gradients(EquilibriumPropagation(model, 0.5, protocol, relaxation=relaxation), image=x, target=y)
        for name, value in exact.items():
            assert float(torch.cosine_similarity(found[name].flatten(), value.flatten(), 0)) > least, (name, size)


def test_the_mean_gradient_of_random_spikes_comes_near_that_of_rates_the_longer_they_are_averaged() -> None:
    """Bernoulli spikes and time averages: what noise leaves behind at the bounds falls with its variance."""
    model, (x, y) = two_layers(), batch(units=6)
    exact = gradients(EquilibriumPropagation(model, 0.5, relaxation=TIGHT, watch=0), image=x, target=y)

    def error(slow: int, draws: int, **options: Any) -> dict[str, float]:
        averaged = {"steps": [200 * slow, 100 * slow], "average": 30 * slow, "smoothing": 0.3 / slow**1.7}
        relaxation = spiking(quantiser="bernoulli", step_size=0.1, **averaged, **options)
        ep = EquilibriumPropagation(model, 0.5, relaxation=relaxation)
        found = gradients(ep, image=x.repeat(draws, 1), target=y.repeat(draws))  # every row draws its own
        return {name: float((found[name] - exact[name]).norm() / exact[name].norm()) for name in exact}

    one, fast, slow = error(1, 1), error(1, 200), error(4, 200)
    for name in exact:
        assert fast[name] < 0.8 * one[name]
        assert slow[name] < 0.8 * fast[name]
        assert slow[name] < 0.15
    seeds = [error(1, 20, seed=seed)["hidden_label.w"] for seed in (1, 2, 3)]
    assert len(set(seeds)) == 3


def test_random_spikes_are_drawn_anew_for_every_batch_and_shared_rows_keep_theirs() -> None:
    model, (x, y) = two_layers(), batch(units=6)
    ep = EquilibriumPropagation(model, 0.5, relaxation=spiking(steps=20, quantiser="bernoulli"))

    def states(step: int, rows: slice = slice(None), share: Share | None = None) -> Tensor:
        ep.share = share
        ep(step=step, image=x[rows], target=y[rows])
        assert ep.last is not None and ep.last.nudged is not None
        return ep.last.nudged["hidden"].unflatten(0, (2, -1))

    first = states(1)
    assert torch.equal(first, states(1)) and not torch.equal(first, states(2))
    for rank in (0, 1):
        share = Share(len(x), rank, 2)
        assert torch.equal(states(1, share.rows, share), first[:, share.rows])


# --------------------------------------------------------------------------- figures of others


def test_the_ranking_and_the_slopes_of_quantised_dynamics() -> None:
    import spiking_convergence

    found = spiking_convergence.measured(seeds=3)
    noisy = [operator for operator in spiking_convergence.OPERATORS[1:] if operator.reference]
    for operator in noisy:  # another net of the same kind, by another program: a factor of three, everywhere
        ratios = np.array(found[operator.name]) / np.array(operator.reference)
        assert (ratios > 1 / 3).all() and (ratios < 3).all(), operator.name
        slopes = spiking_convergence.slope(found[operator.name]), spiking_convergence.slope(operator.reference)
        assert slopes[0] == pytest.approx(slopes[1], abs=0.15), operator.name
    at_400 = [found[operator.name][-1] for operator in noisy]
    constant, stochastic, linear, root, slow, fast = at_400
    assert fast < slow < min(linear, root) < max(linear, root) < stochastic < constant
    assert found["sigma-delta, 1/2"][-1] > 0.5 * found["sigma-delta, 1/2"][1]  # which doesn't converge
    assert found["continuous, 1/2"][-1] < 1e-10
    assert found["predictive, annealed"][-1] < slow  # each unit anneals as fast as its noise allows


@pytest.mark.filterwarnings("ignore::physnet.errors.CaveatWarning")
def test_average_pooling_keeps_the_gradient_and_max_pooling_does_not() -> None:
    import spiking_gradient

    found = spiking_gradient.cosines(steps=(100,))
    assert all(curve[0] > 0.95 for curve in found["average"].values())
    assert min(curve[0] for curve in found["max"].values()) < 0.9
    assert found["max"]["c1_c2.w"][0] < found["average"]["c1_c2.w"][0] - 0.1


def test_max_pooling_without_quantisers_is_that_of_rates_and_has_a_caveat_with_them() -> None:
    import spiking_gradient

    model = spiking_gradient.network("max")
    image = spiking_gradient.batch(4)["image"]
    with pytest.warns(CaveatWarning, match="winners of 'image_c1'"):
        relax(model, spiking(steps=2), image=image)
    with warnings.catch_warnings():
        warnings.simplefilter("error", CaveatWarning)  # once is enough
        relax(model, spiking(steps=2), image=image)
    rates = spiking_gradient.network("max")
    with warnings.catch_warnings():
        warnings.simplefilter("error", CaveatWarning)  # nothing is quantised
        exact = relax(rates, spiking(steps=400, quantiser="identity", step_size=0.5), image=image)
    assert float(exact.residual.max()) < 1e-12  # by the exact updates of the energy itself
    shown = explain(model, integrator="sigma_delta")
    assert any("winners of 'image_c1' are those of spikes" in warning for warning in shown.warnings)
    assert not explain(spiking_gradient.network("average"), integrator="sigma_delta").warnings


# --------------------------------------------------------------------------- memory


def test_memory_is_constant_in_time_where_that_of_backpropagation_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    import spiking_memory

    model, x, y = spiking_memory.network((40, 20, 3)), torch.rand(16, 40), torch.arange(16) % 3
    with torch.no_grad():
        by_hand = spiking_memory.through_time(model.tensors, x, 30)
    here = relax(model, spiking(steps=30), image=x)
    assert all(torch.allclose(here[name], by_hand[name], atol=1e-12) for name in here.states)  # the same dynamics
    monkeypatch.setattr("physnet.spiking.AHEAD", 5 * x.numel())  # what inputs say in 5 steps
    few, more, most = spiking_memory.measure(model, x, y, steps=(20, 40, 80))
    state = 8 * 16 * (40 + 20 + 3)  # bytes of all states
    assert most.propagation - few.propagation < 3 * state
    slopes = [(b.backpropagation - a.backpropagation) / (b.steps - a.steps) for a, b in ((few, more), (more, most))]
    assert slopes[1] == pytest.approx(slopes[0], rel=0.05)
    assert slopes[0] > state  # the membrane of every unit in every step, at least


def test_units_of_both_signs_in_one_node_can_speak() -> None:
    """The equilibrium without quantisers is the oracle; half of the hidden units live below zero."""
    model = compile_energy(
        EnergyGraph("hopfield").input("image", 4).state("hidden", 4, domain=[{"[0, 1]": 2}, {"[-1, 0]": 2}])
        .output("label", 2, cost="(x - y)**2/2", domain=[-1, 1]).couple("image", "hidden").couple("hidden", "label"), 3
    )  # fmt: skip
    x = torch.rand(3, 4, generator=torch.Generator().manual_seed(0))
    found = relax(model, spiking(steps=400, smoothing="0.9/t**0.88"), image=x)
    assert float(relax(model, image=x)["hidden"].min()) < -0.05
    assert distance(found, relax(model, image=x)) < 0.02


# --------------------------------------------------------------------------- misuse


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps"),
        ({"steps": [10, 5, 2]}, "steps"),
        ({"average": 200}, "average"),
        ({"step_size": "2/t"}, "at t = 1"),
        ({"smoothing": "q"}, "depends on q"),
        ({"steps": [40, 20], "step_size": "1 - t/30"}, "is 0 at t = 30"),
        ({"steps": [40, 20], "smoothing": "1 - sin(t)"}, "at t = 4"),
        ({"quantiser": "sigma"}, "unknown quantiser"),
        ({"quantiser": {"hidden": "nbit(0)"}}, "bits"),
        ({"ranges": {"hidden": [1, 0]}}, "range of 'hidden'"),
        ({"ranges": [0, 1]}, "wrong type"),
        ({"steps": 1.5}, "wrong type|steps"),
        ({"step_size": [0.1]}, "wrong type|step_size"),
        ({"stepsize": 0.1}, "did you mean step_size"),
        ({"lambda": 0.1}, "known: steps, step_size"),
    ],
)
def test_options_that_make_no_sense_are_refused_when_they_are_read(options: dict[str, Any], message: str) -> None:
    with pytest.raises(DeclarationError, match=message):
        make_integrator("sigma_delta", options)


def test_what_cannot_be_told_in_spikes_says_why() -> None:
    (x, y), model = batch(), catalogue_model("hopfield")
    with pytest.raises(DeclarationError, match="states of 'label' have no largest value"):
        relax(model, spiking(), image=x)
    ranges = {"label": [-1, 2]}
    with pytest.raises(RelaxationError, match="image: \\["):
        relax(model, spiking(ranges=ranges), image=2 * x)
    with pytest.raises(DeclarationError, match="no node 'lable'"):
        relax(model, spiking(ranges=ranges, quantiser={"lable": "identity"}), image=x)
    with pytest.raises(RelaxationError, match="same quantiser"):
        relaxation, nudged = spiking(ranges=ranges), spiking(ranges=ranges, quantiser="bernoulli")
        EquilibriumPropagation(model, relaxation=relaxation, nudged=nudged)(image=x, target=y)
    with pytest.raises(RelaxationError, match="prediction"):
        graph = EnergyGraph("predictive").input("image", 5).output("label", 3, cost="(x - y)**2/2")
        relax(compile_energy(graph.couple("image", "label")), spiking(), image=x)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ("quantiser: {lable: identity}", r"spikes.yaml:5:.*there is no node 'lable'.*did you mean label"),
        ("ranges: {hiden: [0, 1]}", r"spikes.yaml:5:.*there is no node 'hiden'.*did you mean hidden"),
        ("steps: 10", r"spikes.yaml:5:.*states of 'label' have no largest value"),
        ("steps: [40, 20], ranges: {label: [-1, 2]}, step_size: 1 - t/50", r"spikes.yaml:5:.*is 0 at t = 50"),
    ],
)
def test_options_that_do_not_fit_the_network_are_found_in_the_file_before_a_run_begins(
    options: str, line: str, tmp_path: Path
) -> None:
    declared = f"""\
energy: hopfield
nodes: {{image: {{shape: 64, role: input}}, hidden: {{shape: 8}}, label: {{shape: 10, role: output, domain: real}}}}
edges: [image -> hidden, hidden -> label]
cost: (x - y)**2/2
relax: {{integrator: sigma_delta, options: {{{options}}}}}
train: {{data: digits}}
"""
    with pytest.raises(DeclarationError, match=f"(?s){line}"):
        Trainer(parse_experiment(declared, "spikes.yaml"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    Trainer(parse_experiment(declared + "learn: {protocol: backprop}\n"))  # which relaxes nothing
    nudged = "learn: {nudged: {integrator: sigma_delta, options: {ranges: {label: [-1, 2], hiden: [0, 1]}}}}\n"
    with pytest.raises(DeclarationError, match=r"(?s)spikes.yaml:7:.*there is no node 'hiden'"):
        Trainer(parse_experiment(declared.replace(options, "ranges: {label: [-1, 2]}") + nudged, "spikes.yaml"))


def test_explain_says_what_nodes_tell_each_other() -> None:
    options = {"steps": [30, 12], "quantiser": {"image": "nbit(3)"}, "step_size": "osa", "smoothing": "0.9/t**0.88"}
    shown = explain(two_layers(), integrator="sigma_delta", options=options)
    assert shown.notes[0].startswith("steps: 30 of all nodes at once, 12 in nudged phases") and "osa" in shown.notes[0]
    assert shown.notes[2:] == (
        "encoders and decoders: lambda = 0.9/t**0.88",
        "messages of image: nbit(bits=3), x in [0, 1]",
        "messages of hidden: sigma_delta, x in [0, 1]",
        "messages of label: sigma_delta, x in [0, 1]",
    )
    assert "blocks" not in shown.text
    with pytest.raises(DeclarationError, match="no node 'lable'"):
        explain(two_layers(), integrator="sigma_delta", options={"ranges": {"lable": [0, 1]}})
