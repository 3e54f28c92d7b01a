"""Backprop twins: they compute what hand-written nets compute, and are trained, saved and resumed like any run."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks import EDGES, ENTRIES, NODES, batch, close, squared_error
from torch import Tensor, nn
from torch.nn import functional

from physnet import cli
from physnet.declaration import load_experiment, parse_experiment
from physnet.energy import Energy
from physnet.errors import DeclarationError
from physnet.feedforward import Backpropagation, FeedForward, NormalisedFeedForward, backpropagation
from physnet.graph import EnergyGraph
from physnet.learning import EquilibriumPropagation
from physnet.methods import METHODS, Method
from physnet.model import EnergyModel, compile_energy
from physnet.relaxation import relax
from physnet.runs import identity, new_folder
from physnet.training import Trainer, evaluate, load_run, resume_run

TEXT = """\
name: twin
energy: hopfield
nodes:
  image: {shape: 64, role: input}
  hidden: {shape: 16}
  label: {shape: 10, role: output}
edges: [image -> hidden, hidden -> label]
cost: (x - y)**2/2
learn: {protocol: PROTOCOL, beta: 0.2}
train:
  data: digits
  epochs: 2
  batch: 100
  seed: 3
  device: cpu
  threads: 1
  optimizer: {sgd: {lr: 0.1}}
"""


def text(protocol: str = "backprop", more: str = "", dtype: str = "float32") -> str:
    return TEXT.replace("PROTOCOL", protocol) + f"  dtype: {dtype}\n" + more


def trainer(protocol: str = "backprop", more: str = "", dtype: str = "float32", folder: Any = None) -> Trainer:
    return Trainer(parse_experiment(text(protocol, more, dtype), "twin.yaml"), folder)


def skipping(energy: str = "hopfield", **output: Any) -> EnergyGraph:
    """image -> first -> second -> label, with a skip from image to second; declared out of order."""
    graph = EnergyGraph(energy)
    graph.output("label", 3, parameters=NODES[energy], **output).state("second", 4, parameters=NODES[energy])
    graph.input("image", 5).state("first", 6, parameters=NODES[energy])
    for pre, post in (("second", "label"), ("image", "first"), ("first", "second"), ("image", "second")):
        graph.couple(pre, post, parameters=EDGES[energy])
    return graph


def by_hand(p: dict[str, Tensor], image: Tensor) -> Tensor:
    """The net of `skipping`, written out: the label's pre-activation."""
    first = functional.linear(image, p["image_first.w"], p["first.b"]).clamp(0, 1)
    second = functional.linear(first, p["first_second.w"]) + functional.linear(image, p["image_second.w"])
    second = (second + p["second.b"]).clamp(0, 1)
    return functional.linear(second, p["second_label.w"], p["label.b"])


def gradients(loss: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return dict(zip(tensors, torch.autograd.grad(loss, list(tensors.values())), strict=True))


def check_like_by_hand(engine: Backpropagation, expected: Tensor, tolerance: float, **inputs: Tensor) -> None:
    tensors = {name: value for name, value in engine.model.tensors.items() if value.requires_grad}
    loss = engine(**inputs)
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=tolerance)
    assert engine.last is not None
    assert float(engine.last.cost.mean()) == pytest.approx(float(expected.detach()), rel=tolerance)
    reference, found = gradients(expected, tensors), gradients(loss, tensors)
    for name in tensors:
        assert float(reference[name].norm()) > 1e-4, name
        assert close(found[name], reference[name], tolerance), name


# --------------------------------------------------------------------------- the twin is the net of the same tensors


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-6)])
def test_it_is_the_hand_written_net(dtype: torch.dtype, tolerance: float) -> None:
    model = compile_energy(skipping(cost="(x - y)**2/2"), 1).to(dtype)
    image, label = batch(20)
    image = image.to(dtype)
    target = functional.one_hot(label, 3).to(dtype)
    expected = (by_hand(model.tensors, image) - target).square().sum(1).mean() / 2
    check_like_by_hand(backpropagation(model), expected, tolerance, image=image, target=label)


