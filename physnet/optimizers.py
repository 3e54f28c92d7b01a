"""torch optimizers and schedulers by name."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch

from physnet.errors import DeclarationError, Fault, did_you_mean, located
from physnet.model import EnergyModel


def make_optimizer(model: EnergyModel, declared: Any, rates: Mapping[str, float]) -> torch.optim.Optimizer:
    """A torch optimizer from a name, or {name: {options}}, with learning rates of single tensors.

    Raises:
        DeclarationError: for unknown names, options and tensors, under the keys `optimizer` and `rates`.
    """
    kinds = {
        name.lower(): kind
        for name, kind in vars(torch.optim).items()
        if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer) and name not in ("Optimizer", "LBFGS")
    }
    kind, options = located(("optimizer",), lambda: _find("optimizer", declared, kinds))
    tensors = {name: value for name, value in model.tensors.items() if value.requires_grad}
    for name, rate in rates.items():
        if name not in tensors:
            hint = did_you_mean(name, tensors)
            message = f"there is no trained tensor '{name}' to give the rate {rate}"
            raise DeclarationError(Fault(message, hint, ("rates", name), at_key=True))
    rest = [value for name, value in tensors.items() if name not in rates]
    groups: list[dict[str, Any]] = [{"params": rest}] if rest else []
    groups += [{"params": [tensors[name]], "lr": rate} for name, rate in rates.items()]
    return located(("optimizer",), lambda: _construct("optimizer", kind, (groups,), options))


def make_scheduler(optimizer: torch.optim.Optimizer, declared: Any, epochs: int) -> Any:
    """A torch scheduler, stepped once per epoch, from a name such as `cosine_annealing`, or {name: {options}}."""
    if declared is None:
        return None
    module = torch.optim.lr_scheduler
    kinds = {
        name.removesuffix("LR").lower(): kind
        for name, kind in vars(module).items()
        if isinstance(kind, type)
        and issubclass(kind, module.LRScheduler)
        and name not in ("LRScheduler", "_LRScheduler", "ReduceLROnPlateau")
    }
    kind, options = _find("scheduler", declared, kinds)
    if "T_max" in inspect.signature(kind).parameters:
        options = {"T_max": epochs, **options}
    return _construct("scheduler", kind, (optimizer,), options)


def _find(what: str, declared: Any, kinds: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    if isinstance(declared, str):
        name, options = declared, {}
    elif isinstance(declared, Mapping) and len(declared) == 1:
        ((name, options),) = declared.items()
    else:
        raise DeclarationError(Fault(f"the {what} is a name, or {{name: {{options}}}}", "such as {sgd: {lr: 0.1}}"))
    if not isinstance(options, Mapping | None):
        raise DeclarationError(
            Fault(f"the options of {name} are a mapping, found {options!r}", f"{name}: {{option: value}}")
        )
    key = str(name).replace("_", "").lower()
    key = key.removesuffix("lr") if what == "scheduler" else key
    if key not in kinds:
        hint = did_you_mean(key, kinds)
        raise DeclarationError(Fault(f"there is no {what} '{name}'", hint))
    return kinds[key], dict(options or {})


def _construct(what: str, kind: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
    try:
        inspect.signature(kind).bind(*arguments, **options)
        return kind(*arguments, **options)
    except (TypeError, ValueError) as problem:
        known = ", ".join(list(inspect.signature(kind).parameters)[1:])
        raise DeclarationError(Fault(f"{what} {kind.__name__}: {problem}", f"options: {known}")) from None
