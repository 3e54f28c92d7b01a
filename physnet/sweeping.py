"""Sweeps: the grid of all values times the seeds, each network compiled once, the runs side by side.

A run is known by the digest of everything that it depends on. Its folder appears under its final name when it is
finished, so that a sweep that is started again does only what is missing. Planning imports no torch.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import math
import multiprocessing
import os
import re
import shutil
import statistics
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from physnet.declaration import Experiment, load_experiment
from physnet.errors import DataError, DeclarationError, PhysnetError
from physnet.sources import parse_source

if TYPE_CHECKING:
    from physnet.model import EnergyModel

Row = dict[str, Any]
_NO_METRICS = ("epoch", "rate", "top")


@dataclass(frozen=True)
class Run:
    """One training of a sweep.

    Arguments:
        values: its value of every key that has several.
        seed: its seed.
        experiment: with the values put in.
        folder: where it is once it is finished.
    """

    values: Row
    seed: int
    experiment: Experiment
    folder: Path

    @property
    def finished(self) -> bool:
        return self.folder.is_dir()

    @property
    def title(self) -> str:
        return ", ".join([*(f"{key} = {_written(value)}" for key, value in self.values.items()), f"seed {self.seed}"])


_CALL = re.compile(r"""(?<!["'])\b[A-Za-z]\w*\([^()"]*\)(?!["'])""")


def parse_values(key: str, text: str, option: str = "--set") -> list[Any]:
    """The values of `KEY=VALUE,VALUE,…`: the text between the brackets of a YAML list.

    So commas inside brackets, braces, quotes and calls belong to a value: `[64],[128]` are two lists, `[1, 2]` is one,
    and so is `sparse('ring', 6)`.

    Raises:
        DeclarationError: if there is no value, or one twice, or it isn't YAML.
    """
    quoted = _CALL.sub(lambda call: json.dumps(call[0]), text)
    values = parse_source(f"[{quoted}]", f"{option} {key}").data
    if not isinstance(values, list) or not values:
        raise DeclarationError(f"{option} {key}={text}: no values", "separate them by commas, such as .01,.1")
    if len(set(map(_written, values))) < len(values):
        raise DeclarationError(f"{option} {key}={text}: a value stands there twice", "give each once")
    return values


def plan(file: str | Path, swept: Mapping[str, Sequence[Any]], seeds: int, folder: str | Path) -> list[Run]:
    """All runs of a sweep; every declaration is checked before the first one starts.

    Arguments:
        file: the experiment.
        swept: values by dotted key; a key with one value is changed, not swept.
        seeds: how many seeds each setting gets, counted from the file's `train.seed`.
        folder: where runs are kept.

    Raises:
        DeclarationError: if a value can't be put in.
    """
    if "train.seed" in swept:
        raise DeclarationError("train.seed can't be swept beside --seeds", "use --seeds; it counts from train.seed")
    runs: list[Run] = []
    for combination in itertools.product(*swept.values()):
        chosen = dict(zip(swept, combination, strict=True))
        values = {key: value for key, value in chosen.items() if len(swept[key]) > 1}
        changes = {"train.threads": "1"} | {key: _written(value) for key, value in chosen.items()}
        first = load_experiment(file, changes).train.seed
        for seed in range(first, first + seeds):
            experiment = load_experiment(file, changes | {"train.seed": str(seed)})
            runs.append(Run(values, seed, experiment, Path(folder) / _folder_name(values, seed, experiment)))
    return runs


def _written(value: Any) -> str:
    """A value as YAML on one line."""
    return json.dumps(value)


def _folder_name(values: Row, seed: int, experiment: Experiment) -> str:
    everything = {key: value for key, value in experiment.resolved().items() if key != "name"}
    digest = hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()
    short = "-".join(f"{key.split('.')[-1]}={_written(value)}" for key, value in values.items())
    return f"{re.sub(r'[^A-Za-z0-9._=+-]+', '_', short)[:80] or 'run'}-seed{seed}-{digest[:12]}"


# --------------------------------------------------------------------------- running


_MODELS: dict[str, EnergyModel] = {}
"""The compiled networks of the sweep that this process works on, by digest of the graph."""


def execute(runs: Sequence[Run], jobs: int, report: Callable[[Run, str | None], None]) -> None:
    """Train what isn't finished yet.

    Arguments:
        runs: from `plan`.
        jobs: number of processes, each with one thread of torch; 1 trains in this one.
        report: called after each run, with what went wrong or `None`.

    Raises:
        DataError: if the folder can't be written.
    """
    from physnet.model import compile_energy

    left = [run for run in runs if not run.finished]
    for run in left[:1]:
        try:
            run.folder.parent.mkdir(parents=True, exist_ok=True)
        except OSError as problem:
            raise DataError(f"{run.folder.parent}: {problem.strerror}; choose another with --out") from None
    graphs = {run.experiment.graph.digest: run.experiment.graph for run in left}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        models = {digest: compile_energy(graph) for digest, graph in graphs.items()}
    if jobs == 1 or len(left) <= 1:
        _MODELS.update(models)
        for run in left:
            report(run, _attempt(run))
        _MODELS.clear()
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(jobs, len(left)), context, _start_worker, (models,)) as pool:
        futures = {pool.submit(_attempt, run): run for run in left}
        try:
            for future in as_completed(futures):
                report(futures[future], _outcome(future))
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _outcome(future: Any) -> str | None:
    try:
        return future.result()
    except BrokenProcessPool:
        return "a worker process died, perhaps for want of memory; run the sweep again, with fewer --jobs"


