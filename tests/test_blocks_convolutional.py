"""Sweeps over convolutional networks: the parity schedule, over-relaxation, and winners of max-pooling."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import TIGHT, TIGHT_NUDGED
from torch import Tensor
from torch.nn.functional import conv2d, conv_transpose2d

from physnet import (
    DeclarationError,
    EnergyGraph,
    EnergyModel,
    EquilibriumPropagation,
    Relaxation,
    compile_energy,
    relax,
)
from physnet.checking import cosine
from physnet.integrators.blocks import Blocks, _sweep, stretchable
from physnet.learning import gradients
from physnet.progress import Progress, chain_omega, depth
from physnet.relaxation import run_nudged


def residual_network(seed: int = 3, gain: float = 1.0) -> EnergyModel:
    """Four nodes of images with a skip edge, boxes [0, 6], and a real output: the smallest Hopfield-ResNet."""
    graph = EnergyGraph("hopfield", "residual").input("image", [2, 8, 8])
    for name, shape in (("a", [3, 8, 8]), ("b", [3, 4, 4]), ("c", [4, 4, 4]), ("d", [4, 2, 2])):
        graph.state(name, shape, domain=[0, 6])
    graph.output("label", 3, cost="(x - y)**2/2")
    weak, strong = {"w": {"gain": 0.6 * gain}}, {"w": {"gain": 0.7 * gain}}
    for pre, post in (("image", "a"), ("b", "c")):
        graph.couple(pre, post, "conv2d(3, padding=1)", parameters=weak)
    for pre, post in (("a", "b"), ("c", "d")):
        graph.couple(pre, post, "conv2d(3, stride=2, padding=1)", parameters=weak)
    for pre, post in (("image", "b"), ("b", "d")):
        graph.couple(pre, post, "conv2d(1, stride=2)", parameters=strong)
    graph.couple("d", "label", parameters={"w": {"gain": 0.8}})
    return compile_energy(graph, seed).double()


def pooled_network(seed: int = 1, gain: float = 1.0) -> EnergyModel:
    """image -> c1 -> c2 -> label with max-pooling; all that receives a maximum is at least zero."""
    graph = EnergyGraph("hopfield", "pooled").input("image", [2, 8, 8])
    graph.state("c1", [4, 4, 4]).state("c2", [4, 2, 2]).output("label", 3, cost="(x - y)**2/2")
    for pre, post in (("image", "c1"), ("c1", "c2")):
        graph.couple(pre, post, "conv2d(3, padding=1) >> max_pool2d(2)", parameters={"w": {"gain": gain}})
    graph.couple("c2", "label", parameters={"w": {"gain": 0.5 * gain}})
    return compile_energy(graph, seed).double()


def images(rows: int = 4, seed: int = 0) -> Tensor:
    return torch.randn(rows, 2, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def reference_parity(model: EnergyModel, x: Tensor, sweeps: int) -> dict[str, Tensor]:
    """The reference code's iteration, written out: odd nodes from the same state, then even ones."""
    w, b = ({n.split(".")[0]: v for n, v in model.tensors.items() if n.endswith(k)} for k in (".w", ".b"))
    s = {n: torch.zeros(len(x), *model.graph.node(n).shape, dtype=x.dtype) for n in "abcd"}
    s["label"] = torch.zeros(len(x), 3, dtype=x.dtype)
    fixed = {
        "a": conv2d(x, w["image_a"], padding=1) + b["a"].view(-1, 1, 1),
        "b": conv2d(x, w["image_b"], stride=2) + b["b"].view(-1, 1, 1),
        "c": b["c"].view(-1, 1, 1),
        "d": b["d"].view(-1, 1, 1),
    }

    def up(name: str) -> Tensor:
        if name == "a":
            z = conv_transpose2d(s["b"], w["a_b"], stride=2, padding=1, output_padding=1)
        elif name == "b":
            z = conv2d(s["a"], w["a_b"], stride=2, padding=1) + conv_transpose2d(s["c"], w["b_c"], padding=1)
            z = z + conv_transpose2d(s["d"], w["b_d"], stride=2, output_padding=1)
        elif name == "c":
            z = conv2d(s["b"], w["b_c"], padding=1)
            z = z + conv_transpose2d(s["d"], w["c_d"], stride=2, padding=1, output_padding=1)
        elif name == "d":
            z = conv2d(s["c"], w["c_d"], stride=2, padding=1) + conv2d(s["b"], w["b_d"], stride=2)
            z = z + (s["label"] @ w["d_label"].view(3, -1)).view_as(s["d"])
        else:
            return s["d"].flatten(1) @ w["d_label"].view(3, -1).T + b["label"]
        return (z + fixed[name]).clamp(0, 6)

    for _ in range(sweeps):
        for half in (("a", "c", "label"), ("b", "d")):
            s |= {name: up(name) for name in half}
    return s


