"""A network whose nodes tell each other their states in spikes, step by step.

Decoding is linear, so that behind a linear connection it is done by who speaks, once for all neighbours. Through
max-pooling it can't be: winners are those of spikes, and what arrives is decoded where it arrives. What inputs say
doesn't depend on the network, so it is worked out for many steps at once, and once for all phases.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from physnet.codegen import generate_activations, load
from physnet.coding import Code, Range, Speaker, Voice, copied
from physnet.continued import Continued
from physnet.domains import REAL
from physnet.errors import caution
from physnet.layout import arranged, repeat
from physnet.listening import listeners
from physnet.messages import Channel, Hearing, MessagePlan, message_plan
from physnet.model import EnergyModel
from physnet.plans import Plan
from physnet.problem import FLAT, Problem, Share, State, laid_out
from physnet.randomness import stream
from physnet.separation import GradientOnly, Quadratic

AHEAD = 2**18
"""Up to how many numbers what inputs say is worked out beforehand."""


@dataclass
class Memory:
    """Where a relaxation stands, all that later steps need.

    Arguments:
        code: how messages have been encoded.
        t: the time; 0 before the first step.
        states: of free nodes.
        voices: by channel.
        inputs: by channel of an input whose messages are worked out beforehand, one row per sample in any phase.
        received: what has been understood behind maxima, by function.
        annealing: what step sizes remember, by node.
    """

    code: Code
    t: int
    states: State
    voices: dict[str, Voice] = field(default_factory=dict)
    inputs: dict[str, Voice] = field(default_factory=dict)
    received: dict[str, Tensor] = field(default_factory=dict)
    annealing: dict[str, list[Tensor]] = field(default_factory=dict)

    def repeated(self, phases: int) -> Memory:
        """The same for all phases, to go on from; this one stays as it is."""
        return Memory(
            self.code,
            self.t,
            {name: repeat(value, phases) for name, value in self.states.items()},
            {name: voice.repeated(phases) for name, voice in self.voices.items()},
            {name: voice.repeated(1) for name, voice in self.inputs.items()},
            {name: copied(value, phases) for name, value in self.received.items()},
            {name: [copied(value, phases) for value in values] for name, values in self.annealing.items()},
        )


_WRITTEN: weakref.WeakKeyDictionary[EnergyModel, dict[frozenset[str], tuple[MessagePlan, dict[str, Any]]]]
_WRITTEN = weakref.WeakKeyDictionary()


def compiled(model: EnergyModel, exact: frozenset[str]) -> tuple[MessagePlan, dict[str, Any]]:
    """The plan of messages of a model, and its functions; made once.

    Arguments:
        exact: inputs whose messages aren't quantised.
    """
    made = _WRITTEN.setdefault(model, {})
    if exact not in made:
        spoken = message_plan(model.plan, exact)
        functions = load(spoken.plan, generate_activations(spoken.plan) + spoken.functions)
        # what is heard is noisy, and the mean of clipped numbers isn't the clipped mean: a unit goes towards where its
        # parabola is lowest, and is held in its domain afterwards
        functions |= {f"{node}_domain": REAL for node in _parabolas(spoken.plan)}
        made[exact] = spoken, functions
    return made[exact]


def _parabolas(plan: Plan) -> Iterator[str]:
    """The nodes whose units have a quadratic energy in every phase."""
    for name, node in plan.nodes.items():
        if isinstance(node.free, Quadratic) and isinstance(node.nudged, Quadratic):
            yield name


def told(model: EnergyModel, code: Code) -> tuple[tuple[Channel, ...], tuple[Channel, ...]]:
    """The channels of a network: those of states that change, and those that are worked out beforehand."""
    spoken, _ = compiled(model, frozenset(name for name in model.inputs if code.of(name).exact))
    pooled = (channel for item in spoken.pooled for channel in item.spoken)
    given = (channel for item in spoken.given for channel in item.spoken)
    return tuple(dict.fromkeys((*spoken.channels, *pooled))), tuple(dict.fromkeys(given))


def reach(model: EnergyModel, code: Code, name: str) -> Range:
    """The lowest and highest state of a node that speaks.

    Raises:
        DeclarationError: if nothing says.
    """
    node = model.graph.node(name)
    domain = node.domain if node.free or node.domain.period else None
    return (0.0, 1.0) if code.of(name).exact else code.range(name, node.shape, domain)


class Conversation:
    """The messages of a batch, and the exact updates that follow from them.

    Arguments:
        problem: what is relaxed, in states.
        code: how messages are encoded.
        start: the states, where nothing is remembered.
        memory: where it stands, changed from step to step; `None` before the first one.
        keys: what random spikes are drawn from, beside the seed.
        share: which rows of the whole batch these are, where processes divide it.
    """

    def __init__(
        self,
        problem: Problem,
        code: Code,
        start: State,
        memory: Memory | None = None,
        keys: tuple[int | str, ...] = (),
        share: Share | None = None,
    ) -> None:
        self.problem, self.code, self.model, self.keys, self.share = problem, code, problem.model, keys, share
        self.samples = problem.free if isinstance(problem, Continued) else problem  # whose inputs aren't repeated
        exact = frozenset(name for name in self.model.inputs if code.of(name).exact)
        self.spoken, self.functions = compiled(self.model, exact)
        self.memory = Memory(code, 0, start) if memory is None else memory
        self._speakers: dict[str, Speaker] = {}
        self.live, self.given = told(self.model, code)
        self._join(self.live, problem.clamped, self.memory.voices)
        self._join(self.given, self.samples.clamped, self.memory.inputs)
        self.fixed: dict[str, dict[int, Tensor]] = {name: {} for name in self.model.free}
        for item in self.spoken.constant:
            states = self.samples.clamped or {"": problem.like}
            self._hear(item, self.functions[item.function](problem.parameters, states))
        self.goals = {node: (problem.domain(node), self._goal(node)) for node in self.model.free}
        self._ahead, self._begun, self._until = dict[str, tuple[Tensor, ...]](), 0, 0
        self.said: State = {}
        self.heard: State = {}
        self.listeners = listeners()
        for listener in self.listeners:
            listener.begin(self)

    def _join(self, channels: Iterable[Channel], clamped: Mapping[str, Tensor], voices: dict[str, Voice]) -> None:
        """Give every channel a speaker, and a voice if it has none."""
        for channel in channels:
            node, range = self.model.graph.node(channel.node), reach(self.model, self.code, channel.node)
            speaker = self._speakers[channel.decoded] = Speaker(channel, self.code.of(channel.node), range)
            state = self.memory.states[node.name] if node.free else clamped[node.name]
            if channel.decoded not in voices:
                voices[channel.decoded] = speaker.begin(state)
                if not node.free:
                    speaker.check(state)

    def warn_of_wide_states(self) -> None:
        """Warn of free nodes whose states have left the declared range: what goes beyond is never said."""
        for channel in self.live:
            states, range = self.memory.states.get(channel.node), dict(self.code.ranges).get(channel.node)
            if states is not None and range is not None and not self._speakers[channel.decoded].fits(states):
                caution(
                    self.model,
                    f"the states of '{channel.node}' leave the range [{range[0]:g}, {range[1]:g}] that its spikes are "
                    f"for, and neighbours never hear of what is beyond: widen options.ranges.{channel.node}",
                )

    # ---------------------------------------------------------------- one step

    def exchange(self, steps: int) -> None:
        """Let time go on by one: all nodes say their state and hear what the others say.

        Arguments:
            steps: how many are still to come, with this one.
        """
        memory = self.memory
        memory.t += 1
        smoothing = self.code.smoothing(memory.t)
        self.heard, self.said = dict(memory.states), {}
        for channel in self.live:
            name, node = channel.decoded, channel.node
            state = memory.states[node] if node in memory.states else self.problem.clamped[node]
            voice, uniform = memory.voices[name], partial(self._uniform, channel, memory.t, state)
            self.said[channel.raw] = self._speakers[name].say(voice, state, smoothing, uniform)
            self.heard[name] = voice.decoded
            self._tell(channel, memory.t, self.said[channel.raw], voice)
        for item in self.spoken.pooled:
            self._hear(item, self._decoded(item, smoothing))
        if self.given and memory.t > self._until:
            self._look_ahead(steps)
        for item in self.spoken.given:
            self._hear(item, self._ahead[item.function][memory.t - self._begun])

    def _look_ahead(self, steps: int) -> None:
        """Work out what inputs say in the next steps, all in one product per edge."""
        clamped, rows, first = self.samples.clamped, self.samples.rows, self.memory.t
        units = [math.prod(self.model.graph.node(item.node).shape) for item in self.spoken.given]
        size = max(*(clamped[channel.node].numel() for channel in self.given), rows * max(units))
        count = max(1, min(steps, AHEAD // size))
        said: State = {}
        for channel in self.given:
            x, voice = clamped[channel.node], self.memory.inputs[channel.decoded]
            every = arranged(x.new_empty((count * rows, *voice.last.shape[1:])))
            for t, into in enumerate(every.split(rows), first):
                uniform = partial(self._uniform, channel, t, x)
                spikes = self._speakers[channel.decoded].say(voice, x, self.code.smoothing(t), uniform, into)
                self._tell(channel, t, spikes, voice)
            voice.decoded = voice.decoded.clone()  # what follows may outlive all these steps
            said[channel.decoded] = every
        for item in self.spoken.given:
            self._ahead[item.function] = self.functions[item.function](self.problem.parameters, said).split(rows)
        self._begun, self._until = first, first + count - 1

    def _tell(self, channel: Channel, t: int, message: Tensor, voice: Voice) -> None:
        for listener in self.listeners:
            listener.said(self, channel, t, message, voice)

    def _decoded(self, item: Hearing, smoothing: float) -> Tensor:
        """What is understood of what has passed maxima."""
        heard = self.functions[item.function](self.problem.parameters, self.said)
        if all(self.code.of(channel.node).exact for channel in item.spoken):
            return heard
        received = self.memory.received
        before = received.get(item.function)
        received[item.function] = smoothing * heard if before is None else before.lerp(heard, smoothing)
        return received[item.function]

    def _hear(self, item: Hearing, heard: Tensor) -> None:
        phases = self.problem.rows // self.samples.rows if heard.shape[0] == self.samples.rows else 1
        self.fixed[item.node][item.field] = repeat(heard, phases)

    def _uniform(self, channel: Channel, t: int, like: Tensor) -> Tensor:
        """Numbers of a step, other ones for every phase; of a share, those that it has in the whole batch."""
        generator = stream(self.code.seed, "spikes", *self.keys, channel.decoded, t)
        return uniform_numbers(generator, like, self.share)

    # ---------------------------------------------------------------- where units would go

    def _goal(self, node: str) -> Callable[[Conversation], Tensor]:
        """Where the units of a node would go, given what they have heard: to their minimum, or, where there is no
        exact one, as far as their force and curvature say. It is told whose words: if it knew, that would be a cycle,
        which stays in memory until Python looks for those."""
        problem, parameters, plan = self.problem, self.problem.parameters, self.spoken.plan.nodes[node]
        phase = "nudged" if problem.beta is not None and plan.cost != 0 else "free"
        given = self.fixed, problem.targets, problem.beta_for(node)

        def function(kind: str) -> Any:
            return self.functions[f"{kind}_{node}__{phase}"]

        if isinstance(plan.free if problem.beta is None else plan.nudged, GradientOnly):
            force, curvature = function("force"), function("curvature")

            def step(talk: Conversation) -> Tensor:
                bend = curvature(parameters, talk.heard, *given)
                rate = torch.where(bend > FLAT, bend, 1.0).reciprocal()
                move = rate * force(parameters, talk.heard, *given)
                return problem.domain(node).project(talk.memory.states[node] + move)

            return step

        prepare, update, made = function("prepare"), function("minimise"), list[Any]()
        changes = any(item.node == node for item in (*self.spoken.given, *self.spoken.pooled))

        def minimum(talk: Conversation) -> Tensor:
            if changes or not made:
                made[:] = [laid_out(prepare(parameters, *given))]
            return update(parameters, talk.heard, given[0], made[0], *given[1:])

        return minimum


def uniform_numbers(generator: torch.Generator, like: Tensor, share: Share | None) -> Tensor:
    """Numbers from [0, 1), drawn on the CPU so that a seed means the same on every device."""
    total, kept = (len(like), slice(None)) if share is None else (share.total, share.rows)
    parts = len(like) // len(range(total)[kept])  # phases are stacked along the rows
    return torch.rand((parts, total, *like.shape[1:]), generator=generator)[:, kept].reshape(like.shape).to(like)
