"""Parameters of an energy: their shapes, how they are drawn, and what constrains them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import sympy as sp

from physnet.domains import REAL, Interval, parse_domain
from physnet.errors import DeclarationError, Fault, did_you_mean, located
from physnet.expressions import names, parse

if TYPE_CHECKING:
    import torch
    from torch import Tensor

DRAWS = ("uniform", "normal", "evenly", "spectral", "zeros", "ones")
RANDOM = ("uniform", "normal")
USAGE = {
    "uniform": "uniform(lo, hi)",
    "normal": "normal(mean, std)",
    "evenly": "evenly(lo, hi)",
    "spectral": "spectral(scale)",
}
"""How draws with arguments are written."""
NODE_SHAPES = ("unit", "channel", "scalar")
EDGE_SHAPES = ("connection", "scalar")


@dataclass(frozen=True)
class ParameterSpec:
    """How one parameter of an energy is declared.

    Arguments:
        name: the symbol in the energy.
        on: `node` or `edge`.
        shape: `unit`, `channel` or `scalar` on nodes; `connection` (the connection's own) or `scalar` on edges.
        init: an expression over `uniform(lo, hi)`, `normal(mean, std)`, `evenly(lo, hi)` (the middles of as many equal
            parts as there are entries, in their order), `spectral(scale)` (on the units of free nodes: `scale` times
            the direction in which drives separate the outputs most, see `physnet.spectral`), `zeros`, `ones`,
            `fan_in`, `fan_out`, and the names in `constants`.
        constants: numbers that `init` uses, such as `gain`, which nodes and edges may override.
        constraint: an interval that the parameter is projected to after each step, or `None`.
        frozen: whether training leaves it alone.
        share: the tensor of another owner, such as `image_hidden.w`, that this parameter is. That owner says how it is
            drawn and constrained; a constraint here must be met by that of the owner.
    """

    name: str
    on: str
    shape: str = ""
    init: str = "zeros"
    constants: Mapping[str, float] = field(default_factory=dict)
    constraint: Interval | None = None
    frozen: bool = False
    share: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.isidentifier() or self.name.startswith("_"):
            raise DeclarationError(Fault(f"{self.name!r} is not a name", "use letters, digits and underscores"))
        if self.on not in ("node", "edge"):
            raise DeclarationError(Fault(f"a parameter is on: node or on: edge, not {self.on!r}", path=("on",)))
        allowed = NODE_SHAPES if self.on == "node" else EDGE_SHAPES
        if not self.shape:
            object.__setattr__(self, "shape", allowed[0])
        if self.shape not in allowed:
            raise DeclarationError(
                Fault(
                    f"a parameter on a {self.on} can't have shape {self.shape!r}",
                    f"use {', '.join(allowed)}",
                    ("shape",),
                )
            )
        self._check_constants()

    def _check_constants(self) -> None:
        for constant, value in self.constants.items():
            if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
                raise DeclarationError(
                    Fault(f"{constant} must be a finite number, found {value!r}", "give a number", (constant,))
                )
        used = names(located(("init",), self.expression))
        for constant in set(self.constants) - used:
            known = ("on", "shape", "init", "constraint", "frozen", "share", *sorted(used - {"fan_in", "fan_out"}))
            hint = did_you_mean(constant, known)
            raise DeclarationError(Fault(f"unknown key '{constant}' of the parameter {self.name}", hint, (constant,)))

    def expression(self) -> sp.Expr:
        """The initialiser as an expression whose draws are uninterpreted functions."""
        text = self.init
        parsed = parse(_with_brackets(text), functions=DRAWS)
        unknown = names(parsed) - {"fan_in", "fan_out", *self.constants}
        if unknown:
            name = sorted(unknown)[0]
            raise DeclarationError(
                Fault(
                    f"unknown name '{name}' in the initialiser of {self.name}",
                    f"give {name} a value beside init, or use {', '.join(DRAWS)}, fan_in, fan_out",
                    offset=text.find(name),
                    value=text,
                )
            )
        for call in parsed.atoms(sp.core.function.AppliedUndef):
            function, count = call.func.__name__, len(call.args)
            usage = USAGE.get(function, function)
            if count != (usage.count(",") + 1 if function in USAGE else 0):
                raise DeclarationError(Fault(f"{function} has {count} arguments", f"write {usage}", value=text))
        return parsed

    @property
    def spectral(self) -> bool:
        """Whether it depends on the couplings, which have to be drawn before it."""
        return any(str(call.func) == "spectral" for call in self.expression().atoms(sp.core.function.AppliedUndef))

    def override(self, changes: Mapping[str, Any]) -> ParameterSpec:
        """The same parameter with some of its fields or constants changed."""
        if "share" in changes:
            return self._tied(changes)
        known = {key: changes[key] for key in ("shape", "init", "constraint", "frozen") if key in changes}
        if "constraint" in known:
            known["constraint"] = parse_constraint(known["constraint"])
        constants = {key: value for key, value in changes.items() if key not in known and key != "on"}
        inherited = dict(self.constants)
        if "init" in known:
            known["share"] = ""
            known["init"] = str(known["init"])
            words = set(re.findall(r"\w+", known["init"]))
            inherited = {key: value for key, value in inherited.items() if key in words}
        return replace(self, constants={**inherited, **constants}, **known)

    def _tied(self, changes: Mapping[str, Any]) -> ParameterSpec:
        """The same parameter as a name for a tensor of another owner."""
        for key in changes:
            if key not in ("on", "shape", "constraint", "share"):
                fix = f"the tensor belongs to {changes['share']}: declare {key} there, or don't share"
                raise DeclarationError(Fault(f"{key} has no meaning beside share", fix, (key,), at_key=True))
        share = changes["share"]
        if not isinstance(share, str) or not re.fullmatch(r"\w+\.\w+", share):
            raise DeclarationError(
                Fault(f"{share!r} is not the name of a tensor", "write owner.parameter, such as a_b.w", ("share",))
            )
        constraint = parse_constraint(changes["constraint"]) if "constraint" in changes else self.constraint
        return ParameterSpec(
            self.name, self.on, str(changes.get("shape", self.shape)), constraint=constraint, share=share
        )

    def draw(
        self,
        shape: tuple[int, ...],
        fans: tuple[int, int],
        generator: torch.Generator,
        rows: int | None = None,
        direction: Tensor | None = None,
    ) -> Tensor:
        """An initial value, in float64 on the CPU, projected to the constraint.

        Arguments:
            shape: shape of the tensor.
            fans: fan_in and fan_out.
            generator: source of the random numbers.
            rows: draw as many such tensors, stacked along a first axis.
            direction: what `spectral(1)` is.
        """
        from physnet.initialisers import Initialiser

        fan_in, fan_out = (float(max(fan, 1)) for fan in fans)
        values = {"fan_in": fan_in, "fan_out": fan_out, **self.constants}
        value = Initialiser(self.name, values, shape, rows, generator, direction).tensor(self.expression())
        if not bool(value.isfinite().all()):
            raise DeclarationError(f"the initialiser {self.init} of {self.name} gives values that aren't finite")
        return value if self.constraint is None else self.constraint.project(value)

    def declaration(self) -> dict[str, Any]:
        """The parameter as it is written in a file; `parse_parameter` reads it back."""
        result: dict[str, Any] = {"on": self.on, "shape": self.shape}
        result |= {"share": self.share} if self.share else {"init": self.init, **self.constants}
        if self.constraint is not None:
            result["constraint"] = self.constraint.declaration()
        if self.frozen:
            result["frozen"] = True
        return result


def _with_brackets(text: str) -> str:
    """`zeros` and `ones` may be written without brackets."""
    return f"{text.strip()}()" if text.strip() in ("zeros", "ones") else text


def parse_parameter(name: str, declared: Mapping[str, Any]) -> ParameterSpec:
    """A parameter from its declaration: `on`, `shape`, `init`, `constraint`, `frozen`, `share`; others are constants.

    Raises:
        DeclarationError: with a path relative to the declaration.
    """
    rest = dict(declared)
    if "on" not in rest:
        raise DeclarationError(Fault(f"the parameter {name} doesn't say where it lives", "add on: node or on: edge"))
    if "share" in rest:
        return ParameterSpec(name, on=str(rest["on"]), shape=str(rest.get("shape", ""))).override(rest)
    constraint = rest.pop("constraint", None)
    init = rest.pop("init", "zeros")
    frozen = rest.pop("frozen", False)
    if not isinstance(frozen, bool):
        raise DeclarationError(Fault("frozen is true or false", path=("frozen",)))
    return ParameterSpec(
        name,
        on=str(rest.pop("on")),
        shape=str(rest.pop("shape", "")),
        init=str(init),
        constraint=parse_constraint(constraint),
        frozen=frozen,
        constants=rest,
    )


def parse_constraint(declared: object) -> Interval | None:
    """`nonnegative`, `nonpositive`, a box `[lo, hi]`, or nothing."""
    if declared is None:
        return None
    domain = parse_domain(declared)
    if not isinstance(domain, Interval):
        raise DeclarationError(
            Fault(f"a parameter can't be constrained to {declared!r}", "use an interval", ("constraint",))
        )
    return None if domain == REAL else domain
