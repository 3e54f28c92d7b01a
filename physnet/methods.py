"""Ways to train that are no equilibrium propagation, by name: what `learn.protocol` may say beside protocols.

A method trains a network that follows from the same declaration, such as its feed-forward twin. Nothing imports torch.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from physnet.registry import Registry

if TYPE_CHECKING:
    from physnet.learning import Engine
    from physnet.model import EnergyModel


@dataclass(frozen=True)
class Method:
    """One way to train.

    Arguments:
        name: what declarations call it.
        idea: what it does, for people.
        engine: `engine(model, seed=..., precision=...)` makes a `physnet.learning.Engine` of a compiled energy, whose
            tensors it trains; or where to find it, as `package.module:name`, so that it is imported when it is needed.
    """

    name: str
    idea: str
    engine: str | Callable[..., Engine]

    def make(self, model: EnergyModel, seed: int = 0, precision: str | None = None) -> Engine:
        """The engine for a compiled energy.

        Arguments:
            seed: of what it draws.
            precision: of its products: `float32`, `bfloat16`, or `None` for that of the model.

        Raises:
            DeclarationError: if the energy can't be trained so.
        """
        make: Any = pkgutil.resolve_name(self.engine) if isinstance(self.engine, str) else self.engine
        return make(model, seed=seed, precision=precision)


METHODS: Registry[Method] = Registry(
    "method",
    "physnet.methods",
    {
        method.name: method
        for method in (
            Method(
                "backprop",
                "backpropagation through the feed-forward net of the same tensors and activations",
                "physnet.feedforward:backpropagation",
            ),
            Method(
                "backprop_batchnorm",
                "the same topology with batch normalisation and rectified units, as such nets are published",
                "physnet.feedforward:normalised_backpropagation",
            ),
        )
    },
    lambda name, thing: (
        None
        if isinstance(thing, Method) and thing.name == name
        else f"it must be a physnet.methods.Method whose name is '{name}'"
    ),
)
"""Methods by name."""
