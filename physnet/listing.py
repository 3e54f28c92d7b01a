"""What can be named in an experiment: the table of `physnet list`."""

from __future__ import annotations

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
from physnet.integration import INTEGRATORS, integrators
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
    for name, connection in CONNECTIONS.usable():
        table.add_row("connection", name, _first_line(connection) + _from(CONNECTIONS, name))
    for name, domain in NAMED.usable():
        table.add_row("domain", name, (_first_line(domain) if isinstance(domain, type) else "") + _from(NAMED, name))
    table.add_row("domain", r"\[lo, hi]", "a box; a list of intervals divides the units of a node")
    for name, kind in integrators().usable():
        table.add_row("integrator", name, kind.idea + _from(INTEGRATORS, name))
    for name, quantiser in QUANTISERS.usable():
        table.add_row("quantiser", name, _first_line(quantiser) + _from(QUANTISERS, name))
    for name, annealing in ANNEALINGS.usable():
        table.add_row("step size", name, _first_line(annealing) + _from(ANNEALINGS, name))
    for name, protocol in PROTOCOLS.usable():
        table.add_row("protocol", name, f"error of order {protocol.bias}" + _from(PROTOCOLS, name))
    for family, make in FAMILIES.items():
        table.add_row("protocol", f"{family}(N)", _first_line(make))
    for reference in REFERENCES.values():
        table.add_row("reference", str(reference), reference.idea)
    for name, method in METHODS.usable():
        table.add_row("method", name, method.idea + _from(METHODS, name))
    for name, data in DATA.usable():
        table.add_row("data", name, _first_line(data) + _from(DATA, name))
    for name, augmentation in AUGMENTATIONS.usable():
        table.add_row("augmentation", name, _first_line(augmentation) + _from(AUGMENTATIONS, name))
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
