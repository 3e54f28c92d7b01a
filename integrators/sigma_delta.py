"""Spikes on the wires: states are rates, and neighbours know of them what they have heard.

    s <- project((1 - epsilon_t) s + epsilon_t p(r_t)),    p = argmin F given what is heard, every unit at once

r_t is decoded from quantised messages (`physnet.coding`). Of a quadratic unit p is where its parabola is lowest, in its
domain or not, so that noise is averaged before it is clipped. With schedules that fall, such as the default ones, s
comes near the equilibrium of the same energy with exact messages; with constant ones it does not. A nudged phase goes
on from the free one, with its time and all that encoders and decoders remember. Source: O'Connor, Gavves and Welling,
AISTATS 2019 (code QUVA-Lab/spiking-eqprop).

What is heard changes by lambda_t per step at most: a unit that moves by d takes d/lambda_t steps to say so. A lambda
that falls faster, such as 0.9/t**0.88, is nearer to the free equilibrium, and too slow to tell of a nudge.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from physnet.coding import Code
from physnet.continued import Continued
from physnet.errors import DeclarationError, Fault, RelaxationError, did_you_mean, located
from physnet.messages import Channel, objection
from physnet.problem import Problem, State
from physnet.quantisers import Quantiser, parse_quantiser, write_quantiser
from physnet.relaxation import Equilibrium, Integrator, StoppingRule, integrator
from physnet.schedules import parse_annealing, parse_schedule, write_annealing
from physnet.spiking import Conversation, Memory, reach, told

if TYPE_CHECKING:
    from physnet.model import EnergyModel


@integrator
class SigmaDelta(Integrator):
    """A phase is over after its steps, so that all its samples count as converged; the residual says how far they are
    from the equilibrium without quantisers.

    Arguments:
        steps: of a phase, or [of the free one, of nudged ones].
        step_size: epsilon_t, an expression in the time t = 1, 2, ... since the free phase began, or `osa(0.0346)`.
        smoothing: lambda_t of encoders and decoders, an expression in t; 1 for no prediction.
        quantiser: of all nodes, such as `sigma_delta` or `nbit(4)`; or by node, where those left out have sigma_delta.
        ranges: by node, its lowest and highest state, where the domain of a node has no bounds or wide ones. Inputs are
            taken to be in [0, 1].
        average: over how many of its last steps the state that a phase ends in is averaged; 1 for the last one.
        seed: of random spikes, along with what the relaxation is for: seed of the run, number of the batch, phase.

    Raises:
        DeclarationError: for options that make no sense.
    """

    name = "sigma_delta"
    idea = "nodes tell each other their states in spikes"
    coordinates = "continued"
    speaks = True
    pace = "step"

    def __init__(
        self,
        steps: int | Sequence[int] = (100, 50),
        step_size: str | float = "0.843/t**0.0923",
        smoothing: str | float = "0.832/t**0.584",
        quantiser: str | Quantiser | Mapping[str, str | Quantiser] = "sigma_delta",
        ranges: Mapping[str, Sequence[float]] | None = None,
        average: int = 1,
        seed: int = 0,
    ) -> None:
        counts: list[int] = [steps, steps] if isinstance(steps, int) else list(steps)
        if len(counts) != 2 or not all(_counts(count) for count in counts):
            raise DeclarationError(
                Fault(f"steps is {steps!r}", "a whole number, or two: [100, 50]", ("options", "steps"))
            )
        if not _counts(average) or average > min(counts):
            fix = "a whole number of steps, at most as many as a phase has"
            raise DeclarationError(Fault(f"average is {average!r}", fix, ("options", "average")))
        self.steps, self.average = tuple(counts), average
        self.annealing = located(("options", "step_size"), lambda: parse_annealing(step_size))
        located(("options", "step_size"), lambda: self.annealing.check(counts[0]))
        named = quantiser if isinstance(quantiser, Mapping) else {}
        self.code = Code(
            located(("options", "quantiser"), lambda: parse_quantiser("sigma_delta" if named else quantiser)),
            tuple((n, located(("options", "quantiser", n), lambda q=q: parse_quantiser(q))) for n, q in named.items()),
            located(("options", "smoothing"), lambda: parse_schedule(smoothing)),
            tuple((node, _range(node, value)) for node, value in _by_node(ranges)),
            seed,
        )
        located(("options", "smoothing"), lambda: self.code.smoothing.check(counts[0]))

    @classmethod
    def concerns(cls, problem: Problem) -> bool:
        return False  # spikes are a choice, never the way to an equilibrium

    @classmethod
    def refusal(cls, problem: Problem) -> str | None:
        return objection(problem.model.plan)

    def caveats(self, problem: Problem) -> tuple[str, ...]:
        return tuple(
            f"the winners of '{name}' are those of spikes, which change from step to step, so that gradients of what "
            "comes before it are visibly wrong: use avg_pool2d, which is linear"
            for name, edge in problem.model.plan.edges.items()
            if edge.selects and not self.code.of(edge.edge.pre).exact
        )

    def relax(self, problem: Problem, state: State, rule: StoppingRule) -> Equilibrium:
        steps, sums, talk = self.steps[isinstance(problem, Continued)], State(), self._begin(problem, state)
        for number, states in enumerate(self._steps(talk), 1):
            if number > steps - self.average:
                sums = {name: sums.get(name, 0) + value for name, value in states.items()}
        talk.warn_of_wide_states()
        states = {name: value / self.average for name, value in sums.items()}
        residual = rule.residual(states)
        sweeps = torch.full((problem.rows,), steps, dtype=torch.long, device=problem.like.device)
        finite = torch.isfinite(residual)
        residual = residual.clamp(max=1.0)  # silent units that are about to speak have no size to compare a step with
        return Equilibrium(states, residual, sweeps, finite, self.name, problem)

    def path(self, problem: Problem, state: State, rule: StoppingRule) -> Iterator[State]:
        """The states after every step; as many as are declared, whatever the rule allows."""
        return self._steps(self._begin(problem, state))

    def _begin(self, problem: Problem, state: State) -> Conversation:
        self._check_names(problem.model)
        memory, now = self._resumed(problem) if isinstance(problem, Continued) else None, self.occasion
        talk = Conversation(problem, self.code, state, memory, now.keys, now.share)
        if isinstance(problem, Continued):
            talk.memory.states |= problem.held
        else:
            problem.passed = talk.memory
        return talk

    def _steps(self, talk: Conversation) -> Iterator[State]:
        count, held = (self.steps[1], talk.problem.held) if isinstance(talk.problem, Continued) else (self.steps[0], {})
        for left in range(count, 0, -1):
            self._step(talk, left, held)
            yield dict(talk.memory.states)

    def _step(self, talk: Conversation, left: int, held: State) -> None:
        """One step of all nodes at once, but of those that are held."""
        talk.exchange(left)
        memory, moved, remembers = talk.memory, State(held), self.annealing.remembers
        size = 1.0 if remembers else self.annealing.size(memory.t, talk.problem.like, ())
        for node, (domain, goal) in talk.goals.items():
            if node in held:
                continue
            old, target = memory.states[node], goal(talk)
            if remembers:
                if node not in memory.annealing:
                    memory.annealing[node] = [torch.zeros_like(old) for _ in range(remembers)]
                size = self.annealing.size(memory.t, domain.difference(target, old), memory.annealing[node])
            moved[node] = domain.project(domain.between(old, target, size))
        memory.states = moved

    def _resumed(self, problem: Continued) -> Memory | None:
        """What nudged phases go on with; `None` if the free phase was relaxed otherwise, and messages begin anew."""
        memory = problem.free.passed
        if not isinstance(memory, Memory):
            return None
        if memory.code != self.code:
            raise RelaxationError(
                "nudged phases go on with the messages of the free one: give both the same quantiser, smoothing, "
                "ranges and seed, or leave learn.nudged out and write steps: [100, 50]"
            )
        return memory.repeated(problem.phases)

    def notes(self, model: EnergyModel) -> tuple[str, ...]:
        code, (free, nudged) = self.code, self.steps
        notes = [
            f"steps: {free} of all nodes at once, {nudged} in nudged phases; x <- x + epsilon*(p - x), "
            f"epsilon = {write_annealing(self.annealing)}",
            "p: the update below, given what has been heard; of quadratic units before it is clipped",
            f"encoders and decoders: lambda = {code.smoothing.text}",
        ]
        for channel in self._channels(model):
            quantiser, (lo, hi) = code.of(channel.node), reach(model, code, channel.node)
            range = "" if quantiser.exact else f", x in [{lo:.4g}, {hi:.4g}]"
            notes.append(f"messages of {channel.title}: {write_quantiser(quantiser)}{range}")
        return tuple(notes)

    def _channels(self, model: EnergyModel) -> tuple[Channel, ...]:
        """Who speaks, in the order of declaration."""
        places = {node.name: place for place, node in enumerate(model.graph.nodes())}
        spoken = dict.fromkeys(channel for channels in told(model, self.code) for channel in channels)
        return tuple(sorted(spoken, key=lambda channel: places[channel.node]))

    def check(self, model: EnergyModel) -> None:
        self._check_names(model)
        refused = objection(model.plan)
        if refused is not None:
            fix = "use integrator: auto, or an energy whose couplings separate"
            raise DeclarationError(Fault(f"'{self.name}' can't relax this network: {refused}", fix, ("integrator",)))
        for channel in self._channels(model):
            reach(model, self.code, channel.node)
        for key, schedule in (("step_size", self.annealing), ("smoothing", self.code.smoothing)):
            located(("options", key), lambda schedule=schedule: schedule.check(sum(self.steps)))

    def _check_names(self, model: EnergyModel) -> None:
        known = [node.name for node in model.graph.nodes()]
        for key, names in (("quantiser", dict(self.code.quantisers)), ("ranges", dict(self.code.ranges))):
            for name in names.keys() - set(known):
                message, fix = f"there is no node '{name}'", did_you_mean(name, known)
                raise DeclarationError(Fault(message, fix, ("options", key, name), at_key=True))


def _counts(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _by_node(ranges: Any) -> list[tuple[str, Any]]:
    if ranges is None or isinstance(ranges, Mapping):
        return list((ranges or {}).items())
    fix = "states by node, such as {label: [-1, 2]}"
    raise DeclarationError(Fault(f"ranges is {ranges!r}", fix, ("options", "ranges")))


def _range(node: str, declared: Any) -> tuple[float, float]:
    try:
        lo, hi = map(float, declared)
    except (TypeError, ValueError):
        lo = hi = 0.0
    if not -float("inf") < lo < hi < float("inf"):
        fix = "the lowest and the highest state, such as [-1, 2]"
        raise DeclarationError(Fault(f"the range of '{node}' is {declared!r}", fix, ("options", "ranges", node)))
    return lo, hi