def test_a_readout_is_a_layer_with_torch_s_cross_entropy(float64: None) -> None:
    graph = skipping().cost("label", "cross_entropy", readout="dense(3)", name="head")
    model = compile_energy(graph, 1)
    image, label = batch(20)
    logits = functional.linear(by_hand(model.tensors, image), model.tensors["head.w"], model.tensors["head.b"])
    expected = functional.cross_entropy(logits, label)
    engine = backpropagation(model)
    check_like_by_hand(engine, expected, 1e-12, image=image, target=label)
    states = engine.settle({"image": image}).states
    assert torch.equal(engine.model.scores(states).argmax(1), logits.argmax(1))


def convolved(label: Any = 3) -> EnergyGraph:
    """Convolution with max-pooling, then a residual block: two convolutions and a strided skip edge around them."""
    graph = EnergyGraph("hopfield").input("image", [2, 8, 8]).state("first", [4, 4, 4])
    graph.state("second", [4, 4, 4]).state("third", [5, 2, 2]).output("label", label, cost="(x - y)**2/2")
    graph.couple("image", "first", "conv2d(3, padding=1) >> max_pool2d(2)")
    graph.couple("first", "second", "conv2d(3, padding=1)").couple("second", "third", "conv2d(3, stride=2, padding=1)")
    return graph.couple("first", "third", "conv2d(1, stride=2)").couple("third", "label")


def convolved_by_hand(p: dict[str, Tensor], image: Tensor, rectify: Any = lambda x: x.clamp(0, 1)) -> Tensor:
    first = functional.max_pool2d(functional.conv2d(image, p["image_first.w"], padding=1), 2)
    first = rectify(first + p["first.b"][:, None, None])
    second = rectify(functional.conv2d(first, p["first_second.w"], p["second.b"], padding=1))
    third = functional.conv2d(second, p["second_third.w"], p["third.b"], stride=2, padding=1)
    third = rectify(third + functional.conv2d(first, p["first_third.w"], stride=2))
    return functional.linear(third.flatten(1), p["third_label.w"].flatten(1), p["label.b"])


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-6)])
def test_a_residual_net_with_pooling_is_the_hand_written_one(dtype: torch.dtype, tolerance: float) -> None:
    model = compile_energy(convolved(), 1).to(dtype)
    image, label = torch.rand(6, 2, 8, 8, dtype=dtype), torch.arange(6) % 3
    target = functional.one_hot(label, 3).to(dtype)
    expected = (convolved_by_hand(model.tensors, image) - target).square().sum(1).mean() / 2
    check_like_by_hand(backpropagation(model), expected, tolerance, image=image, target=label)


def test_a_published_residual_net_is_the_hand_written_one(float64: None) -> None:
    """Per-channel normalisation with the statistics of the batch behind each sum, then a rectifier."""
    model = compile_energy(convolved(), 1)
    engine = METHODS["backprop_batchnorm"].make(model)
    image, label = torch.rand(6, 2, 8, 8), torch.arange(6) % 3

    def rectify(x: Tensor) -> Tensor:
        return functional.batch_norm(x, None, None, training=True).relu()

    expected = (convolved_by_hand(model.tensors, image, rectify) - functional.one_hot(label, 3)).square().sum(
        1
    ).mean() / 2
    loss = engine(image=image, target=label)
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-12)
    weights = {name: value for name, value in model.tensors.items() if name.endswith(".w")}
    reference, found = gradients(expected, weights), gradients(loss, weights)
    for name in weights:
        assert close(found[name], reference[name], 1e-9), name


