"""Recorded messages: the numbers obey the equations of encoder and decoder, and commands write and draw them."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from physnet.cli import app
from physnet.graph import EnergyGraph
from physnet.listening import listening
from physnet.model import compile_energy
from physnet.rasters import Raster, raster_picture
from physnet.relaxation import Relaxation, relax

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
    assert (
        "training step" in output and "rate network: 768 multiply-accumulates for inputs and 240 in a sweep" in output
    )
    other = ["--set", "relax.integrator=auto", "--set", "relax.options={}"]
    assert "synaptic" not in shown("simulate", file, *other, "--samples", 2, "--out", tmp_path / "rates")
    assert not (tmp_path / "rates" / "raster.csv").exists()


def test_check_warns_of_winners_among_spikes(tmp_path: Path) -> None:
    file = tmp_path / "pooled.yaml"
    image = SPIKING.replace("image: {shape: 64,", "image: {shape: [1, 8, 8],").replace("shape: 12", "shape: [2, 3, 3]")
    file.write_text(image.replace("image -> hidden: dense", 'image -> hidden: "conv2d(3) >> max_pool2d(2)"'))
    result = CliRunner().invoke(app, ["check", str(file), "--samples", "2"])
    assert result.exit_code == 0, result.output
    assert "are those of spikes" in " ".join(result.output.split())
