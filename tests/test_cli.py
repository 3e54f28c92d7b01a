"""The command line: it works from end to end, and user errors end with status 2 and no traceback."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from networks import FOR_ALL

ROOT = Path(__file__).parent.parent
DIGITS = str(ROOT / "examples" / "digits_hopfield.yaml")


def physnet(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "physnet.cli", *arguments], capture_output=True, text=True, cwd=ROOT)


def test_train_then_evaluate(tmp_path: Path) -> None:
    run = tmp_path / "run"
    trained = physnet("train", DIGITS, "--set", "train.epochs=2", "--out", str(run))
    assert trained.returncode == 0, trained.stderr
    for name in ("experiment.yaml", "run.json", "metrics.jsonl", "parameters.safetensors"):
        assert (run / name).stat().st_size > 0
    for name in ("learning_curve.png", "relaxation.png"):
        assert (run / name).read_bytes()[1:4] == b"PNG"
        assert str(run / name) in trained.stdout.replace("\n", "")
    evaluated = physnet("evaluate", str(run))
    accuracy = trained.stdout.split("test accuracy ")[1].split()[0]
    assert f"accuracy {accuracy} %" in evaluated.stdout


def test_training_into_a_used_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    refused = physnet("train", DIGITS, "--out", str(tmp_path))
    assert refused.returncode == 2
    assert (tmp_path / "metrics.jsonl").read_text() == "{}\n"


def test_check_prints_a_row_for_every_protocol_and_tensor() -> None:
    checked = physnet("check", DIGITS, "--samples", "2")
    assert checked.returncode == 0, checked.stderr
    for word in FOR_ALL:
        assert word in checked.stdout
    assert checked.stdout.count("image_hidden.w") == len(FOR_ALL)


def test_explain_and_list_and_schema() -> None:
    explained = physnet("explain", DIGITS)
    assert explained.returncode == 0, explained.stderr
    assert "blocks" in explained.stdout
    latex = physnet("explain", DIGITS, "--latex")
    assert "\\" in latex.stdout
    listed = physnet("list")
    for word in ("hopfield-smooth", "resistive", "xy", "blocks", "flow", "centered", "fashion_mnist", "dense"):
        assert word in listed.stdout
    assert '"nodes"' in physnet("schema").stdout


@pytest.mark.parametrize("command", ["train", "explain", "check"])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nodes: {a: {shape: 2}}\nedges: [a -> b]\n", "no node 'b'"),
        ("nodes: [", "YAML"),
        ("energy: nothing\nnodes: {a: {shape: 2}}\n", "no energy 'nothing'"),
    ],
)
def test_a_broken_file_ends_with_status_2_and_a_caret(tmp_path: Path, command: str, text: str, message: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    result = physnet(command, str(path))
    assert result.returncode == 2
    assert message in result.stderr
    assert "^" in result.stderr
    assert "fix:" in result.stderr
    assert "Traceback" not in result.stderr
    assert f"{path}:1:" in result.stderr or f"{path}:2:" in result.stderr


@pytest.mark.slow
def test_a_damaged_run_ends_with_status_2(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert physnet("train", DIGITS, "--set", "train.epochs=1", "--out", str(run)).returncode == 0
    declared = (run / "experiment.yaml").read_text()
    (run / "experiment.yaml").write_text(declared.replace("- 256", "- 16").replace("[256]", "[16]"))
    other_shape = physnet("evaluate", str(run))
    (run / "experiment.yaml").write_text(declared)
    (run / "parameters.safetensors").write_bytes(b"damaged")
    damaged = physnet("evaluate", str(run))
    for result in (other_shape, damaged):
        assert result.returncode == 2
        assert "parameters.safetensors" in result.stderr
        assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("train", DIGITS, "--set", "train.device=banana"),
        ("train", DIGITS, "--out", "/proc/run"),
        ("train", "absent.yaml"),
        ("evaluate", "absent"),
        ("train", DIGITS, "--set", "train"),
        ("train",),
        ("train", DIGITS, "--resume", "absent"),
        ("train", "--resume", "absent"),
        ("train", "--resume", "absent", "--out", "other"),
        ("sing",),
    ],
)
def test_wrong_calls_end_with_status_2(arguments: tuple[str, ...]) -> None:
    result = physnet(*arguments)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
