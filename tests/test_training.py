"""Training: runs repeat, learn, and leave what is needed to use them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import FOR_ALL

from physnet.checking import check_gradients, cosine, relative_error
from physnet.declaration import Experiment, load_experiment, parse_experiment
from physnet.errors import DeclarationError
from physnet.protocols import PROTOCOLS
from physnet.training import Trainer, evaluate, load_run, new_folder

ROOT = Path(__file__).parent.parent
SMALL = """\
name: small
energy: hopfield
nodes:
  image: {shape: 64, role: input}
  hidden: {shape: 16}
  label: {shape: 10, role: output}
edges: [image -> hidden, hidden -> label]
cost: (x - y)**2/2
learn: {protocol: PROTOCOL, beta: 0.2}
train: {data: digits, epochs: 2, batch: 32, optimizer: {sgd: {lr: 0.1}}, seed: 3, MORE}
"""


def experiment(protocol: str = "centered", more: str = "device: cpu") -> Experiment:
    return parse_experiment(SMALL.replace("PROTOCOL", protocol).replace("MORE", more), "small.yaml")


@pytest.mark.parametrize("protocol", ["centered", "random_sign", "implicit"])
def test_a_run_repeats_bit_for_bit(protocol: str) -> None:
    first, second = (Trainer(experiment(protocol)) for _ in range(2))
    histories = [[(m.train_cost, m.test_cost, m.test_error) for m in trainer.epochs()] for trainer in (first, second)]
    assert histories[0] == histories[1]
    for name, value in first.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name])


def test_the_seed_matters() -> None:
    first, second = (
        Trainer(experiment()),
        Trainer(experiment(more="device: cpu, seed: 4".replace("seed: 4", "threads: 1"))),
    )
    assert torch.equal(first.model.tensors["hidden.b"], second.model.tensors["hidden.b"])
    other = Trainer(parse_experiment(SMALL.replace("PROTOCOL", "centered").replace("seed: 3, MORE", "seed: 4")))
    assert not torch.equal(first.model.tensors["hidden.b"], other.model.tensors["hidden.b"])


def test_training_learns_the_digits(device: torch.device) -> None:
    history = list(Trainer(experiment(more=f"device: {device}")).epochs())
    assert history[-1].train_cost < history[0].train_cost
    errors = [m.test_error for m in history]
    assert errors[-1] is not None
    assert errors[-1] < 60  # chance is 90


@pytest.mark.slow
def test_centered_training_follows_the_exact_gradient() -> None:
    """One epoch with a small nudge ends where one epoch with the implicit gradient ends, on a smooth energy."""
    text = SMALL.replace("MORE", "dtype: float64").replace("epochs: 2", "epochs: 1").replace("beta: 0.2", "beta: 0.001")
    text = text.replace("energy: hopfield", "energy: hopfield-smooth")
    ends = []
    for protocol in ("centered", "implicit"):
        trainer = Trainer(parse_experiment(text.replace("PROTOCOL", protocol)))
        list(trainer.epochs())
        ends.append(torch.cat([value.detach().flatten() for value in trainer.model.parameters()]))
    start = torch.cat(
        [
            v.detach().flatten()
            for v in Trainer(parse_experiment(text.replace("PROTOCOL", "implicit"))).model.parameters()
        ]
    )
    assert (ends[0] - ends[1]).norm() < 1e-3 * (ends[1] - start).norm()


def test_a_run_folder_holds_what_repeats_it(tmp_path: Path) -> None:
    trainer = Trainer(experiment(), tmp_path / "run")
    history = list(trainer.epochs())
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["test_error"] for line in lines] == [m.test_error for m in history]
    header = json.loads((tmp_path / "run" / "run.json").read_text())
    assert header["digest"] == experiment().graph.digest
    assert header["seed"] == 3
    assert header["versions"]["torch"] == torch.__version__
    again = load_experiment(tmp_path / "run" / "experiment.yaml")
    assert again.graph == experiment().graph
    assert again.resolved() == experiment().resolved()
    run = load_run(tmp_path / "run")
    assert evaluate(run.engine, run.test) == (history[-1].test_cost, history[-1].test_error)


def test_metrics_agree_with_an_evaluation_by_hand() -> None:
    trainer = Trainer(experiment())
    last = list(trainer.epochs())[-1]
    model = trainer.model
    from physnet.relaxation import relax

    label = relax(model, image=trainer.test["image"])["label"]
    target = torch.nn.functional.one_hot(trainer.test["target"], 10)
    assert math.isclose(last.test_cost, float((label - target).square().sum(1).mean() / 2), rel_tol=1e-4)
    wrong = (label.argmax(1) != trainer.test["target"]).double().mean()
    assert last.test_error is not None
    assert math.isclose(last.test_error, 100 * float(wrong), abs_tol=0.5)


def test_folders_never_collide(tmp_path: Path) -> None:
    first = new_folder(experiment(), tmp_path)
    first.mkdir(parents=True)
    assert new_folder(experiment(), tmp_path) != first


def test_rates_of_single_tensors_are_used() -> None:
    trainer = Trainer(experiment(more="rates: {hidden_label.w: 0.0}"))
    before = {name: value.detach().clone() for name, value in trainer.model.tensors.items()}
    list(trainer.epochs())
    assert torch.equal(trainer.model.tensors["hidden_label.w"], before["hidden_label.w"])
    assert not torch.equal(trainer.model.tensors["image_hidden.w"], before["image_hidden.w"])


@pytest.mark.parametrize("scheduler", ["{exponential: {gamma: 0.5}}", "{ExponentialLR: {gamma: 0.5}}"])
def test_schedulers_step_once_per_epoch(scheduler: str) -> None:
    rates = [m.rate for m in Trainer(experiment(more=f"scheduler: {scheduler}")).epochs()]
    assert rates == pytest.approx([0.1, 0.05])


@pytest.mark.parametrize(
    ("more", "message", "column_of"),
    [
        ("scheduler: {exponental: {gamma: 0.5}}", "no scheduler 'exponental'", "{exponental"),
        ("scheduler: {exponential: {gama: 0.5}}", "gama", "{exponential"),
        ("scheduler: {step: 3}", "the options of step are a mapping, found 3", None),
        ("scheduler: _lrscheduler", "no scheduler '_lrscheduler'", None),
        ("rates: {hidden_lable.w: 0.1}", "no trained tensor 'hidden_lable.w'", None),
    ],
)
def test_wrong_settings_are_named_with_their_place(more: str, message: str, column_of: str | None) -> None:
    with pytest.raises(DeclarationError, match=message) as caught:
        Trainer(experiment(more=more))
    place = caught.value.faults[0].place
    assert place is not None
    assert place.line == 10


def test_an_unknown_optimizer_or_integrator_is_refused_before_training() -> None:
    text = SMALL.replace("PROTOCOL", "centered").replace("MORE", "device: cpu")
    for wrong, message in (
        (text.replace("sgd", "sdg"), "did you mean sgd"),
        (text.replace("{lr: 0.1}", "{lrr: 0.1}"), "lrr"),
        *((text.replace("{lr: 0.1}", value), "options of sgd are a mapping") for value in ("0.1", "lr", "[lr]")),
        (text + "relax: {integrator: blokcs}\n", "unknown integrator 'blokcs'"),
        (text + "relax: {integrator: flow, options: {methd: x}}\n", "methd"),
    ):
        with pytest.raises(DeclarationError, match=message):
            Trainer(parse_experiment(wrong))


def test_targets_need_not_be_classes(tmp_path: Path) -> None:
    """A linear network fits a linear map: the cost goes to zero."""
    generator = np.random.default_rng(0)
    x, mixing = generator.normal(size=(200, 3)), generator.normal(size=(3, 2)) / 3
    np.savez(tmp_path / "map.npz", x_train=x[:150], y_train=x[:150] @ mixing, x_test=x[150:], y_test=x[150:] @ mixing)
    text = f"""
