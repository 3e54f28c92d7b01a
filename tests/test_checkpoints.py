"""Checkpoints: a run that is interrupted in any way goes on exactly as if nothing had happened."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from physnet.checkpoints import Checkpoint, write_atomically
from physnet.declaration import parse_experiment
from physnet.errors import DataError, DeclarationError, RelaxationError, TrainingError
from physnet.training import Trainer, resume_run

ROOT = Path(__file__).parent.parent
TEXT = """\
name: small
energy: hopfield
nodes:
  image: {shape: 64, role: input}
  hidden: {shape: HIDDEN}
  label: {shape: 10, role: output}
edges: [image -> hidden, hidden -> label]
cost: (x - y)**2/2
relax: {initial: INITIAL}
learn: {protocol: random_sign, beta: 0.2}
train:
  data: digits
  seed: 3
  threads: 1
  device: cpu
"""
QUICK = {"epochs": "2", "batch": "300", "optimizer": "{sgd: {lr: 0.1}}"}


def text(hidden: int = 8, initial: str = "zero", **train: str) -> str:
    declared = TEXT.replace("HIDDEN", str(hidden)).replace("INITIAL", initial)
    return declared + "".join(f"  {key}: {value}\n" for key, value in (QUICK | train).items())


def outcome(trainer: Trainer) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    """Everything that a run comes to, but for the time it took."""
    metrics = [{**asdict(item), "seconds": 0} for item in trainer.history]
    return {name: value.detach().clone() for name, value in trainer.model.tensors.items()}, metrics


def assert_same(first: Trainer, second: Trainer) -> None:
    (tensors, metrics), (others, other_metrics) = outcome(first), outcome(second)
    assert metrics == other_metrics
    for name, value in tensors.items():
        assert torch.equal(value, others[name]), name


def stopped(declared: str, folder: Path, after: int) -> Trainer:
    """A run that was stopped after so many steps."""
    trainer = Trainer(parse_experiment(declared), folder)

    def on_step(number: int, steps: int, cost: float) -> None:
        if trainer.position.steps == after:
            trainer.stop()

    list(trainer.epochs(on_step))
    assert trainer.position.steps == after
    assert not trainer.finished
    return trainer


def completed(declared: str) -> Trainer:
    trainer = Trainer(parse_experiment(declared))
    list(trainer.epochs())
    assert trainer.finished
    return trainer


def resumed(folder: Path, changes: dict[str, str] | None = None) -> Trainer:
    trainer = resume_run(folder, changes)
    list(trainer.epochs())
    return trainer


# --------------------------------------------------------------------------- exactness

OPTIMIZERS = [
    "{sgd: {lr: 0.1, momentum: 0.9, nesterov: true}}",
    *("{adam: {lr: 0.01, amsgrad: true}}", "{adamw: {lr: 0.01}}", "{nadam: {lr: 0.01}}", "{radam: {lr: 0.01}}"),
    *("{adamax: {lr: 0.01}}", "{adagrad: {lr: 0.1}}", "{adadelta: {lr: 1.0}}", "{rmsprop: {momentum: 0.5}}"),
    *("{asgd: {lr: 0.1}}", "{rprop: {lr: 0.001}}", "{adafactor: {lr: 0.01}}"),
]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_goes_on_exactly(tmp_path: Path, optimizer: str) -> None:
    declared = text(optimizer=optimizer, rates="{hidden_label.w: 0.003}")
    stopped(declared, tmp_path, 8)
    assert_same(resumed(tmp_path), completed(declared))


SCHEDULERS = [
    *(
        "cosine_annealing",
        "{step: {step_size: 1}}",
        "{multi_step: {milestones: [1, 3]}}",
        "{exponential: {gamma: 0.5}}",
    ),
    *("linear", "{polynomial: {power: 2.0}}", "{cosine_annealing_warm_restarts: {T_0: 2}}"),
    *("{one_cycle: {max_lr: 0.2, total_steps: 4}}", "{cyclic: {base_lr: 0.01, max_lr: 0.2, step_size_up: 2}}"),
]


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_scheduler_goes_on_exactly(tmp_path: Path, scheduler: str) -> None:
    declared = text(epochs="4", batch="800", optimizer="{adam: {lr: 0.01}}", scheduler=scheduler)
    if "cyclic" in scheduler:
        declared = declared.replace("{adam: {lr: 0.01}}", "{sgd: {lr: 0.01, momentum: 0.9}}")
    stopped(declared, tmp_path, 5)
    again = resumed(tmp_path)
    assert_same(again, completed(declared))
    assert len({item.rate for item in again.history}) > 1  # else nothing was scheduled


@pytest.mark.parametrize("initial", ["random", "previous", "forward"])
def test_every_initial_state_goes_on_exactly(tmp_path: Path, initial: str) -> None:
    declared = text(initial=initial, batch="287")  # 1437 = 5 x 287 + 2
    stopped(declared, tmp_path, 3)
    assert_same(resumed(tmp_path), completed(declared))


def test_images_go_on_exactly(tmp_path: Path) -> None:
    """How states lie in memory decides in which order sums are rounded, and is not in the file."""
    declared = text(initial="previous", optimizer="{sgd: {lr: 0.1, momentum: 0.9}}").replace(
        "shape: 64", "shape: [1, 8, 8]"
    )
    declared = declared.replace("{shape: 8}", "{shape: [16, 4, 4]}").replace(
        "image -> hidden,", 'image -> hidden: "conv2d(3, padding=1) >> max_pool2d(2)",'
    )
    declared = declared.replace("  label:", "  second: {shape: [16, 2, 2]}\n  label:").replace(
        "hidden -> label]", 'hidden -> second: "conv2d(3, padding=1) >> max_pool2d(2)", second -> label]'
    )
    stopped(declared, tmp_path, 3)
    assert_same(resumed(tmp_path), completed(declared))


def test_a_run_may_be_interrupted_again_and_again(tmp_path: Path) -> None:
    declared = text(batch="400", clip="0.05", accumulate="2", optimizer="{sgd: {lr: 0.3, momentum: 0.9}}", epochs="3")
    trainer = stopped(declared, tmp_path, 1)
    while not trainer.finished:
        trainer = resume_run(tmp_path)
        for _ in trainer.epochs(lambda *_, trainer=trainer: trainer.stop()):
            pass
    assert trainer.position.steps == 6
    assert_same(trainer, completed(declared))
    assert len(json.loads((tmp_path / "run.json").read_text())["resumed"]) == 5


def test_more_epochs_can_be_asked_for(tmp_path: Path) -> None:
    """Two epochs and then two more are four epochs, where the schedule doesn't depend on their number."""
    declared = text(optimizer="{adam: {lr: 0.01}}", scheduler="{exponential: {gamma: 0.5}}")
    list(Trainer(parse_experiment(declared), tmp_path).epochs())
    longer = resumed(tmp_path, {"train.epochs": "4"})
    assert_same(longer, completed(declared.replace("epochs: 2", "epochs: 4")))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [asdict(item) for item in longer.history]


