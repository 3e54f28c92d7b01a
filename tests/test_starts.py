"""Where states start, and gradients and predictions over several random starts of each sample."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from physnet.declaration import graph_from_yaml, graph_to_yaml, load_experiment, parse_experiment
from physnet.errors import DeclarationError
from physnet.graph import EnergyGraph
from physnet.learning import EquilibriumPropagation, gradients
from physnet.metrics import measure
from physnet.model import EnergyModel, compile_energy
from physnet.problem import Problem, State
from physnet.randomness import stream
from physnet.relaxation import Relaxation, initial_state, relax
from physnet.rows import Share
from physnet.samples import Held
from physnet.starts import MultiStart
from physnet.training import Trainer, resume_run

FILE = """
energy: oscillator-ising
nodes:
  image: {shape: 3, role: input}
  hidden:
    shape: [2, 2]
    initial: INITIAL
  label: {shape: 2, role: output}
edges: [image -> hidden, hidden -> label]
cost: (cos(x) - y)**2/2
"""


def begin(graph: EnergyGraph, initial: str = "zero", rows: int = 4000, share: Share | None = None, **more: Any) -> Any:
    """The state that a batch starts from."""
    model = compile_energy(graph).double()
    problem = model.problem(**{name: torch.zeros(rows, *node.data_shape) for name, node in model.inputs.items()})
    return initial_state(problem, initial, stream(3, "initial"), share=share, **more)


# --------------------------------------------------------------------------- initial states


@pytest.mark.parametrize("initial", ["zero", "random", "previous"])
@pytest.mark.parametrize(("declared", "value"), [("pi/2", math.pi / 2), ("0.25", 0.25), ("2*ones()", 2.0)])
def test_a_declared_number_is_where_every_sample_starts(initial: str, declared: str, value: float) -> None:
    state = begin(graph_from_yaml(FILE.replace("INITIAL", declared)), initial, 5)
    assert torch.equal(state["hidden"], torch.full((5, 2, 2), value, dtype=torch.float64))
    assert bool((state["label"] == 0).all()) == (initial != "random")  # it declares nothing


def test_declared_draws_have_their_distribution_and_differ_between_samples() -> None:
    uniform = begin(graph_from_yaml(FILE.replace("INITIAL", "uniform(-pi, 0)")))["hidden"]
    assert float(uniform.min()) >= -math.pi and float(uniform.max()) <= 0
    assert float(uniform.mean()) == pytest.approx(-math.pi / 2, abs=0.05)
    assert float(uniform.std()) == pytest.approx(math.pi / math.sqrt(12), abs=0.05)
    assert len(uniform[:, 0, 0].unique()) == 4000
    normal = begin(graph_from_yaml(FILE.replace("INITIAL", "normal(1, 0.1)")))["hidden"]
    assert float(normal.mean()) == pytest.approx(1, abs=0.01) and float(normal.std()) == pytest.approx(0.1, abs=0.01)
    evenly = begin(graph_from_yaml(FILE.replace("INITIAL", "evenly(0, 8)")), rows=3)["hidden"]
    assert torch.equal(evenly, torch.tensor([[1.0, 3], [5, 7]], dtype=torch.float64).expand(3, 2, 2))


def test_declared_states_are_inside_the_domain() -> None:
    graph = (
        EnergyGraph("hopfield").input("image", 3).state("hidden", 4, initial="normal(0, 3)").couple("image", "hidden")
    )
    state = begin(graph)["hidden"]
    assert float(state.min()) == 0 and float(state.max()) == 1


def test_draws_of_processes_are_those_of_the_whole_batch() -> None:
    graph = graph_from_yaml(FILE.replace("INITIAL", "uniform(-pi, pi)"))
    whole = begin(graph, "random", 7)
    for rank in range(3):
        share = Share(7, rank, 3)
        part = begin(graph, "random", share.count, share)
        for node, value in part.items():
            assert torch.equal(value, whole[node][rank::3])


def test_the_start_decides_the_well() -> None:
    """Under injection alone phases fall to the nearer of 0 and pi."""
    for begins, ends in ((1.5, 0.0), (1.7, math.pi), (-1.7, -math.pi)):
        s = {"s": {"init": "ones"}}
        model = compile_energy(EnergyGraph("oscillator-ising").state("a", 1, initial=begins, parameters=s)).double()
        for integrator in ("blocks", "flow", "descent"):
            found = relax(model, Relaxation(integrator), rows=1)["a"].item()
            assert found == pytest.approx(ends, abs=1e-8)


def test_initial_states_are_written_and_read_back() -> None:
    graph = graph_from_yaml(FILE.replace("INITIAL", "uniform(-pi, pi)/2"))
    assert "initial: uniform(-pi, pi)/2" in graph_to_yaml(graph)
    assert graph_from_yaml(graph_to_yaml(graph)) == graph
    assert graph_from_yaml(FILE.replace("    initial: INITIAL\n", "")).digest != graph.digest


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ("unifrom(0, 1)", "unknown function 'unifrom'.*did you mean uniform"),
        ("uniform(0)", "uniform has 1 arguments"),
        ("scale*uniform(0, 1)", "unknown name 'scale'"),
        ("uniform(0, 1)/fan_in", "a state has no fan_in"),
        ("[1, 2]", "an initial state is an expression"),
    ],
)
def test_what_is_wrong_with_an_initial_state_is_told_at_its_place(declared: str, message: str) -> None:
    with pytest.raises(DeclarationError, match=rf"(?s)^<text>:7:.*{message}"):
        parse_experiment(FILE.replace("INITIAL", declared))


def test_inputs_have_no_initial_state() -> None:
    with pytest.raises(DeclarationError, match="an input is clamped and has no initial"):
        parse_experiment(FILE.replace("role: input", "role: input, initial: 0").replace("INITIAL", "0"))


# --------------------------------------------------------------------------- several starts

BATCH = {
    "image": torch.tensor([[0.3, -1.0, 2.0], [1.0, 0.2, -0.4], [-2.0, 1.5, 0.1]], dtype=torch.float64),
    "target": torch.tensor([[0.0, 1], [1, 0], [1, 0]], dtype=torch.float64),
}
TIGHT = Relaxation(tolerance=1e-12, initial="random", max_sweeps=3000)


def multistable() -> EnergyModel:
    """Injection makes many minima: samples end elsewhere from elsewhere."""
    graph = EnergyGraph("oscillator-ising").input("image", 3)
    strong = {"s": {"init": "uniform(1, 2)"}, "h": {"init": "normal(0, 0.3)"}}
    graph.state("hidden", 6, parameters=strong).output("label", 2, cost="(cos(x) - y)**2/2", parameters=strong)
    return compile_energy(graph.couple("image", "hidden").couple("hidden", "label"), 1).double()


class Begun(EquilibriumPropagation):
    """A single start that is the one with some number."""

    number = 0

    def begin(self, problem: Problem) -> State:
        generator = stream(self.seed, "initial", self.batches, *([self.number] if self.number else []))
        return initial_state(problem, "random", generator)


def begun(model: EnergyModel, number: int, protocol: str = "centered") -> Begun:
    engine = Begun(model, 0.01, protocol, relaxation=TIGHT, seed=5)
    engine.number = number
    return engine


@pytest.mark.parametrize("protocol", ["centered", "positive", "implicit"])
def test_the_gradient_is_the_mean_of_those_of_single_starts(protocol: str) -> None:
    model = multistable()
    several = MultiStart(model, 0.01, protocol, starts=4, relaxation=TIGHT, seed=5)
    found, loss = gradients(several, **BATCH), several(step=1, **BATCH).item()
    engines = [begun(model, number, protocol) for number in range(4)]
    single = [gradients(engine, **BATCH) for engine in engines]
    assert loss == pytest.approx(sum(engine(step=1, **BATCH).item() for engine in engines) / 4, rel=1e-9)
    assert not torch.allclose(single[0]["hidden.h"], single[1]["hidden.h"], rtol=0.1)  # they do end elsewhere
    for name, value in found.items():
        mean = torch.stack([one[name] for one in single]).mean(0)
        assert torch.allclose(value, mean, rtol=1e-6, atol=1e-9), name


def test_inputs_get_the_mean_gradient_too() -> None:
    model, image = multistable(), BATCH["image"].clone().requires_grad_()
    MultiStart(model, 0.01, starts=3, relaxation=TIGHT, seed=5)(image=image, target=BATCH["target"]).backward()
    assert image.grad is not None
    expected = torch.zeros_like(image)
    for number in range(3):
        one = BATCH["image"].clone().requires_grad_()
        begun(model, number)(image=one, target=BATCH["target"]).backward()
        assert one.grad is not None
        expected += one.grad / 3
    assert torch.allclose(image.grad, expected, rtol=1e-6, atol=1e-9)


def test_one_start_is_bit_for_bit_what_it_was() -> None:
    model = multistable()
    one = MultiStart(model, 0.1, starts=1, relaxation=Relaxation(initial="random"), seed=2)
    plain = EquilibriumPropagation(model, 0.1, relaxation=Relaxation(initial="random"), seed=2)
    for name, value in gradients(one, **BATCH).items():
        assert torch.equal(value, gradients_at(plain, 1)[name])
    classes = {"image": BATCH["image"], "target": torch.tensor([1, 0, 0])}
    assert measure(one, Held(classes)) == measure(plain, Held(classes))


def gradients_at(engine: EquilibriumPropagation, step: int) -> dict[str, Tensor]:
    values = engine.model.tensors
    return dict(zip(values, torch.autograd.grad(engine(step=step, **BATCH), list(values.values())), strict=True))


def test_costs_and_classes_are_those_of_the_average_over_starts() -> None:
    model = multistable()
    several = MultiStart(model, 0.1, starts=16, relaxation=TIGHT, seed=5)
    classes = torch.tensor([1, 0, 0])
    found = measure(several, Held({"image": BATCH["image"], "target": classes}))
    cost, scores = torch.zeros(3, dtype=torch.float64), torch.zeros(3, 2, dtype=torch.float64)
    for number in range(16):
        label = begun(model, number).settle({"image": BATCH["image"]})["label"]
        cost += ((label.cos() - BATCH["target"]) ** 2 / 2).sum(1) / 16
        scores += label.cos() / 16
    assert found.cost == pytest.approx(float(cost.mean()), rel=1e-6)
    assert found.error == pytest.approx(100 * float((scores.argmax(1) != classes).double().mean()), abs=1e-3)


@pytest.mark.slow
def test_several_starts_are_trained_as_declared(tmp_path: Path) -> None:
    """Interrupted by a checkpoint of its first epoch or not, and with the metrics of samples, not of starts."""
    text = FILE.replace("shape: 3", "shape: 64").replace("label: {shape: 2", "label: {shape: 10")
    text = (
        text.replace("INITIAL", "uniform(-pi, pi)")
        + "learn: {starts: 3, nudged: {max_sweeps: 9}}\nrelax: {max_sweeps: 9}\n"
    )
    text += "train: {epochs: 2, batch: 720, threads: 1}\n"
    whole = Trainer(parse_experiment(text))
    history = list(whole.epochs())
    assert isinstance(whole.engine, MultiStart) and whole.engine.starts == 3
    assert whole.steps.tally.sums.shape == (10,)
    file = tmp_path / "starts.yaml"
    file.write_text(text)
    first = Trainer(load_experiment(file), tmp_path / "run")
    next(iter(first.epochs()))
    again = list(resume_run(tmp_path / "run").epochs())
    assert again[-1].test_cost == history[-1].test_cost and again[-1].train_cost == history[-1].train_cost


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("starts: 0", ""), "greater than or equal to 1"),
        (("starts: 4", ""), "no state starts at random.*initial: uniform"),
        (("starts: 4", "relax: {initial: previous}"), "every batch goes on from where the last one ended"),
        (("starts: 4", "relax: {initial: random}\nNODES"), "no state starts at random"),
        (("starts: 4, protocol: backprop", ""), "backprop has no free phase"),
    ],
)
def test_starts_that_would_be_alike_are_refused(change: tuple[str, str], message: str) -> None:
    learn, more = change
    with pytest.raises(DeclarationError, match=rf"(?s)^<text>:\d+:.*{message}"):
        text, more = FILE.replace("INITIAL", "pi/2"), more.removesuffix("NODES")
        if more != change[1]:  # every node declares the number where it starts
            text = text.replace("role: output", "role: output, initial: pi/2")
        parse_experiment(f"{text}learn: {{{learn}}}\n{more}")
    with pytest.raises(DeclarationError, match="no state starts at random"):
        MultiStart(multistable(), starts=2)
