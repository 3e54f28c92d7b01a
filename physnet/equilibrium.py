"""Where a relaxation ended, and what there is to say if that is no equilibrium."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.utils import get_total_norm

from physnet.errors import RelaxationError, RelaxationWarning
from physnet.nudged import Nudged
from physnet.precision import full_precision
from physnet.problem import Problem, State
from physnet.stopping import StoppingRule

DRIFT = (
    "drift: some of their angles keep turning, since their drives lie outside of the locking range; use stronger "
    "couplings or natural frequencies that are nearer to each other, or follow them in time with simulate"
)


@dataclass
class Equilibrium:
    """Where a relaxation ended.

    Arguments:
        states: free states by node, [rows, *node]; phases stacked along the rows.
        residual: per row, the largest step that remained, relative to the state (free) or its displacement (nudged).
        sweeps: per row, how many sweeps (for `flow`: evaluations of the force) it took.
        converged: per row, whether the residual met the tolerance.
        integrator: which one was used.
        reason: why that one.
        problem: what was relaxed; gives energies, forces and costs.
        displacement: of a nudged phase: how far it is from the free equilibrium, to the last digit.
        displaced: of a nudged phase: the problem in displacements.
        drifting: per row, whether angles keep turning, outside of the locking range; `None` where no state is one.
    """

    states: State
    residual: Float[Tensor, " rows"]
    sweeps: Int[Tensor, " rows"]
    converged: Bool[Tensor, " rows"]
    integrator: str
    problem: Problem
    reason: str = ""
    displacement: State = field(default_factory=dict)
    displaced: Nudged | None = None
    drifting: Bool[Tensor, " rows"] | None = None

    @property
    def energy(self) -> Float[Tensor, " rows"]:
        """F of every row."""
        with full_precision(self.problem.like.device):
            return self.problem.energy(self.states)

    def __getitem__(self, node: str) -> Tensor:
        return self.states[node]


def judge(result: Equilibrium, rule: StoppingRule, quiet: bool) -> None:
    """Raise for what isn't finite, and warn of samples that haven't converged unless `quiet`."""
    if bool(result.converged.all()):
        return
    # one norm of everything is cheap; it may overflow before a state does, and only then are all looked at
    if not bool(torch.isfinite(get_total_norm([result.residual, *result.states.values()]))):
        _blame(result)
    if quiet:
        return
    drifts = 0 if result.drifting is None else int(result.drifting.sum())
    if drifts:
        warnings.warn(f"{drifts} of {len(result.converged)} samples {DRIFT}", RelaxationWarning, stacklevel=3)
    missing = int((~result.converged).sum()) - drifts
    if not missing:
        return
    warnings.warn(
        f"{missing} of {len(result.converged)} samples have not converged with '{result.integrator}' after "
        f"{int(result.sweeps.max())} sweeps: residual {float(result.residual.max()):.2g}, "
        f"tolerance {rule.tolerance:.2g}; raise max_sweeps or the tolerance",
        RelaxationWarning,
        stacklevel=3,
    )


def _blame(result: Equilibrium) -> None:
    """Raise `RelaxationError` for the first thing in an equilibrium that isn't finite; return if all is."""
    for node, value in result.states.items():
        if not bool(torch.isfinite(value).all()):
            blame_data(result.problem)
            raise RelaxationError(
                f"the state of '{node}' is not finite after {int(result.sweeps.max())} sweeps: "
                "look for energies that fall without bound, reduce |beta|, or give the node a bounded domain"
            )
    if bool(torch.isfinite(result.residual).all()):
        return
    blame_data(result.problem)
    for node, value in result.problem.step(result.states).items():
        if not bool(torch.isfinite(value).all()):
            raise RelaxationError(
                f"the exact update of '{node}' is not finite: look for energies that fall without bound, "
                "reduce |beta|, or give the node a bounded domain"
            )
    force = result.problem.force(result.states)
    lost = [node for node, value in force.items() if not bool(torch.isfinite(value).all())]
    what = f"force on '{lost[0]}'" if lost else "residual"
    raise RelaxationError(
        f"the {what} is not finite after {int(result.sweeps.max())} sweeps: "
        "look for inputs that aren't finite, and for roots, logarithms and divisions in the energy"
    )


def blame_data(problem: Problem) -> None:
    """Raise `RelaxationError` if an input or target isn't finite, so that the data are blamed and not the method."""
    for kind, tensors in (("input", problem.clamped), ("target", problem.targets)):
        for name, value in tensors.items():
            if not bool(torch.isfinite(value).all()):
                raise RelaxationError(f"the {kind} '{name}' holds values that are not finite; clean the data")
