"""What an epoch came to: sums over samples, and the means that are reported of them."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor

from physnet.learning import Engine
from physnet.model import EnergyModel
from physnet.relaxation import Equilibrium

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
        validation_cost, validation_error: on the samples that were held out, where there are any.
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
    validation_cost: float | None = None
    validation_error: float | None = None


class Tally:
    """Sums over samples, in float64 on the device until they are asked for.

    They add up over batches, processes and interruptions of an epoch.
    """

    def __init__(self, device: torch.device) -> None:
        self.sums = torch.zeros(8, dtype=torch.float64, device=device)

    def add(self, cost: Tensor, hit: Tensor | None, free: Equilibrium, nudged: Equilibrium | None = None) -> None:
        """Note one batch.

        Arguments:
            cost: C of every sample.
            hit: whether each sample was classified correctly; `None` where targets are not classes.
            free, nudged: the equilibria.
        """
        one, none = torch.ones_like(cost), torch.zeros_like(cost)
        judged = (none, none) if hit is None else (one, hit.to(cost))
        sweeps = none if nudged is None else nudged.sweeps.to(cost).view(-1, len(cost)).mean(0)
        relaxed = (free.sweeps.to(cost), sweeps, free.residual.to(cost), (~free.converged).to(cost))
        self.sums += torch.stack([one, cost, *judged, *relaxed]).sum(1, dtype=torch.float64)

    def gathered(self, accelerator: Accelerator) -> Tensor:
        """The sums over all processes."""
        return self.sums if accelerator.num_processes == 1 else accelerator.reduce(self.sums, "sum")  # pyright: ignore


@dataclass(frozen=True)
class Means:
    """The means of a tally: cost, error in per cent, sweeps, residual, share of unconverged samples in per cent."""

    cost: float
    error: float | None
    sweeps: float
    nudged_sweeps: float
    residual: float
    unconverged: float

    @staticmethod
    def of(sums: Tensor) -> Means:
        samples, cost, judged, hits, sweeps, nudged, residual, missed = sums.tolist()
        # the error without the digits that rounding made up
        error = round(100 * (1 - hits / judged), 4) if judged else None
        return Means(
            cost / samples, error, sweeps / samples, nudged / samples, residual / samples, 100 * missed / samples
        )


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
def evaluate(
    engine: Engine, data: Mapping[str, Tensor], accelerator: Accelerator | None = None
) -> tuple[float, float | None]:
    """Mean cost and error in per cent at the free equilibrium; processes take turns at the batches."""
    model, samples = engine.model, len(next(iter(data.values())))
    rank, processes = (0, 1) if accelerator is None else (accelerator.process_index, accelerator.num_processes)
    fresh = copy(engine)  # without what the training batches left behind: states, and random numbers to go on from
    fresh.batches = 0
    tally = Tally(model.device)
    for start in range(rank * EVALUATION_BATCH, samples, processes * EVALUATION_BATCH):
        batch = {name: value[start : start + EVALUATION_BATCH] for name, value in data.items()}
        free = fresh.settle({name: batch[name] for name in model.inputs})
        targets = model.as_targets({name: batch[name] for name in model.targets}, free.problem.rows)
        cost = model.functions["cost"](model.tensors, free.states, targets)
        tally.add(cost, hits(model, free.states, batch), free)
    means = Means.of(tally.sums if accelerator is None else tally.gathered(accelerator))
    return means.cost, means.error
