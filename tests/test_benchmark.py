"""The benchmarks: what they measure with is itself tested, and they meet the figures that the project promises."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import judging
from architectures import ResidualTwin, conv_hopfield, conv_twin, dense_net, dense_twin, hopfield_resnet13
from cases import CASES, Case, changed
from judging import Reference, energies, equilibrium_reference, judge, kept, parity_sweeps
from pictures import smooth
from profile_step import PARTS, PRODUCTS, STAGES, profiled
from run import COLUMNS, measure
from timing import interleaved, products

from physnet import EnergyGraph, Relaxation, compile_energy, relax

ROOT = Path(__file__).parent.parent
NARROW = {
    "conv-hopfield-5": (lambda: conv_hopfield((4, 4, 6, 6)), lambda: conv_twin((4, 4, 6, 6))),
    "hopfield-resnet13": (lambda: hopfield_resnet13((4, 4, 6, 6)), lambda: ResidualTwin((4, 4, 6, 6))),
}


def narrow(name: str) -> Case:
    """A case with a few channels and two samples."""
    case = next(case for case in CASES if case.name == name)
    graph, twin = NARROW[name]
    return replace(case, graph=graph, twin=twin, samples=lambda: smooth(2), batch=2, rounds=1, backprops=1)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judging, "CACHE", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["hopfield-784-1024-10", "resistive-784-1024-10"])
def test_a_step_costs_at_most_four_backprop_steps_at_a_right_gradient(case: str, tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    subprocess.run([sys.executable, str(ROOT / "benchmarks/run.py"), "--out", str(out), "--case", case], check=True)
    (result,) = json.loads(out.read_text())
    assert result["name"] == case
    assert result["ratio_to_backprop"] <= 4
    assert result["worst_cosine"] >= 0.999


@pytest.mark.parametrize("name", NARROW)
def test_a_narrow_net_goes_through_the_same_measurement(name: str) -> None:
    result = measure(narrow(name))
    assert result.worst_cosine >= 0.999  # of every tensor, to float64 at the same equilibrium
    assert result.distance <= 0.01
    assert min(result.step_ms, result.backprop_ms, result.floor_ms) > 0
    assert result.ratio_to_backprop == pytest.approx(result.step_ms / result.backprop_ms)
    assert json.loads(json.dumps(asdict(result)))["name"] == name
    assert all(isinstance(write(result), str) for write in COLUMNS.values())
    if name == "hopfield-resnet13":
        above = result.energy["blocks"], result.energy["parity"]
        assert min(above) >= -1e-6  # the equilibrium is a minimum that both descend to


@pytest.mark.parametrize("name", NARROW)
def test_the_reference_is_right_and_a_perturbed_gradient_is_not(name: str) -> None:
    case = narrow(name)
    x, y, _ = case.samples()
    model, batch = compile_energy(case.graph(), seed=1), case.batches(x, y)
    reference = case.reference(model, batch, None)
    exact = judge(reference.gradients, reference.gradients)
    assert exact.whole == pytest.approx(1) and exact.worst == pytest.approx(1)
    first = next(iter(reference.gradients))
    wrong = {**reference.gradients, first: torch.randn_like(reference.gradients[first])}
    found = judge(wrong, reference.gradients)
    assert found.whole < 1 and found.tensors[first] < 0.9
    assert all(value == pytest.approx(1) for tensor, value in found.tensors.items() if tensor != first)


def test_cosines_are_those_of_plain_vectors() -> None:
    found = judge({"a": torch.tensor([1.0, 0.0]), "b": torch.tensor([1.0])}, {"a": torch.ones(2), "b": torch.ones(1)})
    assert found.tensors == {"a": pytest.approx(0.5**0.5), "b": pytest.approx(1)}
    assert found.whole == pytest.approx(2 / (2 * 3) ** 0.5) and found.worst == found.tensors["a"]


@pytest.mark.parametrize(
    ("graph", "twin"),
    [
        (conv_hopfield(), conv_twin()),
        (hopfield_resnet13(), ResidualTwin()),
        (dense_net("resistive", (4, 3, 2), 1.0, encode=["x", "-x"]), dense_twin((8, 3, 2))),
    ],
    ids=["conv", "resnet", "dense"],
)
def test_twins_have_tensors_of_the_same_shapes(graph: EnergyGraph, twin: nn.Module) -> None:
    shapes = Counter(shape for _, shape, _ in graph.tensors().values())
    assert shapes == Counter(tuple(value.shape) for value in twin.parameters())


def test_the_published_networks() -> None:
    """arXiv 2509.26003: 13 weight tensors, 10 nodes; arXiv 2312.15103: five layers of weights."""
    resnet, conv = hopfield_resnet13(), conv_hopfield()
    assert (len(list(resnet.edges())), len(list(resnet.nodes()))) == (13, 10)
    assert len(list(conv.edges())) == 5
    for graph in (resnet, conv):
        graph.validate()


def test_parity_sweeps_are_plain_blocks_where_no_edge_skips() -> None:
    """In a chain the nodes at odd positions share no edge, so that both schedules are the same."""
    model = compile_energy(conv_hopfield((3, 4, 5, 6)), seed=1).double()
    x = smooth(2)[0].double()
    plain = Relaxation("blocks", tolerance=1e-15, max_sweeps=3, options={"omega": 1.0})
    with pytest.warns(UserWarning, match="converged"):
        blocks = relax(model, plain, image=x)
    with torch.no_grad():
        parity = parity_sweeps(blocks.problem, blocks.problem.zero(), 3)
    for node, value in blocks.states.items():
        torch.testing.assert_close(parity[node], value)


def test_energies_fall_towards_the_equilibrium() -> None:
    case = narrow("hopfield-resnet13")
    model, inputs = compile_energy(case.graph(), seed=1), {"n0": case.samples()[0]}
    early, late = (energies(model, Relaxation(), inputs, sweeps=2, published=n)["parity"][0] for n in (2, 40))
    assert (late < early).all()


def test_a_reference_is_kept_for_free_states_of_its_basin() -> None:
    case = narrow("conv-hopfield-5")
    x, y, _ = case.samples()
    model, batch = compile_energy(case.graph(), seed=1), case.batches(x, y)
    quick = Relaxation(max_sweeps=2), Relaxation(max_sweeps=1)
    made: list[Reference] = []

    def make() -> Reference:
        made.append(equilibrium_reference(model, 0.1, batch, *quick))
        return made[-1]

    near = kept(make, "key").states
    kept(make, "key", near)
    assert len(made) == 1
    kept(make, "key", {name: value + 1 for name, value in near.items()})
    assert len(made) == 2
    assert judging.digest(model, batch, 0.1) == judging.digest(compile_energy(case.graph(), seed=1), batch, 0.1)
    others = judging.digest(compile_energy(case.graph(), seed=2), batch, 0.1), judging.digest(model, batch, 0.2)
    assert judging.digest(model, batch, 0.1) not in others


def test_the_floor_counts_both_directions_of_every_free_edge_in_every_sweep() -> None:
    model = compile_energy(hopfield_resnet13((2, 2, 2, 2)))
    counted = Counter(product.times for product in products(model, 2, free=30, nudged=7))
    assert counted == {30: 2 * 11, 7: 2 * 11, 1: 13 + 2}  # 13 contrasts, and both edges of the input once forward


def test_settings_from_the_command_line() -> None:
    found = changed(Relaxation(), ["tolerance=1e-3", "max_sweeps=7", "initial=forward", "omega=1.6"])
    assert found == Relaxation("blocks", 1e-3, 7, "forward", {"omega": 1.6})
    with pytest.raises(ValueError, match="write key=value"):
        changed(Relaxation(), ["omega"])
    case = CASES[0].with_settings(["tolerance=1e-4"], ["max_sweeps=3"])
    assert case.relaxation.tolerance == 1e-4
    assert case.nudged is not None and (case.nudged.tolerance, case.nudged.max_sweeps) == (None, 3)


def test_pictures_are_normalised_as_published() -> None:
    """Mean 0 and standard deviation 1/3 per channel, the same everywhere (arXiv 2509.26003)."""
    x, y, _ = smooth(20)
    assert x.shape == (20, 3, 32, 32) and set(y.tolist()) == set(range(10))
    torch.testing.assert_close(x.mean((0, 2, 3)), torch.zeros(3), atol=1e-6, rtol=0)
    torch.testing.assert_close(x.std((0, 2, 3)), torch.full((3,), 1 / 3))
    assert torch.equal(x, smooth(20)[0])
    steps = (x[..., 1:] - x[..., :-1]).square().mean()
    assert steps < 0.5 * 2 / 9  # twice the variance would be white noise


def test_actions_take_turns() -> None:
    calls: list[str] = []
    times = interleaved([lambda: calls.append("a"), lambda: calls.append("b")], rounds=2, warm_up=1)
    assert calls == ["a", "b"] * 3 and len(times) == 2


@pytest.mark.parametrize("name", NARROW)
def test_the_profile_gives_every_part_of_the_step_its_time(name: str) -> None:
    times, whole, floor, sweeps = profiled(narrow(name))
    assert sum(times.values()) == pytest.approx(whole)
    assert {part for part, _ in times} <= {*PARTS, "outside"} and {stage for _, stage in times} == {*STAGES, "rest"}
    assert floor < whole and min(sweeps) >= 1
    for part, stages in (*((part, STAGES[:2]) for part in PRODUCTS[:2]), (PRODUCTS[2], STAGES[2:])):
        assert all(times[part, stage] > 0 for stage in stages)
        assert all(times.get((part, stage), 0) == 0 for stage in set(STAGES) - set(stages) if part != "forward")
    assert (sum(value for (part, _), value in times.items() if part == "pooling") > 0) == (name == "conv-hopfield-5")
