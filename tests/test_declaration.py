"""Files into graphs and back, and what is said about files that are wrong."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from physnet.declaration import graph_from_yaml, graph_to_yaml, load_experiment, parse_experiment
from physnet.energy import Energy, catalogue
from physnet.errors import DeclarationError, ShapeError
from physnet.graph import EnergyGraph
from physnet.schema import json_schema

ROOT = Path(__file__).parent.parent
GOOD = """\
name: small
energy: hopfield
nodes:
  image: {shape: 4, role: input}
  hidden: {shape: 3}
  label: {shape: 2, role: output}
edges:
  - image -> hidden: {via: dense, gain: 0.7}
  - hidden -> label: dense
cost: (x - y)**2/2
learn: {protocol: centered, beta: 0.2}
"""


def faults(text: str) -> DeclarationError:
    with pytest.raises(DeclarationError) as caught:
        parse_experiment(text, "small.yaml")
    return caught.value


BROKEN = [
    # what to replace, by what, where the caret must stand (line, column), words of the message, words of the fix
    ("energy: hopfield", "energy: hopfeld", (2, 9), "no energy 'hopfeld'", "hopfield"),
    ("(x - y)**2/2", "(x - q)**2/2", (10, 12), "undeclared symbol 'q'", "y"),
    ("(x - y)**2/2", "(x - y))**2/2", (10, 14), "syntax", "brackets"),
    ("cost: (x - y)**2/2", "cost: 'sin(x) + coz(y)'", (10, 17), "unknown function 'coz'", "cos"),
    ("hidden -> label", "hiden -> label", (9, 5), "no node 'hiden'", "hidden"),
    ("gain: 0.7", "gian: 0.7", (8, 35), "unknown key 'gian'", "gain"),
    ("shape: 3", "shape: -3", (5, 19), "positive whole numbers", "64"),
    ("shape: 3", "shap: 3", (5, 12), "unknown key 'shap'", "shape"),
    ("beta: 0.2", "beta: -1", (11, 35), "greater than 0", ""),
    ("protocol: centered", "protocol: centred", (11, 19), "unknown protocol", "centered"),
    ("name: small", "nmae: small", (1, 1), "unknown key 'nmae'", "name"),
    ("{shape: 3}", "{shape: 3, domain: box}", (5, 30), "unknown domain 'box'", "[lo, hi]"),
    ("dense\n", "dens\n", (9, 22), "unknown connection 'dens'", "dense"),
    ("hidden -> label: dense", "hidden to label: dense", (9, 5), "is not an edge", "->"),
    ("  label:", "  hidden:", None, "hidden", "once"),
]


@pytest.mark.parametrize(("old", "new", "place", "message", "fix"), BROKEN)
def test_a_broken_file_is_answered_with_place_and_fix(
    old: str, new: str, place: tuple[int, int] | None, message: str, fix: str
) -> None:
    assert old in GOOD
    found = faults(GOOD.replace(old, new)).faults
    matching = [fault for fault in found if message in fault.message]
    assert matching, [str(fault) for fault in found]
    fault = matching[0]
    assert fix in fault.fix
    assert fault.place is not None
    assert fault.place.file == "small.yaml"
    if place is not None:
        assert (fault.place.line, fault.place.column) == place


def test_a_fault_in_the_energy_of_one_edge_has_its_place() -> None:
    found = faults(GOOD.replace("hidden -> label: dense", "hidden -> label: {energy: hopfeld}")).faults[0]
    assert found.place is not None
    assert (found.place.line, found.place.column) == (9, 31)


def test_all_faults_come_at_once() -> None:
    text = (
        GOOD.replace("shape: 3", "shape: 0").replace("(x - y)", "(x - q)").replace("hidden -> label", "hidden -> lable")
    )
    messages = [fault.message for fault in faults(text).faults]
    assert len(messages) == 3, messages


def test_shapes_that_do_not_meet_are_a_shape_error() -> None:
    with pytest.raises(ShapeError, match=r"\[4\].*\[3\]"):
        parse_experiment(GOOD.replace("{via: dense, gain: 0.7}", "identity"))


def test_a_node_that_no_input_reaches_is_refused() -> None:
    text = GOOD.replace("  label:", "  island: {shape: 2}\n  label:")
    assert "'island' isn't connected to any input" in str(faults(text))


def test_the_caret_stands_under_the_symbol() -> None:
    lines = str(faults(GOOD.replace("(x - y)**2/2", "(x - q)**2/2"))).splitlines()
    assert lines[1][lines[2].index("^")] == "q"


HOSTILE = {
    "import": GOOD.replace("(x - y)**2/2", "__import__('os').system('touch {marker}')"),
    "attribute": GOOD.replace("(x - y)**2/2", "x.__class__"),
    "lambda": GOOD.replace("(x - y)**2/2", "'(lambda: x)()'"),
    "tower": GOOD.replace("(x - y)**2/2", "9**9**9"),
    "brackets": GOOD.replace("(x - y)**2/2", "(" * 10_000 + "x" + ")" * 10_000),
    "yaml brackets": "nodes: " + "[" * 10_000 + "]" * 10_000,
    "tag": GOOD.replace("name: small", "name: !!python/object/apply:os.system ['touch {marker}']"),
    "aliases": "a: &a [1,1,1,1,1,1,1,1,1]\n"
    + "".join(
        f"{b}: &{b} [{','.join(f'*{a}' for _ in range(9))}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    ),
    "recursion": "nodes: &a [*a]",
    "nan": GOOD.replace("beta: 0.2", "beta: .nan"),
    "huge shape": GOOD.replace("shape: 3", "shape: 99999999999999999999"),
    "two nodes of one name": GOOD.replace("  label: {shape: 2, role: output}", "  hidden: {shape: 2}"),
    "not a mapping": "- 1\n- 2\n",
    "empty": "",
    "number keys": "1: 2\n",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_is_refused_at_once_and_runs_nothing(name: str, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    began = time.perf_counter()
    with pytest.raises(DeclarationError):
        parse_experiment(HOSTILE[name].replace("{marker}", str(marker)))
    assert time.perf_counter() - began < 2
    assert not marker.exists()


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "noise.yaml"
    path.write_bytes(bytes(range(256)) * 10)
    with pytest.raises(DeclarationError, match="text"):
        load_experiment(path)


def test_reading_and_checking_imports_no_torch() -> None:
    code = (
        "import sys; from physnet.declaration import load_experiment; "
        f"load_experiment({str(ROOT / 'examples' / 'digits_hopfield.yaml')!r}); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda path: path.stem)
def test_examples_survive_the_round_trip(path: Path) -> None:
    graph = load_experiment(path).graph
    again = graph_from_yaml(graph_to_yaml(graph))
    assert again == graph
    assert again.digest == graph.digest


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda path: path.stem)
def test_resolved_experiments_can_be_read_again(path: Path) -> None:
    from physnet.sources import dump_yaml

    experiment = load_experiment(path)
    again = parse_experiment(dump_yaml(experiment.resolved()))
    assert again.resolved() == experiment.resolved()


domains = st.sampled_from(
    ["real", "nonnegative", "nonpositive", "circle", [0, 6], [-1.5, 0.25], ["nonnegative", "nonpositive"]]
)
terms = st.sampled_from([None, "x**2/2 - b*x", "b*cos(x)", "softplus(x)*b + 0.1*x**4", "max(x, 0)**2 - exp(-x**2)*b"])
changes = st.sampled_from(
    [{}, {"w": {"gain": 0.3}}, {"w": {"init": "zeros"}}, {"w": {"frozen": True}}, {"w": {"constraint": [0, 1]}}]
)


@given(
    energy=st.sampled_from(sorted(catalogue())),
    sizes=st.lists(st.integers(1, 5), min_size=2, max_size=5),
    domain=domains,
    term=terms,
    change=changes,
    skips=st.booleans(),
    weight=st.floats(0.1, 3),
)
def test_random_graphs_survive_the_round_trip(
    energy: str, sizes: list[int], domain: object, term: str | None, change: dict, skips: bool, weight: float
) -> None:
    if domain == "circle":  # where energies are periodic
        energy, term = "oscillator-ising", term and "b*cos(x)"
    if energy == "predictive":  # whose edges need a drive in the energies that they lead to
        term = None
    graph = EnergyGraph(energy, "random").input("n0", sizes[0], encode=["x", "2*x - 1"])
    own = {} if term is None else {"term": term, "parameters": {"b": {"on": "node", "init": "normal(0, 0.1)"}}}
    for index, size in enumerate(sizes[1:], 1):
        graph.state(f"n{index}", [size + 1, 2], domain=domain, **own)
        change_here = change if "w" in graph.energy.parameters else {}
        graph.couple(f"n{index - 1}", f"n{index}", "dense", parameters=change_here)
        if skips and index > 1:
            graph.couple("n0", f"n{index}", name=f"skip{index}")
    graph.cost(f"n{len(sizes) - 1}", "(cos(x) - y)**2/3" if domain == "circle" else "(x - y)**2/3", weight=weight)
    again = graph_from_yaml(graph_to_yaml(graph))
    assert again == graph
    assert again.digest == graph.digest


def test_an_energy_from_sympy_equals_the_same_from_text() -> None:
    import sympy as sp

    x, b, pre, post, w = sp.symbols("x b pre post w")
    parameters = {"b": {"on": "node"}, "w": {"on": "edge"}}
    from_sympy = Energy(node=x**2 / 2 - b * x, coupling=-w * pre * sp.tanh(post), parameters=parameters)
    from_text = Energy(node="x**2/2 - b*x", coupling="-w*pre*tanh(post)", parameters=parameters)
    assert from_sympy == from_text


def test_the_digest_ignores_the_name_and_sees_the_energy() -> None:
    graph = parse_experiment(GOOD).graph
    assert parse_experiment(GOOD.replace("name: small", "name: other")).graph.digest == graph.digest
    assert parse_experiment(GOOD.replace("(x - y)**2/2", "(x - y)**2/3")).graph.digest != graph.digest


def test_changes_on_the_command_line_reach_the_experiment(tmp_path: Path) -> None:
    path = tmp_path / "small.yaml"
    path.write_text(GOOD)
    experiment = load_experiment(path, {"learn.beta": "0.05", "nodes.hidden.shape": "7"})
    assert experiment.learn.beta == 0.05
    assert experiment.graph.node("hidden").shape == (7,)


@pytest.mark.parametrize(
    ("key", "fix"),
    [
        ("seed", "did you mean train.seed?"),
        ("strength", "did you mean hardware.noise.strength?"),
        ("tolerance", "known: "),  # of the free phase, or of nudged ones
        ("shape", "known: "),  # of which node?
        ("nmae", "did you mean name?"),
    ],
)
def test_a_key_at_the_top_that_stands_in_one_section_is_found_there(tmp_path: Path, key: str, fix: str) -> None:
    path = tmp_path / "small.yaml"
    path.write_text(GOOD)
    for read in (lambda: load_experiment(path, {key: "3"}), lambda: parse_experiment(f"{GOOD}{key}: 3\n")):
        with pytest.raises(DeclarationError) as caught:
            read()
        (fault,) = caught.value.faults
        assert fault.message == f"unknown key '{key}'"
        assert fault.fix.startswith(fix)


def test_the_committed_schema_is_current() -> None:
    assert json.loads((ROOT / "docs" / "experiment.schema.json").read_text()) == json_schema()


@pytest.mark.parametrize("name", sorted(catalogue()))
def test_a_substrate_takes_at_most_fifteen_lines(name: str) -> None:
    assert len(catalogue()[name].read_text().splitlines()) <= 15


def test_a_resistive_experiment_takes_at_most_fifteen_lines() -> None:
    lines = (ROOT / "examples" / "digits_resistive.yaml").read_text().splitlines()
    assert len([line for line in lines if not line.startswith("#")]) <= 15


def test_options_go_with_the_integrator_they_belong_to(tmp_path: Path) -> None:
    path = tmp_path / "small.yaml"
    path.write_text(GOOD + "relax: {integrator: descent, options: {rate: 0.1}}\n")
    assert load_experiment(path, {"relax.integrator": "blocks"}).relax.options == {}
    assert load_experiment(path, {"relax.integrator": "descent"}).relax.options == {"rate": 0.1}
    assert load_experiment(path, {"relax.tolerance": "0.1"}).relax.options == {"rate": 0.1}
