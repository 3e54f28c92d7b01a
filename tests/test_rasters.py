"""Recorded messages: the numbers obey the equations of encoder and decoder, and commands write and draw them."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from physnet.cli import app
from physnet.errors import CaveatWarning, DeclarationError
from physnet.graph import EnergyGraph
from physnet.learning import EquilibriumPropagation
from physnet.listening import listening
from physnet.model import compile_energy
from physnet.rasters import Raster, raster_picture
from physnet.relaxation import Relaxation, relax
from physnet.training import load_run

SPIKING = """
name: spiking
energy: hopfield
nodes:
  image: {shape: 64, role: input}
  hidden: {shape: 12}
  label: {shape: 10, role: output, domain: [0, 1]}
edges:
  - image -> hidden: dense
  - hidden -> label: dense
cost: (x - y)**2/2
relax:
  integrator: sigma_delta
  options: {steps: [12, 6]}
learn: {protocol: centered, beta: 0.5}
train: {data: digits, epochs: 1, batch: 50, optimizer: {sgd: {lr: 0.1}}}
"""


def test_a_recording_obeys_encoder_and_decoder(float64: None, tmp_path: Path) -> None:
    graph = EnergyGraph("hopfield").input("image", 6).state("hidden", 8)
    graph.output("label", 3, cost="(x - y)**2/2", domain=[0, 1])
    model, raster = compile_energy(graph.couple("image", "hidden").couple("hidden", "label")), Raster(sample=1)
    relaxation, x = Relaxation("sigma_delta", options={"steps": [30, 10]}), torch.rand(3, 6)
    with listening(raster):
        nudged = relax(model, relaxation, image=x, target=torch.tensor([0, 1, 2]), beta=0.5)
    assert nudged.sweeps.tolist() == [10] * 3
    rows = list(raster.rows())
    assert len(rows) == 40 * (6 + 8 + 3)
    assert [row["step"] for row in rows if row["phase"] == "nudged" and row["unit"] == 0][:10] == list(range(31, 41))
    for node, units in (("image", 6), ("hidden", 8), ("label", 3)):
        for unit in range(units):
            last = phi = r = 0.0
            for row in (row for row in rows if (row["node"], row["unit"]) == (node, unit)):
                smooth = 0.832 / row["step"] ** 0.584
                phi += (row["state"] - (1 - smooth) * last) / smooth - row["spike"]
                r = (1 - smooth) * r + smooth * row["spike"]
                last = row["state"]
                assert row["spike"] in (0, 1)
                assert row["membrane"] == pytest.approx(phi, abs=1e-9)
                assert row["decoded"] == pytest.approx(r, abs=1e-12)
    assert [row["state"] for row in rows if row["node"] == "image" and row["step"] == 9] == pytest.approx(x[1].tolist())
    assert raster_picture(raster, tmp_path / "raster.png").stat().st_size > 10_000


def test_a_picture_has_the_units_at_their_numbers_and_says_what_it_leaves_out(
    float64: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = EnergyGraph("hopfield").input("image", 6).state("h0", 240)
    for number in range(4):
        graph.state(f"h{number + 1}", 3, domain=[-1, 1]).couple(f"h{number}", f"h{number + 1}")
    model, raster = compile_energy(graph.couple("image", "h0")), Raster(units=50)
    with listening(raster):
        relax(model, Relaxation("sigma_delta", options={"steps": 12}), image=torch.rand(2, 6))
    from matplotlib import pyplot

    figures: list[Any] = []
    monkeypatch.setattr(pyplot, "close", figures.append)
    raster_picture(raster, tmp_path / "raster.png")
    assert "4 of 6 channels" in figures[0].get_suptitle()
    axis = next(axis for axis in figures[0].axes if axis.get_title().startswith("h0"))
    shown = {round(float(y)) for _, y in axis.collections[0].get_offsets()}
    spoken = torch.stack(raster.tracks["h0: x"].spikes).any(0).nonzero().flatten()
    assert shown == {int(unit) for unit in raster.tracks["h0: x"].units[spoken]} and max(shown) > 200


def test_there_is_no_picture_of_silence_and_no_sample_beyond_the_batch(tmp_path: Path) -> None:
    with pytest.raises(DeclarationError, match="nobody has said anything"):
        raster_picture(Raster(), tmp_path / "raster.png")
    model = compile_energy(EnergyGraph("hopfield").input("image", 6).state("h", 3).couple("image", "h"))
    with listening(Raster(sample=2)), pytest.raises(DeclarationError, match="no sample 2 in a batch of 2"):
        relax(model, Relaxation("sigma_delta"), image=torch.rand(2, 6))


def test_what_inputs_that_are_told_exactly_cost_counts_too(tmp_path: Path) -> None:
    """64 x 12 products of the image, once; a step of the label and of the hidden units adds to 10 or 12 units."""
    file, runner = tmp_path / "exact.yaml", CliRunner()
    file.write_text(SPIKING.replace("steps: [12, 6]", "steps: [12, 6], quantiser: {image: identity}"))
    assert runner.invoke(app, ["train", str(file), "--out", str(tmp_path / "run")]).exit_code == 0
    output = runner.invoke(app, ["evaluate", str(tmp_path / "run")]).output
    assert "and 768 multiply-accumulates for inputs that are told exactly" in output
    operations = int(re.findall(r"all\s*│\s*\d+\s*│\s*│\s*[0-9,]+\s*│\s*([0-9,]+)", output)[0].replace(",", ""))
    total, ratio = re.findall(r"inference: [0-9.]+ sweeps, ([0-9,]+) .* take ([0-9.]+) times", output)[0]
    assert float(ratio) == pytest.approx((operations + 768) / int(total.replace(",", "")), abs=0.006)


def test_commands_show_messages_of_networks_that_have_any(tmp_path: Path) -> None:
    file, runner = tmp_path / "spiking.yaml", CliRunner()
    file.write_text(SPIKING)

    def shown(*arguments: Any) -> str:
        result = runner.invoke(app, [str(item) for item in arguments])
        assert result.exit_code == 0, result.output
        return result.output

    output = shown("simulate", file, "--samples", 2, "--nudged", "--out", tmp_path / "simulated")
    assert "synaptic operations" in output
    with (tmp_path / "simulated" / "raster.csv").open() as table:
        rows = list(csv.DictReader(table))
    assert len(rows) == 18 * (64 + 12 + 10)
    assert (tmp_path / "simulated" / "raster.png").exists()
    shown("train", file, "--out", tmp_path / "run")
    output = shown("evaluate", tmp_path / "run")
    assert "rate network: 768 multiply-accumulates for inputs, 240 in a sweep" in output
    run = load_run(tmp_path / "run")
    rates, pictures = EquilibriumPropagation(run.model, 0.5, "centered", seed=0), run.test.first(100)
    rates(**pictures)
    assert rates.last is not None and rates.last.nudged is not None
    free, nudged = (float(phase.sweeps.double().mean()) for phase in (rates.last.free, rates.last.nudged))
    for name, wanted in (("inference", free), ("training step", free + 2 * nudged)):
        sweeps, total = re.findall(rf"{name}: ([0-9.]+) sweeps, ([0-9,]+) multiply-accumulates", output)[0]
        assert float(sweeps) == pytest.approx(wanted, abs=0.051)
        assert int(total.replace(",", "")) == pytest.approx(768 + 240 * wanted, abs=1)
    other = ["--set", "relax.integrator=auto", "--set", "relax.options={}"]
    assert "synaptic" not in shown("simulate", file, *other, "--samples", 2, "--out", tmp_path / "rates")
    assert not (tmp_path / "rates" / "raster.csv").exists()


def test_check_warns_of_winners_among_spikes(tmp_path: Path) -> None:
    file = tmp_path / "pooled.yaml"
    image = SPIKING.replace("image: {shape: 64,", "image: {shape: [1, 8, 8],").replace("shape: 12", "shape: [2, 3, 3]")
    file.write_text(image.replace("image -> hidden: dense", 'image -> hidden: "conv2d(3) >> max_pool2d(2)"'))
    with pytest.warns(CaveatWarning, match="are those of spikes"):
        result = CliRunner().invoke(app, ["check", str(file), "--samples", "2"])
    assert result.exit_code == 0, result.output
