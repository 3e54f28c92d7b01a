"""Things with arguments as declarations write them: `name`, or `name(1, padding=2)`. Nothing is evaluated."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from physnet.errors import DeclarationError, Fault, did_you_mean
from physnet.registry import Registry

MAX_LENGTH = 500


def parse_call(text: str, known: Registry[Any], otherwise: str = "") -> Any:
    """The thing that a call describes: what is registered under its name, called with literal arguments.

    A thing that can't be called is written as its name alone. `otherwise` says what else could have been written.

    Raises:
        DeclarationError: for unknown names, wrong arguments, and whatever is not a call, with a caret.
    """
    name, values, named = _read(text, known, otherwise)
    if name not in known:
        hint = did_you_mean(name, known, otherwise)
        raise DeclarationError(Fault(f"unknown {known.what} '{name}'", hint, value=text[:200], offset=text.find(name)))
    kind = known[name]
    if not callable(kind):
        if values or named:
            raise DeclarationError(Fault(f"{name} takes no arguments", f"write {name}", value=text[:200]))
        return kind
    try:
        inspect.signature(kind).bind(*values, **named)
        return kind(*values, **named)
    except DeclarationError:  # a ValueError too
        raise
    except (TypeError, ValueError, ArithmeticError) as problem:
        fix = f"its arguments are {inspect.signature(kind)}"
        raise DeclarationError(Fault(f"{name}: {problem}", fix, value=text[:200])) from None


def _read(text: str, known: Registry[Any], otherwise: str) -> tuple[str, list[Any], Mapping[str, Any]]:
    stripped = text.strip()
    try:
        code = re.sub(r"'[^']*'", "''", stripped)  # quoted text may be long, such as a list of pairs
        node = ast.parse(stripped, mode="eval").body if len(code) <= MAX_LENGTH else None
        match node:
            case ast.Name(id=name):
                return name, [], {}
            case ast.Call(func=ast.Name(id=name), args=arguments, keywords=keywords):
                named = {str(item.arg): ast.literal_eval(item.value) for item in keywords}
                return name, [ast.literal_eval(argument) for argument in arguments], named
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        pass
    raise DeclarationError(
        Fault(
            f"'{stripped[:80]}' is not a {known.what}",
            otherwise or f"write one of {', '.join(known)}",
            value=text[:200],
        )
    )


def write_call(thing: Any, known: Registry[Any]) -> str:
    """A frozen dataclass as `parse_call` reads it back: the fields that differ from their defaults."""
    kind = type(thing)
    name = known.name_of(kind) or _snake(kind.__name__)
    shown = [
        f"{item.name}={getattr(thing, item.name)!r}"
        for item in fields(thing)
        if item.init and getattr(thing, item.name) != item.default
    ]
    return f"{name}({', '.join(shown)})" if shown else name


def _snake(name: str) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name).lstrip("_")
