"""Jumps to another branch of equilibria, against closed forms and against displacements at smaller nudges."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from networks import FOR_ALL, NODES, QUICKLY, TIGHT, TIGHT_NUDGED, batch, catalogue_model
from torch import Tensor

from physnet.branches import jumped, nonlinearity
from physnet.declaration import load_experiment
from physnet.energy import Energy
from physnet.errors import RelaxationWarning
from physnet.graph import EnergyGraph
from physnet.learning import EquilibriumPropagation, Record
from physnet.model import EnergyModel, compile_energy
from physnet.protocols import PROTOCOLS
from physnet.relaxation import Relaxation, relax
from physnet.training import Trainer

PATIENT = Relaxation(tolerance=1e-7, max_sweeps=20_000)
EXAMPLES = Path(__file__).parent.parent / "examples"


def settled(ep: EquilibriumPropagation, **data: Tensor) -> Record:
    ep.watch = 1
    ep(**data)
    assert ep.last is not None
    assert ep.last.jumped is not None
    return ep.last


def single(node: str, cost: str) -> EnergyModel:
    """One unit on its own."""
    energy = Energy(node=node, coupling="-w*pre*post", parameters={"w": {"on": "edge", "init": "zeros"}})
    return compile_energy(EnergyGraph(energy).input("i", 1).output("o", 1, cost=cost).couple("i", "o")).double()


@pytest.mark.parametrize("protocol", ["positive", "negative", "random_sign", "centered"])
def test_a_unit_jumps_where_its_well_ends(protocol: str, float64: None) -> None:
    """x^4/4 - x^2/2 + 0.2 x - beta y x: the left well ends where the whole force passes 2/(3 sqrt(3)) = 0.385."""
    model = single("x**4/4 - x**2/2 + x/5", "-x*y")
    pull = torch.tensor([-2.0, -1.0, -0.3, -0.1, 0.0, 0.1, 0.3, 0.45, 0.7, 1.0, 2.0])[:, None]
    ep = EquilibriumPropagation(model, 1.0, protocol, relaxation=TIGHT, nudged=TIGHT_NUDGED)
    for _ in range(4):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            record = settled(ep, i=torch.zeros(11, 1), target=pull)
        expected = torch.stack([beta * pull - 0.2 > 0.385 for beta in record.betas]).any(0)[:, 0]
        assert expected.any()
        assert torch.equal(record.jumped, expected)
        assert [item.category for item in caught] == [RelaxationWarning]
        assert f"{int(expected.sum())} of 11 samples don't respond in proportion" in str(caught[0].message)
        assert "use a smaller beta" in str(caught[0].message)


@pytest.mark.parametrize("beta", [1.0, 0.5, 0.01, -0.01, -0.5])
def test_nonlinearity_of_one_linear_unit(beta: float, float64: None) -> None:
    """x^2/2 + beta (x - y)^2/2 has its minimum at f(beta) y, f(beta) = beta/(1 + beta); m = f(beta)/2 y."""
    model, x, y = single("x**2/2", "(x - y)**2/2"), torch.zeros(1, 1), torch.ones(1, 1)
    free, nudged = relax(model, i=x), relax(model, i=x, target=y, beta=beta)
    rho = nonlinearity(free.problem, free.states, nudged.states, {"target": y}, [beta])

    def f(b: float) -> float:
        return b / (1 + b)

    assert float(rho) == pytest.approx(abs((f(beta / 2) - f(beta) / 2) / (8 * f(beta / 16))), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("protocol", [name for name in FOR_ALL if not PROTOCOLS[name].clamps])
@pytest.mark.parametrize("name", QUICKLY)
def test_small_weights_never_warn(name: str, protocol: str, dtype: torch.dtype) -> None:
    """With default tolerances, at any nudge: what the free phase leaves undone is not taken for a jump."""
    model, (x, y) = catalogue_model(name).to(dtype), batch()
    for beta in (0.3, 1e-2, 1e-4):
        with warnings.catch_warnings():
            warnings.simplefilter("error", RelaxationWarning)
            assert not settled(EquilibriumPropagation(model, beta, protocol), image=x, target=y).jumped.any()


def test_nonlinearity_falls_with_beta(float64: None) -> None:
    """In proportion to it, on a smooth energy."""
    model, (x, y) = catalogue_model("hopfield-smooth"), batch()
    targets = {"target": torch.eye(3)[y]}
    free = relax(model, TIGHT, image=x)
    rho = []
    for beta in (0.02, 0.01):
        nudged = relax(model, TIGHT, image=x, target=y, beta=beta)
        rho.append(nonlinearity(free.problem, free.states, nudged.states, targets, [beta]))
    assert ((rho[0] / rho[1] - 2).abs() < 0.1).all()


def large_net(name: str, gain: float) -> EnergyModel:
    cost = "(cos(x) - y)**2/2" if name == "xy" else "(tanh(x) - y)**2/2"
    graph = EnergyGraph(name).input("image", 16).state("hidden", 24, parameters=NODES[name])
    graph.output("label", 4, cost=cost, parameters=NODES[name])
    for pre, post in (("image", "hidden"), ("hidden", "label")):
        graph.couple(pre, post, parameters={"w": {"gain": gain}})
    return compile_energy(graph, 2).double()


@pytest.mark.parametrize("name", ["hopfield-smooth", "xy"])
def test_large_weights_warn_and_small_ones_do_not(name: str, float64: None) -> None:
    """Row 16. Samples that are said to have jumped have a displacement that is not proportional to beta."""
    x, y = batch(32, 16, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RelaxationWarning)
        settled(EquilibriumPropagation(large_net(name, 0.4), 0.5), image=3 * x, target=y)
    model = large_net(name, 6.0)
    ep = EquilibriumPropagation(model, 0.5, relaxation=PATIENT, nudged=PATIENT)
    with pytest.warns(RelaxationWarning, match="left the branch of their free state or are close to its end"):
        record = settled(ep, image=3 * x, target=y)
    assert record.jumped is not None
    assert 0 < int(record.jumped.sum()) < 32
    check_flagged(record, ep, y)


def check_flagged(record: Record, ep: EquilibriumPropagation, y: Tensor) -> None:
    """Against a nudge 100 times smaller: whoever is out of proportion by 300 % is found, nobody within 20 % is."""
    free, rows = record.free, len(y)
    targets = ep.model.as_targets({"target": y}, rows)
    with torch.no_grad():
        found = jumped(free.problem, free.states, record.nudged.states, targets, record.betas)  # pyright: ignore
    assert torch.equal(found, record.jumped)  # pyright: ignore
    scaled = []
    for beta in (1, -1, 0.01, -0.01):
        nudged = relax(ep.model, PATIENT, image=free.problem.clamped["image"],
                       target=y, beta=beta * ep.beta, start=free.states)  # fmt: skip
        moved = [free.problem.domain(n).difference(nudged[n], v).flatten(1) for n, v in free.states.items()]
        scaled.append(torch.cat(moved, 1) / beta)
    off = torch.stack([(scaled[i] - scaled[i + 2]).norm(dim=1) / scaled[i + 2].norm(dim=1) for i in (0, 1)]).amax(0)
    assert off[found].min() > 0.2
    assert found[off > 3].all()


@pytest.mark.parametrize("name", ["digits_hopfield", "digits_hopfield_smooth", "digits_resistive"])
def test_examples_train_without_false_alarms(name: str) -> None:
    trainer = Trainer(load_experiment(EXAMPLES / f"{name}.yaml"))
    trainer.engine.watch = 1
    optimizer = torch.optim.Adam(trainer.model.parameters(), 2e-3)
    trainer.engine.attach(optimizer)
    for step in range(20):
        data = {key: value[16 * step :][:16] for key, value in trainer.train.items()}
        optimizer.zero_grad()
        loss = trainer.engine(**data)
        loss.backward()
        optimizer.step()
        assert trainer.engine.last is not None
        assert not trainer.engine.last.jumped.any()  # pyright: ignore


def test_evaluation_has_no_branches_to_leave() -> None:
    model, (x, y) = catalogue_model("hopfield"), batch()
    ep = EquilibriumPropagation(model)
    with torch.no_grad():
        ep(image=x, target=y)
    assert ep.last is not None
    assert ep.last.jumped is None
