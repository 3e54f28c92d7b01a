"""Training: one generic loop over any energy, with accelerate underneath.

A run is a folder that holds everything needed to repeat it: the resolved declaration, its digest, versions and seeds,
metrics as JSON lines, and the parameters.
"""

from __future__ import annotations

import json
import math
import platform
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torchmetrics.classification import MulticlassAccuracy

import physnet
from physnet.data import Arrays, DataSet, load_data, match
from physnet.declaration import Experiment, load_experiment
from physnet.errors import DataError, DeclarationError, RelaxationWarning
from physnet.learning import EquilibriumPropagation
from physnet.model import EnergyModel, compile_energy
from physnet.optimizers import make_optimizer, make_scheduler
from physnet.randomness import stream
from physnet.relaxation import Relaxation, make_integrator
from physnet.schema import LearnSchema, NudgedSchema, RelaxSchema
from physnet.sources import dump_yaml

EVALUATION_BATCH = 500


@dataclass
class Metrics:
    """What one epoch came to. Errors are in per cent; `None` where targets are not classes.

    Arguments:
        epoch: from 1.
        train_cost, test_cost: mean cost at the free equilibrium (training: during the epoch).
        train_error, test_error: share of wrong classes.
        sweeps, nudged_sweeps: mean number of sweeps of a sample.
        residual: mean relative residual of the free phases.
        unconverged: share of the samples, in per cent, whose free phase missed its tolerance.
        rate: learning rate of the first group.
        seconds: training time of the epoch, without evaluation.
    """

    epoch: int
    train_cost: float
    test_cost: float
    train_error: float | None
    test_error: float | None
    sweeps: float
    nudged_sweeps: float
    residual: float
    unconverged: float
    rate: float
    seconds: float


def relaxation_settings(schema: NudgedSchema) -> Relaxation:
    """The settings of a relaxation from their declaration."""
    return Relaxation(**schema.model_dump())


def engine(model: EnergyModel, relax: RelaxSchema, learn: LearnSchema, seed: int) -> EquilibriumPropagation:
    """The learning engine that an experiment declares."""
    return EquilibriumPropagation(
        model,
        learn.beta,
        learn.protocol,
        relaxation=relaxation_settings(relax),
        nudged=None if learn.nudged is None else relaxation_settings(learn.nudged),
        seed=seed,
    )


