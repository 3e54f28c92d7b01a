"""Ways to train that are no equilibrium propagation, by name: what `learn.protocol` may say beside protocols.

A method trains a network that follows from the same declaration, such as its feed-forward twin. Nothing imports torch.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from physnet.dyads import DualSettings
from physnet.errors import DeclarationError, Fault, did_you_mean
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
        settings: a frozen dataclass of what can be chosen, which refuses what is wrong with a `DeclarationError`;
            `engine` then takes `settings=`, too. Declarations write its fields under `learn.options`, but a field
            `beta` is their `learn.beta`.
    """

    name: str
    idea: str
    engine: str | Callable[..., Engine]
    settings: type[Any] | None = None

    def configured(self, beta: float | None = None, options: Mapping[str, Any] | None = None) -> Any:
        """The settings that a declaration makes; `None` for a method without any.

        Arguments:
            beta: the nudge, for methods that have one.
            options: what is set, by name.

        Raises:
            DeclarationError: for options that it doesn't have, or values that don't fit.
        """
        known = [item.name for item in fields(self.settings)] if self.settings is not None else []
        given, options = {"beta": beta} if "beta" in known and beta is not None else {}, options or {}
        known = [name for name in known if name != "beta"]
        unknown = [
            Fault(
                f"{self.name} has no option '{key}'",
                did_you_mean(key, known) if known else "remove it",
                ("options", key),
                at_key=True,
            )
            for key in options
            if key not in known
        ]
        if unknown:
            raise DeclarationError(unknown)
        return None if self.settings is None else self.settings(**given, **options)

    def make(
        self, model: EnergyModel, seed: int = 0, precision: str | None = None, settings: object | None = None
    ) -> Engine:
        """The engine for a compiled energy.

        Arguments:
            seed: of what it draws.
            precision: of its products: `float32`, `bfloat16`, or `None` for that of the model.
            settings: what `configured` gives; by default that of a declaration that sets nothing.

        Raises:
            DeclarationError: if the energy can't be trained so.
        """
        make: Any = pkgutil.resolve_name(self.engine) if isinstance(self.engine, str) else self.engine
        chosen = {} if self.settings is None else {"settings": self.configured() if settings is None else settings}
        return make(model, seed=seed, precision=precision, **chosen)


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
            Method(
                "dual",
                "dual propagation: two states per unit of the feed-forward net, in a single phase",
                "physnet.dual:dual_propagation",
                DualSettings,
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
