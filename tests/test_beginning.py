"""Runs that begin with the parameters of others."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from physnet.cli import app
from physnet.declaration import parse_experiment
from physnet.errors import DeclarationError
from physnet.training import Trainer, load_run, resume_run

TEXT = """\
name: begun
energy: hopfield
nodes:
  image: {shape: 64, role: input}
  hidden: {shape: 8}
  label: {shape: 10, role: output, domain: [0, 1]}
edges: [image -> hidden, hidden -> label]
cost: (x - y)**2/2
RELAX
learn: {protocol: centered, beta: 0.2}
train: {data: digits, epochs: 1, batch: 300, optimizer: {sgd: {lr: 0.1}}, device: cpu, threads: 1, MORE}
"""
SPIKES = "relax: {integrator: sigma_delta, options: {steps: [12, 8]}}"


def declared(more: str = "seed: 3", relax: str = "", hidden: int = 8) -> str:
    text = TEXT.replace("MORE", more).replace("RELAX\n", relax and f"{relax}\n")
    return text.replace("{shape: 8}", f"{{shape: {hidden}}}")


def trainer(text: str, folder: Path, to: str | None = None) -> Trainer:
    return Trainer(parse_experiment(text, str(folder / "here.yaml")), None if to is None else folder / to)


@pytest.fixture(scope="module")
def rates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run in rates."""
    folder = tmp_path_factory.mktemp("begun")
    list(trainer(declared(), folder, "rates").epochs())
    return folder


def parameters(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "parameters.safetensors")


@pytest.mark.parametrize("given", ["rates", "rates/parameters.safetensors"])
def test_spikes_begin_with_what_rates_have_learnt(rates: Path, given: str) -> None:
    """A path is relative to the file."""
    found = trainer(declared(f"seed: 4, parameters: {given}", SPIKES), rates)
    for name, value in parameters(rates / "rates").items():
        assert torch.equal(found.model.state_dict()[name], value)


def test_a_run_says_what_it_began_with_and_needs_it_no_more(rates: Path, tmp_path: Path) -> None:
    shutil.copytree(rates / "rates", tmp_path / "rates")
    sha = hashlib.sha256((tmp_path / "rates" / "parameters.safetensors").read_bytes()).hexdigest()
    text = declared("seed: 4, parameters: rates", SPIKES)
    whole = trainer(text, tmp_path, "whole")
    list(whole.epochs())
    assert json.loads((tmp_path / "whole" / "run.json").read_text())["begun_with"] == sha
    stopped = trainer(text, tmp_path, "stopped")
    list(stopped.epochs(lambda *_: stopped.stop()))
    shutil.rmtree(tmp_path / "rates")
    list(resume_run(tmp_path / "stopped").epochs())
    for name, value in parameters(tmp_path / "whole").items():
        assert torch.equal(parameters(tmp_path / "stopped")[name], value)
        assert torch.equal(load_run(tmp_path / "whole").model.state_dict()[name], value)
    with pytest.raises(DeclarationError, match=r"here.yaml:\d+(?s:.*)is not a finished run"):
        trainer(text, tmp_path)


def test_what_does_not_fit_is_named(rates: Path, tmp_path: Path) -> None:
    given = f"parameters: {rates / 'rates'}"
    message = r"'hidden.b' is \[8\] there, \[9\] here; 'hidden_label.w' is \[10, 8\] there, \[10, 9\] here"
    with pytest.raises(DeclarationError, match=f"(?s)here.yaml:.*{message}.*same tensors"):
        trainer(declared(given, hidden=9), tmp_path)
    few = {name: value for name, value in parameters(rates / "rates").items() if name != "label.b"}
    save_file({**few, "other.b": torch.zeros(2)}, tmp_path / "few.safetensors")
    message = r"'label.b' is missing there, \[10\] here; 'other.b' is \[2\] there, unknown here"
    with pytest.raises(DeclarationError, match=message):
        trainer(declared("parameters: few.safetensors"), tmp_path)
    (tmp_path / "few.safetensors").write_bytes(b"no tensors")
    with pytest.raises(DeclarationError, match=r"few.safetensors can't be read as parameters"):
        trainer(declared("parameters: few.safetensors"), tmp_path)


def test_the_command_line_takes_a_run_from_where_it_is_called(
    rates: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(rates)
    file = tmp_path / "spikes.yaml"
    file.write_text(declared("seed: 4", SPIKES))
    result = CliRunner().invoke(app, ["train", str(file), "--from", "rates", "--out", str(tmp_path / "run")])
    assert result.exit_code == 0, result.output
    direct = trainer(declared("seed: 4, parameters: rates", SPIKES), rates, "direct")
    list(direct.epochs())
    for name, value in parameters(rates / "direct").items():
        assert torch.equal(parameters(tmp_path / "run")[name], value)
    both = CliRunner().invoke(app, ["train", "--resume", str(tmp_path / "run"), "--from", "rates"])
    assert isinstance(both.exception, DeclarationError) and "leave out --from" in str(both.exception)


def test_a_network_without_inputs_is_simulated_as_it_has_learnt(tmp_path: Path) -> None:
    """Two units in [0, 1] with x^2/2 - b x come to rest at b."""
    file = tmp_path / "free.yaml"
    file.write_text("energy: hopfield\nnodes: {unit: {shape: 2}}\ntrain: {parameters: known.safetensors}\n")
    save_file({"unit.b": torch.tensor([0.25, 0.75])}, tmp_path / "known.safetensors")
    result = CliRunner().invoke(app, ["simulate", str(file), "--out", str(tmp_path / "simulated"), "--samples", "1"])
    assert result.exit_code == 0, result.output
    last = (tmp_path / "simulated" / "simulation.csv").read_text().splitlines()[-1].split(",")
    assert float(last[2]) == pytest.approx(-(0.25**2 + 0.75**2) / 2, abs=1e-6)
