"""Tied parameters: against networks that aren't tied, whose gradients are added by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import close
from torch import Tensor

from physnet.declaration import graph_from_yaml, graph_to_yaml, parse_experiment
from physnet.errors import DeclarationError, ShapeError
from physnet.explaining import explain
from physnet.graph import EnergyGraph
from physnet.learning import EquilibriumPropagation, gradients
from physnet.model import EnergyModel, compile_energy
from physnet.optimizers import make_optimizer
from physnet.relaxation import Relaxation, relax

pytestmark = pytest.mark.usefixtures("float64")
TIGHT = Relaxation(tolerance=1e-11)

POSSIBLE = {
    "second_deep.w": "first_second.w",
    "left_first.w": "right_first.w",
    "right_first.c": "left_first.c",
    "second.b": "first.b",
    "deep.m": "first.m",
    "head.w": "first_second.w",
    "head.b": "second.b",
}
"""Parameters of the network below, and tensors of their shape: of edges, clamped and free, nodes, and the readout."""


def network(ties: dict[str, str]) -> EnergyGraph:
    """left, right -> first -> second -> deep, everything with 3 units, and a readout."""

    def own(name: str, **keys: Any) -> dict[str, Any]:
        kept = {key: {word: spec[word] for word in ("on", "shape") if word in spec} for key, spec in keys.items()}
        tied = {key: kept[key] | {"share": ties[f"{name}.{key}"]} for key in keys if f"{name}.{key}" in ties}
        return keys | tied

    node = {"b": {"init": "uniform(0.2, 0.5)"}, "m": {"on": "node", "shape": "scalar", "init": "uniform(0.1, 0.2)"}}
    edge = {"w": {"gain": 0.3}, "c": {"on": "edge", "shape": "scalar", "init": "uniform(0.5, 1)"}}
    graph = EnergyGraph("hopfield").input("left", 3).input("right", 3)
    for name in ("first", "second", "deep"):
        graph.state(name, 3, domain="real", term="x**2/2 - b*x + m*x**2", parameters=own(name, **node))
    for name, pre, post in (
        ("left_first", "left", "first"),
        ("right_first", "right", "first"),
        ("first_second", "first", "second"),
        ("second_deep", "second", "deep"),
    ):
        graph.couple(pre, post, term="-c*w*pre*post", parameters=own(name, **edge))
    head = {key: {"share": ties[f"head.{key}"]} for key in "wb" if f"head.{key}" in ties}
    return graph.cost("deep", "cross_entropy", readout="dense(3)", name="head", parameters=head)


def batch(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    left, right = torch.rand(2, 4, 3, generator=generator).unbind()
    return {"left": left, "right": right, "target": torch.tensor([0, 1, 2, 1])}


def pair(ties: dict[str, str], seed: int = 0) -> tuple[EnergyModel, EnergyModel]:
    """The tied network, and one with tensors of its own that have the same values."""
    tied, untied = compile_energy(network(ties), seed), compile_energy(network({}), seed)
    with torch.no_grad():
        for name, value in untied.tensors.items():
            value.copy_(tied.tensors[final(ties, name)])
    return tied, untied


def final(ties: dict[str, str], name: str) -> str:
    while name in ties:
        name = ties[name]
    return name


@pytest.mark.parametrize("protocol", ["centered", "positive", "implicit"])
@given(ties=st.sets(st.sampled_from(sorted(POSSIBLE)), min_size=1).map(lambda names: {n: POSSIBLE[n] for n in names}))
@settings(max_examples=5)
def test_a_tied_gradient_is_the_sum_of_the_untied_ones(protocol: str, ties: dict[str, str]) -> None:
    tied, untied = pair(ties)
    assert set(tied.state_dict()) == set(tied.tensors) == set(untied.tensors) - set(ties)
    found, parts = (
        gradients(EquilibriumPropagation(model, 0.1, protocol, relaxation=TIGHT), **batch()) for model in (tied, untied)
    )
    for name, value in found.items():
        users = [part for user, part in parts.items() if final(ties, user) == name]
        assert close(value, sum(users[1:], users[0]), 1e-8), name


def test_a_tied_network_relaxes_like_the_one_it_stands_for() -> None:
    tied, untied = pair(POSSIBLE)
    inputs = {key: value for key, value in batch().items() if key != "target"}
    found, expected = (relax(model, TIGHT, **inputs) for model in (tied, untied))
    for node, value in found.states.items():
        assert torch.equal(value, expected[node])
    assert torch.equal(found.energy, expected.energy)


def test_gradients_of_inputs_pass_through_tied_weights() -> None:
    """The energy is symmetric in inputs that share all their weights, so that their gradients are equal."""
    model = compile_energy(network({"left_first.w": "right_first.w", "right_first.c": "left_first.c"}))
    left, right = (batch()[name].requires_grad_() for name in ("left", "right"))
    EquilibriumPropagation(model, relaxation=TIGHT)(left=left, right=right, target=batch()["target"]).backward()
    assert left.grad is not None and right.grad is not None
    assert float(left.grad.norm()) > 1e-5
    assert close(left.grad, right.grad, 1e-10)


def test_a_regulariser_counts_a_shared_tensor_once() -> None:
    graph = network(POSSIBLE).regularise("w**2/2")
    model, plain = compile_energy(graph), compile_energy(network(POSSIBLE))
    penalty = sum(float((v**2).sum() / 2) for k, v in model.tensors.items() if k.endswith(".w"))
    assert sorted(k for k in model.tensors if k.endswith(".w")) == ["first_second.w", "right_first.w"]
    losses = [float(EquilibriumPropagation(m, relaxation=TIGHT)(**batch()).detach()) for m in (model, plain)]
    assert losses[0] - losses[1] == pytest.approx(penalty, rel=1e-10)
    found, before = (gradients(EquilibriumPropagation(m, relaxation=TIGHT), **batch()) for m in (model, plain))
    for name, value in found.items():
        decay = model.tensors[name].detach() if name.endswith(".w") else 0
        assert torch.allclose(value, before[name] + decay, atol=1e-10)


def test_training_moves_the_one_tensor_that_all_read() -> None:
    model = compile_energy(network({"second_deep.w": "first_second.w"}))
    with pytest.raises(DeclarationError, match=r"did you mean first_second\.w"):
        make_optimizer(model, "sgd", {"first_secon.w": 0.1})
    optimizer = make_optimizer(model, {"sgd": {"lr": 0.1}}, {"first_second.w": 0.5})
    before, step = model.tensors["first_second.w"].detach().clone(), gradients(EquilibriumPropagation(model), **batch())
    EquilibriumPropagation(model)(**batch()).backward()
    optimizer.step()
    assert close(model.tensors["first_second.w"].detach(), before - 0.5 * step["first_second.w"], 1e-10)


# --------------------------------------------------------------------------- declarations


def test_ties_survive_the_round_trip_and_change_the_digest() -> None:
    graph = network(POSSIBLE)
    again = graph_from_yaml(graph_to_yaml(graph))
    assert again == graph
    assert again.digest == graph.digest != network({}).digest
    assert again.ties() == {name: final(POSSIBLE, name) for name in POSSIBLE}


def test_what_is_tied_is_said() -> None:
    explanation = explain(compile_energy(network({"second_deep.w": "first_second.w"}).regularise("3*w")))
    entry = next(entry for entry in explanation.parameters if entry.name == "first_second.w")
    assert entry.shared == ("second_deep.w",)
    assert "parameter first_second.w: 3 x 3, learned, shared by second_deep.w" in explanation.text
    rules = [line for line in explanation.text.splitlines() if line.startswith("  dL/d first_second.w")]
    assert len(rules) == 1
    for part in ("first[j]*first_second.c*second[i]", "deep[i]*second[j]*second_deep.c", "3*beta"):
        assert part in rules[0]
    assert "parameter second_deep.w" not in explanation.text
    assert r"\begin{align*}" in explanation.latex


GOOD = """\
energy: resistive
nodes:
  image: {shape: 3, role: input}
  hidden: {shape: 6}
  label: {shape: 6, role: output}
