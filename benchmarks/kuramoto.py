"""Synchronisation against theory, and how large an array may be:  python benchmarks/kuramoto.py

All-to-all Kuramoto oscillators whose natural frequencies are the quantiles of a Lorentzian of width gamma lock at the
coupling K_c = 2 gamma, and in the limit of many oscillators the order parameter is  r = sqrt(1 - K_c/K)  beyond it
(Y. Kuramoto, 1975). Writes docs/kuramoto.png. With --large, ten thousand oscillators on a random graph of degree ten:
time and memory of following them, and of relaxing them by exact updates.
"""

from __future__ import annotations

import argparse
import math
import resource
import time
from pathlib import Path

import torch

from physnet.graph import EnergyGraph
from physnet.model import EnergyModel, compile_energy
from physnet.phases import COLOURS
from physnet.relaxation import relax
from physnet.simulation import Simulation, simulate

GAMMA = 0.5
CRITICAL = 2 * GAMMA
COUPLINGS = (0.2, 0.4, 0.6, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0)
PICTURE = Path(__file__).parents[1] / "docs" / "kuramoto.png"


def all_to_all(units: int) -> EnergyModel:
    """A mean field: one coupling for all pairs, K over the number of oscillators."""
    omega = {"omega": {"init": "gamma*tan(pi*evenly(-1/2, 1/2))", "gamma": GAMMA}}
    graph = EnergyGraph("kuramoto").state("array", units, parameters=omega)
    graph.couple("array", "array", parameters={"w": {"shape": "scalar", "init": "1/(fan_in + 1)"}})
    return compile_energy(graph).double()


def order(model: EnergyModel, coupling: float, duration: float, seed: int = 0) -> float:
    """The order parameter, averaged over the last half of a simulation that starts from random phases."""
    units = model.graph.node("array").shape[0]
    with torch.no_grad():
        model.tensors["array_array.w"].fill_(coupling / units)
    settings = Simulation(duration, 201, initial="random", accuracy=1e-5)
    return float(simulate(model, settings, rows=1, seed=seed).order("array")[100:].mean())


def theory(coupling: float) -> float:
    return math.sqrt(max(0.0, 1 - CRITICAL / coupling))


def draw(found: dict[float, float], units: int, path: Path = PICTURE) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(6, 4), layout="constrained")
    fine = [CRITICAL * (1 + 0.01 * step) for step in range(301)]
    axis.plot([0, CRITICAL, *fine], [0, 0, *map(theory, fine)], color="#555555", label="theory, √(1 − K_c/K)")
    axis.plot(list(found), list(found.values()), "o", color=mpl.colormaps[COLOURS](0.25), label=f"{units} oscillators")
    axis.axhline(1 / math.sqrt(units), color="#bbbbbb", linestyle=":", label="1/√N")
    axis.set(xlabel="coupling K / (2γ)", ylabel="order parameter r", xlim=(0, 4.1), ylim=(0, 1))
    axis.set_title("All-to-all Kuramoto oscillators, Lorentzian frequencies")
    axis.legend(frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)


def large(units: int = 10_000, degree: int = 10) -> None:
    """Follow and relax a large sparse array."""
    began = time.perf_counter()
    graph = EnergyGraph("kuramoto").state("array", units)
    pattern = f"sparse('random_regular', {units}, {degree}, seed=1)"
    model = compile_energy(graph.couple("array", "array", pattern), 1).double()
    print(f"{units} oscillators, {units * degree // 2} couplings: compiled in {time.perf_counter() - began:.1f} s")
    began = time.perf_counter()
    path = simulate(model, Simulation(50.0, 101, initial="random", accuracy=1e-4), rows=1)
    print(f"50 units of time and the equilibrium: {time.perf_counter() - began:.1f} s, "
          f"order parameter {float(path.order()[0]):.3f} to {float(path.order()[-1]):.3f}")  # fmt: skip
    began = time.perf_counter()
    rest = relax(model, rows=1)
    print(f"relaxed with '{rest.integrator}' in {time.perf_counter() - began:.1f} s, {int(rest.sweeps[0])} sweeps, "
          f"residual {float(rest.residual[0]):.1e}")  # fmt: skip
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--units", type=int, default=2000)
    parser.add_argument("--duration", type=float, default=100.0)
    parser.add_argument("--large", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.large:
        large()
        return
    model, found = all_to_all(options.units), {}
    for coupling in COUPLINGS:
        began = time.perf_counter()
        found[coupling] = order(model, coupling, options.duration)
        print(f"K = {coupling:4.2f} K_c   r = {found[coupling]:.4f}   theory {theory(coupling):.4f}   "
              f"{time.perf_counter() - began:.1f} s", flush=True)  # fmt: skip
    draw(found, options.units)


if __name__ == "__main__":
    main()