@pytest.mark.parametrize("sweeps", [1, 2, 7])
@pytest.mark.filterwarnings("ignore::physnet.errors.RelaxationWarning")
def test_parity_sweeps_are_those_of_the_reference_code(sweeps: int):
    model, x = residual_network(), images()
    settings = Relaxation("blocks", tolerance=1e-14, max_sweeps=sweeps, options={"schedule": "parity"})
    found, wanted = relax(model, settings, image=x), reference_parity(model, x, sweeps)
    for name, value in wanted.items():
        torch.testing.assert_close(found.states[name], value, rtol=1e-12, atol=1e-12)


def test_parity_and_coloured_sweeps_meet_at_a_stable_equilibrium():
    model, x = residual_network(gain=0.4), images()
    parity = Relaxation("blocks", tolerance=1e-12, options={"schedule": "parity"})
    a, b = relax(model, parity, image=x), relax(model, TIGHT, image=x)
    assert a.converged.all() and b.converged.all()
    for name in model.free:
        torch.testing.assert_close(a.states[name], b.states[name], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("options", "word"),
    [({"schedule": "odd"}, "coloured or parity"), ({"schedule": "parity", "omega": 1.5}, "leave omega out")],
)
def test_wrong_options_are_refused(options: dict, word: str):
    with pytest.raises(DeclarationError, match=word):
        Blocks(**options)


@settings(max_examples=20)
@given(
    seed=st.integers(0, 10_000),
    omega=st.floats(1, 1.999),
    gain=st.floats(0.3, 3),
    make=st.sampled_from([residual_network, pooled_network]),
)
def test_no_over_relaxed_update_raises_the_energy(seed: int, omega: float, gain: float, make):
    """With its winners as they are, a max-pooled energy is a quadratic above the true one that touches it."""
    model = make(seed, gain)
    problem = model.problem(image=images(2, seed))
    with torch.no_grad():
        state = problem.random(torch.Generator().manual_seed(seed))
        energy = problem.energy(state)
        for _ in range(3):
            for block in problem.blocks:
                for node, new in problem.minimise(block, state).items():
                    old, domain = state[node], problem.domain(node)
                    state[node] = domain.project(old + omega * domain.difference(new, old))
                after = problem.energy(state)
                assert (after <= energy + 1e-10 * energy.abs().clamp_min(1)).all()
                energy = after


def test_the_first_over_relaxation_is_the_best_of_a_chain():
    """2/(1 + sqrt(1 - rho^2)), rho the largest eigenvalue of a chain whose neighbours pull by half (D. M. Young)."""
    for length in (3, 5, 9):
        graph = EnergyGraph("hopfield").input("n0", 2)
        for k in range(1, length + 1):
            graph.state(f"n{k}", 2).couple(f"n{k - 1}", f"n{k}")
        chain = (torch.diag(torch.ones(length - 1), 1) + torch.diag(torch.ones(length - 1), -1)).double() / 2
        radius = float(torch.linalg.eigvalsh(chain).abs().max())
        model = compile_energy(graph)
        first = chain_omega(depth(model.problem(n0=torch.zeros(1, 2))))
        assert first == pytest.approx(2 / (1 + math.sqrt(1 - radius**2)))


