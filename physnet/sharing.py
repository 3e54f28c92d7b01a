"""Tied parameters: several nodes, edges and readouts that read one tensor.

    dL/dtheta = sum over the users of theta of their contrasts

A parameter that says `share: owner.key` is another name for that tensor. Ties may be chained; each chain ends at the
tensor that is drawn, trained and saved.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from physnet.connections import Shape
from physnet.domains import Interval
from physnet.errors import DeclarationError, Fault, ShapeError, did_you_mean
from physnet.parameters import ParameterSpec

Path = tuple[str | int, ...]


def resolve(specs: Mapping[str, ParameterSpec], name: str) -> str:
    """The tensor that a parameter stands for, by `owner.parameter`.

    Raises:
        DeclarationError: if a tie leads nowhere, or in a circle.
    """
    seen = [name]
    while share := specs[seen[-1]].share:
        if share not in specs:
            hint = did_you_mean(share, specs, "write the name of a tensor, owner.parameter")
            raise DeclarationError(Fault(f"there is no tensor '{share}' to share", hint, ("share",)))
        if share in seen:
            circle = " -> ".join([*seen, share])
            raise DeclarationError(
                Fault(f"the ties {circle} form a circle", "leave one of them its own tensor", ("share",))
            )
        seen.append(share)
    return seen[-1]


def ties(specs: Mapping[str, ParameterSpec]) -> dict[str, str]:
    """Every tied parameter and the tensor that it stands for."""
    return {name: resolve(specs, name) for name, spec in specs.items() if spec.share}


def tie_faults(
    specs: Mapping[str, ParameterSpec], places: Mapping[str, Path], shapes: Mapping[str, Shape]
) -> Iterator[DeclarationError]:
    """What is wrong with the ties of a graph.

    Arguments:
        specs: every declared parameter, by `owner.parameter`.
        places: where each is declared.
        shapes: what shape each has; empty while connections don't fit.
    """
    for name, spec in specs.items():
        if not spec.share:
            continue
        try:
            owner = resolve(specs, name)
        except DeclarationError as error:
            yield error.under(*places[name])
            continue
        path = (*places[name], "share")
        if shapes and shapes[name] != shapes[owner]:
            message = f"{name} has shape {list(shapes[name])}, but {owner} has {list(shapes[owner])}"
            yield ShapeError(Fault(message, "share tensors of one shape", path))
        if not _within(specs[owner].constraint, spec.constraint):
            assert spec.constraint is not None
            message = f"{name} must stay in {spec.constraint.declaration()}, which {owner} doesn't promise"
            yield DeclarationError(Fault(message, f"give {owner} that constraint", path))


def _within(owner: Interval | None, wanted: Interval | None) -> bool:
    return wanted is None or (owner is not None and owner.lo >= wanted.lo and owner.hi <= wanted.hi)


__all__ = ["resolve", "tie_faults", "ties"]
