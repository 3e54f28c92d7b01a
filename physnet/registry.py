"""Things by name: physnet's own, those registered in Python, and those of installed plug-ins.

A plug-in is a distribution with an entry point in one of the groups

    physnet.connections   physnet.domains     physnet.integrators    physnet.augmentations
    physnet.protocols     physnet.energies    physnet.data
    physnet.methods       physnet.quantisers  physnet.annealings

whose name is what declarations write. Listing names reads metadata only; a plug-in is imported when its name is asked
for. One that is broken, or called like something else, is an error for who asks for it and for nobody else.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

from physnet.errors import DeclarationError, PluginWarning

T = TypeVar("T")
K = TypeVar("K")


class Registry(MutableMapping[str, T]):
    """A mapping from names to things of one kind, which grows by assignment, by `register` and by plug-ins.

    Arguments:
        what: the kind, for messages, such as `connection`.
        group: the entry-point group of plug-ins.
        own: physnet's own things.
        objection: what is wrong with a thing of that name, or `None` if it is one of this kind.
    """

    def __init__(
        self,
        what: str,
        group: str,
        own: Mapping[str, T] | None = None,
        objection: Callable[[str, Any], str | None] = lambda name, thing: None,
    ) -> None:
        self.what, self.group, self.objection = what, group, objection
        self._things: dict[str, T] = dict(own or {})
        self._failed: dict[str, DeclarationError] = {}
        self._loaded: set[str] = set()
        self._warned: set[str] = set()

    @cached_property
    def _points(self) -> dict[str, list[EntryPoint]]:
        """The entry points of the group, by name; of a name that several distributions claim, all."""
        found: dict[str, list[EntryPoint]] = {}
        for point in sorted(entry_points(group=self.group), key=lambda point: (point.name, _distribution(point))):
            found.setdefault(point.name, []).append(point)
        return found

    def __getitem__(self, name: str) -> T:
        """The thing of that name; a plug-in is imported now.

        Raises:
            KeyError: if there is none.
            DeclarationError: if it comes from a plug-in that can't be used.
        """
        if name in self._failed:
            raise self._failed[name]
        if name in self._points and name not in self._loaded:
            try:
                self._things[name] = self._load(name, self._points[name])
            except DeclarationError as error:
                self._failed[name] = error
                raise
            self._loaded.add(name)
        return self._things[name]

    def _load(self, name: str, points: list[EntryPoint]) -> T:
        point, *others = points
        owners = [_distribution(point) for point in points]
        if name in self._things and not _is_loaded_as(point, self._things[name]):
            others, owners = [point], [_owner(self._things[name]), *owners]
        if others:
            raise DeclarationError(
                f"the {self.what} '{name}' is provided by {' and by '.join(owners)}", "rename one, or uninstall it"
            )
        try:
            thing = point.load()
        except (Exception, SystemExit) as problem:  # whatever somebody's module does when it is imported
            raise DeclarationError(
                f"the {self.what} '{name}' of {owners[0]} can't be loaded: {type(problem).__name__}: {problem}",
                "update or uninstall that distribution",
            ) from problem
        self._accept(name, thing, f"of {owners[0]} ")
        return thing

    def _accept(self, name: str, thing: Any, owner: str = "") -> None:
        reason = self.objection(name, thing)
        if reason is not None:
            raise DeclarationError(f"{thing!r} {owner}can't be the {self.what} '{name}'", reason)

    def __setitem__(self, name: str, thing: T) -> None:
        """Add a thing. The same definition may come again, as when a module is reloaded or a cell run twice.

        Raises:
            DeclarationError: if the name is taken, or the thing is not of this kind.
        """
        self._accept(name, thing)
        held = self._things.get(name)
        if held is not None and held != thing and not _same_definition(held, thing):
            raise DeclarationError(
                f"the {self.what} '{name}' of {_owner(thing)} is called like that of {_owner(held)}", "rename it"
            )
        self._things[name] = thing

    def register(self, name: str) -> Callable[[K], K]:
        """A decorator that adds a class or function under a name."""

        def add(thing: K) -> K:
            self[name] = thing  # pyright: ignore[reportArgumentType]
            return thing

        return add

    def __delitem__(self, name: str) -> None:
        del self._things[name]

    def __contains__(self, name: object) -> bool:
        return name in self._things or name in self._points

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys([*self._things, *self._points]))

    def __len__(self) -> int:
        return len(self._things.keys() | self._points.keys())

    def usable(self) -> Iterator[tuple[str, T]]:
        """Name and thing of everything that can be used, each imported when its turn comes. A plug-in that can't be is
        left out, or makes way for physnet's own, with a warning."""
        for name in self:
            try:
                yield name, self[name]
            except DeclarationError as error:
                if name not in self._warned:
                    self._warned.add(name)
                    warnings.warn(str(error), PluginWarning, stacklevel=2)
                if name in self._things:
                    yield name, self._things[name]

    def provider(self, name: str) -> str:
        """Which distribution a name comes from; empty for what was registered in Python, and for physnet's own."""
        return _distribution(self._points[name][0]) if name in self._loaded else ""

    def name_of(self, thing: T) -> str | None:
        """The name that a thing is registered under."""
        return next((name for name, held in self._things.items() if held is thing), None)


def subclass_of(base: type) -> Callable[[str, Any], str | None]:
    """The objection to everything but complete classes derived from a base."""

    def objection(name: str, thing: Any) -> str | None:
        if isinstance(thing, type) and issubclass(thing, base) and not inspect.isabstract(thing):
            return None
        return f"it must be a class derived from {base.__module__}.{base.__name__}, with all of its abstract methods"

    return objection


def _distribution(point: EntryPoint) -> str:
    return f"the distribution {point.dist.name} {point.dist.version}" if point.dist else f"'{point.value}'"


def _owner(thing: object) -> str:
    """Where a thing was defined, for people."""
    module = getattr(thing, "__module__", type(thing).__module__)
    return "physnet" if module.split(".")[0] == "physnet" else f"the module {module}"


def _is_loaded_as(point: EntryPoint, thing: object) -> bool:
    """Whether an entry point names a thing that its own module has registered already."""
    try:
        return point.load() is thing
    except (Exception, SystemExit):
        return False


def _same_definition(a: object, b: object) -> bool:
    place = [(getattr(thing, "__module__", None), getattr(thing, "__qualname__", None)) for thing in (a, b)]
    return place[0] == place[1] and place[0][1] is not None