def test_a_cosine_schedule_is_drawn_out_when_epochs_are_added(tmp_path: Path) -> None:
    declared = text(scheduler="cosine_annealing", batch="800")
    stopped(declared, tmp_path, 1)
    longer = resumed(tmp_path, {"train.epochs": "4"})
    assert_same(longer, completed(declared.replace("epochs: 2", "epochs: 4")))


# --------------------------------------------------------------------------- accumulation and clipping


def test_accumulated_batches_are_one_large_batch() -> None:
    """Each sample counts alike, also in a step whose last batch is smaller: 1437 = 4 x 300 + 237."""
    relax = "relax: {tolerance: 1.0e-13, max_sweeps: 5000, initial: zero}\nlearn: {protocol: centered, beta: 0.2, "
    tight = relax + "nudged: {tolerance: 1.0e-12, max_sweeps: 5000}}"
    ends = []
    for batch, accumulate in (("300", "1"), ("100", "3")):
        declared = text(batch=batch, accumulate=accumulate, dtype="float64", epochs="1")
        declared = declared.replace("relax: {initial: zero}\nlearn: {protocol: random_sign, beta: 0.2}", tight)
        ends.append(outcome(completed(declared)))
    for name, value in ends[0][0].items():
        torch.testing.assert_close(value, ends[1][0][name], rtol=0, atol=1e-11)
    assert ends[0][1][0]["train_cost"] == pytest.approx(ends[1][1][0]["train_cost"], rel=1e-10)


