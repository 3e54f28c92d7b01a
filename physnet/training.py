"""Training: one generic loop over any energy, with accelerate underneath.

All randomness is a pure function of seed, epoch and step. A run is therefore restored by its tensors and its position
alone, and goes on exactly as if it had never been interrupted. Where several processes share the batches, each of them
works on its rows, and gradients, costs and tallies are those of the whole batch.
"""

from __future__ import annotations

import math
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from physnet.augmenting import Augmenter
from physnet.board import Board
from physnet.checkpoints import Checkpoint, plain
from physnet.data import DataSet, load_data, match
from physnet.declaration import Experiment, load_experiment
from physnet.errors import DeclarationError, RelaxationError, RelaxationWarning, TrainingError
from physnet.integration import make_integrator
from physnet.learning import Engine, EquilibriumPropagation
from physnet.methods import METHODS
from physnet.metrics import Means, Metrics, evaluate, measure, top_classes
from physnet.model import EnergyModel, compile_energy
from physnet.mounting import mount
from physnet.optimizers import make_optimizer, make_scheduler
from physnet.randomness import stream
from physnet.relaxation import Relaxation
from physnet.runs import (
    RunFolder,
    check_run,
    differences,
    digest,
    identity,
    new_folder,
    read_declared_parameters,
    read_parameters,
)
from physnet.samples import Reading, Samples
from physnet.schema import LearnSchema, NudgedSchema, RelaxSchema
from physnet.starts import MultiStart
from physnet.steps import Position, Steps
from physnet.validation import best_epoch, hold_out

MOST_WORKERS = 8
"""Processes that read images for one that trains, unless more are asked for."""


def relaxation_settings(schema: NudgedSchema) -> Relaxation:
    """The settings of a relaxation from their declaration."""
    return Relaxation(**schema.model_dump())


def engine(
    model: EnergyModel, relax: RelaxSchema, learn: LearnSchema, seed: int, precision: str | None = None
) -> Engine:
    """The learning engine that an experiment declares."""
    if learn.protocol in METHODS:
        method = METHODS[learn.protocol]
        return method.make(model, seed, precision, method.configured(learn.beta, learn.options))
    several = {} if learn.starts is None else {"starts": learn.starts}
    return (MultiStart if several else EquilibriumPropagation)(
        model,
        learn.beta,
        learn.protocol,
        relaxation=relaxation_settings(relax),
        nudged=None if learn.nudged is None else relaxation_settings(learn.nudged),
        seed=seed,
        **several,
    )


