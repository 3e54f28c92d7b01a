"""The device that a network runs on: how what was programmed becomes physical, and how states are read.

    physical = quantised(programmed) (1 + mismatch xi) + dispersion zeta,        xi, zeta normal, frozen in the chip
    read = lo + step round((state - lo) / step)

The energy reads the physical parameters, so that forces, equilibria and contrasts are those of the device. Gradients of
programmed values follow by the chain rule; through a quantiser they go straight (arXiv 1308.3432). Programmed values
keep their full precision in training, so that steps smaller than a level add up (arXiv 1511.00363). Source of the list:
arXiv 2504.11884 (dispersion), 2505.02103 (bits, noise).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, TypeVar

from physnet.domains import Domain, Interval
from physnet.errors import DeclarationError, Fault, did_you_mean
from physnet.schema import HardwareSchema, NoiseSchema

if TYPE_CHECKING:
    from torch import Tensor

    from physnet.graph import EnergyGraph
    from physnet.parameters import ParameterSpec

LEAST = 0.01
"""A part whose factor 1 + mismatch xi would be smaller has this one: energies rely on it that no part changes sign."""
BY_TENSOR = ("mismatch", "dispersion", "bounds", "bits")
"""Keys that may differ between tensors."""
T = TypeVar("T")


@dataclass(frozen=True)
class Chip:
    """One specimen of a device. Without arguments it is perfect: what is programmed is physical.

    Arguments:
        number: what is frozen in the chip is a pure function of this and of the tensor's name.
        mismatch, dispersion: by tensor, at least 0.
        bits: by tensor, 1 to 24.
        bounds: by tensor.
        limits: by tensor, where the grid of its levels ends; -inf and inf where its values say so.
        readout_bits: of output nodes; `None` reads states as they are.
        readout_range: where the levels lie, in place of the node's domain.
    """

    number: int = 0
    mismatch: Mapping[str, float] = field(default_factory=dict)
    dispersion: Mapping[str, float] = field(default_factory=dict)
    bits: Mapping[str, int] = field(default_factory=dict)
    bounds: Mapping[str, Interval] = field(default_factory=dict)
    limits: Mapping[str, Interval] = field(default_factory=dict)
    readout_bits: int | None = None
    readout_range: Interval | None = None
    _frozen: dict[tuple[str, str], Tensor] = field(default_factory=dict, compare=False, repr=False)

    def view(self, programmed: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The physical parameters, differentiable in those that are programmed."""
        return {name: self._physical(name, value) for name, value in programmed.items()}

    def _physical(self, name: str, value: Tensor) -> Tensor:
        if name in self.bits:
            value = quantised(value, self.bits[name], self.limits[name])
        if name in self.mismatch:
            value = value * (1 + self.mismatch[name] * self._drawn("mismatch", name, value)).clamp_min(LEAST)
        if name in self.dispersion:
            value = value + self.dispersion[name] * self._drawn("dispersion", name, value)
        return value

    def _drawn(self, kind: str, name: str, like: Tensor) -> Tensor:
        """What is frozen in the chip, in the dtype and on the device of the tensor."""
        import torch

        from physnet.randomness import stream

        if (kind, name) not in self._frozen:
            with torch.inference_mode(False):  # what is frozen outlives the mode that it was first asked for in
                drawn = torch.randn(like.shape, generator=stream(self.number, kind, name), dtype=torch.float64)
            self._frozen[kind, name] = drawn
        return self._frozen[kind, name].to(like)

    def read(self, state: Tensor, domain: Domain) -> Tensor:
        """A state, [rows, *node], as it is read out: on 2^bits levels from end to end of an interval, or around the
        circle."""
        if self.readout_bits is None:
            return state
        if domain.period:
            step = domain.period / 2**self.readout_bits
            return domain.wrap((domain.wrap(state) / step).round() * step)
        lo, hi = (self.readout_range or domain).bounds(state)
        return on_grid(state, lo, hi, self.readout_bits)


PERFECT = Chip()


def on_grid(x: Tensor, lo: Tensor | float, hi: Tensor | float, bits: int) -> Tensor:
    """The nearest of 2^bits levels, evenly from lo to hi; an interval without length has one."""
    import torch

    lo, hi = (torch.as_tensor(end, dtype=x.dtype, device=x.device) for end in (lo, hi))
    step = (hi - lo) / (2**bits - 1)
    level = ((x - lo) / step).nan_to_num(0.0, 0.0, 0.0).round().clamp(0, 2**bits - 1)
    return lo + level * step


def quantised(value: Tensor, bits: int, limits: Interval) -> Tensor:
    """A parameter on at most 2^bits levels between its limits; its gradient goes straight through.

    Zero is a level where the limits have different signs (and there is more than one bit): what isn't connected stays
    so. Where limits are open at one end, the grid ends at the most extreme entry there; at both, it is
    [-max |w|, max |w|]. The error is half a step at most.
    """
    programmed = value.detach()
    if not value.numel():
        return value
    largest = programmed.abs().max()
    least, most = (programmed.min(), programmed.max()) if limits.edges else (-largest, largest)
    lo = limits.lo if math.isfinite(limits.lo) else least
    hi = limits.hi if math.isfinite(limits.hi) else most
    if bits > 1 and lo < 0 < hi:
        step = (hi - lo) / (2**bits - 2)
        levels = ((programmed / step).round() * step).clamp(lo, hi)
    else:
        levels = on_grid(programmed, lo, hi, bits)
    return levels + (value - programmed)


