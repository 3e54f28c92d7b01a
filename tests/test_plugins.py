"""Plug-ins: what `outside.py` and `outside_integrator.py` define joins without a change to physnet.

Gradients are judged by the implicit gradient, the connection by a matrix product, the domain by the circle itself.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from outside import FIVE_POINT, Arc, Circulant, Taper, rings
from outside_integrator import Jacobi

from physnet.chains import parse_connection
from physnet.checking import check_gradients
from physnet.connections import CONNECTIONS
from physnet.data import DATA
from physnet.declaration import graph_from_yaml, graph_to_yaml, load_experiment, parse_experiment
from physnet.domains import CIRCLE, NAMED, parse_domain
from physnet.energy import CATALOGUES, catalogue, load_energy
from physnet.errors import DeclarationError
from physnet.explaining import explain
from physnet.integration import INTEGRATORS, choose
from physnet.model import compile_energy
from physnet.protocols import PROTOCOLS
from physnet.registry import Registry
from physnet.relaxation import Relaxation, relax
from physnet.training import Trainer

ROOT = Path(__file__).parent.parent

NET = """
energy: xy
nodes:
  image: {shape: SIZE, role: input}
  hidden: {shape: SIZE, domain: "arc(-1.0, 2)", parameters: {h: {init: "normal(1, 0.2)"}}}
  label: {shape: CLASSES, role: output, parameters: {h: {init: "normal(1, 0.2)"}}}
edges:
  - image -> hidden: {via: circulant(shift=1), gain: 0.4}
  - hidden -> label: {via: dense, gain: 0.4}
cost: (cos(x) - y)**2/2
relax: {integrator: jacobi, options: {damping: 0.6}}
learn: {protocol: five_point, beta: 0.05}
train: {data: digits, epochs: 1, batch: 64, optimizer: {adam: {lr: 0.01}}, threads: 1}
"""
DIGITS = """
energy: hopfield
nodes:
  image: {shape: 64, role: input}
  hidden: {shape: 64, domain: "taper(2.0, 0.5)"}
  label: {shape: 10, role: output, domain: real}
edges:
  - image -> hidden: {via: circulant(shift=1), gain: 1.0}
  - hidden -> label
