"""The folder of a run: everything that is needed to repeat it, to go on with it, and to use its result.

`experiment.yaml` (everything resolved), `run.json` (versions, seed, digest, results), `metrics.jsonl`,
`parameters.safetensors` (after the last whole epoch), `best.safetensors` (after the epoch that did best on held-out
samples) and `checkpoint.safetensors` (the moment from which `--resume` goes on).
"""

from __future__ import annotations

import hashlib
import json
import platform
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

import physnet
from physnet.checkpoints import write_atomically
from physnet.declaration import Experiment
from physnet.errors import DataError, DeclarationError
from physnet.methods import METHODS
from physnet.metrics import Metrics
from physnet.model import EnergyModel
from physnet.sources import dump_yaml
from physnet.validation import results

CHANGEABLE = ("epochs", "checkpoint", "tensorboard", "device", "threads", "workers")
"""Keys of `train` that may differ when a run is resumed: all others would make it another run."""


def identity(experiment: Experiment) -> dict[str, Any]:
    """What makes a run the run that it is: the declaration without its name and what may change on the way."""
    declared = experiment.resolved()
    train = {key: value for key, value in declared["train"].items() if key not in CHANGEABLE}
    content = {key: value for key, value in declared.items() if key != "name"} | {"train": train}
    return json.loads(json.dumps(content))


def digest(content: Mapping[str, Any]) -> str:
    """SHA-256 of plain data."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def differences(old: Any, new: Any, path: str = "") -> Iterator[str]:
    """Where two declarations differ, such as "train.batch was 32, is 64"."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys([*old, *new]):
            yield from differences(old.get(key), new.get(key), f"{path}.{key}" if path else key)
    elif old != new:
        yield f"{path} was {json.dumps(old)}, is {json.dumps(new)}"


class RunFolder:
    """The files of one run, each written so that it is whole at any time.

    Arguments:
        path: of the folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.experiment = self.path / "experiment.yaml"
        self.header = self.path / "run.json"
        self.metrics = self.path / "metrics.jsonl"
        self.parameters = self.path / "parameters.safetensors"
        self.best = self.path / "best.safetensors"
        self.checkpoint = self.path / "checkpoint.safetensors"

    @property
    def used(self) -> bool:
        """Whether a run has begun here."""
        return self.header.exists() or self.metrics.exists()

    def begin(self, experiment: Experiment, facts: Mapping[str, Any], *, resumed: bool) -> None:
        """Write what the run is, or that it was resumed.

        Arguments:
            facts: about this machine and model, by name.

        Raises:
            DataError: if the folder can't be created or written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as problem:
            raise DataError(f"{self.path}: can't be created ({problem.strerror}); choose another with --out") from None
        header = self._header(experiment, facts)
        if resumed:
            first = _read_json(self.header)
            header = first | {"resumed": [*first.get("resumed", []), header]}
        write_atomically(self.experiment, dump_yaml(experiment.resolved()).encode())
        write_atomically(self.header, (json.dumps(header, indent=2) + "\n").encode())

    @staticmethod
    def _header(experiment: Experiment, facts: Mapping[str, Any]) -> dict[str, Any]:
        packages = ("torch", "sympy", "networkx", "numpy", "accelerate", "torchdiffeq")
        return {
            "physnet": 1,
            "declared_in": Path(experiment.source.name).name,
            "digest": experiment.graph.digest,
            "seed": experiment.train.seed,
            "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
            "versions": {
                "physnet": physnet.__version__,
                "python": platform.python_version(),
                **{name: version(name) for name in packages},
            },
            **facts,
        }

    def write_metrics(self, history: list[Metrics]) -> None:
        """One line for every epoch; what the run comes to stands in its header."""
        header = _read_json(self.header) | {"results": results(history)}
        write_atomically(self.header, (json.dumps(header, indent=2) + "\n").encode())
        lines = (json.dumps(asdict(metrics)) + "\n" for metrics in history)
        write_atomically(self.metrics, "".join(lines).encode())

    def write_parameters(self, parameters: Mapping[str, Tensor], best: bool = False) -> None:
        """The trained parameters by name; those of the best epoch stay when later ones are written."""
        tensors = {name: value.detach().cpu().contiguous() for name, value in parameters.items()}
        for path in [self.parameters, *([self.best] if best else [])]:
            write_atomically(path, save(tensors))


def read_parameters(model: EnergyModel, file: Path) -> str:
    """Give a model the trained parameters of a file, within their bounds; their SHA-256.

    Raises:
        DataError: if the file is damaged, or has other tensors than the model.
    """
    try:
        content = file.read_bytes()
        found = load(content)
    except (OSError, SafetensorError) as problem:
        raise DataError(f"{file} can't be read as parameters: {problem}") from None
    there, here = _shapes(found), _shapes(model.state_dict())
    differ = [
        f"'{name}' is {there.get(name, 'missing')} there, {here.get(name, 'unknown')} here"
        for name in sorted(here.keys() | there.keys())
        if there.get(name) != here.get(name)
    ]
    if differ:
        more = f", and {len(differ) - 3} more" if len(differ) > 3 else ""
        raise DataError(f"{file} doesn't hold the parameters of this network: {'; '.join(differ[:3])}{more}")
    model.load_state_dict(found)
    model.project_parameters()  # other hardware may have other bounds
    return hashlib.sha256(content).hexdigest()


def read_declared_parameters(model: EnergyModel, experiment: Experiment) -> str | None:
    """Give a model the parameters that its experiment begins with, if it names any; their SHA-256.

    Raises:
        DeclarationError: if there are none, or others.
    """
    given, fix = experiment.parameters, "give a finished run of a network that has the same tensors"
    if given is None:
        return None
    file = given if given.is_file() else RunFolder(given).parameters
    if not file.is_file():
        raise experiment.fault(f"{given} is not a finished run", fix, "train", "parameters")
    try:
        return read_parameters(model, file)
    except DataError as problem:
        raise experiment.fault(str(problem), fix, "train", "parameters") from None


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    return {name: str(list(value.shape)) for name, value in tensors.items()}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}  # provenance only: a run goes on without it


def new_folder(experiment: Experiment, root: str | Path = "runs") -> Path:
    """A fresh folder name for a run: name, digest, method and seed, and a number if it was run before."""
    method = f"-{experiment.learn.protocol}" if experiment.learn.protocol in METHODS else ""
    stem = f"{experiment.graph.name or 'run'}-{experiment.graph.digest[:8]}{method}-seed{experiment.train.seed}"
    candidates = (Path(root) / (stem if number == 1 else f"{stem}-{number}") for number in range(1, 10**6))
    return next(path for path in candidates if not path.exists())


def check_run(folder: RunFolder) -> None:
    """Refuse what isn't the folder of a run.

    Raises:
        DeclarationError: naming the folder and the fix.
    """
    if not folder.experiment.is_file() or not folder.used:
        raise DeclarationError(f"{folder.path} is not a run", "give the folder that physnet train printed")
