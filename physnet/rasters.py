"""What the nodes of a spiking network tell each other: a recording, its numbers and its picture."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from physnet.coding import Voice
from physnet.errors import DeclarationError
from physnet.listening import Listener
from physnet.messages import Channel
from physnet.spiking import Conversation

if TYPE_CHECKING:
    from collections.abc import Iterator

FREE, NUDGED, DECODED = "#1b6ca8", "#c8553d", "#8a8f98"
UNITS, NODES, TRACED = 100, 4, 3
"""How many units of a channel are recorded, how many channels a picture shows, and of how many units the traces."""
ROW = ("phase", "step", "node", "unit", "spike", "state", "decoded", "membrane")


@dataclass
class Track:
    """One channel, step by step: a row per step.

    Arguments:
        channel: who speaks, and of what.
        place: of its node in the network, in the order of declaration.
        total: how many units it has.
        units: the numbers of those that were recorded, evenly spaced.
        steps: t, from 1.
        nudged: whether a step belongs to a nudged phase.
        spikes: messages, in units of what is said.
        states: what there was to say.
        decoded: what neighbours have understood.
        membranes: what the quantiser still has to say, in units of a spike; not a number where it keeps nothing.
    """

    channel: Channel
    place: int
    total: int
    units: Tensor
    steps: list[int] = field(default_factory=list)
    nudged: list[bool] = field(default_factory=list)
    spikes: list[Tensor] = field(default_factory=list)
    states: list[Tensor] = field(default_factory=list)
    decoded: list[Tensor] = field(default_factory=list)
    membranes: list[Tensor] = field(default_factory=list)


@dataclass
class Raster(Listener):
    """Records what one sample says; of nudged phases the first one.

    Arguments:
        sample: its number in the batch.
        units: how many of a channel are recorded.
        tracks: by channel.
    """

    sample: int = 0
    units: int = UNITS
    tracks: dict[str, Track] = field(default_factory=dict)

    def begin(self, talk: Conversation) -> None:
        if not 0 <= self.sample < talk.samples.rows:
            fix = f"samples are 0 to {talk.samples.rows - 1}"
            raise DeclarationError(f"there is no sample {self.sample} in a batch of {talk.samples.rows}", fix)

    def said(self, talk: Conversation, channel: Channel, t: int, message: Tensor, voice: Voice) -> None:
        if channel.decoded not in self.tracks:
            total = message[0].numel()
            chosen = torch.linspace(0, total - 1, min(total, self.units)).round().long()
            place = [node.name for node in talk.model.graph.nodes()].index(channel.node)
            self.tracks[channel.decoded] = Track(channel, place, total, chosen)
        track = self.tracks[channel.decoded]
        if track.steps and t <= track.steps[-1]:
            return  # another relaxation

        def kept(value: Tensor) -> Tensor:
            return value[self.sample].flatten()[track.units.to(value.device)].clone().cpu()

        silent = torch.full_like(message[:1], torch.nan).expand_as(message)
        track.steps.append(t)
        track.nudged.append(talk.problem is not talk.samples)
        track.spikes.append(kept(message))
        track.states.append(kept(voice.decoded if talk.code.of(channel.node).exact else voice.last))
        track.decoded.append(kept(voice.decoded))
        track.membranes.append(kept(voice.memory[-1] if voice.memory else silent))

    def rows(self) -> Iterator[dict[str, Any]]:
        """One row for every step and unit."""
        for track in sorted(self.tracks.values(), key=lambda track: track.place):
            title, units = track.channel.title, track.units.tolist()
            columns = (track.spikes, track.states, track.decoded, track.membranes)
            for number, (step, nudged) in enumerate(zip(track.steps, track.nudged, strict=True)):
                values = zip(units, *(column[number].tolist() for column in columns), strict=True)
                for unit, *numbers in values:
                    yield dict(zip(ROW, ("nudged" if nudged else "free", step, title, unit, *numbers), strict=True))


def raster_picture(raster: Raster, path: str | Path) -> Path:
    """Draw spikes, states with what is understood of them, and membranes, node by node against the step.

    Arguments:
        raster: what was recorded.
        path: where to write the picture; the suffix chooses the format.

    Raises:
        DeclarationError: if nothing was recorded.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    tracks = sorted(raster.tracks.values(), key=lambda track: track.place)
    if not tracks:
        raise DeclarationError("nobody has said anything", "relax with an integrator that sends messages: sigma_delta")
    shown = tracks if len(tracks) <= NODES else [*tracks[: NODES - 1], tracks[-1]]
    figure, grid = pyplot.subplots(
        3, len(shown), figsize=(4.2 * len(shown), 7.2), layout="constrained", squeeze=False, sharex=True,
        height_ratios=[3, 2, 1.2],
    )  # fmt: skip
    for column, track in zip(grid.T, shown, strict=True):
        _spikes(column[0], track)
        traced = _restless(track)
        _traces(column[1], track, traced)
        _membranes(column[2], track, traced)
        shown_of, rate = f"{len(track.units)} of {track.total} units", torch.stack(track.spikes).count_nonzero()
        rate = float(rate) / (len(track.steps) * len(track.units))
        column[0].set_title(f"{track.channel.title}, {shown_of}\n{rate:.2f} spikes per unit and step", size=10)
        column[2].set_xlabel("step")
        for axis in column:
            axis.spines[["top", "right"]].set_visible(False)
            begun = track.nudged.index(True) if True in track.nudged else len(track.steps)
            axis.axvspan(begun + 0.5, len(track.steps) + 0.5, color=NUDGED, alpha=0.12, linewidth=0)
            axis.set_xlim(0.5, len(track.steps) + 0.5)
    for axis, label in zip(grid[:, 0], ("unit", "state", "membrane"), strict=True):
        axis.set_ylabel(label)
    legend = ["what neighbours understand is thin"]
    legend += ["nudged steps are shaded"] if any(tracks[0].nudged) else []
    legend += ["negative spikes are red"] if any(bool((torch.stack(t.spikes) < 0).any()) for t in shown) else []
    legend += [f"{len(shown)} of {len(tracks)} channels"] if len(shown) < len(tracks) else []
    figure.suptitle(f"What the nodes tell each other: {', '.join(legend)}")
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
    return Path(path)