energy: hopfield
nodes:
  image: {{shape: 3, role: input}}
  label: {{shape: 2, role: output}}
edges: [image -> label]
cost: (x - y)**2/2
learn: {{beta: 0.01}}
train: {{data: {{npz: {{file: {tmp_path / "map.npz"}}}}}, epochs: 30, batch: 10, optimizer: {{sgd: {{lr: 0.2}}}}}}
"""
    last = list(Trainer(parse_experiment(text)).epochs())[-1]
    assert last.test_cost < 1e-6
    assert last.test_error is None


@pytest.mark.parametrize("initial", ["forward", "random", "previous"])
def test_every_initial_state_trains(initial: str) -> None:
    text = SMALL.replace("PROTOCOL", "centered").replace("MORE", "device: cpu") + f"relax: {{initial: {initial}}}\n"
    last = list(Trainer(parse_experiment(text)).epochs())[-1]
    assert last.test_error is not None
    assert last.test_error < 40


def test_check_finds_the_orders_of_the_protocols(float64: None) -> None:
    """On a smooth energy errors fall by two or four, as the theory says."""
    text = (
        SMALL.replace("energy: hopfield", "energy: hopfield-smooth")
        .replace("PROTOCOL", "centered")
        .replace("MORE", "dtype: float64")
    )
    trainer = Trainer(parse_experiment(text))
    batch = {name: value[:4] for name, value in trainer.train.items()}
    nudging = [name for name in FOR_ALL if not PROTOCOLS[name].clamps]
    for row in check_gradients(trainer.model, batch, beta=0.01, protocols=nudging):
        expected = 2 if row.protocol in ("positive", "negative") else 4
        assert row.fall == pytest.approx(expected, rel=0.2), row
        assert row.cosine > 0.999


def test_cosine_and_error_of_known_vectors() -> None:
    a, b = torch.tensor([3.0, 4.0]), torch.tensor([4.0, 3.0])
    assert cosine(a, b) == pytest.approx(24 / 25)
    assert relative_error(a, b) == pytest.approx(2**0.5 / 5)
    assert cosine(0 * a, 0 * b) == 1


@pytest.mark.slow
def test_the_demo_reaches_97_per_cent() -> None:
    last = list(Trainer(load_experiment(ROOT / "examples" / "digits_hopfield.yaml")).epochs())[-1]
    assert last.test_error is not None
    assert last.test_error <= 3
