"""From plain data to the schema of an experiment: faults in the words of the format, and keys for one method alone."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pydantic import ValidationError
from sympy.core.function import AppliedUndef

from physnet.energy import FORMAT
from physnet.errors import DeclarationError, Fault, did_you_mean, located
from physnet.graph import EnergyGraph
from physnet.parameters import RANDOM
from physnet.references import find_learning
from physnet.schema import ExperimentSchema, LearnSchema, TrainSchema, keys_at, places_of
from physnet.sources import Source


def read_schema(data: Any) -> ExperimentSchema:
    """An experiment with its defaults filled in.

    Raises:
        DeclarationError: for unknown keys, missing ones, and values of the wrong kind.
    """
    if not isinstance(data, Mapping):
        raise DeclarationError("an experiment is a mapping with the keys nodes, edges, …", "see the examples")
    if data.get("physnet", FORMAT) != FORMAT:
        raise DeclarationError(
            Fault(
                f"format version {data['physnet']!r} is not supported",
                f"this version reads format {FORMAT}",
                ("physnet",),
            )
        )
    try:
        return ExperimentSchema.model_validate(data)
    except ValidationError as error:
        raise DeclarationError(_translate(item) for item in error.errors()) from None


def _translate(error: Any) -> Fault:
    """A pydantic error in the words of the format."""
    path = tuple(error["loc"])
    kind, key = error["type"], str(path[-1]) if path else ""
    if kind == "extra_forbidden":
        return Fault(f"unknown key '{key}'", _closest(key, path[:-1]), path, at_key=True)
    if kind == "missing":
        return Fault(f"the key '{key}' is missing", f"add {key}:", path[:-1])
    return Fault(f"{error['msg'][0].lower()}{error['msg'][1:]}, found {error['input']!r}", "", path)


def _closest(key: str, parents: tuple[str | int, ...]) -> str:
    """A fix for an unknown key: at the top the only place further in where it stands, elsewhere one spelt like it."""
    match [] if parents else places_of(key):
        case [place] if "*" not in place:
            return f"did you mean {place}?"
    return did_you_mean(key, keys_at(parents))


def choose_method(source: Source, changes: Mapping[str, Any] | None = None) -> Source:
    """The source with the keys of `train` that `train.methods` holds for the method of the experiment.

    Each key replaces the one in `train` as a whole; errors go on pointing to where it stands.

    Arguments:
        changes: values that were changed from outside, by dotted key: they go before what the file says of the method.

    Raises:
        DeclarationError: for methods that don't exist and for keys that can't stand in `train`.
    """
    data = source.data if isinstance(source.data, dict) else {}
    train, learn = data.get("train"), data.get("learn")
    if not isinstance(train, dict) or train.get("methods") is None:
        return source
    methods = train.pop("methods")
    try:
        _check_methods(methods)
    except DeclarationError as error:
        raise source.relocate(error) from None
    declared = learn.get("protocol") if isinstance(learn, dict) else None
    chosen = LearnSchema().protocol if declared is None else declared
    asked = {key.split(".")[1] for key in changes or {} if key.startswith("train.")}
    own = {key: value for key, value in methods.get(str(chosen), {}).items() if key not in asked}
    train |= copy.deepcopy(own)
    return replace(source, moved={("train", key): ("train", "methods", str(chosen), key) for key in own})


def _check_methods(methods: Any) -> None:
    path = ("train", "methods")
    if not isinstance(methods, dict):
        raise DeclarationError(Fault("methods is a mapping", "such as {backprop: {optimizer: adam}}", path))
    faults: list[Fault] = []
    for name, keys in methods.items():
        try:
            located(path, lambda name=name: find_learning(name))
        except DeclarationError as error:
            faults += [replace(fault, path=(*path, name), at_key=True, value=None) for fault in error.faults]
        if not isinstance(keys, dict):
            faults.append(Fault("expected keys of train", "such as {optimizer: adam}", (*path, name)))
            continue
        if "methods" in keys:
            faults.append(
                Fault("methods don't stand in each other", "remove it", (*path, name, "methods"), at_key=True)
            )
        try:
            TrainSchema.model_validate(keys)
        except ValidationError as error:
            found = (_translate(item | {"loc": ("train", *item["loc"])}) for item in error.errors())
            faults += [replace(fault, path=(*path, name, *fault.path[1:])) for fault in found]
    if faults:
        raise DeclarationError(faults)


def check_share(declared: Any) -> None:
    """Refuse what is neither a number of samples nor a fraction of them.

    Raises:
        DeclarationError: for anything but `None`, whole numbers from 1, and fractions between 0 and 1.
    """
    number = isinstance(declared, int | float) and not isinstance(declared, bool)
    if declared is not None and not (number and (0 < declared < 1 or (declared >= 1 and declared % 1 == 0))):
        raise DeclarationError(
            Fault(f"validation is {declared!r}", "give a number of samples such as 5000, or a fraction such as 0.1")
        )


def check_starts(graph: EnergyGraph, starts: int | None, initial: str) -> None:
    """Refuse several starts of every sample that would all be alike.

    Arguments:
        graph: says where nodes start that don't start as `initial` says.
        starts: how many; `None` for one.
        initial: `relax.initial`.

    Raises:
        DeclarationError: if no state starts at random, or `initial` is `previous`.
    """
    if starts is None or starts == 1:
        return
    own = [node.initial.expression() for node in graph.nodes() if node.initial is not None]
    drawn = initial == "random" and any(node.free and node.initial is None for node in graph.nodes())
    if initial == "previous":
        message = f"{starts} starts, but every batch goes on from where the last one ended"
        fix = "use relax: {initial: random}"
    elif drawn or any(str(call.func) in RANDOM for one in own for call in one.atoms(AppliedUndef)):
        return
    else:
        message = f"{starts} starts of every sample, but no state starts at random"
        fix = "use relax: {initial: random}, or give a node initial: uniform(-pi, pi)"
    raise DeclarationError(Fault(message, fix, ("starts",)))
