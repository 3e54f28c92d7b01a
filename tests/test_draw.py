"""Pictures of graphs: they are well-formed, complete and placed in the order of the signal; and notebooks show them."""

from __future__ import annotations

import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import pytest
from networks import catalogue_model

from physnet.drawing import draw, layers, svg
from physnet.errors import DataError, DeclarationError
from physnet.graph import EnergyGraph
from physnet.notebook import WRITTEN

ROOT = Path(__file__).parent.parent


def deep(depth: int) -> EnergyGraph:
    """A chain with a skip edge over all of it and an edge back."""
    graph = EnergyGraph("hopfield", "deep & <narrow> $x$").input("image", [3, 8, 8])
    for number in range(depth):
        graph.state(f"h{number}", 4, tau=1 + number).couple(f"h{number - 1}" if number else "image", f"h{number}")
    graph.output("label", 2, cost="(x - y)**2/2").couple(f"h{depth - 1}", "label").couple("image", "label")
    return graph.couple(f"h{depth - 1}", "h0", "identity" if depth > 1 else "dense", name="back")


def texts(path: Path) -> list[str]:
    return ["".join(item.itertext()) for item in ET.parse(path).iter() if item.tag.endswith("}text")]


@pytest.mark.parametrize("depth", [1, 3, 12])
def test_the_svg_is_xml_and_names_everything(tmp_path: Path, depth: int) -> None:
    graph = deep(depth)
    draw(graph, tmp_path / "graph.svg")
    written = texts(tmp_path / "graph.svg")
    for name in [*(node.name for node in graph.nodes()), *(edge.name for edge in graph.edges()), graph.name]:
        assert name in written
    assert "identity" in written or depth == 1
    for word in ("dense", "[0, 1]", "3×8×8", "w", "input", "state", "output"):
        assert word in written
    assert "τ = 2" in written or depth == 1
    assert any(line.startswith("cost") and "y = target" in line for line in written)
    groups = {item.get("id") for item in ET.parse(tmp_path / "graph.svg").iter()}
    assert {"node image", "node label", "edge back", "edge image_label"} <= groups


def test_png_and_pdf_have_their_signatures(tmp_path: Path) -> None:
    for suffix, signature in ((".png", b"\x89PNG\r\n\x1a\n"), (".pdf", b"%PDF"), (".PNG", b"\x89PNG")):
        draw(catalogue_model("xy"), tmp_path / f"graph{suffix}")
        assert (tmp_path / f"graph{suffix}").read_bytes().startswith(signature)


def test_the_same_graph_gives_the_same_file() -> None:
    assert svg(deep(3)) == svg(deep(3))


def test_an_unknown_suffix_and_a_place_that_cannot_be_written_are_clear_errors(tmp_path: Path) -> None:
    with pytest.raises(DeclarationError, match=r"\.svg, \.png, \.pdf"):
        draw(deep(1), tmp_path / "graph.bmp")
    with pytest.raises(DataError, match=r"graph\.svg: can't be written .*--out"):
        draw(deep(1), tmp_path / "absent" / "graph.svg")


def test_layers_follow_the_longest_way_and_edges_back_are_left_out() -> None:
    """A diamond with a skip edge: the layer is one more than that of the deepest node before it."""
    graph = EnergyGraph("hopfield").input("u", 2)
    for name in "abcd":
        graph.state(name, 2)
    for pre, post in (("u", "a"), ("a", "b"), ("a", "c"), ("b", "c"), ("c", "d"), ("u", "d"), ("d", "a"), ("c", "b")):
        graph.couple(pre, post)
    assert layers(graph) == {"u": 0, "a": 1, "b": 2, "c": 3, "d": 4}
    backwards = EnergyGraph("hopfield").state("a", 2).input("u", 2).couple("a", "u")
    assert layers(backwards) == {"a": 1, "u": 0}


def test_nodes_of_a_layer_do_not_overlap(tmp_path: Path) -> None:
    graph = EnergyGraph("xy").input("u", 2)
    for number in range(5):
        graph.state(f"s{number}", 2).couple("u", f"s{number}")
    graph.couple("s0", "s1").couple("s3", "s2")
    boxes = [patch.get_window_extent() for patch in draw(graph).axes[0].patches if "node" in (patch.get_gid() or "")]
    assert len(boxes) == 6
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_graphs_that_are_empty_huge_or_coupled_to_themselves_are_drawn(tmp_path: Path) -> None:
    draw(EnergyGraph("xy"), tmp_path / "empty.svg")
    ET.parse(tmp_path / "empty.svg")
    draw(EnergyGraph("xy").state("a", 2).couple("a", "a", name="loop"), tmp_path / "loop.svg")
    assert "loop" in texts(tmp_path / "loop.svg")
    draw(deep(150), tmp_path / "huge.png")
    assert (tmp_path / "huge.png").read_bytes().startswith(b"\x89PNG")


# --------------------------------------------------------------------------- notebooks


class Balance(HTMLParser):
    """Fails on tags that don't match."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize("name", ["hopfield", "xy"])
def test_a_model_shows_its_picture_and_its_equations(name: str) -> None:
    model = catalogue_model(name)
    shown, written = model._repr_html_(), model._repr_markdown_()
    balance = Balance()
    balance.feed(shown)
    assert balance.open == []
    assert "<svg" in shown and shown.count("$$") == written.count("$$") == 2 * WRITTEN
    for node in ("hidden", "deep", "label"):
        assert f"node {node}" in shown and f"node {node}" in written
    displays = re.findall(r"\$\$\n(.*?)\n\$\$", written, re.DOTALL)
    for display in displays:
        assert display.count("{") == display.count("}")
        assert display.startswith(r"\begin{aligned}") and display.endswith(r"\end{aligned}")
    assert sum(r"\frac{\partial F}{\partial x}" in display for display in displays) == 3


def test_a_graph_shows_what_is_declared_with_its_name_escaped() -> None:
    graph = deep(2)
    shown = graph._repr_html_()
    balance = Balance()
    balance.feed(shown)
    assert balance.open == []
    assert "<narrow>" not in shown and "&lt;narrow&gt;" in shown
    displays = re.findall(r"\$\$\n(.*?)\n\$\$", shown, re.DOTALL)
    assert displays[-1] == r"C = \sum_i \left[ \frac{\left(x - y\right)^{2}}{2} \right]"
    assert [title for title in re.findall("<p>(.*)</p>", shown) if title.startswith("cost")] == ["cost of label"]
    assert re.search("<p>coupling by (\\w+, ){3}\\w+ and 1 more</p>", shown)
    assert displays[0] == r"E = \sum_i \left[ - b x + \frac{x^{2}}{2} \right]"


def test_big_graphs_stay_short() -> None:
    assert len(deep(13)._repr_html_()) < 150_000
    short = deep(60)._repr_html_()
    assert "<svg" not in short and "62 nodes" in short
    assert len(short) < 10_000


def test_the_command_writes_the_picture_and_names_it(tmp_path: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "physnet.cli", "draw", *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)

    picture = tmp_path / "a.svg"
    drawn = run("examples/digits_hopfield.yaml", "--out", str(picture), "--set", "nodes.hidden.shape=77")
    assert drawn.returncode == 0, drawn.stderr
    assert str(picture) in drawn.stdout.replace("\n", "")
    assert "77" in texts(picture)
    refused = run("examples/digits_hopfield.yaml", "--out", str(tmp_path / "a.docx"))
    assert refused.returncode == 2 and "Traceback" not in refused.stderr