@pytest.mark.parametrize("name", ENTRIES)
def test_gradients_are_those_of_finite_differences(name: str, float64: None) -> None:
    """For every substrate, also where the activation is found by Newton's method."""
    model = compile_energy(skipping(name, cost=squared_error(name)), 1)
    engine = backpropagation(model)
    image, label = batch(4)
    tensors = [value for value in model.tensors.values() if value.requires_grad]
    loss = engine(image=image, target=label)
    loss.backward()
    generator = torch.Generator().manual_seed(1)
    step = 1e-6
    for value in tensors:
        direction = torch.randn(value.shape, generator=generator)
        costs = []
        for sign in (1, -1):
            with torch.no_grad():
                value.add_(sign * step * direction)
                costs.append(float(engine(image=image, target=label)))
                value.sub_(sign * step * direction)
        assert value.grad is not None
        slope = float((value.grad * direction).sum())
        assert (costs[0] - costs[1]) / (2 * step) == pytest.approx(slope, rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("name", ENTRIES)
def test_a_unit_is_at_the_minimum_of_its_energy_without_feedback(name: str, float64: None) -> None:
    """Of one layer there is no feedback, so that its twin answers with the equilibrium."""
    graph = EnergyGraph(name).input("image", 5).output("label", 3, cost=squared_error(name), parameters=NODES[name])
    model = compile_energy(graph.couple("image", "label", parameters=EDGES[name]), 1)
    image, _ = batch(6)
    found = backpropagation(model).settle({"image": image})["label"]
    assert close(found, relax(model, image=image)["label"], 1e-9)


def test_it_starts_from_the_same_tensors_and_shares_them() -> None:
    assert {name: value.tolist() for name, value in trainer().model.tensors.items()} == {
        name: value.tolist() for name, value in trainer("centered").model.tensors.items()
    }
    model = compile_energy(skipping(cost="(x - y)**2/2"), 1)
    twin = FeedForward(model)
    assert twin.tensors.keys() == model.tensors.keys()
    assert all(twin.tensors[name] is value for name, value in model.tensors.items())
    assert list(twin.free) == ["first", "second", "label"]


def test_a_tensor_that_only_acts_backwards_has_gradient_zero(float64: None) -> None:
    """So that processes, which wait for the gradients of all tensors, never wait in vain."""
    graph = skipping(cost="(x - y)**2/2")
    graph.couple("first", "label", term="-w*pre*post + c*pre**2", parameters={"c": {"shape": "scalar", "init": "ones"}})
    model = compile_energy(graph, 1)
    image, label = batch(4)
    backpropagation(model)(image=image, target=label).backward()
    assert all(value.grad is not None for value in model.tensors.values())
    assert float(model.tensors["first_label.c"].grad) == 0  # type: ignore[arg-type]


def test_copies_compute_the_same() -> None:
    engine = backpropagation(compile_energy(skipping(cost="(x - y)**2/2"), 1))
    image, label = batch(4)
    twin = copy.deepcopy(engine)
    assert torch.equal(twin(image=image, target=label), engine(image=image, target=label))


# --------------------------------------------------------------------------- what has no twin


def cycle() -> EnergyGraph:
    return skipping(cost="(x - y)**2/2").couple("label", "first", name="back")


def inside() -> EnergyGraph:
    return skipping(cost="(x - y)**2/2").couple("first", "first")


def step() -> EnergyGraph:
    energy = Energy(node="-b*x", coupling="-w*pre*post", domain=[0, 1], parameters=_PARAMETERS)
    graph = EnergyGraph(energy).input("image", 3).output("label", 2, cost="(x - y)**2/2")
    return graph.couple("image", "label")


def mixed() -> EnergyGraph:
    energy = Energy(node="x**2/2 - b*x", coupling="-tanh(w*pre*post)", parameters=_PARAMETERS)
    graph = EnergyGraph(energy).input("image", 3).output("label", 2, cost="(x - y)**2/2")
    return graph.couple("image", "label")


def backwards() -> EnergyGraph:
    graph = EnergyGraph("hopfield").output("label", 2, cost="(x - y)**2/2").input("image", 3)
    return graph.couple("label", "image")


_PARAMETERS = {"w": {"on": "edge", "init": "normal(0, 1)"}, "b": {"on": "node", "init": "zeros"}}


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (cycle(), "no cycle, found label -> first -> second -> label"),
        (inside(), "no cycle, found first -> first"),
        (step(), "'label' has no feed-forward activation: it is a step"),
        (mixed(), "'image_label' doesn't separate"),
        (backwards(), "'label' has no feed-forward activation: no edge leads to it"),
    ],
)
@pytest.mark.filterwarnings("ignore:the coupling")
def test_what_has_no_twin_is_refused(graph: EnergyGraph, message: str) -> None:
    with pytest.raises(DeclarationError, match=message):
        backpropagation(compile_energy(graph))