cost: (x - y)**2/2
relax: {integrator: jacobi, options: {damping: 0.6}}
learn: {protocol: five_point, beta: 0.05}
train: {data: digits, epochs: 2, batch: 32, optimizer: {adam: {lr: 0.01}}, rates: {image_hidden.w: 0.0003}, threads: 1}
"""


@pytest.fixture
def joined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CONNECTIONS, "circulant", Circulant)
    monkeypatch.setitem(NAMED, "arc", Arc)
    monkeypatch.setitem(NAMED, "taper", Taper)
    monkeypatch.setitem(INTEGRATORS, "jacobi", Jacobi)
    monkeypatch.setitem(PROTOCOLS, "five_point", FIVE_POINT)
    monkeypatch.setitem(DATA, "rings", rings)


# --------------------------------------------------------------------------- the borders


@pytest.mark.slow
@pytest.mark.usefixtures("joined")
def test_digits_are_learned_with_everything_from_outside() -> None:
    trainer = Trainer(parse_experiment(DIGITS))
    first, last = trainer.epochs()
    assert trainer.engine.last is not None
    assert trainer.engine.last.free.integrator == "jacobi"
    assert len(trainer.engine.last.betas) == 4
    assert last.unconverged == 0
    assert last.test_cost < first.train_cost
    assert last.test_error is not None
    assert last.test_error < 60  # guessing: 90
    states = trainer.engine.last.free["hidden"]
    assert states.min() >= 0
    assert (states <= torch.linspace(2.0, 0.5, 64)).all()
    assert (states[:, -1] == 0.5).any() or (states == torch.linspace(2.0, 0.5, 64)).any()  # ceilings were met


@pytest.mark.usefixtures("joined", "float64")
def test_the_gradients_are_the_implicit_ones_to_fourth_order() -> None:
    graph = graph_from_yaml(NET.replace("SIZE", "6").replace("CLASSES", "3"))
    image = torch.rand(4, 6, generator=torch.Generator().manual_seed(1))
    batch = {"image": image, "target": torch.arange(4) % 3}
    tight = Relaxation("jacobi", tolerance=1e-12, max_sweeps=5000)
    for row in check_gradients(compile_energy(graph, 1), batch, 0.02, ["five_point"], tight):
        assert row.cosine > 1 - 1e-8, row
        assert 13 < row.fall < 19, row  # 2**4 to leading order


@pytest.mark.usefixtures("joined")
def test_the_integrator_ends_where_the_others_do() -> None:
    model = compile_energy(graph_from_yaml(NET.replace("SIZE", "6").replace("CLASSES", "3")), 1).double()
    image = torch.rand(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    ends = [relax(model, Relaxation(name, max_sweeps=5000), image=image) for name in ("jacobi", "blocks")]
    for node in ("hidden", "label"):
        assert CIRCLE.difference(ends[0][node], ends[1][node]).abs().max() < 1e-8
    assert choose(model.problem(image=image))[0].name == "blocks"


@pytest.mark.usefixtures("joined")
def test_a_declaration_with_plugins_reads_back() -> None:
    graph = graph_from_yaml(NET.replace("SIZE", "6").replace("CLASSES", "3"))
    assert graph_from_yaml(graph_to_yaml(graph_from_yaml(DIGITS))) == graph_from_yaml(DIGITS)
    assert "circulant(shift=1)" in graph_to_yaml(graph)
    assert "arc(lo=-1.0, hi=2)" in graph_to_yaml(graph)
    assert graph_from_yaml(graph_to_yaml(graph)) == graph
    assert parse_domain("arc(-1, hi=2.0)") == Arc(-1, 2.0)
    assert parse_connection("circulant") == Circulant()
    text = explain(compile_energy(graph), FIVE_POINT, 0.1).text
    assert "arc(lo=-1.0, hi=2)" in text


@pytest.mark.usefixtures("joined")
@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("arc(-1.0, 2)", "arc(2, 1)", "empty or a whole turn"),
        ("arc(-1.0, 2)", "arc(2)", "missing a required argument"),
        ("arc(-1.0, 2)", "arc(a, b)", "not a domain"),
        ("arc(-1.0, 2)", "arc('a', 'b')", "arc: unsupported operand"),
        ("arc(-1.0, 2)", "ark(1, 2)", "unknown domain 'ark'"),
        ("circulant(shift=1)", "circulant(step=1)", "unexpected keyword argument 'step'"),
        ("circulant(shift=1)", "circulat", "unknown connection 'circulat'"),
        ("SIZE, role", "12, role", "two rings of one size"),
        ("five_point", "six_point", "unknown protocol 'six_point'"),
    ],
)
def test_faults_are_those_of_built_in_things(old: str, new: str, message: str) -> None:
    assert old in NET
    text = NET.replace(old, new, 1).replace("SIZE", "8").replace("CLASSES", "3")
    with pytest.raises(DeclarationError, match=message) as caught:
        parse_experiment(text, "net.yaml")
    assert all(fault.place and fault.place.line for fault in caught.value.faults)
    assert all(fault.fix for fault in caught.value.faults)


def test_the_ring_is_a_circulant_matrix() -> None:
    link = Circulant(2).bind((5,), (5,))
    generator = torch.Generator().manual_seed(0)
    u, v = torch.rand(2, 3, 5, dtype=torch.float64, generator=generator)
    w = torch.rand(5, dtype=torch.float64, generator=generator)
    matrix = torch.tensor([[float(w[(i - j - 2) % 5]) for j in range(5)] for i in range(5)], dtype=torch.float64)
    assert torch.allclose(link.apply(u, w), u @ matrix.T)
    assert torch.allclose(link.adjoint(v, w), v @ matrix)
    assert torch.allclose((link.correlate(u, v, w) * w).sum(), (v * (u @ matrix.T)).sum())


def test_an_arc_is_a_part_of_the_circle() -> None:
    arc = Arc(2.0, 4.0)  # across the seam at pi
    x = torch.linspace(-20, 20, 4001, dtype=torch.float64)[None]
    found = arc.project(x)
    grid = torch.linspace(2, 4, 2001, dtype=torch.float64)
    nearest = CIRCLE.difference(x[..., None], grid).abs().min(-1).values
    assert torch.allclose(CIRCLE.difference(x, found).abs(), nearest, atol=1e-3)
    assert torch.equal(arc.project(found), found)


# --------------------------------------------------------------------------- the registry


def test_a_taken_name_is_refused_and_both_are_named() -> None:
    with pytest.raises(DeclarationError, match=r"connection 'dense' of the module outside .* that of physnet"):
        CONNECTIONS["dense"] = Circulant
    with pytest.raises(DeclarationError, match=r"can't be the connection 'ring'"):
        CONNECTIONS["ring"] = Arc  # pyright: ignore[reportArgumentType]
    with pytest.raises(DeclarationError, match="whose name is 'other'"):
        PROTOCOLS["other"] = FIVE_POINT
    assert "ring" not in CONNECTIONS


def test_the_same_definition_may_come_again() -> None:
    registry: Registry[type] = Registry("thing", "physnet.none")
    for _ in range(2):  # a cell of a notebook that is run twice

        @registry.register("ring")
        class Ring:
            pass

        assert registry["ring"] is Ring
    assert registry.name_of(Ring) == "ring"
    del registry["ring"]
    assert list(registry) == []
    with pytest.raises(KeyError):
        registry["ring"]


def test_a_folder_of_energies_joins_the_catalogue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "spring.yaml").write_text("title: A spring\nnode: k*x**2/2\nparameters: {k: {on: node, init: ones}}\n")
    monkeypatch.setitem(CATALOGUES, "mine", tmp_path)
    assert catalogue()["spring"] == tmp_path / "spring.yaml"
    assert load_energy("spring").title == "A spring"
    (tmp_path / "twice.yaml").write_text("node: x**2/2\n")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "twice.yaml").write_text("node: x**2\n")
    monkeypatch.setitem(CATALOGUES, "other", tmp_path / "other")
    with pytest.raises(DeclarationError, match=r"'twice' is provided by .*twice\.yaml and by .*other/twice\.yaml"):
        load_energy("twice")


def test_an_energy_of_a_file_is_found_beside_the_declaration(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "spring.yaml").write_text(
        "node: k*x**2/2\ncoupling: -w*pre*post\nparameters: {k: {on: node, init: ones}, w: {on: edge}}\n"
    )
    text = "energy: own/spring.yaml\nnodes: {a: {shape: 2, role: input}, b: {shape: 2}}\nedges: [a -> b]\n"
    (tmp_path / "net.yaml").write_text(text)
    graph = load_experiment(tmp_path / "net.yaml").graph
    assert set(graph.tensors()) == {"a_b.w", "b.k"}
    assert graph_from_yaml(graph_to_yaml(graph)) == graph  # the energy itself is written, not where it came from
    (tmp_path / "own" / "spring.yaml").write_text("node: k*x**2/2\n")
    with pytest.raises(DeclarationError, match=r"spring\.yaml:1:7: undeclared symbol 'k'"):
        load_experiment(tmp_path / "net.yaml")


# --------------------------------------------------------------------------- distributions

ENTRY_POINTS = """
[physnet.connections]
circulant = outside:Circulant
{connections}

