"""What the README shows runs as it stands."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from physnet.cli import app
from physnet.declaration import parse_experiment
from physnet.training import Trainer

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def block(language: str) -> str:
    found = re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)
    assert len(found) == 1
    return found[0]


def test_the_yaml_example_is_short_and_trains() -> None:
    text = block("yaml")
    assert len(text.splitlines()) <= 15
    metrics = next(Trainer(parse_experiment(text)).epochs())
    assert metrics.test_error is not None
    assert metrics.test_error < 30


def test_the_python_example_is_short_and_runs(capsys: pytest.CaptureFixture[str]) -> None:
    text = block("python")
    assert len([line for line in text.splitlines() if line]) <= 16
    exec(compile(text, "README.md", "exec"), {})
    assert "tensor" in capsys.readouterr().out


def test_the_table_names_every_energy_of_the_catalogue() -> None:
    from physnet.energy import catalogue
    from physnet.integration import integrators
    from physnet.protocols import PROTOCOLS

    for name in [*catalogue(), *PROTOCOLS, *integrators()]:
        assert f"`{name}`" in README


def test_the_declaration_reference_is_valid() -> None:
    """The commented example of the reference is read, compiled, and knows every key of the schema."""
    from physnet.model import compile_energy
    from physnet.schema import ExperimentSchema, NodeSchema, RelaxSchema, TrainSchema

    text = (ROOT / "docs" / "declaration.md").read_text()
    whole, energy, oscillators, links, chains, costs, hardware, ties, augment = re.findall(
        r"```yaml\n(.*?)```", text, re.DOTALL
    )
    experiment = parse_experiment(whole.replace("data: digits ", "data: {npz: {file: absent.npz}} "))
    compile_energy(experiment.graph)
    for schema in (ExperimentSchema, NodeSchema, RelaxSchema, TrainSchema):
        for key in set(schema.model_fields) - {"costs", "term", "energy", "options"}:
            assert f"{key}:" in whole, key
    parse_experiment(energy + "nodes: {a: {shape: 2, role: input}, b: {shape: 2}}\nedges: [a -> b]\n")
    parse_experiment(oscillators)
    nodes = "energy: hopfield\nnodes: {%s: {shape: 3, role: input}, %s: {shape: 3}, %s: {shape: 3}, %s: {shape: 3}}\n"
    edges = "edges: [image -> hidden, hidden -> deep, deep -> label]\n"
    compile_energy(
        parse_experiment("energy: xy\nnodes: {image: {shape: 64, role: input}, hidden: {shape: 256}}\n" + links).graph
    )
    compile_energy(parse_experiment(nodes % ("image", "hidden", "deep", "label") + edges + costs).graph)
    assert parse_experiment(
        nodes % ("image", "hidden", "deep", "label") + edges + hardware.replace("array.omega", "hidden.b")
    ).hardware
    compile_energy(parse_experiment(f"energy: hopfield\n{chains}").graph)
    images = parse_experiment(
        "energy: hopfield\nnodes: {image: {shape: [3, 32, 32], role: input}, a: {shape: 2}}\nedges: [image -> a]\n"
        + augment
    )
    assert len(images.train.augment) == 3
    assert parse_experiment(nodes.replace(", %s: {shape: 3}}", "}") % ("a", "b", "c") + ties).graph.ties()


def test_what_contributing_shows_runs_as_one_script(tmp_path: Path) -> None:
    """In a process of its own, since it registers things; the entry points it shows are groups that are read."""
    import subprocess
    import sys

    from physnet.augmentations import AUGMENTATIONS
    from physnet.connections import CONNECTIONS
    from physnet.data import DATA
    from physnet.domains import NAMED
    from physnet.energy import CATALOGUES
    from physnet.integration import INTEGRATORS
    from physnet.methods import METHODS
    from physnet.protocols import PROTOCOLS
    from physnet.quantisers import QUANTISERS
    from physnet.schedules import ANNEALINGS

    text = (ROOT / "CONTRIBUTING.md").read_text()
    (energy,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    (tmp_path / "energies").mkdir()
    (tmp_path / "energies" / "spring.yaml").write_text(energy)
    script = "\n\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    registries = (
        *(CONNECTIONS, NAMED, INTEGRATORS, PROTOCOLS, METHODS, CATALOGUES, DATA, AUGMENTATIONS),
        *(QUANTISERS, ANNEALINGS),
    )
    groups = {registry.group for registry in registries}
    assert set(re.findall(r'entry-points\."(.*?)"', text)) == groups


def test_the_table_of_commands_is_that_of_the_program() -> None:
    commands = get_command(app).commands
    shown = dict(re.findall(r"^\| `physnet (\w+)(.*?)`", README, re.MULTILINE))
    assert set(shown) == set(commands)
    for name, usage in shown.items():
        options = {option for parameter in commands[name].params for option in parameter.opts}
        assert set(re.findall(r"--[a-z]+", usage)) <= options, name


@pytest.mark.parametrize(
    ("line", "smaller", "files"),
    [
        (0, [], ["network.svg"]),
        (1, ["--samples", "2"], ["runs/transients/simulation.png", "runs/transients/simulation.csv"]),
        (
            2,
            ["--seeds", "1", "--jobs", "1", "--set", "train.epochs=1", "--set", "nodes.hidden.shape=8"],
            ["runs/betas/sweep.png", "runs/betas/summary.csv", "runs/betas/runs.csv"],
        ),
        (
            3,
            ["--samples", "1", "--duration", "3", "--set", "simulate.times=7"],
            ["runs/array/simulation.png", "runs/array/oscillators.csv", "runs/array/phases.gif"],
        ),
    ],
)
def test_the_commands_for_seeing_run(
    line: int, smaller: list[str], files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = block("console").splitlines()[line].split()
    assert arguments[0] == "physnet"
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, [*arguments[1:], *smaller], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    for file in files:
        assert (tmp_path / file).stat().st_size > 200
        assert file.rpartition("/")[2] in README