def test_clipping_bounds_the_whole_gradient() -> None:
    """Plain SGD with lr = 1 moves all parameters together by exactly the bound."""
    declared = text(clip="0.01", optimizer="{sgd: {lr: 1.0}}", dtype="float64")
    trainer = Trainer(parse_experiment(declared))
    before = torch.cat([value.detach().flatten() for value in trainer.model.parameters()])
    trainer.steps.take(torch.arange(50))
    after = torch.cat([value.detach().flatten() for value in trainer.model.parameters()])
    assert float((after - before).norm()) == pytest.approx(0.01, rel=1e-3)


# --------------------------------------------------------------------------- signals


def in_the_foreground() -> None:
    """Hear SIGINT, even where the tests run in the background of a shell, which ignores it and passes that on."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start(*arguments: str) -> subprocess.Popen[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command, pipe = [sys.executable, "-m", "physnet.cli", "train", *arguments], subprocess.PIPE
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdout=pipe, stderr=pipe, preexec_fn=in_the_foreground
    )


def wait_for(process: subprocess.Popen[str], what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 300
    while not what():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)


def position(folder: Path) -> dict[str, int]:
    """Of the last checkpoint."""
    return Checkpoint.read(folder / "checkpoint.safetensors").state["position"]


def in_the_middle(folder: Path) -> Callable[[], bool]:
    """Whether there is a checkpoint from inside an epoch after the first."""

    def reached() -> bool:
        if not (folder / "checkpoint.safetensors").exists():
            return False
        now = position(folder)
        return now["epoch"] > 1 and now["done"] > 0

    return reached


LONG = {"epochs": "1000", "batch": "16", "optimizer": "{adam: {lr: 0.001}}", "checkpoint": "{steps: 7}"}


@pytest.mark.slow
def test_killed_in_the_middle_of_an_epoch(tmp_path: Path) -> None:
    declared, folder = text(**LONG), tmp_path / "run"
    (tmp_path / "small.yaml").write_text(declared)
    process = start(str(tmp_path / "small.yaml"), "--out", str(folder))
    wait_for(process, in_the_middle(folder))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    last = position(folder)["epoch"]
    assert position(folder)["steps"] % 7 == 0
    again = resumed(folder, {"train.epochs": str(last)})
    reference = completed(declared.replace("epochs: 1000", f"epochs: {last}"))
    assert_same(again, reference)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == list(range(1, last + 1))
    assert [line["train_cost"] for line in lines] == [item.train_cost for item in reference.history]


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_signal_saves_and_says_how_to_go_on(tmp_path: Path, number: signal.Signals) -> None:
    declared, folder = text(**LONG), tmp_path / "a run"
    (tmp_path / "small.yaml").write_text(declared)
    process = start(str(tmp_path / "small.yaml"), "--out", str(folder))
    wait_for(process, in_the_middle(folder))
    process.send_signal(number)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 128 + number, errors
    assert f"physnet train --resume '{folder}'" in output
    assert "Traceback" not in errors
    saved = position(folder)
    assert f"epoch {saved['epoch']}, step {saved['steps']}" in output
    if number == signal.SIGINT:
        going_on = start("--resume", str(folder), "--set", f"train.epochs={saved['epoch']}")
        output, errors = going_on.communicate(timeout=300)
        assert going_on.returncode == 0, errors
        assert "test accuracy" in output
        assert len((folder / "metrics.jsonl").read_text().splitlines()) == saved["epoch"]


def test_a_second_signal_leaves_at_once(tmp_path: Path) -> None:
    """The step in progress would take for ever."""
    script = """
