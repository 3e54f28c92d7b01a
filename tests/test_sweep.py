"""Sweeps: the same numbers as single trainings, each network compiled once, nothing lost and nothing done twice."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import write_tiny

from physnet import sweeping
from physnet.declaration import load_experiment
from physnet.errors import DataError, DeclarationError
from physnet.model import EnergyModel, compile_energy
from physnet.sweeping import Run, execute, parse_values, plan, rows, summary
from physnet.training import Trainer

ROOT = Path(__file__).parent.parent
FILE = """\
name: tiny
energy: hopfield
nodes: {image: {shape: 6, role: input}, hidden: {shape: 5}, label: {shape: 3, role: output}}
edges: [image -> hidden, hidden -> label]
cost: (x - y)**2/2
train: {data: {npz: {file: tiny.npz}}, epochs: 2, batch: 8, seed: 4, threads: 1, optimizer: {sgd: {lr: 0.1}}}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_tiny(tmp_path, FILE)


def quiet(run: Run, failure: str | None) -> None:
    assert failure is None, failure


# --------------------------------------------------------------------------- values


@pytest.mark.parametrize(
    ("text", "values"),
    [
        (".01,.1", [0.01, 0.1]),
        ("1", [1]),
        ("[64],[128]", [[64], [128]]),
        ("[1, 2]", [[1, 2]]),
        ("centered, positive", ["centered", "positive"]),
        ("{sgd: {lr: .1, momentum: .9}},adam", [{"sgd": {"lr": 0.1, "momentum": 0.9}}, "adam"]),
        ("'a,b',c", ["a,b", "c"]),
        ("1e-3, true, null", [1e-3, True, None]),
    ],
)
def test_values_are_what_a_yaml_list_holds(text: str, values: list[Any]) -> None:
    assert parse_values("key", text) == values


