"""What each process of `test_processes` does: `torchrun --nproc_per_node 2 processes.py FOLDER`."""

from __future__ import annotations

import json
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import photos
import torch
from safetensors.torch import save_file
from torch import Tensor

from physnet import metrics
from physnet.declaration import parse_experiment
from physnet.errors import DataWarning, PhysnetError, RelaxationWarning
from physnet.training import Trainer, evaluate, resume_run

# a fixed number of sweeps from a start that matters: a sample doesn't depend on the others in its batch
TEXT = """\
name: shared
energy: hopfield
nodes:
  image: {shape: [1, 8, 8], role: input}
  hidden: {shape: 12}
  label: {shape: 10, role: output, parameters: {b: {frozen: true}}}
edges: [image -> hidden, hidden -> label]
cost: (x - y)**2/2
relax: {initial: INITIAL, max_sweeps: 3, tolerance: 2.0e-7}
learn: {protocol: PROTOCOL, beta: 0.2, nudged: {max_sweeps: 3, tolerance: 2.0e-7}}
train: {data: digits, epochs: 2, batch: 300, optimizer: {sgd: {lr: 0.1, momentum: 0.9}}, seed: 3, device: cpu, MORE}
"""
CASES = {
    "plain": ("centered", "zero", "dtype: float64"),
    "random": ("random_sign", "random", "dtype: float64"),
    "single": ("random_sign", "random", "dtype: float32"),
    "previous": ("random_sign", "previous", "dtype: float64"),
    "backprop": ("backprop", "zero", "dtype: float64, accumulate: 2, clip: 0.01"),
    "augmented": ("centered", "previous", "dtype: float64, augment: [flip, {crop: {padding: 1}}, rand_augment]"),
    "streamed": ("random_sign", "zero", "dtype: float64, workers: 1, augment: [flip]"),
    "parts": ("random_sign", "zero", "dtype: float64, accumulate: 2, clip: 0.01"),
}
# the second batch doesn't divide by two, the last has less rows than there are processes
BATCHES = (torch.arange(20), torch.arange(20, 35), torch.arange(35, 50), torch.arange(50, 51))


def photographs() -> str:
    """A folder of small photographs, 56 of them to train with, one of which can't be read."""
    files = photos.photographs(14, 2, width=20, height=15) | {"train/bee/0.JPEG": photos.BROKEN}
    return str(photos.write_folder(Path(tempfile.mkdtemp()), files))


def experiment(case: str, more: str = "threads: 1") -> Any:
    protocol, initial, settings = CASES[case]
    if case == "streamed":
        data = f'{{imagefolder: {{folder: "{photographs()}", size: 8, tolerance: 0.1}}}}'
        text = TEXT.replace("data: digits", f"data: {data}").replace("[1, 8, 8]", "[3, 8, 8]")
    else:
        text = TEXT
    return text.replace("PROTOCOL", protocol).replace("INITIAL", initial).replace("MORE", f"{settings}, {more}")


def first_steps(case: str) -> dict[str, Tensor]:
    """The gradient of the first step, the parameters after all, and the sums that metrics are made of."""
    trainer = Trainer(parse_experiment(experiment(case)))
    trainer.settings.batch = 20 if trainer.settings.accumulate == 1 else 12  # parts: 12 + 8, 12 + 3, 12 + 3, 1
    tensors, result, costs = trainer.model.tensors, dict[str, Tensor](), list[float]()
    trainer.train.expect(trainer.steps.shares(BATCHES), trainer.position.epoch)
    for number, rows in enumerate(BATCHES):
        costs.append(trainer.steps.take(rows))
        if number == 0:
            result |= {f"gradient/{name}": v.grad.clone() for name, v in tensors.items() if v.grad is not None}
    result |= {f"parameter/{name}": value.detach().clone() for name, value in tensors.items()}
    checkpoint = trainer.steps.checkpoint()
    result |= {name: v.clone() for name, v in checkpoint.tensors.items() if name.startswith(("tally", "previous"))}
    metrics.EVALUATION_BATCH = 100
    tested = evaluate(trainer.engine, trainer.test, trainer.accelerator)
    return result | {"costs": torch.tensor([*costs, *map(float, tested)], dtype=torch.float64)}  # type: ignore[arg-type]


def interrupted(folder: Path) -> dict[str, Any]:
    """A run that the second process stops in the middle; both have to stop after the same step, and go on."""
    trainer = Trainer(parse_experiment(experiment("previous")), folder / "run")

    def on_step(number: int, steps: int, cost: float) -> None:
        if trainer.position.steps == 2 and not trainer.accelerator.is_main_process:
            trainer.stop()

    list(trainer.epochs(on_step))
    stopped = trainer.position.steps
    trainer.accelerator.wait_for_everyone()
    again = resume_run(folder / "run")
    list(again.epochs())
    return {"stopped": stopped, "finished": again.finished, "costs": [m.train_cost for m in again.history]}


def spoiled() -> str:
    """What is said when a sample of the second process isn't finite."""
    trainer = Trainer(parse_experiment(experiment("plain")))
    if not trainer.accelerator.is_main_process:
        trainer.train["image"][:] = float("nan")
    try:
        list(trainer.epochs())
    except PhysnetError as error:
        return str(error)
    return "nothing"


def normalised() -> dict[str, Any]:
    """What is said of normalisation in each process, and all tensors after a run, running statistics too."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        declared = experiment("backprop").replace("protocol: backprop", "protocol: backprop_batchnorm")
        trainer = Trainer(parse_experiment(declared))
    list(trainer.epochs())
    tensors = {name: value.double().sum().item() for name, value in trainer.model.state_dict().items()}
    return {"said": [str(item.message) for item in said], "tensors": tensors}


def main() -> None:
    folder = Path(sys.argv[1])
    warnings.simplefilter("ignore", RelaxationWarning)
    warnings.simplefilter("ignore", DataWarning)
    torch.set_num_threads(1)
    rank = Trainer(parse_experiment(experiment("plain"))).accelerator.process_index
    for case in CASES:
        save_file(first_steps(case), folder / f"{case}-{rank}.safetensors")
    report = {"interrupted": interrupted(folder), "normalised": normalised(), "spoiled": spoiled()}
    (folder / f"report-{rank}.json").write_text(json.dumps(report))
    torch.distributed.barrier()  # a process that leaves while another one still listens may abort
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
