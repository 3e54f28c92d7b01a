"""Values that aren't finite: noticed in every step, and traced to the tensor where they began."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from physnet.errors import TrainingError
from physnet.learning import Engine
from physnet.model import EnergyModel


def all_finite(cost: Tensor, tensors: Iterable[Tensor]) -> tuple[float, bool]:
    """The cost as a number, and whether it and all tensors are finite, at the price of one synchronisation.

    Judged by their norm, which may overflow before they do: what isn't found in `explain_nonfinite` is a false alarm.
    """
    norm = torch.nn.utils.get_total_norm(tensors)
    value, size = torch.stack([cost.detach().to(norm), norm]).tolist()
    return value, math.isfinite(value) and math.isfinite(size)


def explain_nonfinite(engine: Engine, batch: Mapping[str, Tensor], where: str) -> TrainingError | None:
    """Where values first stopped being finite, in the order in which they follow from each other; `None` if nowhere.

    Arguments:
        batch: inputs and targets by name.
        where: such as "epoch 3, step 120".
    """
    found = _first(engine, engine.repeated(batch))
    if found is None:
        return None
    what, fix = found
    return TrainingError(f"{where}: {what} not finite: {fix}")


def _first(engine: Engine, batch: Mapping[str, Tensor]) -> tuple[str, str] | None:
    model = engine.model
    for name, value in batch.items():
        if not _finite(value):
            kind = "input" if name in model.inputs else "target"
            return f"the {kind} '{name}' holds values that are", "clean the data"
    bad = nonfinite_parameter(model)
    if bad is not None:
        return f"the step before left the parameter {bad}", f"reduce its learning rate (train.rates: {{{bad}: ...}})"
    record = engine.last
    if record is not None and record.cost.shape[:1] == next(iter(batch.values())).shape[:1]:
        for node, value in record.free.states.items():
            if not _finite(value):
                return f"the state of '{node}' is", "give the node a bounded domain, or look for energies without bound"
        found = _cost(model, record.free.states, batch)
        if found is not None:
            return found
    for name, value in model.tensors.items():
        if value.grad is not None and not _finite(value.grad):
            return (
                f"the gradient of {name} is",
                "reduce the learning rate, raise learn.beta, or look for roots and logarithms",
            )
    return None


def _cost(model: EnergyModel, states: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> tuple[str, str] | None:
    rows = len(next(iter(states.values())))
    targets = model.as_targets({name: batch[name] for name in model.targets}, rows)
    fix = "reduce the learning rate, or look for roots and logarithms in it"
    for node in dict.fromkeys(cost.node for cost in model.graph.costs if not cost.external):
        if not _finite(model.functions[f"unit_cost_{node}"](model.physical, states, targets)):
            return f"the cost on '{node}' is", fix
    for item in model.plan.external:
        if not _finite(model.functions[f"value_{item.index}"](model.physical, states, targets)):
            return f"the cost {item.cost.written} on '{item.cost.node}' is", fix
    if model.plan.penalties and not _finite(model.functions["regularisers"](model.physical)):
        return "the regularisers are", "reduce the learning rate or their weight"
    return None


def nonfinite_parameter(model: EnergyModel) -> str | None:
    """The name of a parameter that isn't finite, if there is one."""
    return next((name for name, value in model.tensors.items() if not _finite(value)), None)


def _finite(value: Tensor) -> bool:
    return bool(torch.isfinite(value).all())
