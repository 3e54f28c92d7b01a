"""physnet: declare a physical system by its energy, and nothing else.

The names below are the public face. They are imported when first used, so that reading and checking declarations needs
no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from physnet.checking import check_gradients
    from physnet.connections import Dense
    from physnet.declaration import graph_from_yaml, graph_to_yaml, load_experiment
    from physnet.drawing import draw
    from physnet.energy import Energy
    from physnet.errors import (
        DataError,
        DeclarationError,
        PhysnetError,
        RelaxationError,
        RelaxationWarning,
        ShapeError,
    )
    from physnet.explaining import explain
    from physnet.graph import EnergyGraph
    from physnet.learning import EquilibriumPropagation, gradients
    from physnet.model import EnergyModel, compile_energy
    from physnet.protocols import Protocol
    from physnet.relaxation import Equilibrium, Integrator, Relaxation, integrator, relax
    from physnet.simulation import simulate
    from physnet.topologies import Sparse
    from physnet.training import Trainer, load_run, resume_run

_HOMES = {
    "checking": ("check_gradients",),
    "connections": ("Dense",),
    "declaration": ("graph_from_yaml", "graph_to_yaml", "load_experiment"),
    "drawing": ("draw",),
    "energy": ("Energy",),
    "errors": (
        *("DataError", "DeclarationError", "PhysnetError", "RelaxationError", "RelaxationWarning", "ShapeError"),
    ),
    "explaining": ("explain",),
    "graph": ("EnergyGraph",),
    "learning": ("EquilibriumPropagation", "gradients"),
    "model": ("EnergyModel", "compile_energy"),
    "protocols": ("Protocol",),
    "relaxation": ("Equilibrium", "Integrator", "Relaxation", "integrator", "relax"),
    "simulation": ("simulate",),
    "topologies": ("Sparse",),
    "training": ("Trainer", "load_run", "resume_run"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__version__ = "0.1.0"
__all__ = [  # noqa: RUF022
    "check_gradients", "Dense", "graph_from_yaml", "graph_to_yaml", "load_experiment", "draw", "Energy",
    "DataError", "DeclarationError", "PhysnetError", "RelaxationError", "RelaxationWarning", "ShapeError", "explain",
    "EnergyGraph",
    "EquilibriumPropagation", "gradients", "EnergyModel", "compile_energy", "Protocol", "Equilibrium", "Integrator",
    "Relaxation", "integrator", "relax", "simulate", "Sparse", "Trainer", "load_run", "resume_run",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'physnet' has no attribute '{name}'")
    value = getattr(import_module(f"physnet.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