def test_a_twin_doesn_t_relax() -> None:
    with pytest.raises(DeclarationError, match=r"engine\.settle"):
        relax(trainer().model, image=torch.zeros(2, 64))


# --------------------------------------------------------------------------- the published twin


class Published(nn.Module):
    """64-16-10 as it would be written by hand."""

    def __init__(self, p: dict[str, Tensor]) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(64, 16), nn.BatchNorm1d(16), nn.Linear(16, 10)
        values = p["image_hidden.w"], p["hidden.b"], p["hidden_label.w"], p["label.b"]
        with torch.no_grad():
            for mine, value in zip([*self.first.parameters(), *self.last.parameters()], values, strict=True):
                mine.copy_(value)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(self.first(x)).relu())


def test_the_published_twin_trains_like_a_hand_written_net(float64: None) -> None:
    """Three steps of Adam with weight decay on all tensors, then an evaluation with running statistics."""
    run = trainer("backprop_batchnorm", "  methods: {backprop_batchnorm: {optimizer: "
                  "{adam: {lr: 0.001, weight_decay: 2.5e-4}}}}\n", "float64")  # fmt: skip
    net = Published(run.model.tensors)
    optimizer = torch.optim.Adam(net.parameters(), 1e-3, weight_decay=2.5e-4)
    for number in range(3):
        rows = torch.arange(100 * number, 100 * number + 100)
        target = functional.one_hot(run.train["target"][rows], 10)
        loss = (net(run.train["image"][rows]) - target).square().sum(1).mean() / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert run.steps.take(rows) == pytest.approx(float(loss.detach()), rel=1e-12)
    tensors = run.model.tensors
    found = [tensors[name] for name in ("image_hidden.w", "hidden_label.w", "label.b")]
    found += [
        tensors["hidden__norm.weight"],
        tensors["hidden__norm.bias"],
        run.model.state_dict()["hidden__norm.running_var"],
    ]
    expected = [net.first.weight, net.last.weight, net.last.bias, net.norm.weight, net.norm.bias, net.norm.running_var]
    for a, b in zip(found, expected, strict=True):
        assert b is not None
        assert close(a.detach(), b.detach(), 1e-9)
    net.eval()
    target = functional.one_hot(run.test["target"], 10)
    cost, error = evaluate(run.engine, run.test)
    answer = net(run.test["image"])
    assert cost == pytest.approx(float((answer - target).square().sum(1).mean() / 2), rel=1e-9)
    assert error == pytest.approx(100 * float((answer.argmax(1) != run.test["target"]).double().mean()), abs=1e-3)


def test_channels_are_normalised_as_by_batchnorm2d(float64: None) -> None:
    graph = EnergyGraph("hopfield").input("image", 5).state("hidden", [3, 2, 2]).output("label", 3, cost="(x - y)**2/2")
    model = compile_energy(graph.couple("image", "hidden").couple("hidden", "label"), 1)
    twin = NormalisedFeedForward(model)
    assert twin.tensors["hidden__norm.weight"].shape == (3,)
    image, _ = batch(7)
    p = model.tensors
    summed = functional.linear(image, p["image_hidden.w"].flatten(0, -2)).view(-1, 3, 2, 2)
    expected = nn.BatchNorm2d(3)(summed + p["hidden.b"][:, None, None]).relu()
    assert close(twin.states({"image": image}, learning=True)["hidden"].detach(), expected.detach(), 1e-12)


