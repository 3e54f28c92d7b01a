"""What the README shows runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

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
    from physnet.protocols import PROTOCOLS
    from physnet.relaxation import integrators

    for name in [*catalogue(), *PROTOCOLS, *integrators()]:
        assert f"`{name}`" in README


def test_the_declaration_reference_is_valid() -> None:
    """The commented example of the reference is read, compiled, and knows every key of the schema."""
    from physnet.model import compile_energy
    from physnet.schema import ExperimentSchema, NodeSchema, RelaxSchema, TrainSchema

    text = (ROOT / "docs" / "declaration.md").read_text()
    whole, energy, costs, ties = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    experiment = parse_experiment(whole.replace("data: digits ", "data: {npz: {file: absent.npz}} "))
    compile_energy(experiment.graph)
    for schema in (ExperimentSchema, NodeSchema, RelaxSchema, TrainSchema):
        for key in set(schema.model_fields) - {"costs", "term", "energy", "options"}:
            assert f"{key}:" in whole, key
    parse_experiment(energy + "nodes: {a: {shape: 2, role: input}, b: {shape: 2}}\nedges: [a -> b]\n")
    nodes = "energy: hopfield\nnodes: {%s: {shape: 3, role: input}, %s: {shape: 3}, %s: {shape: 3}, %s: {shape: 3}}\n"
    edges = "edges: [image -> hidden, hidden -> deep, deep -> label]\n"
    compile_energy(parse_experiment(nodes % ("image", "hidden", "deep", "label") + edges + costs).graph)
    assert parse_experiment(nodes.replace(", %s: {shape: 3}}", "}") % ("a", "b", "c") + ties).graph.ties()