# --------------------------------------------------------------------------- from a declaration


def noise_of(hardware: HardwareSchema) -> NoiseSchema | None:
    """The declared noise; `None` if there is none."""
    return hardware.noise if hardware.noise is not None and hardware.noise.strength else None


def make_chip(hardware: HardwareSchema, graph: EnergyGraph, number: int | None = None) -> Chip:
    """A chip from its declaration, which `check_hardware` has accepted.

    Arguments:
        hardware: the section of the experiment.
        graph: whose tensors it holds.
        number: which specimen; the declared one by default.
    """
    specs = {name: spec for name, (spec, _, _) in graph.tensors().items()}
    bounds = {name: Interval(*map(float, box)) for name, box in _spread(hardware.bounds, specs).items()}
    limits = {name: bounds.get(name) or specs[name].constraint or Interval() for name in specs}
    box = hardware.readout_range
    return Chip(
        hardware.chip if number is None else number,
        mismatch=_spread(hardware.mismatch, specs),
        dispersion=_spread(hardware.dispersion, specs),
        bits=_spread(hardware.bits, specs),
        bounds=bounds,
        limits=limits,
        readout_bits=hardware.readout_bits,
        readout_range=None if box is None else Interval(*map(float, box)),
    )


def _spread(declared: Mapping[str, T], tensors: Iterable[str]) -> dict[str, T]:
    """A value by tensor; of several patterns that fit, the last one counts."""
    names = list(tensors)
    return {name: value for pattern, value in declared.items() for name in names if fnmatchcase(name, pattern)}


def check_hardware(hardware: HardwareSchema, graph: EnergyGraph) -> None:
    """Refuse what no chip of this network can have.

    Raises:
        DeclarationError: with every fault: patterns without a tensor, empty intervals, bounds beyond those of the
            energy, dispersion of what must not change its sign, and a read-out without a range.
    """
    specs = {name: spec for name, (spec, _, _) in graph.tensors().items()}
    faults = [*_pattern_faults(hardware, specs), *_readout_faults(hardware, graph)]
    faults += [*_bounds_faults(hardware.bounds, specs), *_dispersion_faults(hardware.dispersion, specs)]
    if faults:
        raise DeclarationError(faults)


def _pattern_faults(hardware: HardwareSchema, specs: Mapping[str, ParameterSpec]) -> Iterator[Fault]:
    for key in BY_TENSOR:
        for pattern in getattr(hardware, key):
            if pattern != "*" and not any(fnmatchcase(name, pattern) for name in specs):
                hint = did_you_mean(pattern, specs)
                yield Fault(f"there is no tensor '{pattern}'", hint, (key, pattern), at_key=True)


def _bounds_faults(declared: Mapping[str, Sequence[float]], specs: Mapping[str, ParameterSpec]) -> Iterator[Fault]:
    for pattern, (lo, hi) in declared.items():
        path = ("bounds", pattern)
        if not lo < hi:
            yield Fault(f"the bounds [{lo:g}, {hi:g}] are empty", "write the lower one first", path)
        for name in (name for name in specs if fnmatchcase(name, pattern)):
            allowed = specs[name].constraint
            if allowed is not None and (lo < allowed.lo or hi > allowed.hi):
                fix = f"stay within {allowed.declaration()}, or name the tensors that are meant"
                yield Fault(f"the energy doesn't allow {name} the bounds [{lo:g}, {hi:g}]", fix, path)


def _dispersion_faults(declared: Mapping[str, float], specs: Mapping[str, ParameterSpec]) -> Iterator[Fault]:
    for pattern in declared:
        for name in (name for name in specs if fnmatchcase(name, pattern)):
            allowed = specs[name].constraint
            if allowed is not None and allowed.sign:
                message = f"dispersion would carry {name} out of {allowed.declaration()}"
                fix = "use mismatch, which keeps signs, or name the tensors that are meant"
                yield Fault(message, fix, ("dispersion", pattern))


def _readout_faults(hardware: HardwareSchema, graph: EnergyGraph) -> Iterator[Fault]:
    box = hardware.readout_range
    if box is not None and hardware.readout_bits is None:
        yield Fault("readout_range says where levels lie, and there are none", "add readout_bits", ("readout_range",))
    for name in dict.fromkeys(cost.node for cost in graph.costs if box is not None):
        if graph.node(name).domain.period:
            fix = "remove it: the levels of angles go round the circle"
            yield Fault(f"the states of '{name}' are angles, which have no range", fix, ("readout_range",))
    if box is not None and not box[0] < box[1]:
        yield Fault(f"the range [{box[0]:g}, {box[1]:g}] is empty", "write the lower end first", ("readout_range",))
    if hardware.readout_bits is None or box is not None:
        return
    for name in dict.fromkeys(cost.node for cost in graph.costs):
        domain = graph.node(name).domain
        if not domain.bounded and not domain.period:
            message = f"the states of '{name}' have no bounds between which to put the levels"
            yield Fault(message, "add readout_range: [lo, hi]", ("readout_bits",))