def test_a_single_sample_is_normalised_by_the_running_statistics() -> None:
    model = compile_energy(skipping(cost="(x - y)**2/2"), 1)
    engine = METHODS["backprop_batchnorm"].make(model)
    image, label = batch(1)
    loss = engine(image=image, target=label)
    states = engine.settle({"image": image})
    one_hot = functional.one_hot(label, 3)
    assert float(loss) == pytest.approx(float((states["label"] - one_hot).square().sum() / 2), rel=1e-6)


def test_only_sums_are_normalised() -> None:
    model = compile_energy(skipping("hopfield-smooth", cost="(x - y)**2/2"), 1)
    with pytest.raises(DeclarationError, match="'first' has no feed-forward activation: its energy isn't quadratic"):
        NormalisedFeedForward(model)


@pytest.mark.parametrize("method", ["backprop", "backprop_batchnorm"])
def test_an_interrupted_run_goes_on_exactly(method: str, tmp_path: Path) -> None:
    """All tensors, running statistics and metrics have the bits of a run that was not interrupted."""
    more = "  validation: 100\n  optimizer: {adam: {lr: 0.01}}\n"
    declared = text(method).replace("  optimizer: {sgd: {lr: 0.1}}\n", more)
    whole = Trainer(parse_experiment(declared))
    list(whole.epochs())
    run = Trainer(parse_experiment(declared), tmp_path)
    list(run.epochs(lambda *_: run.stop() if run.position.steps == 20 else None))
    assert run.position.steps == 20
    again = resume_run(tmp_path)
    list(again.epochs())
    first, second = whole.model.state_dict(), again.model.state_dict()
    assert first.keys() == second.keys()
    assert ("hidden__norm.running_mean" in first) == (method == "backprop_batchnorm")
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert [(m.train_cost, m.test_cost, m.validation_error) for m in whole.history] == [
        (m.train_cost, m.test_cost, m.validation_error) for m in again.history
    ]
    restored = load_run(tmp_path)
    assert evaluate(restored.engine, restored.test)[0] == again.history[-1].test_cost


# --------------------------------------------------------------------------- declarations

METHOD_KEYS = """\
  methods:
    backprop: {epochs: 1, rates: {hidden_label.w: 0.5}}
    backprop_batchnorm:
      optimizer: {adam: {lr: 0.001, weight_decay: 2.5e-4}}
"""


def test_keys_of_a_method_replace_those_of_train(tmp_path: Path) -> None:
    plain, normalised, centered = (
        parse_experiment(text(name, METHOD_KEYS)) for name in ("backprop", "backprop_batchnorm", "centered")
    )
    assert (plain.train.epochs, plain.train.rates) == (1, {"hidden_label.w": 0.5})
    assert (normalised.train.epochs, normalised.train.rates) == (2, {})
    assert normalised.train.optimizer == {"adam": {"lr": 0.001, "weight_decay": 2.5e-4}}
    assert centered.resolved() == parse_experiment(text("centered")).resolved()
    assert identity(plain)["learn"]["protocol"] == "backprop"
    assert len({new_folder(item, tmp_path) for item in (plain, normalised, centered)}) == 3


def test_what_is_set_from_outside_goes_before_the_keys_of_a_method(tmp_path: Path) -> None:
    file = tmp_path / "twin.yaml"
    file.write_text(text("centered", METHOD_KEYS))
    asked = {"learn.protocol": "backprop", "train.epochs": "7"}
    changed = load_experiment(file, asked)
    assert (changed.train.epochs, changed.train.rates) == (7, {"hidden_label.w": 0.5})
    assert load_experiment(file, {"learn.protocol": "backprop", "train.methods.backprop.epochs": "5"}).train.epochs == 5


def test_a_run_keeps_what_its_method_took(tmp_path: Path) -> None:
    run = trainer("backprop_batchnorm", METHOD_KEYS, folder=tmp_path)
    list(run.epochs())
    again = load_experiment(tmp_path / "experiment.yaml")
    assert again.train.optimizer == {"adam": {"lr": 0.001, "weight_decay": 2.5e-4}}
    assert identity(again) == identity(run.experiment)
    loaded = load_run(tmp_path)
    assert isinstance(loaded.model, NormalisedFeedForward)
    assert evaluate(loaded.engine, loaded.test) == (run.history[-1].test_cost, run.history[-1].test_error)


