"""Held-out samples: split once by the seed, and what a run is judged by."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from typer.testing import CliRunner

from physnet.cli import app
from physnet.declaration import parse_experiment
from physnet.errors import DataError, DeclarationError
from physnet.metrics import Metrics
from physnet.reading import check_share
from physnet.samples import Held
from physnet.training import Trainer, evaluate, load_run, resume_run
from physnet.validation import best_epoch, hold_out, results

TEXT = """\
name: held
energy: hopfield
nodes:
  image: {shape: 64, role: input}
  hidden: {shape: 8}
  label: {shape: 10, role: output}
edges: [image -> hidden, hidden -> label]
cost: (x - y)**2/2
learn: {protocol: backprop}
train: {data: digits, epochs: 5, batch: 50, optimizer: {sgd: {lr: 1.0}}, seed: 3, device: cpu, threads: 1, MORE}
"""


def trainer(more: str = "validation: 300", folder: Path | None = None) -> Trainer:
    return Trainer(parse_experiment(TEXT.replace("MORE", more), "held.yaml"), folder)


def metrics(epoch: int, test: float, held: float | None, error: float | None) -> Metrics:
    return Metrics(epoch, 1.0, test, 1.0, test, 1.0, 0.0, 0.0, 0.0, 0.1, 1.0, held, error)


# --------------------------------------------------------------------------- the split


@given(
    counts=st.lists(st.integers(20, 60), min_size=2, max_size=5),
    share=st.one_of(st.integers(10, 30), st.floats(0.2, 0.8)),
    seed=st.integers(0, 2**62),
)
@settings(max_examples=30)
def test_the_split_is_a_stratified_partition(counts: list[int], share: float, seed: int) -> None:
    classes = np.repeat(np.arange(len(counts)), counts)
    samples = {"image": np.arange(len(classes)), "target": classes}
    kept, held = hold_out(Held(samples), share, seed, ["target"])
    again = hold_out(Held(samples), share, seed, ["target"])
    total = sum(counts)
    size = round(share * total) if share < 1 else int(share)
    assert len(held["image"]) == size
    assert sorted([*kept["image"], *held["image"]]) == list(range(total))
    for name in samples:
        assert np.array_equal(kept[name], again[0][name])
        assert np.array_equal(held[name], again[1][name])
    assert np.array_equal(classes[held["image"]], held["target"])
    for number, count in enumerate(counts):
        assert abs((held["target"] == number).sum() - size * count / total) <= 1


def test_the_seed_decides_which() -> None:
    samples = {"image": np.arange(200), "target": np.arange(200) % 4}
    first, second = (set(hold_out(Held(samples), 40, seed, ["target"])[1]["image"]) for seed in (0, 1))
    assert first != second


def test_real_targets_are_split_too() -> None:
    samples = {"image": np.arange(50), "target": np.linspace(0, 1, 50)}
    kept, held = hold_out(Held(samples), 0.1, 0, ["target"])
    assert (len(kept["image"]), len(held["image"])) == (45, 5)


def test_nothing_is_held_out_unless_asked_for() -> None:
    assert trainer("clip: 1.0").validation is None
    assert trainer("clip: 1.0").experiment.resolved()["train"].get("validation") is None


@pytest.mark.parametrize("declared", [0, -3, 1.5, True, "many", float("nan"), float("inf"), [1]])
def test_what_is_no_share_is_refused(declared: object) -> None:
    with pytest.raises(DeclarationError, match="give a number of samples"):
        check_share(declared)


def test_faults_point_into_the_file() -> None:
    with pytest.raises(DeclarationError, match=r"held\.yaml.*\n.*validation: 2\.5"):
        trainer("validation: 2.5")


@pytest.mark.parametrize("declared", [1437, 5000, 3, 0.999999])
def test_too_few_samples_are_refused(declared: float) -> None:
    """All of them, more than there are, less than there are classes, all but none."""
    with pytest.raises(DataError, match="can't be held out"):
        trainer(f"validation: {declared}")


# --------------------------------------------------------------------------- what is reported


def test_the_best_epoch_is_that_of_the_validation_set() -> None:
    history = [
        metrics(1, 5.0, 0.9, 9.0),
        metrics(2, 1.0, 0.8, 7.0),
        metrics(3, 3.0, 0.2, 6.0),
        metrics(4, 2.0, 0.1, 6.0),
    ]
    best = best_epoch(history)
    assert best is not None
    assert best.epoch == 3  # not 2, which is best on the test set; the first of two that are equal
    found = results(history)
    assert (found["final"]["epoch"], found["best_validation"]["epoch"]) == (4, 3)
    assert found["best_validation"]["test_error"] == 3.0
    assert results([metrics(1, 5.0, None, None)]).keys() == {"final"}
    costs = [metrics(1, 5.0, 0.3, None), metrics(2, 1.0, 0.2, None)]
    assert best_epoch(costs) is costs[1]


def test_a_run_keeps_the_parameters_of_its_best_epoch(tmp_path: Path) -> None:
    run, kept = trainer(folder=tmp_path), dict[int, dict[str, torch.Tensor]]()
    for item in run.epochs():
        kept[item.epoch] = {name: value.clone() for name, value in run.model.state_dict().items()}
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    errors = [line["validation_error"] for line in lines]
    best = 1 + errors.index(min(errors))
    assert best < 5  # else nothing is shown here
    found = load_file(tmp_path / "best.safetensors")
    assert found.keys() == kept[best].keys()
    assert all(torch.equal(found[name], value) for name, value in kept[best].items())
    stated = json.loads((tmp_path / "run.json").read_text())["results"]
    assert stated["best_validation"]["epoch"] == best
    assert stated["best_validation"]["test_error"] == lines[best - 1]["test_error"]
    assert stated["final"]["test_error"] == lines[-1]["test_error"]
    loaded = load_run(tmp_path, best=True)
    assert evaluate(loaded.engine, loaded.validation) == (lines[best - 1]["validation_cost"], errors[best - 1])
    assert evaluate(load_run(tmp_path).engine, loaded.test)[1] == lines[-1]["test_error"]


def test_a_resumed_run_has_the_same_best_epoch(tmp_path: Path) -> None:
    whole = trainer(folder=tmp_path / "whole")
    list(whole.epochs())
    run = trainer(folder=tmp_path / "parts")
    list(run.epochs(lambda *_: run.stop() if run.position.steps == 70 else None))
    list(resume_run(tmp_path / "parts").epochs())
    first, second = (load_file(tmp_path / name / "best.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    read = [json.loads((tmp_path / name / "run.json").read_text())["results"] for name in ("whole", "parts")]
    assert read[0] == read[1]


def test_without_held_out_samples_there_is_no_best_epoch(tmp_path: Path) -> None:
    list(trainer("clip: 1.0", tmp_path).epochs())
    assert not (tmp_path / "best.safetensors").exists()
    with pytest.raises(DeclarationError, match="no best epoch"):
        load_run(tmp_path, best=True)


def test_no_gradient_sees_what_is_held_out() -> None:
    run = trainer()
    assert len(run.train["target"]) + len(run.validation["target"]) == 1437
    assert np.shares_memory(run.data.train["image"], run.train["image"].numpy())  # nor is the whole set kept beside it
    seen = {tuple(row) for row in run.train["image"].tolist()}
    assert not seen & {tuple(row) for row in run.validation["image"].tolist()}


def test_the_command_line_names_both_epochs(tmp_path: Path) -> None:
    file = tmp_path / "held.yaml"
    file.write_text(TEXT.replace("MORE", "validation: 300").replace("protocol: backprop", "protocol: centered"))
    words = ["train", str(file), "--method", "backprop", "--out", str(tmp_path / "run")]
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    stated = json.loads((tmp_path / "run" / "run.json").read_text())["results"]
    final, best = stated["final"], stated["best_validation"]
    assert "backprop, digits" in done.output
    assert f"test accuracy {100 - final['test_error']:.2f} % after 5 epochs" in done.output
    assert f"best validation epoch {best['epoch']}: " in done.output
    assert f"test accuracy {100 - best['test_error']:.2f} %\n" in done.output
    done = CliRunner().invoke(app, ["evaluate", str(tmp_path / "run"), "--best"], catch_exceptions=False)
    assert f"accuracy {100 - best['test_error']:.2f} %" in done.output