def hopfield_resnet13(width: int) -> EnergyModel:
    """The network of arXiv 2509.26003, with `width` channels in place of 128."""
    graph = EnergyGraph("hopfield", "resnet13").input("n0", [3, 32, 32])
    for k, (factor, size) in enumerate(((1, 32), (1, 16), (2, 16), (2, 8), (4, 8), (4, 4), (4, 4), (4, 2)), 1):
        graph.state(f"n{k}", [factor * width, size, size], domain=[0, 6])
    graph.output("n9", 10, cost="(x - y)**2/2")
    for k in (0, 2, 4, 6):
        graph.couple(f"n{k}", f"n{k + 1}", "conv2d(3, padding=1)", parameters={"w": {"gain": 0.6}})
        graph.couple(f"n{k + 1}", f"n{k + 2}", "conv2d(3, stride=2, padding=1)", parameters={"w": {"gain": 0.6}})
        graph.couple(f"n{k}", f"n{k + 2}", "conv2d(1, stride=2)", parameters={"w": {"gain": 0.7}})
    graph.couple("n8", "n9", parameters={"w": {"gain": 0.8}})
    return compile_energy(graph, seed=0)


@pytest.mark.filterwarnings("ignore::physnet.errors.RelaxationWarning")
def test_twenty_sweeps_go_lower_than_the_reference_schedule_does_in_120():
    """The published figure for Hopfield-ResNet, from the same start in the same basin, at an eighth of the width."""
    model, pixels = hopfield_resnet13(16), torch.randn(2, 3, 8, 8)
    x = torch.nn.functional.interpolate(pixels, size=32, mode="bilinear") / 2

    def energy(sweeps: int, **options: str) -> float:
        limited = Relaxation("blocks", tolerance=1e-6, max_sweeps=sweeps, options=options)
        return float(relax(model, limited, n0=x).energy.detach().sum())

    assert energy(20) <= energy(120, schedule="parity")


def test_winners_hold_back_over_relaxation_in_nudged_phases():
    """A phase then stays on the branch of the free state, whichever omega was asked for."""
    model, x, y = pooled_network(gain=2.0), images(), torch.arange(4) % 3
    free = relax(model, TIGHT, image=x)
    asked = Relaxation("blocks", tolerance=1e-9, options={"omega": 1.9})
    targets = model.as_targets({next(iter(model.targets)): y}, 4)
    fast, plain = (
        run_nudged(free, targets, (-0.1, 0.1), s)
        for s in (asked, Relaxation("blocks", tolerance=1e-9, options={"omega": 1.0}))
    )
    assert all(stretchable(free.problem, node) for node in model.free)
    assert fast.displaced is not None
    assert not any(stretchable(fast.displaced, node) for node in model.free)
    for name in model.free:
        torch.testing.assert_close(fast.displacement[name], plain.displacement[name], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("make", [residual_network, pooled_network])
def test_gradients_of_convolutional_networks_are_the_implicit_ones(make):
    model, batch = make(gain=0.7), {"image": images(), "target": torch.arange(4) % 3}
    batch = {name if name in model.inputs else next(iter(model.targets)): value for name, value in batch.items()}
    ep = EquilibriumPropagation(model, 1e-4, relaxation=TIGHT, nudged=TIGHT_NUDGED)
    exact = EquilibriumPropagation(model, 1e-4, "implicit", relaxation=TIGHT)
    wanted = gradients(exact, **batch)
    for name, value in gradients(ep, **batch).items():
        assert cosine(value, wanted[name]) >= 0.9999, name


def test_the_energy_of_fewer_samples_is_not_compared_with_that_of_all() -> None:
    """Energies are negative here, so that a sum over fewer samples is higher, although that of each has fallen."""
    model = residual_network()
    progress = Progress(1e-6, model.problem(image=images(4)), None)
    progress.omega = 1.5
    progress.judge(100, -4.0)
    progress.narrow(np.array([1, 3]))
    progress.judge(200, -2.2)
    assert progress.omega == 1.5
    progress.judge(300, -2.2)
    assert progress.omega == 1


@pytest.mark.filterwarnings("ignore::physnet.errors.RelaxationWarning")
def test_sweeps_that_end_in_the_noise_of_rounded_products_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    model, count = residual_network(gain=0.4), 0

    def counted(*arguments: Any) -> Tensor | None:
        nonlocal count
        count += 1
        return _sweep(*arguments)

    free = relax(model, TIGHT, image=images())
    monkeypatch.setattr("physnet.integrators.blocks._sweep", counted)
    settings = Relaxation("blocks", tolerance=1e-4, max_sweeps=500, options={"products": "bfloat16"})
    nudged = run_nudged(free, {next(iter(model.targets)): torch.arange(4) % 3}, (-0.1, 0.1), settings)
    assert not nudged.converged.any()
    assert (nudged.sweeps == count).all() and count < 500