[physnet.domains]
arc = outside:Arc

[physnet.integrators]
jacobi = outside_integrator:Jacobi
{integrators}

[physnet.protocols]
five_point = outside:FIVE_POINT

[physnet.data]
rings = outside:rings

[physnet.energies]
springs = springs
"""
RINGS = NET.replace("SIZE", "8").replace("CLASSES", "2").replace("data: digits", "data: {rings: {samples: 96}}")


def install(folder: Path, name: str = "physnet-rings", **more: str) -> None:
    """What pip leaves behind: metadata, and a package of energies."""
    info = folder / f"{name.replace('-', '_')}-1.2.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
    lines = {"connections": "", "integrators": "", **more}
    (info / "entry_points.txt").write_text(ENTRY_POINTS.format(**lines))
    (folder / "springs").mkdir(exist_ok=True)
    (folder / "springs" / "spring.yaml").write_text("title: Springs to a point\nnode: x**2/2\n")


def physnet(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(map(str, (ROOT, Path(__file__).parent, folder)))
    return subprocess.run(
        [sys.executable, "-m", "physnet.cli", *arguments],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, "COLUMNS": "200"},
    )


@pytest.mark.slow
def test_an_installed_plugin_is_listed_explained_and_trained(tmp_path: Path) -> None:
    install(tmp_path)
    listed = physnet("list", folder=tmp_path)
    assert listed.returncode == 0, listed.stderr
    for name in ("circulant", "arc", "jacobi", "five_point", "rings", "spring"):
        assert f" {name} " in listed.stdout
    assert " ".join(listed.stdout.split()).count("from the distribution physnet-rings 1.2") == 5
    (tmp_path / "net.yaml").write_text(RINGS)
    explained = physnet("explain", "net.yaml", folder=tmp_path)
    assert explained.returncode == 0, explained.stderr
    assert "arc(lo=-1.0, hi=2)" in explained.stdout
    trained = physnet("train", "net.yaml", "--out", "run", folder=tmp_path)
    assert trained.returncode == 0, trained.stderr
    evaluated = physnet("evaluate", "run", folder=tmp_path)
    assert "test cost" in evaluated.stdout, evaluated.stderr


@pytest.mark.slow
def test_a_broken_plugin_harms_nobody_else(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("raise RuntimeError('out of order')\n")
    install(tmp_path, connections="torn = broken:Torn\nabsent = nowhere:Gone", integrators="lost = broken:Lost")
    (tmp_path / "net.yaml").write_text(RINGS.replace("integrator: jacobi, options: {damping: 0.6}", "max_sweeps: 999"))
    explained = physnet("explain", "net.yaml", folder=tmp_path)
    assert explained.returncode == 0, explained.stderr
    assert explained.stderr == ""  # nobody asked for it
    listed = physnet("list", folder=tmp_path)
    assert listed.returncode == 0
    assert "circulant" in listed.stdout
    assert "physnet-rings 1.2 can't be loaded: RuntimeError: out of order" in listed.stderr
    for name, reason in (("torn", "RuntimeError: out of order"), ("absent", "No module named 'nowhere'")):
        (tmp_path / "net.yaml").write_text(RINGS.replace("circulant(shift=1)", name))
        asked = physnet("explain", "net.yaml", folder=tmp_path)
        assert asked.returncode == 2
        assert f"the connection '{name}' of the distribution physnet-rings 1.2 can't be loaded" in asked.stderr
        assert reason in asked.stderr
        assert "Traceback" not in asked.stderr


def test_a_plugin_that_takes_a_name_is_an_error_that_names_both(tmp_path: Path) -> None:
    install(tmp_path, connections="dense = outside:Circulant", integrators="blocks = outside_integrator:Jacobi")
    (tmp_path / "net.yaml").write_text(RINGS)
    asked = physnet("explain", "net.yaml", folder=tmp_path)
    assert asked.returncode == 2
    assert "'dense' is provided by physnet and by the distribution physnet-rings 1.2" in asked.stderr
    install(tmp_path, "physnet-others")
    asked = physnet("explain", "net.yaml", folder=tmp_path)
    assert "physnet-others 1.2 and by the distribution physnet-rings 1.2" in asked.stderr


def test_reading_a_declaration_with_plugins_needs_no_torch(tmp_path: Path) -> None:
    install(tmp_path)
    (tmp_path / "net.yaml").write_text(RINGS)
    script = (
        "import sys; from physnet import load_experiment; load_experiment('net.yaml'); print('torch' in sys.modules)"
    )
    path = os.pathsep.join(map(str, (ROOT, Path(__file__).parent, tmp_path)))
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.stdout.strip() == "False", done.stderr
