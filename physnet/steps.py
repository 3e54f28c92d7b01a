"""Steps of an optimizer over batches that several processes may share.

gradient of a step = mean over its samples, whichever process and batch they are in
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor

from physnet.checkpoints import Checkpoint, optimizer_state, restore_optimizer
from physnet.errors import DataError, RelaxationError, TrainingError
from physnet.learning import Engine
from physnet.metrics import Tally, rank
from physnet.nonfinite import all_finite, explain_nonfinite, nonfinite_parameter
from physnet.rows import Share
from physnet.samples import Samples
from physnet.schema import TrainSchema


@dataclass
class Position:
    """Where a run stands.

    Arguments:
        epoch: the one in progress, from 1.
        done: steps of the optimizer that are done in it.
        steps: steps of the optimizer since the beginning of the run.
        batches: batches since the beginning; what random signs and states are drawn from.
        rows: size of the last batch; 0 before the first.
        seconds: training time of the epoch so far.
    """

    epoch: int = 1
    done: int = 0
    steps: int = 0
    batches: int = 0
    rows: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        return f"epoch {self.epoch}, step {self.steps}"


class Steps:
    """Takes the steps of a run, and knows where it stands.

    Arguments:
        engine, optimizer, accelerator: what takes part.
        settings: how the network is trained.
        data: the training samples, ready to be picked.
        augment: changes the rows of a share, given the number of their batch.
        wishes: asked in every step whether this process wants a checkpoint after it, and whether it wants to stop.
        top: among how many best classes the true one may be, where that is counted.
    """

    def __init__(
        self,
        engine: Engine,
        optimizer: torch.optim.Optimizer,
        accelerator: Accelerator,
        settings: TrainSchema,
        data: Samples,
        augment: Callable[[Mapping[str, Tensor], int, Share], dict[str, Tensor]],
        wishes: Callable[[], tuple[bool, bool]],
        top: int | None = None,
    ) -> None:
        self.engine, self.optimizer, self.accelerator = engine, optimizer, accelerator
        self.settings, self.data, self.augment, self.wishes = settings, data, augment, wishes
        self.parallel, self._optimizer = accelerator.prepare(engine, optimizer)
        self.position, self.tally = Position(), Tally(engine.model.device, top)
        self._agreed = False, False

    def next_epoch(self) -> None:
        """Go to the beginning of the next epoch."""
        now = self.position
        self.position = Position(now.epoch + 1, 0, now.steps, now.batches, now.rows)
        self.tally = Tally(self.engine.model.device, self.tally.top)

    @property
    def agreed(self) -> tuple[bool, bool]:
        """Whether a checkpoint is due and whether to stop, now that a step is done: the same in all processes."""
        return self.wishes() if self.accelerator.num_processes == 1 else self._agreed

    def expect(self, order: Tensor) -> None:
        """Say which samples the next steps of this epoch will take, so that they may be read ahead.

        Arguments:
            order: numbers of the samples, one step after the other.
        """
        self.data.expect(self.shares(order.split(self.settings.batch * self.settings.accumulate)), self.position.epoch)

    def shares(self, steps: Iterable[Tensor]) -> list[Tensor]:
        """What this process picks in these steps, batch by batch."""
        parts = (part for step in steps for part in step.split(self.settings.batch))
        return [part[self._share(part).rows] for part in parts]

    def take(self, rows: Tensor) -> float:
        """One step over the samples with these numbers, in as many batches as they make.

        Returns:
            The mean cost.

        Raises:
            TrainingError: for a cost, gradient or parameter that isn't finite, by name.
            RelaxationError: for states that aren't.
            DataError: if too many samples can't be read.
        """
        self._optimizer.zero_grad(set_to_none=True)
        self.position.steps += 1
        cost, batch = torch.zeros((), device=rows.device), dict[str, Tensor]()
        parts = rows.split(self.settings.batch)
        for number, part in enumerate(parts, 1):
            # processes exchange only the gradient of the whole step
            with self.accelerator.no_sync(self.parallel) if number < len(parts) else nullcontext():
                batch, more = self._backward(part, len(part) / len(rows))
            cost = cost + more
        tensors = list(self.engine.model.tensors.values())
        value, fine = all_finite(cost, [*(t.grad for t in tensors if t.grad is not None), *tensors])
        failure = None if fine else explain_nonfinite(self.engine, batch, str(self.position))
        if failure is None and not math.isfinite(value):
            failure = TrainingError(
                f"{self.position}: the cost is {value}: reduce the learning rate, or set train.clip"
            )
        if failure is not None:
            raise failure
        if self.settings.clip is not None:
            self.accelerator.clip_grad_norm_(self.parallel.parameters(), self.settings.clip)
        self._optimizer.step()
        return value

    def refuse_nonfinite_parameters(self) -> None:
        """Look at what the last step has left.

        Raises:
            TrainingError: naming the parameter.
        """
        bad = nonfinite_parameter(self.engine.model)
        if bad is not None:
            fix = f"reduce its learning rate (train.rates: {{{bad}: ...}}), or set train.clip"
            raise TrainingError(f"{self.position}: the parameter {bad} is not finite: {fix}")

    def anyone(self, wish: bool) -> bool:
        """Whether a process wishes something."""
        if self.accelerator.num_processes == 1:
            return wish
        heard: Any = self.accelerator.reduce(torch.tensor(float(wish), device=self.accelerator.device), "sum")
        return bool(heard)

    def equalise(self) -> None:
        """Give all processes the buffers of the first: what each of them has seen of the data differs."""
        if self.accelerator.num_processes > 1:
            for buffer in self.engine.model.buffers():
                broadcast(buffer)

    # ------------------------------------------------------------------------ one batch

    def _share(self, part: Tensor) -> Share:
        """Which rows of a batch this process works on."""
        return Share(len(part), self.accelerator.process_index, self.accelerator.num_processes)

    def _backward(self, part: Tensor, weight: float) -> tuple[dict[str, Tensor], Tensor]:
        """Add the gradient of one batch, of which this process works on its share.

        Arguments:
            part: numbers of the samples.
            weight: of this batch in the mean over the step.
        """
        accelerator, position, engine = self.accelerator, self.position, self.engine
        share = self._share(part)
        rows = part[share.rows]
        if share.total != position.rows:  # all processes have to agree on whether the last states fit
            engine.previous, position.rows = None, share.total
        position.batches += 1
        batch, loss, failure = dict[str, Tensor](), None, None
        engine.share = share
        try:
            batch = self.augment(self.data.pick(rows, position.epoch), position.batches, share)
            loss = self.parallel(step=position.batches, **batch)
        except RelaxationError as error:
            began = "; reduce the learning rate, or set train.clip" if position.steps > 1 else ""
            failure = explain_nonfinite(engine, batch, str(position)) or type(error)(f"{position}: {error}{began}")
        except DataError as error:
            failure = error
        finally:
            engine.share = None
        weight *= share.count / share.total
        cost = self._agree(failure, torch.zeros(()) if loss is None else loss.detach() * weight)
        assert loss is not None
        accelerator.backward(loss * (weight * share.processes))  # which divides by the number of processes
        if share.count:
            record = engine.last
            assert record is not None
            fit = rank(engine, record.free.states, batch)
            self.tally.add(engine.per_sample(record.cost), fit, record.free, record.nudged)
            self.tally.lose(self.data.lost(rows))
        return batch, cost

    def _agree(self, failure: Exception | None, cost: Tensor) -> Tensor:
        """The cost over all processes, which also find what they agree on.

        A process that can't go on says so here, before the others wait for its gradient.
        """
        if self.accelerator.num_processes > 1:
            device = self.accelerator.device
            said = torch.tensor([failure is not None, *self.wishes()], dtype=torch.float64, device=device)
            heard: Any = self.accelerator.reduce(torch.cat([said, cost.to(said).view(1)]), "sum")
            failed, due, stopping, _ = heard.tolist()
            self._agreed, cost = (due > 0, stopping > 0), heard[-1]
            if failed and failure is None:
                failure = TrainingError(f"{self.position}: another process stopped, and its message says why")
        if failure is not None:
            raise failure
        return cost

    # ------------------------------------------------------------------------ checkpoints

    def checkpoint(self) -> Checkpoint:
        """All that a later `restore` needs. All processes have to call this together."""
        checkpoint = Checkpoint()
        checkpoint.put("model", self.engine.model.state_dict())
        checkpoint.put("tally", {"sums": self.tally.gathered(self.accelerator)})
        checkpoint.put("previous", self._whole_previous())
        memory, numbers = optimizer_state(self.optimizer, self._names())
        checkpoint.put("optimizer", memory)
        checkpoint.state = {"position": asdict(self.position), "optimizer": numbers}
        return checkpoint

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go back to the moment of a checkpoint, which may have been taken with another number of processes."""
        device, accelerator = self.accelerator.device, self.accelerator
        self.engine.model.load_state_dict(checkpoint.under("model"))
        numbers = checkpoint.state["optimizer"]
        restore_optimizer(self.optimizer, self._names(), checkpoint.under("optimizer"), numbers)
        self.position = Position(**checkpoint.state["position"])
        if accelerator.is_main_process:  # the other processes begin their sums anew
            self.tally.restore(checkpoint.under("tally")["sums"])
        share = Share(self.position.rows, accelerator.process_index, accelerator.num_processes)
        previous = {name: value[share.rows].to(device) for name, value in checkpoint.under("previous").items()}
        self.engine.previous = previous or None

    def _names(self) -> dict[Tensor, str]:
        return {value: name for name, value in self.engine.model.tensors.items()}

    def _whole_previous(self) -> dict[str, Tensor]:
        """The states of the last batch, put together from all processes; nothing where they aren't needed."""
        accelerator, previous = self.accelerator, self.engine.carried
        if not previous or accelerator.num_processes == 1:
            return previous
        share = Share(self.position.rows, accelerator.process_index, accelerator.num_processes)
        whole: dict[str, Tensor] = {}
        for name, value in previous.items():
            rows = value.new_zeros(share.total, *value.shape[1:])
            if share.count:
                rows[share.rows] = value
            found: Any = accelerator.reduce(rows, "sum")
            whole[name] = found
        return whole
