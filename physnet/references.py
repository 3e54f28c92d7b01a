"""Reference gradients by name: what the estimates of protocols are compared with.

A reference works out dL/dtheta of the mean cost at a free equilibrium from derivatives that no local rule has. It
stands wherever a protocol stands, as `implicit` or, with arguments, as `truncated_backprop(40)`.
"""

from __future__ import annotations

import ast
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from physnet.errors import DeclarationError, Fault
from physnet.methods import METHODS, Method
from physnet.protocols import Protocol, find_protocol

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Reference:
    """One way to a gradient that is right in a limit.

    Arguments:
        name: what declarations call it.
        idea: what it does, for people.
        function: `function(problem, state, targets, **arguments)` gives the gradient of the mean cost for every
            parameter and every clamped state, by name; or where to find it, as `package.module:function`, so that it is
            imported when it is first needed.
        arguments: whole numbers, at least 1, by name in the order in which a declaration gives them; here the defaults.
    """

    name: str
    idea: str
    function: str | Callable[..., dict[str, Tensor]]
    arguments: Mapping[str, int] = field(default_factory=dict)

    def __call__(self, *batch: object) -> dict[str, Tensor]:
        function = pkgutil.resolve_name(self.function) if isinstance(self.function, str) else self.function
        return function(*batch, **self.arguments)

    def __str__(self) -> str:
        given = ", ".join(map(str, self.arguments.values()))
        return f"{self.name}({given})" if given else self.name


REFERENCES: dict[str, Reference] = {
    reference.name: reference
    for reference in (
        Reference("implicit", "exact: the linear response, by conjugate gradients", "physnet.implicit:gradient"),
        Reference(
            "recurrent_backprop",
            "exact once converged: the adjoint of a sweep, iterated to its fixed point",
            "physnet.unrolled:recurrent_backprop",
        ),
        Reference(
            "truncated_backprop",
            "backpropagation through the last sweeps, such as truncated_backprop(40)",
            "physnet.unrolled:truncated_backprop",
            {"steps": 40},
        ),
    )
}
"""References by name. A new one is an entry here."""


def find_learning(name: str) -> Protocol | Reference | Method:
    """What a declaration learns by: the protocol, reference or method of that name.

    Raises:
        DeclarationError: if there is none, or if its arguments don't fit.
    """
    return METHODS[name] if name in METHODS else find_method(name)


def check_learning(name: str, beta: float, options: Mapping[str, Any], starts: int | None = None) -> None:
    """Refuse a protocol, reference or method that doesn't exist, or doesn't have such options or several starts.

    Raises:
        DeclarationError: with faults under the keys of `learn`.
    """
    found = find_learning(name)
    if isinstance(found, Method):
        if starts is not None and starts > 1:
            message, fix = f"{name} has no free phase", "starts are for protocols, such as centered"
            raise DeclarationError(Fault(message, fix, ("starts",), at_key=True))
        found.configured(beta, options)
    elif options:
        message = f"{name} has no options"
        raise DeclarationError(Fault(message, "options are for methods, such as dual", ("options",), at_key=True))


def find_method(name: str | Protocol | Reference) -> Protocol | Reference:
    """The protocol or the reference of that name.

    Raises:
        DeclarationError: if there is none, or if its arguments don't fit.
    """
    if isinstance(name, Protocol | Reference):
        return name
    head = name.partition("(")[0].strip()
    if head in METHODS:
        message = f"{name} trains another network than the one that relaxes: it has no phases"
        raise DeclarationError(Fault(message, "choose a protocol such as centered", ("protocol",), value=name))
    if head not in REFERENCES:
        return find_protocol(name, [*REFERENCES, *METHODS])
    reference = REFERENCES[head]
    return reference if head == name.strip() else replace(reference, arguments=_arguments(reference, name))


def protocol_of(method: Protocol | Reference) -> Protocol:
    """The method itself or, for a reference, the protocol that leads to it as beta vanishes."""
    return find_protocol("centered") if isinstance(method, Reference) else method


def _arguments(reference: Reference, text: str) -> dict[str, int]:
    known, given = list(reference.arguments), dict(reference.arguments)
    try:
        call = ast.parse(text.strip(), mode="eval").body if len(text) <= 500 else None
        if isinstance(call, ast.Call) and len(call.args) <= len(known):
            named = [(str(item.arg), item.value) for item in call.keywords]
            values = {key: ast.literal_eval(value) for key, value in [*zip(known, call.args, strict=False), *named]}
            if all(key in known and type(value) is int and value >= 1 for key, value in values.items()):
                return given | values
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        pass
    usage = f"{reference.name}({', '.join(f'{key}={value}' for key, value in given.items())})"
    hint = f"it takes whole numbers, at least 1: {usage}" if known else f"write {reference.name}"
    raise DeclarationError(Fault(f"wrong arguments in '{text[:80]}'", hint, ("protocol",), value=text[:200]))
