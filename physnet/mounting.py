"""An engine on the declared hardware: its network on a chip, and noise in the phases that it relaxes."""

from __future__ import annotations

from dataclasses import replace

from physnet.errors import DeclarationError, Fault
from physnet.hardware import make_chip, noise_of
from physnet.learning import Engine, EquilibriumPropagation
from physnet.relaxation import Relaxation
from physnet.schema import HardwareSchema, NoiseSchema


def mount(engine: Engine, hardware: HardwareSchema, chip: int | None = None) -> None:
    """Put an engine that was made for perfect hardware on a chip.

    Arguments:
        engine: whose networks get the chip's parameters, read-out and noise.
        hardware: the section of the experiment.
        chip: which specimen, also for the noise; the declared one by default.

    Raises:
        DeclarationError: for noise in a network that doesn't relax.
    """
    number, noise = hardware.chip if chip is None else chip, noise_of(hardware)
    engine.model.mount(make_chip(hardware, engine.model.graph, number))
    if noise is None:
        return
    if not isinstance(engine, EquilibriumPropagation):
        message = "noise is for networks that relax, which this method's don't"
        raise DeclarationError(Fault(message, "remove it, or use a protocol such as centered", ("hardware", "noise")))
    engine.watch = 0  # what looks for jumps compares equilibria, and takes noise for one
    engine.relaxation = noisy(engine.relaxation, noise, number)
    engine.nudged = noisy(engine.nudged, noise, number)


def noisy(relaxation: Relaxation, noise: NoiseSchema, seed: int) -> Relaxation:
    """The same relaxation, followed by noise."""
    options = noise.model_dump() | {"noise": noise.strength, "seed": seed}
    del options["strength"]
    inner = {"integrator": relaxation.integrator, "options": relaxation.options}
    return replace(relaxation, integrator="thermal", options=options | inner)