def _start_worker(models: dict[str, EnergyModel]) -> None:
    import torch

    torch.set_num_threads(1)
    _MODELS.update(models)


def _attempt(run: Run) -> str | None:
    """Train one run into its folder; what went wrong, or `None`."""
    from physnet.training import Trainer

    unfinished = run.folder.with_name(f"{run.folder.name}.part")
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        compiled = copy.deepcopy(_MODELS[run.experiment.graph.digest])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for _ in Trainer(run.experiment, unfinished, compiled).epochs():
                pass
        os.replace(unfinished, run.folder)
    except PhysnetError as error:
        return str(error)
    except Exception as error:  # whatever it is, the other runs go on
        return f"{type(error).__name__}: {error}"
    return None


# --------------------------------------------------------------------------- tables


def rows(runs: Sequence[Run]) -> list[Row]:
    """One row for every epoch of every finished run: swept values, seed, folder and metrics."""
    return [
        {**run.values, "seed": run.seed, "run": run.folder.name, **metrics}
        for run in runs
        if run.finished
        for metrics in _metrics(run)
    ]


def _metrics(run: Run) -> Iterator[Row]:
    file = run.folder / "metrics.jsonl"
    try:
        yield from map(json.loads, file.read_text().splitlines())
    except (OSError, ValueError):
        raise DataError(f"{file} can't be read; remove {run.folder} and run the sweep again") from None


def summary(runs: Sequence[Run]) -> list[Row]:
    """One row for every setting: how many seeds are finished, and mean and standard deviation of their last epochs.

    The deviation is that of the sample (n - 1), and absent for one seed.
    """
    settings: dict[str, list[Run]] = {}
    for run in runs:
        settings.setdefault(_written(run.values), []).append(run)
    result: list[Row] = []
    for group in settings.values():
        last = [list(_metrics(run))[-1] for run in group if run.finished]
        row: Row = {**group[0].values, "seeds": len(last)}
        for name in (name for name in (last[0] if last else ()) if name not in _NO_METRICS):
            values = [metrics[name] for metrics in last if isinstance(metrics.get(name), int | float)]
            row[f"{name}_mean"] = statistics.fmean(values) if values else None
            row[f"{name}_std"] = statistics.stdev(values) if len(values) > 1 else None
        result.append(row)
    return result


def cell(value: Any) -> Any:
    """A value as it stands in a CSV file or a table: lists and mappings as text, nothing for nothing."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return value if isinstance(value, str | int | float) else _written(value)