@pytest.mark.parametrize(
    ("more", "message", "line"),
    [
        ("  methods: {backprob: {epochs: 1}}\n", "unknown protocol 'backprob'", "methods: {backprob"),
        ("  methods:\n    backprop:\n      epocs: 1\n", "unknown key 'epocs'", "epocs: 1"),
        ("  methods:\n    centered:\n      epochs: none\n", "found 'none'", "epochs: none"),
        ("  methods: [backprop]\n", "methods is a mapping", "methods: [backprop]"),
        ("  methods: {backprop: 3}\n", "expected keys of train", "backprop: 3"),
        ("  methods:\n    backprop: {methods: {}}\n", "methods don't stand in each other", "methods: {}"),
        ("  methods:\n    backprop:\n      optimizer: {adm: {}}\n", "no optimizer 'adm'", "optimizer: {adm: {}}"),
        ("  methods:\n    backprop:\n      rates: {none.w: 1.0}\n", "no trained tensor 'none.w'", "rates: {none.w"),
        ("  rates:\n    none.w: 1.0\n", "no trained tensor 'none.w'", "    none.w: 1.0"),
        ("  precision: float16\n", "found 'float16'", "precision: float16"),
    ],
)  # fmt: skip
def test_faults_point_to_where_they_stand(more: str, message: str, line: str) -> None:
    with pytest.raises(DeclarationError) as caught:
        trainer(more=more)
    assert message in str(caught.value)
    assert line in str(caught.value)
    assert "twin.yaml" in str(caught.value)


def test_a_twin_that_doesn_t_exist_is_an_error_with_its_line() -> None:
    declared = text().replace("hidden -> label]", "hidden -> label, label -> hidden: {name: back}]")
    with pytest.raises(DeclarationError, match=r"twin\.yaml.*no cycle, found hidden -> label -> hidden"):
        Trainer(parse_experiment(declared, "twin.yaml"))


def test_equilibrium_propagation_says_that_a_method_has_no_phases() -> None:
    with pytest.raises(DeclarationError, match="it has no phases"):
        EquilibriumPropagation(compile_energy(skipping(cost="(x - y)**2/2")), 0.1, "backprop")


def test_a_method_plugs_in_by_name() -> None:
    def frozen_norms(model: EnergyModel, seed: int, precision: str | None) -> Backpropagation:
        engine = Backpropagation(NormalisedFeedForward(model), seed, precision)
        engine.train(False)
        return engine

    METHODS["frozen"] = Method("frozen", "running statistics alone", frozen_norms)
    try:
        run = trainer("frozen")
        list(run.epochs())
        assert float(run.model.state_dict()["hidden__norm.running_mean"].abs().sum()) == 0
        with pytest.raises(DeclarationError, match="must be a physnet"):
            METHODS["other"] = frozen_norms  # type: ignore[assignment]
    finally:
        del METHODS["frozen"]