NUMBERS = st.integers(-100, 100) | st.floats(-1e3, 1e3, allow_subnormal=False) | st.booleans()
JSON = st.recursive(
    NUMBERS | st.text("ab ,[]{}'", max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", min_size=1), inner, max_size=2),
    max_leaves=5,
)


@given(st.lists(JSON, min_size=1, max_size=4, unique_by=json.dumps))
@settings(max_examples=50)
def test_any_values_can_be_written(values: list[Any]) -> None:
    assert json.dumps(parse_values("key", ", ".join(map(json.dumps, values)))) == json.dumps(values)


@pytest.mark.parametrize("text", ["", "[1", "1,2]", "1,1", "{a", "!!python/object:os.system 1"])
def test_other_texts_are_refused_with_the_key(text: str) -> None:
    with pytest.raises(DeclarationError, match=r"--set learn\.beta"):
        parse_values("learn.beta", text)


def test_a_value_that_cannot_be_used_stops_the_sweep_before_it_starts(file: Path) -> None:
    for key, values, message in (
        ("learn.beta", [0.1, -1], "greater than 0"),
        ("learn.bet", [0.1], "did you mean beta"),
        ("train.seed", [1, 2], "--seeds"),
    ):
        with pytest.raises(DeclarationError, match=message):
            plan(file, {key: values}, 1, file.parent / "runs")
    assert not (file.parent / "runs").exists()


# --------------------------------------------------------------------------- runs


def test_the_grid_is_every_combination_with_every_seed(file: Path) -> None:
    runs = plan(file, {"learn.beta": [0.1, 0.2], "nodes.hidden.shape": [[2], [3], [4]], "train.epochs": [1]}, 2, "runs")
    assert [(run.values["learn.beta"], run.values["nodes.hidden.shape"], run.seed) for run in runs] == [
        (beta, [units], seed) for beta in (0.1, 0.2) for units in (2, 3, 4) for seed in (4, 5)
    ]
    assert len({run.folder for run in runs}) == 12
    assert all(run.experiment.train.seed == run.seed and run.experiment.train.epochs == 1 for run in runs)
    assert all(run.experiment.graph.node("hidden").shape == tuple(run.values["nodes.hidden.shape"]) for run in runs)


def test_a_folder_depends_on_everything_but_the_name(file: Path) -> None:
    def folder(text: str) -> Path:
        file.write_text(text)
        return plan(file, {"learn.beta": [0.1, 0.2]}, 1, "runs")[0].folder

    first = folder(FILE)
    assert folder(FILE.replace("tiny\n", "other\n")) == first
    assert folder(FILE.replace("0.1}}", "0.2}}")) != first
    assert folder(FILE.replace("shape: 5", "shape: 6")) != first


def test_runs_give_the_numbers_of_single_trainings(file: Path) -> None:
    runs = plan(file, {"learn.beta": [0.1, 0.2]}, 2, file.parent / "runs")
    execute(runs, 1, quiet)
    for run in runs:
        changes = {"learn.beta": str(run.values["learn.beta"]), "train.seed": str(run.seed)}
        alone = list(Trainer(load_experiment(file, changes)).epochs())
        found = [row for row in rows(runs) if row["run"] == run.folder.name]
        assert [row["epoch"] for row in found] == [1, 2]
        for metrics, row in zip(alone, found, strict=True):
            assert (row["seed"], row["learn.beta"]) == (run.seed, run.values["learn.beta"])
            for name in ("train_cost", "test_cost", "train_error", "test_error", "sweeps", "residual"):
                assert row[name] == getattr(metrics, name)
    first, second = ({row["train_cost"] for row in rows(runs) if row["seed"] == seed} for seed in (4, 5))
    assert not first & second


def test_each_graph_is_compiled_once(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[str] = []

    def count(graph: Any, *arguments: Any) -> EnergyModel:
        compiled.append(graph.digest)
        return compile_energy(graph, *arguments)

    monkeypatch.setattr("physnet.model.compile_energy", count)
    monkeypatch.setattr("physnet.training.compile_energy", count)
    runs = plan(file, {"learn.beta": [0.1, 0.2], "nodes.hidden.shape": [2, 3]}, 2, file.parent / "runs")
    execute(runs, 1, quiet)
    assert len(compiled) == len(set(compiled)) == 2


def test_initialise_gives_the_parameters_of_a_fresh_model(file: Path) -> None:
    graph = load_experiment(file).graph
    model = compile_energy(graph, 1).double()
    model.initialise(7)
    fresh = compile_energy(graph, 7)
    assert all(torch.equal(value, fresh.tensors[name]) for name, value in model.tensors.items())
    assert model.tensors["image_hidden.w"].dtype == torch.get_default_dtype()


def test_finished_runs_are_not_repeated_and_broken_off_ones_start_anew(file: Path) -> None:
    done: list[str] = []
    small = plan(file, {"learn.beta": [0.1, 0.2]}, 1, file.parent / "runs")
    execute(small, 1, lambda run, failure: done.append(run.title))
    before = rows(small)
    large = plan(file, {"learn.beta": [0.1, 0.2, 0.3]}, 2, file.parent / "runs")
    broken_off = large[1].folder.with_name(f"{large[1].folder.name}.part")
    broken_off.mkdir()
    (broken_off / "metrics.jsonl").write_text('{"epoch": 1}\n')
    execute(large, 1, lambda run, failure: done.append(run.title))
    assert len(done) == len(set(done)) == 6
    after = rows(large)
    assert all(row in after for row in before)
    assert len(after) == 12
    assert not list((file.parent / "runs").glob("*.part"))


def test_a_failed_run_is_told_and_the_others_are_kept(file: Path) -> None:
    told: dict[str, str | None] = {}
    runs = plan(file, {"train.optimizer": [{"sgd": {"lr": 1e38}}, {"sgd": {"lr": 0.1}}]}, 1, file.parent / "runs")
    execute(runs, 1, lambda run, failure: told.update({run.title: failure}))
    failed, fine = told.values()
    assert failed is not None and "not finite" in failed
    assert fine is None
    assert [row["seeds"] for row in summary(runs)] == [0, 1]


def test_a_worker_that_died_is_a_failure_with_a_fix() -> None:
    future: Future[str | None] = Future()
    future.set_exception(BrokenProcessPool())
    assert "fewer --jobs" in str(sweeping._outcome(future))


def test_a_folder_that_cannot_be_made_and_a_damaged_run_are_clear_errors(file: Path) -> None:
    with pytest.raises(DataError, match="--out"):
        execute(plan(file, {}, 1, file / "runs"), 1, quiet)
    runs = plan(file, {}, 1, file.parent / "runs")
    runs[0].folder.mkdir(parents=True)
    (runs[0].folder / "metrics.jsonl").write_text("{")
    with pytest.raises(DataError, match="remove"):
        summary(runs)


# --------------------------------------------------------------------------- the command


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as lines:
        return list(csv.DictReader(lines))


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    call = [sys.executable, "-m", "physnet.cli", "sweep", *arguments]
    return subprocess.run(call, capture_output=True, text=True, cwd=ROOT)


@pytest.mark.slow
def test_the_command_runs_in_parallel_and_writes_tables(file: Path) -> None:
    out = file.parent / "out"
    swept = ("--set", "train.optimizer={sgd: {lr: .1}},{sgd: {lr: 1e38}}", "--set", "learn.beta=.1")
    first = command(str(file), *swept, "--seeds", "2", "--jobs", "2", "--out", str(out))
    assert first.returncode == 1, first.stdout + first.stderr
    assert "Traceback" not in first.stderr
    assert first.stdout.count("failed:") == 2
    epochs, settings_ = read(out / "runs.csv"), read(out / "summary.csv")
    assert len(epochs) == 2 * 2
    assert {row["train.optimizer"] for row in epochs} == {'{"sgd": {"lr": 0.1}}'}
    for row in settings_:
        last = [
            float(run["test_cost"])
            for run in epochs
            if run["epoch"] == "2" and run["train.optimizer"] == row["train.optimizer"]
        ]
        assert int(row["seeds"]) == len(last)
        if last:
            assert float(row["test_cost_mean"]) == pytest.approx(np.mean(last))
            assert float(row["test_cost_std"]) == pytest.approx(np.std(last, ddof=1))
    assert (out / "sweep.png").read_bytes().startswith(b"\x89PNG")
    in_process = plan(file, {"learn.beta": [0.1]}, 1, file.parent / "again")
    execute(in_process, 1, quiet)
    alone = rows(in_process)[-1]["test_cost"]
    assert any(float(row["test_cost"]) == alone for row in epochs)  # processes and seeds give the same numbers


@pytest.mark.parametrize(
    "arguments",
    [("--set", "learn.beta=-1,1"), ("--set", "learn.beta=.1", "--set", "learn.beta=.2"), ("--set", "nodes.hidden=[")],
)
def test_wrong_sweeps_end_with_status_2(file: Path, arguments: tuple[str, ...]) -> None:
    result = command(str(file), *arguments, "--out", str(file.parent / "out"))
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert not (file.parent / "out").exists()
