"""What can be named in an experiment: the table of `physnet list`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from physnet.augmentations import AUGMENTATIONS
from physnet.connections import CONNECTIONS
from physnet.data import DATA
from physnet.domains import NAMED
from physnet.energy import catalogue, load_energy
from physnet.errors import DeclarationError
from physnet.expressions import FUNCTIONS
from physnet.integration import integrators
from physnet.methods import METHODS
from physnet.protocols import FAMILIES, PROTOCOLS
from physnet.quantisers import QUANTISERS
from physnet.references import REFERENCES
from physnet.schedules import ANNEALINGS

if TYPE_CHECKING:
    from physnet.registry import Registry


def everything() -> Table:
    """Energies, connections, domains, integrators, protocols, data sets and all else that is called by a name."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name in catalogue():
        table.add_row("energy", name, _title_of(name))

    def add(kind: str, registry: Registry[Any], said: Callable[[Any], str] = _first_line) -> None:
        for name, thing in registry.usable():
            table.add_row(kind, name, said(thing) + _from(registry, name))

    add("connection", CONNECTIONS)
    add("domain", NAMED, lambda domain: _first_line(domain) if isinstance(domain, type) else "")
    table.add_row("domain", r"\[lo, hi]", "a box; a list of intervals divides the units of a node")
    add("integrator", integrators(), lambda kind: kind.idea)
    add("quantiser", QUANTISERS)
    add("step size", ANNEALINGS)
    add("protocol", PROTOCOLS, lambda protocol: f"error of order {protocol.bias}")
    for family, make in FAMILIES.items():
        table.add_row("protocol", f"{family}(N)", _first_line(make))
    for reference in REFERENCES.values():
        table.add_row("reference", str(reference), reference.idea)
    add("method", METHODS, lambda method: method.idea)
    add("data", DATA)
    add("augmentation", AUGMENTATIONS)
    table.add_row("function", ", ".join(FUNCTIONS), "")
    return table


def _first_line(thing: Any) -> str:
    """The first line of a docstring, in which brackets are no markup."""
    return escape(next(iter((thing.__doc__ or "").strip().splitlines()), ""))


def _from(registry: Registry[Any], name: str) -> str:
    """Which distribution a plug-in belongs to."""
    provider = registry.provider(name)
    return f" (from {provider})" if provider else ""


def _title_of(energy: str) -> str:
    try:
        return load_energy(energy).title
    except DeclarationError as error:  # an entry of a plug-in
        return f"can't be used: {error}"