def test_check_compares_the_energy_of_a_twin(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Gradients of protocols are those of the energy, whatever network the file would train."""
    file = tmp_path / "twin.yaml"
    file.write_text(text("backprop_batchnorm", "  precision: bfloat16\n"))
    cli.check(file, None, 2, False)
    rows = [line for line in capsys.readouterr().out.splitlines() if "centered" in line]
    assert float(rows[0].split("│")[3]) > 0.99
    with pytest.raises(DeclarationError, match="it has no phases"):
        cli.explain(file, None, False)


# --------------------------------------------------------------------------- training as published


def test_products_in_half_precision(float64: None) -> None:
    full, half = (trainer(more=f"  precision: {name}\n") for name in ("float32", "bfloat16"))
    found = []
    for run in (full, half):
        run.steps.take(torch.arange(100))
        found.append(torch.cat([v.grad.flatten() for v in run.model.tensors.values() if v.grad is not None]))
        assert all(value.dtype == torch.float32 for value in run.model.tensors.values())
        assert run.engine.settle({"image": run.test["image"]})["hidden"].dtype == torch.float32
    gap = float((found[0] - found[1]).norm() / found[0].norm())
    assert 1e-5 < gap < 2e-2  # a product in bfloat16 has eight bits


@pytest.mark.parametrize(
    ("protocol", "dtype", "message"),
    [("centered", "float32", "not for centered"), ("backprop", "float64", "dtype float64 don't go together")],
)
def test_precision_is_refused_where_it_means_nothing(protocol: str, dtype: str, message: str) -> None:
    with pytest.raises(DeclarationError, match=message):
        trainer(protocol, "  precision: bfloat16\n", dtype)


def test_momentum_and_decay_are_those_of_the_published_optimizer(float64: None) -> None:
    """g + wd w for every tensor, v <- 0.9 v + g, w <- w - lr (g + 0.9 v): SGD after Nesterov, two steps by hand."""
    declared = text(dtype="float64").replace(
        "{sgd: {lr: 0.1}}", "{sgd: {lr: 0.03, momentum: 0.9, nesterov: true, weight_decay: 2.5e-4}}"
    )
    run, model = Trainer(parse_experiment(declared)), trainer(dtype="float64").model
    engine = backpropagation(compile_energy(model.graph, 3))
    velocity: dict[str, Tensor] = {}
    for rows in (torch.arange(100), torch.arange(100, 200)):
        run.steps.take(rows)
        tensors = engine.model.tensors
        found = gradients(engine(image=run.train["image"][rows], target=run.train["target"][rows]), tensors)
        for name, value in tensors.items():
            slope = found[name] + 2.5e-4 * value.detach()
            velocity[name] = 0.9 * velocity[name] + slope if name in velocity else slope
            with torch.no_grad():
                value.sub_(0.03 * (slope + 0.9 * velocity[name]))
    for name, value in engine.model.tensors.items():
        assert close(run.model.tensors[name].detach(), value.detach(), 1e-12), name


def test_the_cosine_schedule_ends_at_its_lowest_rate() -> None:
    """lr_t = eta + (lr - eta) (1 + cos(pi t/T))/2, constant within an epoch, eta = 2e-6 once all epochs are done."""
    declared = text(more="  scheduler: {cosine_annealing: {eta_min: 2.0e-6}}\n").replace("epochs: 2", "epochs: 5")
    run = Trainer(parse_experiment(declared))
    rates = [metrics.rate for metrics in run.epochs()]
    times = np.arange(6) / 5
    expected = 2e-6 + (0.1 - 2e-6) * (1 + np.cos(np.pi * times)) / 2
    assert rates == pytest.approx(list(expected[:5]), rel=1e-9)
    assert run.optimizer.param_groups[0]["lr"] == pytest.approx(2e-6, rel=1e-9)


@pytest.mark.parametrize("method", ["backprop", "backprop_batchnorm"])
def test_clipping_bounds_the_norm_of_the_whole_gradient(method: str) -> None:
    free, clipped = trainer(method), trainer(method, "  clip: 0.01\n")
    for run in (free, clipped):
        run.steps.take(torch.arange(100))
    before, after = ({n: v.grad for n, v in run.model.tensors.items()} for run in (free, clipped))
    norms = [float(torch.cat([v.flatten() for v in g.values() if v is not None]).norm()) for g in (before, after)]
    assert norms[0] > 0.02
    assert norms[1] == pytest.approx(0.01, rel=1e-3)
    for name, value in before.items():
        assert value is not None
        assert close(after[name], value * (0.01 / norms[0]), 1e-3)  # type: ignore[arg-type]


def test_training_learns_and_leaves_a_run(tmp_path: Path) -> None:
    run = trainer("backprop", folder=tmp_path)
    history = list(run.epochs())
    assert history[-1].test_error is not None
    assert history[-1].test_error < 60  # chance is 90
    assert json.loads((tmp_path / "run.json").read_text())["results"]["final"]["test_error"] == history[-1].test_error
