"""The benchmark meets the figures that the project promises."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
@pytest.mark.parametrize("case", ["hopfield-784-1024-10", "resistive-784-1024-10"])
def test_a_step_costs_at_most_four_backprop_steps_at_a_right_gradient(case: str, tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    subprocess.run([sys.executable, str(ROOT / "benchmarks/run.py"), "--out", str(out), "--case", case], check=True)
    (result,) = json.loads(out.read_text())
    assert result["name"] == case
    assert result["ratio_to_backprop"] <= 4
    assert result["worst_cosine"] >= 0.999
