"""Protocols: which nudges to apply, and how the phases combine.

    gradient = sum_k c_k dF/dtheta(s_{beta_k})

A protocol is data: a list of phases (m_k, a_k) with beta_k = m_k beta and c_k = a_k / beta. A protocol with several
lists draws one of them for every batch. A phase with m_k = 0 is the free equilibrium and is never relaxed twice.
"""

from __future__ import annotations

import cmath
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from physnet.errors import DeclarationError, Fault, did_you_mean
from physnet.registry import Registry

if TYPE_CHECKING:
    import torch

Phase = tuple[complex, complex]


@dataclass(frozen=True)
class Protocol:
    """One way to estimate the gradient.

    Arguments:
        name: what declarations call it.
        alternatives: lists of phases (multiple of beta, coefficient times beta); one list is drawn per batch.
        bias: leading power of beta in the error, for people.
        clamps: whether outputs are held instead of nudged: at the fraction beta_k of the way to their target.
        fixed_beta: a nudge that the protocol prescribes, whatever the declared one.
        predictive: whether it takes the gradient of the free phase to vanish, as it does where states are predicted.
    """

    name: str
    alternatives: tuple[tuple[Phase, ...], ...]
    bias: str = ""
    clamps: bool = False
    fixed_beta: float | None = None
    predictive: bool = False

    def phases(self, beta: float, generator: torch.Generator | None = None) -> tuple[list[complex], list[complex]]:
        """The nudges beta_k and coefficients c_k of one batch."""
        index = 0
        if len(self.alternatives) > 1:
            import torch

            index = int(torch.randint(len(self.alternatives), (1,), generator=generator))
        beta = self.fixed_beta or beta
        chosen = self.alternatives[index]
        return [multiple * beta for multiple, _ in chosen], [coefficient / beta for _, coefficient in chosen]


_POSITIVE: tuple[Phase, ...] = ((0.0, -1.0), (1.0, 1.0))
_NEGATIVE: tuple[Phase, ...] = ((-1.0, -1.0), (0.0, 1.0))


def holomorphic(points: int) -> Protocol:
    """N nudges on a circle around zero, beta e^(2 pi i k/N): the gradient as a Fourier coefficient of dF/dtheta.

    Energies are real at real arguments, so that only the upper half of the circle is relaxed, and counts twice.
    Source: arXiv 2209.00530.

    Arguments:
        points: N >= 2; two are the centered protocol.
    """
    if points < 2:
        raise DeclarationError(Fault(f"holomorphic({points}) has too few points", "use at least 2", ("protocol",)))
    phases: list[Phase] = []
    for k in range(points // 2 + 1):
        turn = cmath.exp(2j * cmath.pi * k / points) if 2 * k != points else complex(-1)
        phases.append((turn, (1 if k == 0 or 2 * k == points else 2) / (points * turn)))
    return Protocol(f"holomorphic({points})", (tuple(phases),), f"beta^{points}")


PROTOCOLS: Registry[Protocol] = Registry(
    "protocol",
    "physnet.protocols",
    {
        protocol.name: protocol
        for protocol in (
            Protocol("positive", (_POSITIVE,), "beta"),
            Protocol("negative", (_NEGATIVE,), "beta"),
            Protocol("random_sign", (_POSITIVE, _NEGATIVE), "beta in one batch, beta^2 in the mean"),
            Protocol("centered", (((-1.0, -0.5), (1.0, 0.5)),), "beta^2"),
            Protocol("single", (((1.0, 1.0),),), "beta", predictive=True),
            Protocol("coupled", (_POSITIVE,), "one: it follows another objective", clamps=True),
            Protocol("contrastive", (_POSITIVE,), "one: it follows another objective", clamps=True, fixed_beta=1.0),
        )
    },
    lambda name, thing: (
        None
        if isinstance(thing, Protocol) and thing.name == name
        else f"it must be a physnet.Protocol whose name is '{name}'"
    ),
)
"""Protocols by name. Source: arXiv 1602.05179, 2006.03824; of the clamped ones: arXiv 2312.15103."""

FAMILIES = {"holomorphic": holomorphic}
"""Protocols that take an argument, as in `holomorphic(4)`."""

_CALL = re.compile(r"(\w+)\((\d{1,4})\)")


def find_protocol(name: str | Protocol, others: Iterable[str] = ()) -> Protocol:
    """The protocol of that name; `others` are names that would have been understood too.

    Raises:
        DeclarationError: if there is none.
    """
    if isinstance(name, Protocol):
        return name
    call = _CALL.fullmatch(str(name))
    if call is not None and call[1] in FAMILIES:
        return FAMILIES[call[1]](int(call[2]))
    if name not in PROTOCOLS:
        hint = did_you_mean(name, [*PROTOCOLS, *(f"{family}(4)" for family in FAMILIES), *others])
        raise DeclarationError(Fault(f"unknown protocol '{name}'", hint, ("protocol",), value=str(name)))
    return PROTOCOLS[name]
