"""What an epoch came to: sums over samples, and the means that are reported of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor

from physnet.equilibrium import Equilibrium
from physnet.errors import DeclarationError, Fault
from physnet.learning import Engine
from physnet.model import EnergyModel
from physnet.samples import Held, Samples

EVALUATION_BATCH = 500
EVALUATION_UNITS = 5e8
"""Bounds on a batch of evaluation: samples, and units of all of them, of which float32 takes 2 GB per state."""
MANY_CLASSES, TOP = 20, 5
"""From how many classes on the error is also counted among so many best."""


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
        top: among how many best classes the true one may be for `..._top_error`, the share of those where it isn't.
        unreadable: how many images of all parts couldn't be read; `None` where all could.
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
    top: int | None = None
    train_top_error: float | None = None
    test_top_error: float | None = None
    validation_top_error: float | None = None
    unreadable: int | None = None


class Tally:
    """Sums over samples, in float64 on the device until they are asked for.

    They add up over batches, processes and interruptions of an epoch.
    """

    def __init__(self, device: torch.device, top: int | None = None) -> None:
        self.top = top
        self.sums = torch.zeros(10, dtype=torch.float64, device=device)

    def add(self, cost: Tensor, rank: Tensor | None, free: Equilibrium, nudged: Equilibrium | None = None) -> None:
        """Note one batch.

        Arguments:
            cost: C of every sample.
            rank: how many classes fit each sample better than the true one; `None` where targets are not classes.
            free, nudged: the equilibria.
        """
        one, none = torch.ones_like(cost), torch.zeros_like(cost)
        judged = (none, none) if rank is None else (one, (rank == 0).to(cost))
        among = none if rank is None or self.top is None else (rank < self.top).to(cost)
        sweeps = none if nudged is None else _per_sample(nudged.sweeps, cost)
        relaxed = [_per_sample(values, cost) for values in (free.sweeps, free.residual, ~free.converged)]
        relaxed.insert(1, sweeps)
        # what is lost is counted apart, and never a part of a sample
        self.sums += torch.stack([one, cost, *judged, *relaxed, among, none]).sum(1, dtype=torch.float64)

    def lose(self, count: int) -> None:
        """Note samples that couldn't be read."""
        if count:
            self.sums[-1] += count

    def restore(self, sums: Tensor) -> None:
        """Go on from sums that were kept; what was not counted yet when they were begins at 0."""
        self.sums[: len(sums)] = sums.to(self.sums)

    def gathered(self, accelerator: Accelerator) -> Tensor:
        """The sums over all processes."""
        return self.sums if accelerator.num_processes == 1 else accelerator.reduce(self.sums, "sum")  # pyright: ignore


def _per_sample(values: Tensor, cost: Tensor) -> Tensor:
    """The mean of each sample over its phases and starts, which are stacked along the rows."""
    return values.to(cost).view(-1, len(cost)).mean(0)


@dataclass(frozen=True)
class Means:
    """The means of a tally: cost, error in per cent, sweeps, residual, share of unconverged samples in per cent.

    Beside them the error among the best classes, where it was counted, and the number of samples that were lost.
    """

    cost: float
    error: float | None
    sweeps: float
    nudged_sweeps: float
    residual: float
    unconverged: float
    top_error: float | None = None
    lost: int = 0

    @staticmethod
    def of(sums: Tensor, top: int | None = None) -> Means:
        samples, cost, judged, hits, sweeps, nudged, residual, missed, among, lost = sums.tolist()

        def error(right: float) -> float | None:
            # without the digits that rounding made up
            return round(100 * (1 - right / judged), 4) if judged else None

        return Means(
            cost / samples, error(hits), sweeps / samples, nudged / samples, residual / samples, 100 * missed / samples,
            None if top is None else error(among), round(lost),
        )  # fmt: skip


def class_target(model: EnergyModel, batch: Mapping[str, Tensor]) -> str | None:
    """The target that holds class indices, if there is one."""
    for name in model.targets:
        if name in batch and not batch[name].is_floating_point() and batch[name].dim() == 1:
            return name
    return None


def rank(engine: Engine, states: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> Tensor | None:
    """How many classes fit each sample better than the true one; `None` where targets are not classes.

    Of classes that fit alike the first one counts as the best, as it does for `argmax`.
    """
    target = class_target(engine.model, batch)
    if target is None:
        return None
    scores, true = engine.per_sample(engine.model.scores(states, target)), batch[target].long().view(-1, 1)
    own, earlier = scores.gather(1, true), torch.arange(scores.shape[1], device=scores.device) < true
    return ((scores > own) | ((scores == own) & earlier)).sum(1)


def top_classes(model: EnergyModel, samples: Samples, declared: int | None) -> int | None:
    """Among how many best classes the true one may be, where that is counted.

    Raises:
        DeclarationError: if there aren't so many.
    """
    sizes = (math.prod(found.shape) for name, found in model.targets.items() if samples.classes(name) is not None)
    classes = next(sizes, 0)
    if declared is None:
        return TOP if classes > MANY_CLASSES else None
    if declared >= classes:
        fault = Fault(f"top is {declared}, of {classes} classes", "give a smaller number, or leave it out", ("top",))
        raise DeclarationError(fault)
    return declared


def evaluate(
    engine: Engine, data: Samples | Mapping[str, Tensor], accelerator: Accelerator | None = None
) -> tuple[float, float | None]:
    """Mean cost and error in per cent at the free equilibrium; processes take turns at the batches."""
    means = measure(engine, data if isinstance(data, Samples) else Held(data), accelerator)
    return means.cost, means.error


@torch.no_grad()
def measure(engine: Engine, data: Samples, accelerator: Accelerator | None = None, top: int | None = None) -> Means:
    """All that samples come to at the free equilibrium; processes take turns at the batches.

    Arguments:
        data: the samples, ready to be picked.
        top: among how many best classes the true one may be for `top_error`.
    """
    model, size = engine.model, _batch_size(engine)
    rank_here, processes = (0, 1) if accelerator is None else (accelerator.process_index, accelerator.num_processes)
    fresh = copy(engine)  # without what the training batches left behind: states, and random numbers to go on from
    fresh.batches = 0
    tally = Tally(model.device, top)
    batches = torch.arange(data.count, device=model.device).split(size)[rank_here::processes]
    data.expect(batches)
    for rows in batches:
        batch = data.pick(rows)
        tally.lose(data.lost(rows))
        if not len(next(iter(batch.values()))):
            continue
        free = fresh.settle({name: batch[name] for name in model.inputs})
        targets = model.as_targets(fresh.repeated({name: batch[name] for name in model.targets}), free.problem.rows)
        states = model.read(free.states)
        cost = model.functions["cost"](model.physical, states, targets)
        tally.add(fresh.per_sample(cost), rank(fresh, states, batch), free)
    means = Means.of(tally.sums if accelerator is None else tally.gathered(accelerator), top)
    data.judge(means.lost)
    return means


def _batch_size(engine: Engine) -> int:
    """Samples of one batch of an evaluation."""
    units = engine.rows_per_sample * sum(math.prod(node.shape) for node in engine.model.graph.nodes())
    return int(max(1, min(EVALUATION_BATCH, EVALUATION_UNITS // units)))
