"""The values of initialisers: expressions whose draws are uninterpreted functions, evaluated in float64 on the CPU."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sympy as sp
import torch
from sympy.core.function import AppliedUndef
from torch import Tensor

from physnet import functions
from physnet.errors import DeclarationError
from physnet.expressions import ON_TENSORS


@dataclass(frozen=True)
class Initialiser:
    """What an initialiser is evaluated with; draws are made in the order in which SymPy holds them.

    Arguments:
        name: of the parameter.
        values: numbers by name: `fan_in`, `fan_out` and constants.
        shape: of the tensor.
        rows: draw as many such tensors, stacked along a first axis.
        generator: source of the random numbers.
        direction: what `spectral(1)` is.
    """

    name: str
    values: Mapping[str, float]
    shape: tuple[int, ...]
    rows: int | None
    generator: torch.Generator
    direction: Tensor | None

    @property
    def full(self) -> tuple[int, ...]:
        """The shape with its rows."""
        return self.shape if self.rows is None else (self.rows, *self.shape)

    def tensor(self, expression: sp.Expr) -> Tensor:
        """The value of the whole expression, of full shape.

        Raises:
            DeclarationError: for `spectral` where there is no direction.
        """
        return torch.as_tensor(self._value(expression), dtype=torch.float64).expand(self.full).clone()

    def _value(self, node: sp.Basic) -> Any:
        if isinstance(node, sp.Symbol):
            return float(self.values[str(node)])
        if node.is_number and not node.has(AppliedUndef):
            return float(node)  # pyright: ignore[reportArgumentType]
        arguments = [self._value(argument) for argument in node.args]
        if isinstance(node, AppliedUndef):
            return self._drawn(node.func.__name__, arguments)
        if isinstance(node, sp.Add):
            return sum(arguments)
        if isinstance(node, sp.Mul):
            return math.prod(arguments, start=1.0)
        if isinstance(node, sp.Pow):
            return arguments[0] ** arguments[1]
        function = getattr(functions, ON_TENSORS.get(type(node).__name__, type(node).__name__))
        return function(*(torch.as_tensor(argument, dtype=torch.float64) for argument in arguments))

    def _drawn(self, draw: str, arguments: list[Any]) -> Tensor:
        match draw, arguments:
            case "zeros", _:
                return torch.zeros(self.full, dtype=torch.float64)
            case "ones", _:
                return torch.ones(self.full, dtype=torch.float64)
            case "spectral", [scale]:
                if self.direction is None:
                    fix = "give it to a parameter with shape: unit of a free node"
                    raise DeclarationError(f"spectral has no meaning for {self.name}", fix)
                return scale * self.direction
            case "evenly", [low, high]:
                count = max(math.prod(self.shape), 1)
                return low + (high - low) * ((torch.arange(count).double() + 0.5) / count).view(self.shape)
            case "uniform", [low, high]:
                return low + (high - low) * torch.rand(self.full, generator=self.generator, dtype=torch.float64)
            case "normal", [mean, deviation]:
                return mean + deviation * torch.randn(self.full, generator=self.generator, dtype=torch.float64)
        raise AssertionError(f"{draw} is no draw")
