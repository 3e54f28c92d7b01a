"""What physnet raises: every error names the place and the fix."""

from __future__ import annotations

import difflib
import warnings
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

T = TypeVar("T")
WIDTH = 200
"""How much of a line is shown."""


def did_you_mean(name: object, known: Iterable[str], otherwise: str = "") -> str:
    """A fix for a name that isn't known: the closest one that is, or all of them, or what `otherwise` says."""
    options = list(known)
    close = difflib.get_close_matches(str(name), options, 1)
    if close:
        return f"did you mean {close[0]}?" + (f" or {otherwise}" if otherwise else "")
    return otherwise or f"known: {', '.join(options)}"


def located(path: tuple[str | int, ...], make: Callable[[], T]) -> T:
    """Do something whose faults belong to a place in the declaration."""
    try:
        return make()
    except DeclarationError as error:
        raise error.under(*path) from None


def collected(*actions: Callable[[], Any]) -> list[Any]:
    """Do several things, and raise the faults of all of them at once."""
    results: list[Any] = []
    errors: list[DeclarationError] = []
    for action in actions:
        try:
            results.append(action())
        except DeclarationError as error:
            errors.append(error)
    if errors:
        kind = type(errors[0]) if len({type(error) for error in errors}) == 1 else DeclarationError
        raise kind(fault for error in errors for fault in error.faults)
    return results


@dataclass(frozen=True)
class Place:
    """A position in a declaration.

    Arguments:
        file: name of the file, or `None` for a graph that was built in Python.
        line: line number from 1, or `None` if unknown.
        column: column from 1 at which the caret points, or `None`.
        text: the source line or the expression that the caret points into.
    """

    file: str | None = None
    line: int | None = None
    column: int | None = None
    text: str | None = None

    def __str__(self) -> str:
        known = [str(part) for part in (self.file, self.line, self.column) if part is not None]
        return ":".join(known)


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong with a declaration: what, where in it, and how to mend it.

    Arguments:
        message: what is wrong.
        fix: what to change.
        path: keys that lead to the place inside the declaration, such as `("nodes", "hidden", "shape")`.
        offset: character offset inside the value at `path`, for a fault within an expression.
        value: the text of the value at `path`, shown with a caret where there is no file.
        place: the resolved position, once the file is known.
        at_key: whether the fault is the last key of `path` itself, not its value.
    """

    message: str
    fix: str = ""
    path: tuple[str | int, ...] = ()
    offset: int | None = None
    value: str | None = None
    place: Place | None = None
    at_key: bool = False

    def under(self, *prefix: str | int) -> Fault:
        """The same fault, seen from further out in the declaration."""
        return replace(self, path=(*prefix, *self.path))

    def __str__(self) -> str:
        where = str(self.place) if self.place and str(self.place) else ".".join(map(str, self.path))
        lines = [f"{where}: {self.message}" if where else self.message]
        text, column = self._excerpt()
        if text is not None:
            text, column = _window(text, column)
            lines.append(f"    {text}")
            if column is not None:
                lines.append(f"    {' ' * (column - 1)}^")
        if self.fix:
            lines.append(f"  fix: {self.fix}")
        return "\n".join(_shown(line) for part in lines for line in part.split("\n"))

    def _excerpt(self) -> tuple[str | None, int | None]:
        if self.place is not None and self.place.text is not None:
            return self.place.text, self.place.column
        if self.value is None:
            return None, None
        return self.value, None if self.offset is None else self.offset + 1


def _window(text: str, column: int | None) -> tuple[str, int | None]:
    """The part of a long line around the caret."""
    start = max(0, (column or 1) - WIDTH // 2) if len(text) > WIDTH else 0
    shown = "…" * (start > 0) + text[start : start + WIDTH] + "…" * (len(text) > start + WIDTH)
    return shown, None if column is None else column - start + (start > 0)


def _shown(line: str) -> str:
    """A line that is safe to print: what a file holds may be long, or meant to play tricks on a terminal."""
    line = line if len(line) <= 4 * WIDTH else line[: 4 * WIDTH] + "…"
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in line)


class PhysnetError(Exception):
    """Base of all errors that physnet raises on purpose."""


class DeclarationError(PhysnetError, ValueError):
    """A declaration that can't be compiled. `faults` lists everything that is wrong with it."""

    def __init__(self, faults: Fault | str | Iterable[Fault], fix: str = "") -> None:
        if isinstance(faults, str):
            faults = Fault(faults, fix)
        self.faults: tuple[Fault, ...] = (faults,) if isinstance(faults, Fault) else tuple(faults)
        super().__init__("\n".join(map(str, self.faults)))

    def under(self, *prefix: str | int) -> DeclarationError:
        """The same error with its paths seen from further out in the declaration."""
        return type(self)(fault.under(*prefix) for fault in self.faults)


class ShapeError(DeclarationError):
    """Shapes that don't fit: of nodes and connections, or of the tensors given to a model."""


class DataError(PhysnetError):
    """A data set that is missing, truncated or of the wrong form; names the file and the fix."""


class RelaxationError(PhysnetError, RuntimeError):
    """A relaxation that can't reach an equilibrium; the message says what to change."""


class TrainingError(PhysnetError, RuntimeError):
    """A training that can't go on; names the tensor or file, the epoch and step, and what to change."""


class RelaxationWarning(UserWarning):
    """A relaxation that stopped before it met its tolerance, or whose result deserves a second look."""


class CaveatWarning(UserWarning):
    """Something that a chosen way to equilibrium can't do well; said once for a network."""


_TOLD: weakref.WeakKeyDictionary[object, set[str]] = weakref.WeakKeyDictionary()


def caution(network: object, message: str) -> None:
    """Warn of what can't be done well for a network, once."""
    told = _TOLD.setdefault(network, set())
    if message not in told:
        told.add(message)
        warnings.warn(message, CaveatWarning, stacklevel=4)


class DataWarning(UserWarning):
    """Samples that are left out, because they can't be read."""


class PluginWarning(UserWarning):
    """An installed plug-in that can't be used; the message names its distribution."""