class Trainer:
    """A training run: `for metrics in trainer.epochs(): ...`.

    Arguments:
        experiment: the declaration.
        folder: where the run is written; `None` writes nothing.
        compiled: a model of the same graph, whose parameters are then drawn anew; compiled here if not given.

    Raises:
        DeclarationError, DataError: if the experiment can't be run as declared.
    """

    def __init__(self, experiment: Experiment, folder: Path | None = None, compiled: EnergyModel | None = None) -> None:
        self.experiment, settings = experiment, experiment.train
        if settings.threads is not None:
            torch.set_num_threads(settings.threads)
        if settings.device == "cuda" and not torch.cuda.is_available():
            raise experiment.fault("no CUDA device is available", "use device: auto", "train", "device")
        self.accelerator = Accelerator(cpu=settings.device == "cpu" or not torch.cuda.is_available())
        with experiment_faults(experiment, "train", "data"):
            data = load_data(experiment.data)
        self.data = match(data, experiment.graph)
        dtype = getattr(torch, settings.dtype)
        if compiled is None:
            model = compile_energy(experiment.graph, settings.seed).to(dtype)
        else:
            compiled.initialise(settings.seed)
            model = compiled.to(dtype)
        self.model = model
        with experiment_faults(experiment, "relax"):
            make_integrator(experiment.relax.integrator, experiment.relax.options)
        engine_ = engine(model, experiment.relax, experiment.learn, settings.seed)
        with experiment_faults(experiment, "train", "optimizer"):
            optimizer = make_optimizer(model, settings.optimizer, settings.rates)
        with experiment_faults(experiment, "train", "scheduler"):
            self.scheduler = make_scheduler(optimizer, settings.scheduler, settings.epochs)
        engine_.attach(optimizer)
        self.ep, self.optimizer = self.accelerator.prepare(engine_, optimizer)
        self.engine, self.step = engine_, 0
        self.train, self.test = self._on_device(self.data.train, dtype), self._on_device(self.data.test, dtype)
        self.folder = folder if self.accelerator.is_main_process else None
        if self.folder is not None:
            self._write_header(self.folder)

    def _on_device(self, arrays: Arrays, dtype: torch.dtype) -> dict[str, Tensor]:
        tensors = {name: torch.from_numpy(value).to(self.accelerator.device) for name, value in arrays.items()}
        return {name: value.to(dtype) if value.is_floating_point() else value for name, value in tensors.items()}

    def epochs(self, on_step: Callable[[int, int, float], None] | None = None) -> Iterator[Metrics]:
        """Train epoch by epoch.

        Arguments:
            on_step: called with the batch number, the number of batches and the cost of the batch.
        """
        for epoch in range(1, self.experiment.train.epochs + 1):
            metrics = self._epoch(epoch, on_step)
            if self.folder is not None:
                with (self.folder / "metrics.jsonl").open("a") as file:
                    file.write(json.dumps(asdict(metrics)) + "\n")
                save_file(self.model.state_dict(), self.folder / "parameters.safetensors")
            yield metrics

    def _epoch(self, epoch: int, on_step: Callable[[int, int, float], None] | None) -> Metrics:
        settings, began = self.experiment.train, time.perf_counter()
        samples = len(next(iter(self.train.values())))
        order = torch.randperm(samples, generator=stream(settings.seed, "shuffle", epoch)).to(self.accelerator.device)
        tally, batches = Tally(), math.ceil(samples / settings.batch)
        rank, processes = self.accelerator.process_index, self.accelerator.num_processes
        rate = self.optimizer.param_groups[0]["lr"]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RelaxationWarning)  # counted instead, as `unconverged`
            for number in range(batches):
                index = order[number * settings.batch : (number + 1) * settings.batch][rank::processes]
                batch = {name: value[index] for name, value in self.train.items()}
                self.optimizer.zero_grad(set_to_none=True)
                self.step += 1
                loss = self.ep(step=self.step, **batch)
                self.accelerator.backward(loss)
                self.optimizer.step()
                tally.add(self.engine, batch)
                if on_step is not None:
                    on_step(number + 1, batches, float(loss.detach()))
            seconds = time.perf_counter() - began
            if self.scheduler is not None:
                self.scheduler.step()
            test_cost, test_error = evaluate(self.engine, self.test)
        train_cost = tally.cost()
        if not math.isfinite(train_cost):
            raise DataError(f"the cost is {train_cost} in epoch {epoch}: reduce the learning rate")
        return Metrics(
            epoch, train_cost, test_cost, tally.error(), test_error, *tally.relaxation(), rate, seconds
        )  # fmt: skip

    def _write_header(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as problem:
            raise DataError(f"{folder}: can't be created ({problem.strerror}); choose another with --out") from None
        (folder / "experiment.yaml").write_text(dump_yaml(self.experiment.resolved()))
        packages = ("torch", "sympy", "networkx", "numpy", "accelerate", "torchdiffeq")
        header = {
            "physnet": 1,
            "declared_in": Path(self.experiment.source.name).name,
            "digest": self.experiment.graph.digest,
            "seed": self.experiment.train.seed,
            "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
            "versions": {
                "physnet": physnet.__version__,
                "python": platform.python_version(),
                **{name: version(name) for name in packages},
            },
            "device": str(self.accelerator.device),
            "threads": torch.get_num_threads(),
            "parameters": sum(value.numel() for value in self.model.parameters()),
        }
        (folder / "run.json").write_text(json.dumps(header, indent=2) + "\n")


class Tally:
    """Sums over an epoch, kept on the device until they are asked for."""

    def __init__(self) -> None:
        self.costs: list[Tensor] = []
        self.hits: list[Tensor] = []
        self.free: list[Tensor] = []
        self.nudged: list[Tensor] = []

    def add(self, engine: EquilibriumPropagation, batch: Mapping[str, Tensor]) -> None:
        """Note the last forward of an engine."""
        record = engine.last
        assert record is not None
        self.costs.append(record.cost)
        hit = hits(engine.model, record.free.states, batch)
        if hit is not None:
            self.hits.append(hit)
        free = record.free
        self.free.append(
            torch.stack([free.sweeps.to(free.residual), free.residual, (~free.converged).to(free.residual)])
        )
        if record.nudged is not None:
            self.nudged.append(record.nudged.sweeps)

    def cost(self) -> float:
        return float(torch.cat(self.costs).double().mean())

    def error(self) -> float | None:
        return _per_cent(float(torch.cat(self.hits).double().mean())) if self.hits else None

    def relaxation(self) -> tuple[float, float, float, float]:
        """Mean sweeps, mean nudged sweeps, mean residual, share of unconverged samples in per cent."""
        sweeps, residual, missed = torch.cat(self.free, 1).double().mean(1).tolist()
        nudged = float(torch.cat(self.nudged).double().mean()) if self.nudged else 0.0
        return sweeps, nudged, residual, 100 * missed


def _per_cent(accuracy: float) -> float:
    """The error in per cent, without the digits that float32 made up."""
    return round(100 * (1 - accuracy), 4)


def class_target(model: EnergyModel, batch: Mapping[str, Tensor]) -> str | None:
    """The target that holds class indices, if there is one."""
    for name in model.targets:
        if name in batch and not batch[name].is_floating_point() and batch[name].dim() == 1:
            return name
    return None


def hits(model: EnergyModel, states: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> Tensor | None:
    """Whether each sample is classified correctly; `None` where targets are not classes."""
    target = class_target(model, batch)
    return None if target is None else model.scores(states, target).argmax(1) == batch[target]


@torch.no_grad()
def evaluate(engine: EquilibriumPropagation, data: Mapping[str, Tensor]) -> tuple[float, float | None]:
    """Mean cost and error in per cent at the free equilibrium."""
    model = engine.model
    target = class_target(model, data)
    samples = len(next(iter(data.values())))
    classes = math.prod(model.targets[target].shape) if target else 2
    accuracy = MulticlassAccuracy(classes, average="micro").to(next(iter(data.values())).device)
    cost = 0.0
    # a state that the training batches left behind is no part of an evaluation
    fresh = engine if engine.relaxation.initial != "previous" else _from_zero(engine)
    for start in range(0, samples, EVALUATION_BATCH):
        batch = {name: value[start : start + EVALUATION_BATCH] for name, value in data.items()}
        free = fresh.settle({name: batch[name] for name in model.inputs})
        targets = model.as_targets({name: batch[name] for name in model.targets}, free.problem.rows)
        cost += float(model.functions["cost"](model.tensors, free.states, targets).double().sum())
        if target is not None:
            accuracy.update(model.scores(free.states, target).argmax(1), batch[target])
    return cost / samples, None if target is None else _per_cent(float(accuracy.compute()))


def _from_zero(engine: EquilibriumPropagation) -> EquilibriumPropagation:
    return EquilibriumPropagation(
        engine.model,
        engine.beta,
        engine.protocol,
        relaxation=replace(engine.relaxation, initial="zero"),
        seed=engine.seed,
    )


@contextmanager
def experiment_faults(experiment: Experiment, *path: str) -> Iterator[None]:
    """Inside this context, faults are located in the experiment's file under a path."""
    try:
        yield
    except DeclarationError as error:
        if any(fault.place for fault in error.faults):
            raise
        raise experiment.source.relocate(error.under(*path)) from None


# --------------------------------------------------------------------------- runs


def new_folder(experiment: Experiment, root: str | Path = "runs") -> Path:
    """A fresh folder name for a run: name, digest and seed, and a number if it was run before."""
    stem = f"{experiment.graph.name or 'run'}-{experiment.graph.digest[:8]}-seed{experiment.train.seed}"
    candidates = (Path(root) / (stem if number == 1 else f"{stem}-{number}") for number in range(1, 10**6))
    return next(path for path in candidates if not path.exists())


def load_run(folder: str | Path) -> Trainer:
    """A finished run: its experiment, data and trained parameters.

    Raises:
        DeclarationError: if the folder is not a run.
    """
    folder = Path(folder)
    parameters = folder / "parameters.safetensors"
    if not parameters.is_file():
        raise DeclarationError(f"{folder} is not a finished run", "give the folder that physnet train printed")
    trainer = Trainer(load_experiment(folder / "experiment.yaml"))
    try:
        trainer.model.load_state_dict(load_file(parameters))
    except (SafetensorError, RuntimeError, OSError) as problem:
        raise DataError(
            f"{parameters} doesn't hold the parameters of {folder / 'experiment.yaml'}: {problem}"
        ) from None
    return trainer


__all__ = ["DataSet", "Metrics", "Trainer", "evaluate", "load_run", "new_folder"]
