"""What is measured: one network each, with its batch, its settings, and what its gradient is held against."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import yaml
from architectures import (
    PREDICTIVE,
    VGG10,
    ResidualTwin,
    conv_hopfield,
    conv_twin,
    deep_mlp,
    deep_mlp_twin,
    dense_net,
    dense_twin,
    hopfield_resnet13,
    small_vgg,
    small_vgg_twin,
)
from judging import Reference, backprop_reference, equilibrium_reference
from pictures import Samples, clothes, clothes_as_photos, smooth
from torch import Tensor, nn

from physnet import EnergyGraph, EnergyModel, EquilibriumPropagation, Relaxation
from physnet.learning import Engine
from physnet.methods import METHODS

CONVERGED = Relaxation(tolerance=1e-8, max_sweeps=400), Relaxation(tolerance=1e-5, max_sweeps=200)
"""Far beyond what float32 can tell apart."""
TWO_ROUNDS, THREE_ROUNDS = Relaxation(max_sweeps=2), Relaxation(max_sweeps=3, tolerance=0.1)
"""Of errors: the first is backpropagation, the second feels what the nudge has moved."""


@dataclass(frozen=True)
class Case:
    """One network.

    Arguments:
        graph, twin: the energy, and a plain net whose weights have the same shapes.
        samples: what it is shown.
        batch: samples per step.
        beta: the nudge.
        published: backprop steps that the code of the authors takes, measured in the same way.
        training: steps at `rate` before anything is measured.
        rounds, backprops: how often the step is timed, and how many backprop steps for each time.
        continues: whether the reference goes on from the free state that was found: where there are several equilibria,
            as with max-pooling, neighbours that differ by .2 % can have gradients that hardly resemble each other.
        energies: whether to compare energies with those that the published schedule reaches.
        relaxation, nudged: how phases relax.
        protocol: of equilibrium propagation.
        small: a nudge at which the gradient is held against backpropagation as well; 0 for none.
        method, options: what learns, if not equilibrium propagation; its gradient is held against backpropagation.
    """

    name: str
    graph: Callable[[], EnergyGraph]
    twin: Callable[[], nn.Module]
    samples: Callable[[], Samples]
    batch: int
    beta: float
    published: str
    rate: float = 0.0
    training: int = 0
    rounds: int = 60
    backprops: int = 1
    slow: bool = False
    continues: bool = False
    energies: bool = False
    relaxation: Relaxation = field(default_factory=Relaxation)
    nudged: Relaxation | None = None
    protocol: str = "centered"
    small: float = 0.0
    method: str = ""
    options: dict[str, Any] = field(default_factory=dict)

    def engine(self, model: EnergyModel) -> Engine:
        """What learns."""
        if self.method:
            method = METHODS[self.method]
            return method.make(model, settings=method.configured(self.beta, self.options))
        return EquilibriumPropagation(model, self.beta, self.protocol, relaxation=self.relaxation, nudged=self.nudged)

    def with_settings(self, relax: list[str], nudged: list[str]) -> Case:
        """The same case with some settings of its phases changed, each given as `key=value`."""
        free = changed(self.relaxation, relax)
        base = self.nudged or replace(free, tolerance=None)
        return replace(self, relaxation=free, nudged=changed(base, nudged))

    def batches(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """A batch by the names that the graph gives to inputs and targets."""
        node = next(node.name for node in self.graph().nodes() if not node.free)
        return {node: x, "target": y}

    def reference(self, model: EnergyModel, batch: dict[str, Tensor], start: dict[str, Tensor] | None) -> Reference:
        """The gradient that is right."""
        if self.method:
            return backprop_reference(model, batch)
        free, nudged = CONVERGED
        if start is not None:
            free = replace(free, initial="previous")
        return equilibrium_reference(model, self.beta, batch, free, nudged, start, self.protocol)


def changed(relaxation: Relaxation, settings: list[str]) -> Relaxation:
    """Settings by name; what `Relaxation` doesn't know is an option of the integrator, by default `blocks`.

    Raises:
        ValueError: for what isn't `key=value`.
    """
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise ValueError(f"{setting!r} is not a setting; write key=value, such as tolerance=1e-3")
        value: Any = yaml.safe_load(text)
        value = float(value) if isinstance(value, str) and text[:1].isdigit() else value  # YAML reads 1e-3 as a word
        if key in relaxation.__dataclass_fields__:
            relaxation = replace(relaxation, **{key: value})
        else:
            name = "blocks" if relaxation.integrator == "auto" else relaxation.integrator
            relaxation = replace(relaxation, integrator=name, options={**relaxation.options, key: value})
    return relaxation


CASES = (
    Case(
        "hopfield-784-1024-10",
        lambda: dense_net("hopfield", (784, 1024, 10), 0.7),
        lambda: dense_twin((784, 1024, 10)),
        clothes,
        batch=16,
        beta=0.2,
        published="25",
        rate=0.05,
        training=500,
    ),
    Case(
        "resistive-784-1024-10",
        lambda: dense_net("resistive", (784, 1024, 10), 1.0, encode=["480*x", "-480*x"]),
        lambda: dense_twin((1568, 1024, 10)),
        clothes,
        batch=4,
        beta=1.0,
        published="12.5",
        rate=0.006,
        training=500,
    ),
    Case(
        "conv-hopfield-5",
        conv_hopfield,
        conv_twin,
        smooth,
        batch=16,
        beta=0.1,
        published="88-123",
        rounds=3,
        backprops=7,
        slow=True,
        continues=True,
    ),
    Case(
        "hopfield-resnet13",
        hopfield_resnet13,
        ResidualTwin,
        smooth,
        batch=16,
        beta=0.1,
        published="138-151",
        rounds=3,
        backprops=9,
        slow=True,
        continues=True,
        energies=True,
    ),
    Case(
        "dualprop-mlp",
        deep_mlp,
        deep_mlp_twin,
        clothes,
        batch=64,
        beta=0.1,
        published="1.36-1.45",
        rate=0.1,
        training=300,
        method="dual",
    ),
    Case(
        "dualprop-mlp-fast",
        deep_mlp,
        deep_mlp_twin,
        clothes,
        batch=64,
        beta=0.1,
        published=".94-1.02",
        rate=0.1,
        training=300,
        method="dual",
        options={"fast": True},
    ),
    Case(
        "dualprop-conv",
        small_vgg,
        small_vgg_twin,
        smooth,
        batch=16,
        beta=0.1,
        published="2.1",
        rate=0.02,
        training=30,
        rounds=20,
        method="dual",
    ),
    Case(
        "dualprop-conv-fast",
        small_vgg,
        small_vgg_twin,
        smooth,
        batch=16,
        beta=0.1,
        published=".94-1.02",
        rate=0.02,
        training=30,
        rounds=20,
        method="dual",
        options={"fast": True},
    ),
    *(
        Case(
            f"{name}-{protocol}",
            *nets,
            batch=batch,
            beta=0.05,
            published=f"21-24, {published} as published",
            rate=rate,
            training=300,
            rounds=rounds,
            protocol=protocol,
            nudged=THREE_ROUNDS if (name, protocol) == ("pcn-mlp10", "centered") else TWO_ROUNDS,
            small=1e-3,
        )
        for name, nets, batch, rate, rounds in (
            ("pcn-mlp10", (lambda: deep_mlp(energy=PREDICTIVE), deep_mlp_twin, clothes), 64, 0.1, 60),
            (
                "pcn-conv",
                (lambda: small_vgg(VGG10, energy=PREDICTIVE), lambda: small_vgg_twin(VGG10), clothes_as_photos),
                32,
                0.02,
                20,
            ),
        )
        for protocol, published in (("single", "6.7"), ("centered", "12"))
    ),
)
