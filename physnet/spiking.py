"""A network whose nodes tell each other their states in spikes, step by step.

Decoding is linear, so that behind a linear connection it is done by who speaks, once for all neighbours. Through
max-pooling it can't be: winners are those of spikes, and what arrives is decoded where it arrives. What inputs say
doesn't depend on the network, so it is worked out for many steps at once, and once for all phases.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from physnet.codegen import generate_activations, load
from physnet.coding import Code, Speaker, Voice, copied
from physnet.continued import Continued
from physnet.layout import arranged, repeat
from physnet.messages import Channel, Hearing, MessagePlan, message_plan
from physnet.model import EnergyModel
from physnet.problem import FLAT, Problem, State, laid_out
from physnet.randomness import stream
from physnet.separation import GradientOnly

AHEAD = 2**20
"""Up to how many numbers what inputs say is worked out beforehand."""


@dataclass
class Memory:
    """Where a relaxation stands, all that later steps need.

    Arguments:
        code: how messages have been encoded.
        t: the time; 0 before the first step.
        states: of free nodes.
        voices: by channel; those of inputs hold one row per sample in any phase.
        received: what has been understood behind maxima, by function.
        annealing: what step sizes remember, by node.
    """

    code: Code
    t: int
    states: State
    voices: dict[Channel, Voice] = field(default_factory=dict)
    received: dict[str, Tensor] = field(default_factory=dict)
    annealing: dict[str, list[Tensor]] = field(default_factory=dict)

    def repeated(self, phases: int, free: tuple[str, ...]) -> Memory:
        """The same for all phases, to go on from; this one stays as it is."""
        return Memory(
            self.code,
            self.t,
            {name: repeat(value, phases) for name, value in self.states.items()},
            {channel: voice.repeated(phases if channel.node in free else 1) for channel, voice in self.voices.items()},
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
        made[exact] = spoken, load(spoken.plan, generate_activations(spoken.plan) + spoken.functions)
    return made[exact]


class Conversation:
    """The messages of a batch, and the exact updates that follow from them.

    Arguments:
        problem: what is relaxed, in states.
        code: how messages are encoded.
        memory: where it stands, changed from step to step; `None` before the first one.
        start: the states, where nothing is remembered.
    """

    def __init__(self, problem: Problem, code: Code, start: State, memory: Memory | None = None) -> None:
        self.problem, self.code, self.model = problem, code, problem.model
        self.samples = problem.free if isinstance(problem, Continued) else problem  # whose inputs aren't repeated
        exact = frozenset(name for name in self.model.inputs if code.of(name).exact)
        self.spoken, self.functions = compiled(self.model, exact)
        self.memory = Memory(code, 0, start) if memory is None else memory
        self._make_speakers()
        self.fixed: dict[str, dict[int, Tensor]] = {name: {} for name in self.model.free}
        for item in self.spoken.constant:
            heard = self.functions[item.function](problem.parameters, self.samples.clamped or {"": problem.like})
            self._hear(item, heard)
        self.changing = {item.node for item in (*self.spoken.given, *self.spoken.pooled)}
        self.prepared: dict[str, tuple[Any, ...]] = {}
        self._ahead: dict[str, tuple[int, tuple[Tensor, ...]]] = {}
        self._heard_at, self._until = 0, 0
        self.raw: State = {}

    def _make_speakers(self) -> None:
        self.given = tuple(dict.fromkeys(channel for item in self.spoken.given for channel in item.spoken))
        pooled = (channel for item in self.spoken.pooled for channel in item.spoken)
        self.live = tuple(dict.fromkeys((*self.spoken.channels, *pooled)))
        self.speakers: dict[Channel, Speaker] = {}
        for channel in dict.fromkeys((*self.given, *self.live)):
            quantiser, domain = self.code.of(channel.node), None
            if channel.node in self.model.free or self.model.graph.node(channel.node).domain.period:
                domain = self.model.graph.node(channel.node).domain
            reach = (0.0, 1.0) if quantiser.exact else self.code.range(channel.node, domain)
            speaker = self.speakers[channel] = Speaker(channel, quantiser, reach)
            if channel not in self.memory.voices:
                self.memory.voices[channel] = speaker.begin(self._state(channel))
            if channel.node in self.samples.clamped and self.memory.t == 0:
                speaker.check(self._state(channel))

    def _state(self, channel: Channel) -> Tensor:
        clamped = self.samples.clamped
        return clamped[channel.node] if channel.node in clamped else self.memory.states[channel.node]

    # ---------------------------------------------------------------- one step

    def exchange(self, steps: int) -> None:
        """Let time go on by one: all nodes say their state and hear what the others say.

        Arguments:
            steps: how many are still to come, with this one.
        """
        memory = self.memory
        memory.t += 1
        smoothing = self.code.smoothing(memory.t)
        if self.spoken.given:
            self._listen_to_inputs(steps)
        self.raw = {}
        for channel in self.live:
            state = self._state(channel)
            voice, uniform = memory.voices[channel], self._uniform(channel, memory.t, state)
            self.raw[channel.raw] = self.speakers[channel].say(voice, state, smoothing, uniform)
        for item in self.spoken.pooled:
            self._hear(item, self._decoded(item, smoothing))

    def _listen_to_inputs(self, steps: int) -> None:
        """Take the fields of this step that come from inputs."""
        if self.memory.t > self._until:
            self._look_ahead(steps)
        for item in self.spoken.given:
            self._hear(item, self._ahead[item.function][1][self.memory.t - self._heard_at])

    def _look_ahead(self, steps: int) -> None:
        """Work out what inputs say in the next steps, all in one product per edge."""
        size = max(self._state(channel).numel() for channel in self.given)
        heard = max(self.samples.rows * math.prod(self.model.graph.node(item.node).shape) for item in self.spoken.given)
        count = max(1, min(steps, AHEAD // max(size, heard)))
        first, rows = self.memory.t, self.samples.rows
        said: State = {}
        for channel in self.given:
            x, voice = self._state(channel), self.memory.voices[channel]
            all_steps = arranged(x.new_empty((count * rows, *voice.last.shape[1:])))
            for step, into in enumerate(all_steps.split(rows)):
                t = first + step
                uniform = self._uniform(channel, t, x)
                self.speakers[channel].say(voice, x, self.code.smoothing(t), uniform, into)
            voice.decoded = voice.decoded.clone()
            said[channel.decoded] = all_steps
        for item in self.spoken.given:
            heard = self.functions[item.function](self.problem.parameters, said)
            self._ahead[item.function] = first, heard.split(rows)
        self._heard_at, self._until = first, first + count - 1

    def _decoded(self, item: Hearing, smoothing: float) -> Tensor:
        """What is understood of what has passed maxima."""
        heard = self.functions[item.function](self.problem.parameters, self.raw)
        if all(self.code.of(channel.node).exact for channel in item.spoken):
            return heard
        received = self.memory.received
        received[item.function] = (
            smoothing * heard if self.memory.t == 1 else received[item.function].lerp(heard, smoothing)
        )
        return received[item.function]

    def _hear(self, item: Hearing, heard: Tensor) -> None:
        phases = self.problem.rows // heard.shape[0] if heard.shape[0] == self.samples.rows else 1
        self.fixed[item.node][item.field] = repeat(heard, phases)

    def _uniform(self, channel: Channel, t: int, like: Tensor) -> Callable[[], Tensor]:
        """Numbers of this step, drawn on the CPU so that a seed means the same on every device."""
        generator = lambda: stream(self.code.seed, "spikes", channel.decoded, t)  # noqa: E731
        return lambda: torch.rand(like.shape, generator=generator()).to(like)

    # ---------------------------------------------------------------- where units would go

    def target(self, node: str) -> Tensor:
        """Where the units of a node would go, given what they have heard: to their minimum, or, where there is no
        exact one, as far as their force and curvature say."""
        problem, functions, phase = self.problem, self.functions, self._phase(node)
        beta, targets, parameters = problem.beta_for(node), problem.targets, problem.parameters
        heard = {channel.decoded: self.memory.voices[channel].decoded for channel in self.spoken.channels}
        full = {**self.memory.states, **heard}
        if not isinstance(self._solver(node), GradientOnly):
            if node in self.changing or node not in self.prepared:
                prepare = functions[f"prepare_{node}__{phase}"]
                self.prepared[node] = laid_out(prepare(parameters, self.fixed, targets, beta))
            minimise = functions[f"minimise_{node}__{phase}"]
            return minimise(parameters, full, self.fixed, self.prepared[node], targets, beta)
        force, curvature = (
            functions[f"{what}_{node}__{phase}"](parameters, full, self.fixed, targets, beta)
            for what in ("force", "curvature")
        )
        rate = torch.where(curvature > FLAT, curvature, 1.0).reciprocal()
        return problem.domain(node).project(self.memory.states[node] + rate * force)

    def _phase(self, node: str) -> str:
        return "nudged" if self.problem.beta is not None and self.model.plan.nodes[node].cost != 0 else "free"

    def _solver(self, node: str):
        plan = self.spoken.plan.nodes[node]
        return plan.free if self.problem.beta is None else plan.nudged