class Trainer:
    """A training run: `for metrics in trainer.epochs(): ...`.

    Arguments:
        experiment: the declaration.
        folder: where the run is written; `None` writes nothing.
        compiled: a model of the same graph, whose parameters are then drawn anew; compiled here if not given.
        checkpoint: what to go on from; see `resume_run`.
        parameters: a file of those to begin with, in place of what the experiment names.

    Raises:
        DeclarationError, DataError: if the experiment can't be run as declared.
    """

    def __init__(
        self,
        experiment: Experiment,
        folder: str | Path | None = None,
        compiled: EnergyModel | None = None,
        checkpoint: Checkpoint | None = None,
        parameters: Path | None = None,
    ) -> None:
        self.experiment, settings = experiment, experiment.train
        self.settings = settings
        if settings.threads is not None:
            torch.set_num_threads(settings.threads)
        if settings.device == "cuda" and not torch.cuda.is_available():
            raise experiment.fault("no CUDA device is available", "use device: auto", "train", "device")
        self.accelerator = Accelerator(cpu=settings.device == "cpu" or not torch.cuda.is_available())
        with experiment_faults(experiment, "train", "data"):
            data = load_data(experiment.data)
        self.data = match(data, experiment.graph)
        with experiment_faults(experiment, "train", "augment"):
            augment = Augmenter(settings.augment, self.data, experiment.graph, settings.seed)
        dtype = getattr(torch, settings.dtype)
        if compiled is None:
            model = compile_energy(experiment.graph, settings.seed).to(dtype)
        else:
            compiled.initialise(settings.seed)
            model = compiled.to(dtype)
        with experiment_faults(experiment, "relax"):
            make_integrator(experiment.relax.integrator, experiment.relax.options)
        self._check_precision()
        with experiment_faults(experiment):
            self.engine = engine(model, experiment.relax, experiment.learn, settings.seed, settings.precision)
            mount(self.engine, experiment.hardware)
        self._check_relaxations()
        self.energy, self.model = model, self.engine.model
        self._warn_of_buffers()
        self._begun_with: str | None = None
        if parameters is not None:
            self._begun_with = read_parameters(self.model, parameters)
        elif checkpoint is None:
            self._begun_with = read_declared_parameters(self.model, experiment)
        with experiment_faults(experiment, "train"):
            self.optimizer = make_optimizer(self.model, settings.optimizer, settings.rates)
        with experiment_faults(experiment, "train", "scheduler"):
            self.scheduler = make_scheduler(self.optimizer, settings.scheduler, settings.epochs)
        self.engine.attach(self.optimizer)
        kept, held = hold_out(self.data.train, settings.validation, settings.seed, model.targets)
        self.data = replace(self.data, train=kept)  # so that what was split isn't in memory twice
        reading = Reading(self.accelerator.device, dtype, settings.seed, self._workers())
        self.train, self.test = kept.ready(reading), self.data.test.still().ready(reading)
        self.validation = None if held is None else held.ready(reading)
        with experiment_faults(experiment, "train"):
            self.top = top_classes(model, kept, settings.top)
        self.steps = Steps(
            self.engine, self.optimizer, self.accelerator, settings, self.train, augment, self._wishes, self.top
        )
        self._identity = identity(experiment)
        self.history, self._stopping, self._saved = list[Metrics](), False, time.monotonic()
        if checkpoint is not None:
            self._restore(checkpoint)
        main = self.accelerator.is_main_process
        self.folder = RunFolder(folder) if folder is not None else None
        self.board: Board | None = None
        if self.folder is not None and main:
            if settings.tensorboard:
                with experiment_faults(experiment, "train"):
                    self.board = Board(self.folder.path / "tensorboard", self.position.steps)
            self.folder.begin(experiment, self._facts(), resumed=checkpoint is not None)

    def _workers(self) -> int:
        """Processes that read for this one: a core is left to each of those that train on this machine."""
        if self.settings.workers is not None:
            return self.settings.workers
        neighbours = int(os.environ.get("LOCAL_WORLD_SIZE", str(self.accelerator.num_processes)))
        return max(0, min(MOST_WORKERS, (os.cpu_count() or 1) // neighbours - 1))

    def _check_relaxations(self) -> None:
        for place, settings in self.engine.relaxations.items():
            with experiment_faults(self.experiment, *place):
                made = make_integrator(settings.integrator, settings.options)
                if made is not None:
                    made.check(self.engine.model)

    def _check_precision(self) -> None:
        precision, dtype, protocol = self.settings.precision, self.settings.dtype, self.experiment.learn.protocol
        if precision is not None and protocol not in METHODS:
            message, fix = f"precision is for {' and '.join(METHODS)}, not for {protocol}", "put it under train.methods"
        elif precision is not None and dtype != "float32":
            message, fix = f"products in {precision} and dtype {dtype} don't go together", "use dtype: float32"
        else:
            return
        raise self.experiment.fault(message, fix, "train", "precision")

    def _warn_of_buffers(self) -> None:
        if self.accelerator.num_processes > 1 and any(True for _ in self.model.buffers()):
            warnings.warn(
                f"{self.experiment.learn.protocol}: each process normalises its own share of a batch, so that the "
                "result isn't that of one process",
                stacklevel=3,
            )

    def _facts(self) -> dict[str, Any]:
        return {
            "device": str(self.accelerator.device),
            "threads": torch.get_num_threads(),
            "processes": self.accelerator.num_processes,
            "parameters": sum(value.numel() for value in self.model.parameters()),
            **({"begun_with": self._begun_with} if self._begun_with else {}),
        }

    @property
    def position(self) -> Position:
        """Where the run stands."""
        return self.steps.position

    @property
    def finished(self) -> bool:
        """Whether all declared epochs are done."""
        return self.position.epoch > self.settings.epochs

    def stop(self) -> None:
        """Let `epochs` end after the step in progress, with a checkpoint; may be called from a signal handler."""
        self._stopping = True

    # ------------------------------------------------------------------------ the loop

    def epochs(self, on_step: Callable[[int, int, float], None] | None = None) -> Iterator[Metrics]:
        """Train epoch by epoch, up to the declared number or until `stop` is called.

        Arguments:
            on_step: called with the number of the step in its epoch, the number of steps and the cost of the batch.

        Raises:
            TrainingError, RelaxationError: for values that aren't finite, with the tensor or node, epoch and step.
            DataError: if the folder can't be written, or too many images can't be read.
        """
        while not self.finished and not self.steps.anyone(self._stopping):
            try:
                metrics = self._epoch(on_step)
            except (TrainingError, RelaxationError) as error:
                raise self._with_advice(error) from None
            if metrics is None:
                break
            self.history.append(metrics)
            self.steps.next_epoch()
            if self.board is not None:
                self.board.epoch(self.position.steps, metrics)
            if self.folder is not None and self.accelerator.is_main_process:
                self.folder.write_metrics(self.history)
                self.folder.write_parameters(self.model.state_dict(), best=best_epoch(self.history) is metrics)
            self.save()
            yield metrics
        for samples in (self.train, self.test, self.validation):
            if samples is not None:
                samples.close()
        if self.board is not None:
            self.board.close()

    def _epoch(self, on_step: Callable[[int, int, float], None] | None) -> Metrics | None:
        """One epoch, or what is left of it; `None` if it was stopped on the way."""
        settings, position, began = self.settings, self.position, time.perf_counter() - self.position.seconds
        samples, size = self.train.count, settings.batch * settings.accumulate
        order = torch.randperm(samples, generator=stream(settings.seed, "shuffle", position.epoch))
        order, steps = order.to(self.accelerator.device), math.ceil(samples / size)
        rate = self.optimizer.param_groups[0]["lr"]
        self.steps.expect(order[position.done * size :])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RelaxationWarning)  # counted instead, as `unconverged`
            for number in range(position.done, steps):
                cost = self.steps.take(order[number * size : (number + 1) * size])
                position.done, position.seconds = number + 1, time.perf_counter() - began
                if self.board is not None:
                    self.board.cost(position.steps, cost)
                if on_step is not None:
                    on_step(number + 1, steps, cost)
                due, stopping = self.steps.agreed
                if position.done < steps and (due or stopping):  # the end of the epoch has a checkpoint of its own
                    self.save()
                    if stopping:
                        return None
            if self.scheduler is not None:
                self.scheduler.step()
            self.steps.refuse_nonfinite_parameters()
            self.steps.equalise()
            train = Means.of(self.steps.tally.gathered(self.accelerator), self.top)
            self.train.judge(train.lost)
            test = self._measured(self.test)
            held = None if self.validation is None else self._measured(self.validation)
        return Metrics(
            position.epoch, train.cost, test.cost, train.error, test.error, train.sweeps, train.nudged_sweeps,
            train.residual, train.unconverged, rate, position.seconds,
            validation_cost=held and held.cost, validation_error=held and held.error,
            top=self.top, train_top_error=train.top_error, test_top_error=test.top_error,
            validation_top_error=held and held.top_error,
            unreadable=(train.lost + test.lost + (held.lost if held else 0)) or None,
        )  # fmt: skip

    def _measured(self, samples: Samples) -> Means:
        return measure(self.engine, samples, self.accelerator, self.top)

    # ------------------------------------------------------------------------ checkpoints

    def save(self) -> None:
        """Write a checkpoint, if the run has a folder. All processes have to call this together."""
        if self.folder is None:
            return
        self.steps.refuse_nonfinite_parameters()
        checkpoint = self.steps.checkpoint()
        checkpoint.state |= {
            "digest": digest(self._identity),
            "declaration": self._identity,
            "seed": self.settings.seed,
            # T_max follows from the number of epochs, which may be raised
            "scheduler": None if self.scheduler is None else plain(self.scheduler.state_dict(), without=("T_max",)),
            "history": [asdict(metrics) for metrics in self.history],
        }
        if self.accelerator.is_main_process:
            checkpoint.write(self.folder.checkpoint)
            if self.board is not None:
                self.board.flush()
        self._saved = time.monotonic()

    def _restore(self, checkpoint: Checkpoint) -> None:
        state = checkpoint.state
        self.steps.restore(checkpoint)
        if self.scheduler is not None:
            self.scheduler.load_state_dict(self.scheduler.state_dict() | state["scheduler"])
        self.history = [Metrics(**metrics) for metrics in state["history"]]

    def _wishes(self) -> tuple[bool, bool]:
        """Whether this process wants a checkpoint after the step in progress, and whether it wants to stop."""
        every, steps = self.settings.checkpoint, self.position.steps
        due = time.monotonic() - self._saved >= every.seconds or (every.steps is not None and steps % every.steps == 0)
        return due and self.accelerator.is_main_process, self._stopping

    def _with_advice(self, error: Exception) -> Exception:
        if self.folder is None or not self.folder.checkpoint.exists():
            return error
        return type(error)(f"{error}\n{self.folder.checkpoint} holds the last good state")


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


def load_run(folder: str | Path, best: bool = False, changes: Mapping[str, str] | None = None) -> Trainer:
    """A run that has come through an epoch: its experiment, data and trained parameters.

    Arguments:
        best: take the parameters of the epoch that did best on held-out samples, not those of the last one.
        changes: values to change, by dotted key, such as those of the hardware.

    Raises:
        DeclarationError: if the folder is not a run, or nothing was held out.
        DataError: if its parameters are damaged, or others.
    """
    run = RunFolder(folder)
    if not run.parameters.is_file():
        raise DeclarationError(f"{folder} is not a finished run", "give the folder that physnet train printed")
    parameters = run.best if best else run.parameters
    if not parameters.is_file():
        raise DeclarationError(f"{folder} has no best epoch", "train with train.validation, or use the last epoch")
    return Trainer(load_experiment(run.experiment, changes), parameters=parameters)


def resume_run(folder: str | Path, changes: Mapping[str, str] | None = None) -> Trainer:
    """A run that was interrupted, ready to go on from its last checkpoint as if nothing had happened.

    Arguments:
        changes: values to change, by dotted key; only those that leave the run the same, such as `train.epochs`.

    Raises:
        DeclarationError: if the folder is not a run, the run is finished, or its declaration has changed.
        DataError: if the checkpoint is damaged.
    """
    run = RunFolder(folder)
    check_run(run)
    experiment = load_experiment(run.experiment, changes)
    if not run.checkpoint.exists() and not run.metrics.exists():
        return Trainer(experiment, run.path)  # interrupted before the first checkpoint: nothing has been kept
    checkpoint = Checkpoint.read(run.checkpoint)
    declaration = identity(experiment)
    if digest(declaration) != checkpoint.state["digest"]:
        changed = "; ".join(differences(checkpoint.state["declaration"], declaration))
        raise DeclarationError(
            f"{run.checkpoint} belongs to another declaration than {run.experiment}: {changed}",
            "take the change back, or start a new run with physnet train",
        )
    done = checkpoint.state["position"]["epoch"] - 1
    if done >= experiment.train.epochs:
        raise DeclarationError(
            f"{run.path} is finished: all of its {experiment.train.epochs} epochs are done",
            f"allow more with --set train.epochs={2 * done}",
        )
    return Trainer(experiment, run.path, checkpoint=checkpoint)


__all__ = ["DataSet", "Metrics", "Trainer", "evaluate", "load_run", "new_folder", "resume_run"]
