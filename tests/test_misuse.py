"""Slips in Python code are answered with what was meant, in a process without the type checks of the other tests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent

SCRIPT = """
import torch
from physnet import *
graph = EnergyGraph("hopfield").input("image", 4).output("label", 2, cost="(x - y)**2/2").couple("image", "label")
model = compile_energy(graph)
image, target = torch.rand(3, 4), torch.zeros(3, dtype=torch.long)
SLIPS = {
    "explain(graph)": "takes a compiled energy, not an EnergyGraph",
    "explain(None)": "takes a compiled energy, not a NoneType",
    "explain(model, 'centred')": "unknown protocol 'centred'",
    "explain(model, integrator='block')": "unknown integrator 'block'",
    "EquilibriumPropagation(graph)": "takes a compiled energy, not an EnergyGraph",
    "EquilibriumPropagation(model, 'centered')": "beta is 'centered', it must be a number",
    "EquilibriumPropagation(model, 0)": "beta is 0, it must be positive",
    "EquilibriumPropagation(model, float('nan'))": "beta is nan, it must be positive",
    "relax(graph, image=image)": "takes a compiled energy, not an EnergyGraph",
    "relax(model, image)": "by the names of their nodes",
    "relax(model, picture=image)": "there is no input node 'picture'",
    "relax(model, image=image[:, :3])": "the input 'image' has shape [3, 3]",
    "relax(model, 'block', image=image)": "unknown integrator 'block'",
    "check_gradients(graph, {})": "takes a compiled energy, not an EnergyGraph",
    "compile_energy('hopfield')": "takes an EnergyGraph",
    "compile_energy(model)": "takes an EnergyGraph",
    "EnergyGraph('hopfeld')": "did you mean hopfield?",
    "EnergyGraph().input('a', -3)": "not made of positive whole numbers",
    "graph.couple('image', 'label', 'dens', name='other')": "unknown connection 'dens'",
    "Energy(node='x**2 + oops')": "undeclared symbol 'oops'",
}
for code, expected in SLIPS.items():
    try:
        eval(code)
    except PhysnetError as error:
        if expected not in str(error):
            print(f"{code}: {error}")
    except Exception as error:
        print(f"{code}: {type(error).__name__}: {error}")
    else:
        print(f"{code}: nothing was raised")
"""


def test_slips_are_answered_with_what_was_meant() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
