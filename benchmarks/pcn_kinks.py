"""How well the nudged equilibrium of a predictive network with max-pooling is defined: its minima lie on kinks.

    python benchmarks/pcn_kinks.py [pcn-conv-centered ...]

Trains the case as `run.py` does, relaxes its nudged phases in float64 by gradient steps of layers in turn, at small
rates and in two orders, and by rounds in errors, and prints the worst tensor's cosine between each two of the
gradients; then that of the float32 gradient after some rounds to each of them. What two references differ by, no
gradient can be asked to agree to.
"""

from __future__ import annotations

import argparse
import itertools
from dataclasses import replace

import torch
from cases import CASES, Case
from judging import equilibrium_reference, judge
from run import trained

from physnet import Relaxation, gradients


def in_turn(order: str, rate: float, sweeps: int) -> Relaxation:
    """Gradient steps of one layer after the other."""
    options = {"order": order, "rule": "gradient", "rate": rate}
    return Relaxation("layer_sweeps", options=options, tolerance=1e-9, max_sweeps=sweeps)


REFERENCES = {
    "errors": Relaxation(tolerance=1e-9, max_sweeps=60),
    "forward, rate .2": in_turn("forward", 0.2, 100),
    "forward, rate .1": in_turn("forward", 0.1, 150),
    "backward, rate .1": in_turn("backward", 0.1, 150),
}


def show(case: Case) -> None:
    """Print the cosines of a case."""
    step, batch, _ = trained(case)
    model = step.model
    found = {
        name: equilibrium_reference(model, case.beta, batch, Relaxation(), nudged, protocol=case.protocol)
        for name, nudged in REFERENCES.items()
    }
    print(f"{case.name}: residual left, and worst cosine to " + ", ".join(found))
    for name, reference in found.items():
        cosines = [judge(reference.gradients, other.gradients).worst for other in found.values()]
        print(f"  {name}: {max(reference.residual):.2g}; " + ", ".join(f"{value:.4f}" for value in cosines))
    for rounds in (1, 2, 3, 6):
        few = replace(case, nudged=Relaxation(tolerance=1e-6, max_sweeps=rounds))
        gradient = gradients(few.engine(model), **batch)
        cosines = [judge(gradient, other.gradients).worst for other in found.values()]
        print(f"  {rounds} rounds, float32: " + ", ".join(f"{value:.4f}" for value in cosines), flush=True)
    pairs = itertools.combinations(found.values(), 2)
    print(f"  least of two references: {min(judge(a.gradients, b.gradients).worst for a, b in pairs):.4f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [case.name for case in CASES if case.name.startswith("pcn-")]
    parser.add_argument("cases", nargs="*", default=[name for name in names if "conv" in name], help=", ".join(names))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in arguments.cases:
        show(next(case for case in CASES if case.name == name))


if __name__ == "__main__":
    main()
