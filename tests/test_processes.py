"""Two processes that share the batches compute what one process does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import processes
import pytest
import torch
from safetensors.torch import load_file

from physnet.declaration import parse_experiment
from physnet.training import Trainer, load_run

ROOT = Path(__file__).parent.parent
pytestmark = [  # three sweeps are not enough, and an image is broken
    pytest.mark.filterwarnings("ignore::physnet.errors.RelaxationWarning"),
    pytest.mark.filterwarnings("ignore::physnet.errors.DataWarning"),
]


def launch(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Two processes on the CPU."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [*command, *arguments], cwd=ROOT, env=environment, text=True, capture_output=True, timeout=500
    )


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shared")
    done = launch(str(ROOT / "tests" / "processes.py"), str(folder))
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("case", processes.CASES)
def test_gradients_parameters_and_sums_are_those_of_one_process(shared: Path, case: str) -> None:
    """Also for batches that don't divide, random signs, random starts, accumulation and clipping."""
    expected = processes.first_steps(case)
    bound = 1e-6 if case == "single" else 1e-12
    assert any(name.startswith("gradient/") for name in expected)
    for rank in range(2):
        found = load_file(shared / f"{case}-{rank}.safetensors")
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            scale = float(value.abs().max()) if name.startswith(("tally", "costs")) else 1.0
            torch.testing.assert_close(found[name], value, rtol=0, atol=bound * max(scale, 1.0), msg=f"{name}, {rank}")


def test_the_states_of_the_last_batch_are_put_together(shared: Path) -> None:
    assert load_file(shared / "previous-0.safetensors")["previous/hidden"].shape == (1, 12)


def reports(shared: Path) -> list[dict[str, Any]]:
    return [json.loads((shared / f"report-{rank}.json").read_text()) for rank in range(2)]


def test_one_process_stops_both_and_the_run_goes_on(shared: Path) -> None:
    first, second = (report["interrupted"] for report in reports(shared))
    assert first == second
    assert (first["stopped"], first["finished"]) == (3, True)
    reference = Trainer(parse_experiment(processes.experiment("previous")))
    history = list(reference.epochs())
    assert first["costs"] == pytest.approx([item.train_cost for item in history], rel=1e-11)
    run = load_run(shared / "run")
    for name, value in reference.model.tensors.items():
        torch.testing.assert_close(run.model.tensors[name], value, rtol=0, atol=1e-11)
    assert len((shared / "run" / "metrics.jsonl").read_text().splitlines()) == 2


def test_a_process_that_fails_stops_the_other_one(shared: Path) -> None:
    first, second = (report["spoiled"] for report in reports(shared))
    assert first == "epoch 1, step 1: another process stopped, and its message says why"
    assert second.startswith("epoch 1, step 1: the input 'image' holds values that are not finite")


def test_normalisation_by_process_is_warned_of_and_tensors_stay_the_same(shared: Path) -> None:
    """Each process has its own mean and variance, but gradients are exchanged: weights don't drift apart."""
    first, second = (report["normalised"] for report in reports(shared))
    assert any("each process normalises its own share" in message for message in first["said"])
    assert first["tensors"] == second["tensors"]


@pytest.mark.slow
def test_the_command_line_speaks_once_and_writes_one_folder(tmp_path: Path) -> None:
    (tmp_path / "shared.yaml").write_text(processes.experiment("plain", "checkpoint: {steps: 2}"))
    done = launch("-m", "physnet.cli", "train", str(tmp_path / "shared.yaml"), "--out", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("parameters, centered") == 1
    assert done.stdout.count("test accuracy") == 1
    rows = [line.split() for line in done.stdout.splitlines()]
    assert [row[0] for row in rows if len(row) == 10 and row[0].isdigit()] == ["1", "2"], done.stdout
    assert json.loads((tmp_path / "run" / "run.json").read_text())["processes"] == 2
    assert {path.name for path in tmp_path.iterdir()} == {"shared.yaml", "run"}
