"""Protocols: which nudges to apply, and how the phases combine.

    gradient = sum_k c_k dF/dtheta(s_{beta_k})

A protocol is data: a list of phases (m_k, a_k) with beta_k = m_k beta and c_k = a_k / beta. A protocol with several
lists draws one of them for every batch. A phase with m_k = 0 is the free equilibrium and is never relaxed twice.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from physnet.errors import DeclarationError, Fault, did_you_mean

if TYPE_CHECKING:
    import torch

Phase = tuple[float, float]


@dataclass(frozen=True)
class Protocol:
    """One way to estimate the gradient.

    Arguments:
        name: what declarations call it.
        alternatives: lists of phases (multiple of beta, coefficient times beta); one list is drawn per batch.
        bias: leading power of beta in the error, for people.
    """

    name: str
    alternatives: tuple[tuple[Phase, ...], ...]
    bias: str = ""

    def phases(self, beta: float, generator: torch.Generator | None = None) -> tuple[list[float], list[float]]:
        """The nudges beta_k and coefficients c_k of one batch."""
        index = 0
        if len(self.alternatives) > 1:
            import torch

            index = int(torch.randint(len(self.alternatives), (1,), generator=generator))
        chosen = self.alternatives[index]
        return [multiple * beta for multiple, _ in chosen], [coefficient / beta for _, coefficient in chosen]


_POSITIVE: tuple[Phase, ...] = ((0.0, -1.0), (1.0, 1.0))
_NEGATIVE: tuple[Phase, ...] = ((-1.0, -1.0), (0.0, 1.0))

PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol("positive", (_POSITIVE,), "beta"),
        Protocol("negative", (_NEGATIVE,), "beta"),
        Protocol("random_sign", (_POSITIVE, _NEGATIVE), "beta in one batch, beta^2 in the mean"),
        Protocol("centered", (((-1.0, -0.5), (1.0, 0.5)),), "beta^2"),
    )
}
"""Protocols by name. Source: arXiv 1602.05179, 2006.03824."""


def find_protocol(name: str | Protocol, others: Iterable[str] = ()) -> Protocol:
    """The protocol of that name; `others` are names that would have been understood too.

    Raises:
        DeclarationError: if there is none.
    """
    if isinstance(name, Protocol):
        return name
    if name not in PROTOCOLS:
        hint = did_you_mean(name, [*PROTOCOLS, *others])
        raise DeclarationError(Fault(f"unknown protocol '{name}'", hint, ("protocol",), value=str(name)))
    return PROTOCOLS[name]
