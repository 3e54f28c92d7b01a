"""Whether a gradient is right: against the same protocol at a converged equilibrium in float64, tensor by tensor."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from physnet import EnergyModel, EquilibriumPropagation, Relaxation, RelaxationWarning, compile_energy, gradients, relax
from physnet.checking import cosine
from physnet.methods import METHODS
from physnet.problem import Problem, State

CACHE = Path("build/references")
SAME_BASIN = 0.05
"""Relative distance of a free state from an equilibrium up to which that is taken for its own."""
Gradients = dict[str, Tensor]
Batch = Mapping[str, Tensor]


@dataclass(frozen=True)
class Judgement:
    """Cosines of a gradient to its reference.

    Arguments:
        whole: of all tensors together.
        tensors: of each.
    """

    whole: float
    tensors: dict[str, float]

    @property
    def worst(self) -> float:
        return min(self.tensors.values())


def judge(found: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> Judgement:
    """Cosines between two gradients, over all tensors and for each of them."""
    whole = cosine(*(torch.cat([g[name].double().flatten() for name in reference]) for g in (found, reference)))
    return Judgement(whole, {name: cosine(found[name], reference[name]) for name in reference})


@dataclass(frozen=True)
class Reference:
    """An equilibrium in float64, and the gradient there.

    Arguments:
        states: the free states, in float32, which is enough to recognise them by.
        energy: of every sample.
        residual: the largest one that was left, free and nudged.
    """

    gradients: Gradients
    states: State
    energy: Tensor
    residual: tuple[float, float]

    def distance(self, states: Mapping[str, Tensor]) -> float:
        """The largest relative distance of a sample's free state from this equilibrium."""
        apart, size = (
            sum(value.double().flatten(1).square().sum(1) for value in values)
            for values in ((states[n] - s for n, s in self.states.items()), self.states.values())
        )
        assert isinstance(apart, Tensor) and isinstance(size, Tensor)
        return float((apart / size).sqrt().max())


def in_float64(model: EnergyModel) -> EnergyModel:
    """The same network and parameters."""
    exact = compile_energy(model.graph).double()
    exact.load_state_dict(model.state_dict())
    return exact


def equilibrium_reference(
    model: EnergyModel,
    beta: float,
    batch: Batch,
    free: Relaxation,
    nudged: Relaxation,
    start: Mapping[str, Tensor] | None = None,
    protocol: str = "centered",
) -> Reference:
    """The gradient of a protocol in float64.

    Arguments:
        free, nudged: how far to relax.
        start: a free state to go on from; else it starts as `free` says.
    """
    ep = EquilibriumPropagation(in_float64(model), beta, protocol, relaxation=free, nudged=nudged, watch=0)
    ep.previous = None if start is None else {name: value.double() for name, value in start.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RelaxationWarning)  # the residual is reported
        found = gradients(ep, **{n: v.double() if v.is_floating_point() else v for n, v in batch.items()})
    assert ep.last is not None and ep.last.nudged is not None
    last, states = ep.last.free, {name: value.float() for name, value in ep.last.free.states.items()}
    left = float(last.residual.max()), float(ep.last.nudged.residual.max())
    return Reference(found, states, last.energy.detach(), left)


def backprop_reference(model: EnergyModel, batch: Batch) -> Reference:
    """The gradient of backpropagation in float64; there is nothing to relax."""
    engine = METHODS["backprop"].make(in_float64(model))
    found = gradients(engine, **{n: v.double() if v.is_floating_point() else v for n, v in batch.items()})
    assert engine.last is not None
    states = {name: value.float() for name, value in engine.last.free.states.items()}
    return Reference(found, states, engine.last.cost, (0.0, 0.0))


def kept(make: Callable[[], Reference], key: str, near: Mapping[str, Tensor] | None = None) -> Reference:
    """A reference from the cache in `build/references`, or a new one that goes there.

    Arguments:
        key: digest of everything that it depends on.
        near: a free state that it must belong to.
    """
    path = CACHE / f"{key}.pt"
    if path.exists():
        found: Reference = torch.load(path, weights_only=False)
        if near is None or found.distance(near) <= SAME_BASIN:
            return found
    path.parent.mkdir(parents=True, exist_ok=True)
    made = make()
    torch.save(made, path)
    return made


def digest(model: EnergyModel, batch: Batch, *settings: object) -> str:
    """A name for a network, its parameters, a batch and settings."""
    text = hashlib.sha256(repr((model.source, settings)).encode())
    for name, value in sorted({**model.tensors, **batch}.items()):
        text.update(f"{name}{value.dtype}{list(value.shape)}".encode())
        text.update(value.detach().contiguous().cpu().numpy().tobytes())
    return text.hexdigest()[:24]


# --------------------------------------------------------------------------- the published schedule


def parity_sweeps(problem: Problem, state: State, sweeps: int) -> State:
    """The schedule of the published code: all nodes at odd positions at once, then all at even ones, though some of
    them are joined by skip edges (arXiv 2509.26003)."""
    names = problem.model.free
    for _ in range(sweeps):
        for half in (names[::2], names[1::2]):
            state = state | problem.minimise(half, state)
    return state


def energies(
    model: EnergyModel, relaxation: Relaxation, inputs: Batch, sweeps: int = 20, published: int = 120
) -> dict[str, tuple[Tensor, State]]:
    """Energy of every sample, and states, after `sweeps` sweeps of our blocks and `published` ones of that schedule,
    both from zero."""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", RelaxationWarning)  # neither is there yet
        problem = model.problem(**inputs)
        exact = in_float64(model).problem(**{name: value.double() for name, value in inputs.items()})
        few = replace(relaxation, tolerance=1e-6, max_sweeps=sweeps, initial="zero")
        states = {
            "blocks": relax(model, few, **inputs).states,
            "parity": parity_sweeps(problem, problem.zero(), published),
        }
        return {
            name: (exact.energy({node: value.double() for node, value in found.items()}), found)
            for name, found in states.items()
        }
