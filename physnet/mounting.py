"""An engine on the declared hardware: its network on a chip, and noise in the phases that it relaxes."""

from __future__ import annotations

from dataclasses import replace

from physnet.errors import DeclarationError, Fault
from physnet.hardware import make_chip, noise_of
from physnet.integration import make_integrator
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
    engine.relaxation = noisy(engine.relaxation, noise, number, "relax")
    engine.nudged = noisy(engine.nudged, noise, number, "learn", "nudged")


def noisy(relaxation: Relaxation, noise: NoiseSchema, seed: int, *where: str) -> Relaxation:
    """The same relaxation, followed by noise; `where` it is declared.

    Raises:
        DeclarationError: for integrators that can't have noise behind them.
    """
    options = noise.model_dump() | {"noise": noise.strength, "seed": seed}
    del options["strength"]
    inner = {"integrator": relaxation.integrator, "options": relaxation.options}
    try:
        make_integrator("thermal", options | inner)
    except DeclarationError as error:
        fix = "use integrator: auto, or remove hardware.noise"
        raise DeclarationError([Fault(fault.message, fix, (*where, "integrator")) for fault in error.faults]) from None
    return replace(relaxation, integrator="thermal", options=options | inner)