import os, signal, sys, time
from physnet.interruption import stopping_on_signals
with stopping_on_signals(lambda: print("stopping", flush=True)):
    print("ready", flush=True)
    time.sleep(100)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, text=True, stdout=subprocess.PIPE, preexec_fn=in_the_foreground
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "stopping\n"
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=90) == -signal.SIGINT


# --------------------------------------------------------------------------- files


def test_writing_leaves_the_old_file_or_the_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match=r"file can't be written \(No space left on device\)"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_checkpoint_holds_no_pickle_and_tells_its_format(tmp_path: Path) -> None:
    stopped(text(optimizer="{adam: {lr: 0.01}}"), tmp_path, 2)
    content = (tmp_path / "checkpoint.safetensors").read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert header["__metadata__"]["physnet"] == "1"
    state = json.loads(header["__metadata__"]["state"])
    assert (state["position"]["epoch"], state["position"]["done"], state["seed"]) == (1, 2, 3)
    assert header["optimizer/hidden.b/exp_avg"]["shape"] == header["model/hidden.b"]["shape"] == [8]


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    stopped(text(), folder, 2)
    return folder


def damage(content: bytes, kind: str) -> bytes:
    match kind:
        case "empty":
            return b""
        case "garbage":
            return bytes(range(256)) * 10
        case "torn":
            return content[: len(content) // 2]
        case "flipped tensor":
            return content[:-20] + bytes([content[-20] ^ 1]) + content[-19:]
        case _:
            return content.replace(b'\\"done\\": 2', b'\\"done\\": 3')


@pytest.mark.parametrize("kind", ["empty", "garbage", "torn", "flipped tensor", "changed number"])
def test_a_damaged_checkpoint_is_refused(interrupted: Path, kind: str) -> None:
    path = interrupted / "checkpoint.safetensors"
    content = path.read_bytes()
    damaged = damage(content, kind)
    assert damaged != content
    path.write_bytes(damaged)
    try:
        with pytest.raises(DataError, match=f"{path} .*start anew"):
            resume_run(interrupted)
    finally:
        path.write_bytes(content)


def test_other_files_are_no_checkpoints(tmp_path: Path, interrupted: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(DataError, match="not a checkpoint"):
        Checkpoint.read(tmp_path / "other.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "later.safetensors", {"physnet": "2", "state": "{}"})
    with pytest.raises(DataError, match="format 2"):
        Checkpoint.read(tmp_path / "later.safetensors")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("train.batch", "64", "train.batch was 300, is 64"),
        ("learn.beta", "0.1", "learn.beta was 0.2, is 0.1"),
        ("train.seed", "4", "train.seed was 3, is 4"),
        ("nodes.hidden.shape", "9", "nodes.hidden.shape"),
    ],
)
def test_another_declaration_is_refused(interrupted: Path, key: str, value: str, message: str) -> None:
    with pytest.raises(DeclarationError, match=message) as caught:
        resume_run(interrupted, {key: value})
    assert "checkpoint.safetensors" in str(caught.value)
    assert "fix: " in str(caught.value)


def test_what_can_not_be_resumed_says_so(tmp_path: Path) -> None:
    with pytest.raises(DeclarationError, match=f"{tmp_path} is not a run"):
        resume_run(tmp_path)
    list(Trainer(parse_experiment(text(epochs="1")), tmp_path / "run").epochs())
    with pytest.raises(DeclarationError, match=r"is finished.*\n.*--set train.epochs=2"):
        resume_run(tmp_path / "run")
    (tmp_path / "run" / "checkpoint.safetensors").unlink()
    with pytest.raises(DataError, match=r"checkpoint.safetensors can't be read"):
        resume_run(tmp_path / "run")


def test_a_run_that_ended_before_its_first_checkpoint_begins_again(tmp_path: Path) -> None:
    Trainer(parse_experiment(text()), tmp_path / "run")
    assert_same(resumed(tmp_path / "run"), completed(text()))


# --------------------------------------------------------------------------- values that aren't finite


def spoil(trainer: Trainer, name: str, value: float, after: int) -> Callable[[int, int, float], None]:
    def on_step(number: int, steps: int, cost: float) -> None:
        if trainer.position.steps == after:
            with torch.no_grad():
                trainer.model.tensors[name].view(-1)[0] = value

    return on_step


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_parameter_that_is_not_finite_stops_the_run(tmp_path: Path, value: float) -> None:
    declared = text(checkpoint="{steps: 2}")
    trainer = Trainer(parse_experiment(declared), tmp_path)
    with pytest.raises(TrainingError, match=r"epoch 1, step 4: .*parameter hidden.b not finite: .*\n.*last good state"):
        list(trainer.epochs(spoil(trainer, "hidden.b", value, 3)))
    good = Checkpoint.read(tmp_path / "checkpoint.safetensors")
    assert all(bool(tensor.isfinite().all()) for tensor in good.tensors.values())
    assert_same(resumed(tmp_path), completed(declared))


def test_a_parameter_that_is_not_finite_after_the_last_step_is_noticed() -> None:
    trainer = Trainer(parse_experiment(text()))
    with pytest.raises(TrainingError, match=r"epoch 1, step 5: the parameter label.b is not finite"):
        list(trainer.epochs(spoil(trainer, "label.b", float("nan"), 5)))


def test_a_rate_that_is_too_large_names_the_parameter_or_cost() -> None:
    trainer = Trainer(parse_experiment(text(optimizer="{sgd: {lr: 1.0e+38}}")))
    with pytest.raises((TrainingError, RelaxationError), match=r"epoch 1, step \d: .*not finite.*: .*rate"):
        list(trainer.epochs())


def test_data_that_are_not_finite_are_named() -> None:
    trainer = Trainer(parse_experiment(text()))
    trainer.train["image"][:, 5] = float("nan")
    with pytest.raises(TrainingError, match=r"epoch 1, step 1: the input 'image' holds values that are not finite"):
        list(trainer.epochs())


def test_a_gradient_that_is_not_finite_is_named() -> None:
    trainer = Trainer(parse_experiment(text()))
    trainer.model.tensors["hidden_label.w"].register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(TrainingError, match=r"epoch 1, step 1: the gradient of hidden_label.w is not finite: "):
        list(trainer.epochs())


def test_a_cost_that_is_not_finite_is_named() -> None:
    declared = text().replace("cost: (x - y)**2/2", "cost: (x - y)**2/2 + (y + 20)**30")
    trainer = Trainer(parse_experiment(declared))
    with pytest.raises(TrainingError, match=r"epoch 1, step 1: the cost on 'label' is not finite: "):
        list(trainer.epochs())


# --------------------------------------------------------------------------- TensorBoard


def test_tensorboard_shows_costs_and_metrics_once_also_after_a_resume(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    declared = text(tensorboard="true", batch="50")  # 29 steps in an epoch
    stopped(declared, tmp_path, 33)
    trainer = resumed(tmp_path)
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("cost/step")] == [10, 20, 30, 40, 50]
    costs = events.Scalars("epoch/test_cost")
    assert [event.step for event in costs] == [29, 58]
    assert [event.value for event in costs] == pytest.approx([item.test_cost for item in trainer.history])


def test_without_tensorboard_the_fix_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard.writer", None)
    with pytest.raises(DeclarationError, match=r"not installed(.|\n)*pip install 'physnet\[tensorboard\]'") as caught:
        Trainer(parse_experiment(text(tensorboard="true")), tmp_path)
    assert caught.value.faults[0].place is not None
    assert not list(tmp_path.iterdir())  # so that the folder can be used once it is installed