def _restless(track: Track) -> list[int]:
    """The units whose states have gone farthest, which have something to show."""
    states = torch.stack(track.states)
    return (states.amax(0) - states.amin(0) + states.abs().amax(0)).topk(min(TRACED, states.shape[1])).indices.tolist()


def _spikes(axis: Any, track: Track) -> None:
    """A mark for every spike; of messages with both signs, or with many sizes, the colour says which."""
    messages = torch.stack(track.spikes)
    steps, units = messages.nonzero(as_tuple=True)
    height = max(0.6, min(8.0, 180 / messages.shape[1]))
    colours = [NUDGED if value < 0 else FREE for value in messages[steps, units].tolist()]
    axis.scatter(steps.numpy() + 1, track.units[units].numpy(), marker="|", s=height**2, c=colours, linewidths=0.7)
    margin = 0.7 * track.total / messages.shape[1]
    axis.set_ylim(-margin, track.total - 1 + margin)
    for ticks in (axis.xaxis, axis.yaxis):
        ticks.get_major_locator().set_params(integer=True)


def _traces(axis: Any, track: Track, units: list[int]) -> None:
    """States as lines, what is understood of them as steps around."""
    states, decoded, steps = torch.stack(track.states), torch.stack(track.decoded), range(1, len(track.steps) + 1)
    for number, unit in enumerate(units):
        axis.step(steps, decoded[:, unit].numpy(), where="mid", color=f"C{number}", alpha=0.35, linewidth=0.9)
        axis.plot(steps, states[:, unit].numpy(), color=f"C{number}", label=f"unit {int(track.units[unit])}")
    axis.legend(frameon=False, fontsize=7, loc="best")


def _membranes(axis: Any, track: Track, units: list[int]) -> None:
    membranes, steps = torch.stack(track.membranes), range(1, len(track.steps) + 1)
    for number, unit in enumerate(units):
        axis.plot(steps, membranes[:, unit].numpy(), color=f"C{number}", linewidth=0.8)
    if bool(membranes.isnan().all()):
        axis.text(0.5, 0.5, "nothing is kept", size=8, ha="center", transform=axis.transAxes, color=DECODED)
        axis.set_yticks([])