edges:
  - image -> hidden
  - hidden -> label: {parameters: {g: {share: image_hidden.g}}}
cost: (x - y)**2/2
"""
BROKEN = [
    ("image_hidden.g", "image_hiden.g", (8, 47), "no tensor 'image_hiden.g'", "did you mean image_hidden.g"),
    ("image_hidden.g", "hidden_label.g", (8, 47), "form a circle", "tensor"),
    ("image_hidden.g", "everything", (8, 47), "not the name of a tensor", "owner.parameter"),
    ("image_hidden.g", "[1]", (8, 40), "not the name of a tensor", "owner.parameter"),
    ("image_hidden.g}", "image_hidden.g, init: zeros}", (8, 63), "init has no meaning beside share", "there"),
    ("image_hidden.g}", "image_hidden.g, frozen: true}", (8, 63), "frozen has no meaning", "there"),
    ("hidden: {shape: 6}", "hidden: {shape: 4}", (8, 47), "shape [6, 4], but image_hidden.g has [4, 6]", "one shape"),
    ("image_hidden.g}", "image_hidden.g, shape: scalar}", (8, 47), "has shape [], but", "one shape"),
    ("image_hidden.g}", "hidden.i, shape: scalar}", (8, 47), "must stay in nonnegative", "give hidden.i"),
    ("image_hidden.g}", "image_hidden.g, constraint: [0, 1]}", (8, 47), "must stay in [0.0, 1.0]", "image_hidden.g"),
]


@pytest.mark.parametrize(("old", "new", "place", "message", "fix"), BROKEN)
def test_a_broken_tie_is_answered_with_place_and_fix(
    old: str, new: str, place: tuple[int, int], message: str, fix: str
) -> None:
    assert GOOD.count(old) == 1
    with pytest.raises(DeclarationError) as caught:
        parse_experiment(GOOD.replace(old, new), "small.yaml")
    fault = next((fault for fault in caught.value.faults if message in fault.message), None)
    assert fault is not None, str(caught.value)
    assert fix in fault.fix
    assert fault.place is not None
    assert (fault.place.line, fault.place.column) == place
    assert isinstance(caught.value, ShapeError) == ("shape [" in message)


def test_a_circle_is_refused_wherever_it_is_entered() -> None:
    ties = {"left_first.w": "right_first.w", "right_first.w": "first_second.w", "first_second.w": "right_first.w"}
    with pytest.raises(DeclarationError, match=r"right_first.w -> first_second.w -> right_first.w"):
        compile_energy(network(ties))


def test_the_owner_says_how_a_tensor_is_constrained() -> None:
    graph = parse_experiment(GOOD).graph
    model = compile_energy(graph)
    assert set(model.tensors) == {"image_hidden.g", "hidden.i", "label.i"}
    with torch.no_grad():
        model.tensors["image_hidden.g"].sub_(10)
    model.project_parameters()
    assert float(model.tensors["image_hidden.g"].detach().abs().max()) == 0
