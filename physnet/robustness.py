"""How well a network works on imperfect hardware: accuracy against one property of the device, over several chips."""

from __future__ import annotations

import copy
import json
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from physnet.declaration import load_experiment
from physnet.errors import DeclarationError, did_you_mean
from physnet.hardware import noise_of
from physnet.metrics import Means, measure
from physnet.mounting import mount
from physnet.runs import RunFolder
from physnet.samples import Held
from physnet.schema import HardwareSchema
from physnet.sweeping import cell, parse_values
from physnet.training import Trainer, load_run

DRAWN = ("mismatch", "dispersion")
"""Properties that differ from chip to chip; noise does too."""


@dataclass(frozen=True)
class Trial:
    """The test of a network on one chip.

    Arguments:
        value: of the property that is swept; `None` for perfect hardware.
        chip: its number.
        cost: mean test cost.
        accuracy: in per cent; `None` where targets are not classes.
    """

    value: Any
    chip: int
    cost: float
    accuracy: float | None

    @property
    def score(self) -> float:
        """The accuracy, or the cost where there is none."""
        return self.cost if self.accuracy is None else self.accuracy


class Robustness:
    """A sweep over one property of the hardware.

    Arguments:
        source: the folder of a run, or the file of an experiment, whose network is then untrained.
        asked: KEY=VALUE,VALUE,...; a key of `hardware`.
        chips: how many specimens, counted from the declared one, where they differ.
        changes: to the experiment, by dotted key.
        samples: how many test samples; all by default.

    Raises:
        DeclarationError: for keys and values that `hardware` doesn't have, and networks without test samples.
    """

    def __init__(
        self,
        source: Path,
        asked: str,
        chips: int = 5,
        changes: Mapping[str, str] | None = None,
        samples: int | None = None,
    ) -> None:
        key, _, text = asked.partition("=")
        known = [name for name in HardwareSchema.model_fields if name != "chip"]
        if key.split(".")[0] not in known:
            raise DeclarationError(f"--sweep {asked}: hardware has no '{key}' to sweep", did_you_mean(key, known))
        self.key, self.values = key, parse_values(key, text, "--sweep")
        file = RunFolder(source).experiment if source.is_dir() else source
        declared = [load_experiment(file, {**(changes or {}), f"hardware.{key}": json.dumps(v)}) for v in self.values]
        self.devices = [experiment.hardware for experiment in declared]
        self.chips, self.name = chips, declared[0].graph.name or source.stem
        perfect = {**(changes or {}), "hardware": "{}"}
        perfect = {name: value for name, value in perfect.items() if not name.startswith("hardware.")}
        if not source.is_dir() and all(node.free for node in declared[0].graph.nodes()):
            raise DeclarationError(f"{source}: the network has no input to test it with", "leave out --sweep")
        self.trainer = load_run(source, changes=perfect) if source.is_dir() else Trainer(load_experiment(file, perfect))
        self.test = self.trainer.test if samples is None else Held(self.trainer.test.first(samples))

    @property
    def count(self) -> int:
        """How many tests there are."""
        return 1 + sum(len(self._chips(device)) for device in self.devices)

    def _chips(self, device: HardwareSchema) -> range:
        random = noise_of(device) is not None or any(getattr(device, key) for key in DRAWN)
        return range(device.chip, device.chip + (self.chips if random else 1))

    def run(self, report: Callable[[], None] = lambda: None) -> list[Trial]:
        """Test on perfect hardware, and on every chip of every value.

        Arguments:
            report: called after each test.
        """
        trials: list[Trial] = []
        stored = copy.deepcopy(self.trainer.engine.model.state_dict())
        for value, device, chip in self._tests():
            engine = copy.copy(self.trainer.engine)
            engine.model.load_state_dict(stored)  # bounds of the last one may have moved some
            mount(engine, device, chip)
            trials.append(_trial(value, chip, measure(engine, self.test)))
            report()
        return trials

    def _tests(self) -> Iterator[tuple[Any, HardwareSchema, int]]:
        yield None, HardwareSchema(), 0
        for value, device in zip(self.values, self.devices, strict=True):
            for chip in self._chips(device):
                yield value, device, chip


def _trial(value: Any, chip: int, found: Means) -> Trial:
    return Trial(value, chip, found.cost, None if found.error is None else 100 - found.error)


def rows(key: str, trials: Sequence[Trial]) -> list[dict[str, Any]]:
    """One row for every test, as it stands in a CSV file."""
    return [
        {key: "perfect" if t.value is None else cell(t.value), "chip": t.chip, "cost": t.cost, "accuracy": t.accuracy}
        for t in trials
    ]


def grouped(trials: Sequence[Trial]) -> dict[Any, list[Trial]]:
    """The tests of every value, in their order; values as they are written."""
    result: dict[Any, list[Trial]] = {}
    for trial in trials:
        result.setdefault(None if trial.value is None else cell(trial.value), []).append(trial)
    return result


def spread(values: Sequence[float]) -> float | None:
    """The standard deviation of a sample (n - 1); `None` for one value."""
    return statistics.stdev(values) if len(values) > 1 else None
