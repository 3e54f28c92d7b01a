"""How many spikes a network sends, and how many operations they cost.

    operations = sum over spikes of the units that hear them

A spike is any message but zero. A unit that hears it adds one weight to what it has heard; of a convolution with
average pooling it is the pooled units that hear. The rate network multiplies once for every pair of units in every
sweep. Messages of inputs count in every phase that hears them. Inputs with the quantiser `identity` say nothing: their
products are made once, by multiplications.
"""

from __future__ import annotations

import weakref
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from physnet.coding import Voice
from physnet.listening import Listener
from physnet.messages import Channel
from physnet.model import EnergyModel
from physnet.plans import NodePlan, Source
from physnet.spiking import Conversation


@dataclass
class Spoken:
    """What one channel has said.

    Arguments:
        channel: who, and of what.
        reach: units that hear a message of each unit, [*node].
        spikes: of each unit over all rows and steps, [*node].
        messages: how often each unit could have said something: rows times steps.
    """

    channel: Channel
    reach: Tensor
    spikes: Tensor
    messages: int = 0

    @property
    def count(self) -> float:
        """Spikes of all units."""
        return float(self.spikes.sum())

    @property
    def operations(self) -> float:
        """Synaptic operations of all spikes."""
        return float((self.spikes * self.reach).sum())

    @property
    def dense(self) -> float:
        """Operations if every unit had said something in every step."""
        return float(self.reach.sum()) * self.messages

    @property
    def rate(self) -> float:
        """Spikes per unit and step."""
        return self.count / (self.spikes.numel() * self.messages) if self.messages else 0.0


@dataclass
class Activity(Listener):
    """Counts spikes, channel by channel.

    Arguments:
        spoken: what was said, by channel.
        rows_per_sample: as an engine says.
        samples: of free phases that have begun.
    """

    rows_per_sample: int = 1
    spoken: dict[str, Spoken] = field(default_factory=dict)
    samples: int = 0
    _reach: weakref.WeakKeyDictionary[Any, dict[str, Tensor]] = field(default_factory=weakref.WeakKeyDictionary)

    def begin(self, talk: Conversation) -> None:
        self.samples += talk.problem.rows // self.rows_per_sample if talk.problem is talk.samples else 0
        if talk.model not in self._reach:
            plans = talk.spoken.plan.nodes.values()
            self._reach[talk.model] = reached(talk.model, plans, talk.model.dtype, talk.problem.like.device)

    def said(self, talk: Conversation, channel: Channel, t: int, message: Tensor, voice: Voice) -> None:
        if channel.decoded not in self.spoken:
            reach = self._reach[talk.model]
            units = sum((reach[name] for name in (channel.decoded, channel.raw) if name in reach), torch.zeros(()))
            shape = message.shape[1:]
            reaches = units.to(message.device, torch.float64).expand(shape)
            nothing = torch.zeros(shape, dtype=torch.float64, device=message.device)
            self.spoken[channel.decoded] = Spoken(channel, reaches, nothing)
        spoken, times = self.spoken[channel.decoded], talk.problem.rows // message.shape[0]
        spoken.spikes += times * message.count_nonzero(0)
        spoken.messages += talk.problem.rows

    @property
    def operations(self) -> float:
        """Of all spikes so far."""
        return sum(spoken.operations for spoken in self.spoken.values())

    @property
    def spikes(self) -> float:
        """All spikes so far."""
        return sum(spoken.count for spoken in self.spoken.values())


def reached(
    model: EnergyModel, plans: Iterable[NodePlan], dtype: torch.dtype, device: torch.device
) -> dict[str, Tensor]:
    """How many units hear each unit of a speaker, [*node], by the name under which it is heard."""
    found: dict[str, Tensor] = {}
    fields = [part for plan in plans for part in plan.fields]
    for source in (source for part in fields for source in (*part.fixed, *part.live)):
        if not source.constant:
            found[source.neighbour] = found.get(source.neighbour, 0) + _reach(model, source, dtype, device)
    return found


def multiplications(model: EnergyModel, without: Collection[str] = ()) -> tuple[float, float]:
    """Of the rate network: once for what comes from inputs, but for those named, and in every sweep."""
    plans = model.plan.nodes.values()

    def sum_of(sources: Iterable[Source]) -> float:
        device = next(model.parameters()).device
        counted = (source for source in sources if not source.constant and source.neighbour not in without)
        parts = (_reach(model, source, model.dtype, device) for source in counted)
        return sum(float(part.sum(dtype=torch.float64)) for part in parts)

    fields = [part for plan in plans for part in plan.fields]
    return sum(sum_of(part.fixed) for part in fields), sum(sum_of(part.live) for part in fields)


def _reach(model: EnergyModel, source: Source, dtype: torch.dtype, device: torch.device) -> Tensor:
    edge, graph = model.plan.edges[source.edge].edge, model.graph
    shapes = graph.node(edge.pre).shape, graph.node(edge.post).shape
    weight = torch.empty(edge.connection.weight_shape(*shapes), dtype=dtype, device=device)
    with torch.no_grad():
        return model.functions[f"{source.edge}_edge"].synapses(weight)[source.adjoint]


def table_of(activity: Activity) -> list[Mapping[str, Any]]:
    """A row for every channel, per sample."""
    return [
        {
            "channel": spoken.channel.title,
            "units": spoken.spikes.numel(),
            "rate": spoken.rate,
            "spikes": spoken.count / activity.samples,
            "operations": spoken.operations / activity.samples,
        }
        for spoken in activity.spoken.values()
    ]
