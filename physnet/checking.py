"""How good the gradient estimates of a network are, protocol by protocol and tensor by tensor.

The reference is the implicit gradient. A one-sided estimate has an error proportional to beta, so that halving beta
halves it; a centered one has an error proportional to beta^2, so that it falls by four. A tensor that misbehaves here
tells of units that change their active bound between the phases, of a beta that is too large, or of a bifurcation.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from physnet.learning import EquilibriumPropagation, gradients
from physnet.model import EnergyModel
from physnet.protocols import PROTOCOLS, Protocol, find_protocol
from physnet.relaxation import Relaxation


@dataclass(frozen=True)
class Agreement:
    """One tensor's estimate against the implicit gradient.

    Arguments:
        cosine: of the angle between the two.
        error: |estimate - implicit| / |implicit|.
        fall: error at beta over error at beta/2; about 2 for one-sided protocols, 4 for centered ones.
    """

    protocol: str
    tensor: str
    cosine: float
    error: float
    fall: float


def cosine(a: Tensor, b: Tensor) -> float:
    """<a, b> / |a| |b|; 1 if both vanish."""
    a, b = a.double().flatten(), b.double().flatten()
    norms = float(a.norm() * b.norm())
    return float(a @ b) / norms if norms else float(not a.any() and not b.any())


def relative_error(a: Tensor, b: Tensor) -> float:
    """|a - b| / |b|."""
    size = float(b.double().norm())
    return float((a.double() - b.double()).norm()) / size if size else float((a != b).any())


def _mean_gradient(
    model: EnergyModel, beta: float, name: str, relaxation: Relaxation | str, batch: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The estimate of a protocol, in the mean over the lists of phases that it draws from."""
    protocol = find_protocol(name)
    alternatives = protocol.alternatives
    total: dict[str, Tensor] = {}
    for phases in alternatives:
        ep = EquilibriumPropagation(model, beta, replace(protocol, alternatives=(phases,)), relaxation=relaxation)
        for tensor, value in gradients(ep, **batch).items():
            total[tensor] = total.get(tensor, 0) + value / len(alternatives)
    return total


def _applies(protocol: Protocol, model: EnergyModel) -> bool:
    """Whether a protocol is one for this network: `single` is for predictions, and readouts can't be clamped."""
    single = protocol.predictive and isinstance(model.predictions, str)
    return not single and not (protocol.clamps and model.plan.external)


def check_gradients(
    model: EnergyModel,
    batch: Mapping[str, Tensor],
    beta: float = 0.1,
    protocols: Iterable[str] | None = None,
    relaxation: Relaxation | str = "auto",
) -> list[Agreement]:
    """Compare every protocol with the implicit gradient, for every trained tensor, in the dtype of the model.

    A protocol that draws its phases, such as `random_sign`, is judged by its mean.

    Arguments:
        model: the network, best in float64.
        batch: inputs and targets by name.
        beta: the nudge; each protocol also runs at half of it.
        protocols: their names; all that apply to the network if not given.
    """
    exact = gradients(EquilibriumPropagation(model, beta, "implicit", relaxation=relaxation), **batch)
    result: list[Agreement] = []
    applicable = (name for name, protocol in PROTOCOLS.usable() if _applies(protocol, model))
    for protocol in applicable if protocols is None else protocols:
        full, half = (_mean_gradient(model, nudge, protocol, relaxation, batch) for nudge in (beta, beta / 2))
        for tensor, reference in exact.items():
            error, smaller = relative_error(full[tensor], reference), relative_error(half[tensor], reference)
            fall = error / smaller if smaller else float("nan")
            result.append(Agreement(protocol, tensor, cosine(full[tensor], reference), error, fall))
    return result
