"""Supervised learning: rows and what they should become. An epoch is a round."""

from __future__ import annotations

import math
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np
import torch
from torch import Tensor

from distloop.data import Loader, Permutation, Source, key_of
from distloop.errors import ModelError, UserError
from distloop.partition import Partition
from distloop.tasks.goals import Goal, Sums
from distloop.tasks.losses import LossFunction, summed
from distloop.tasks.task import Loss, Minibatch, Task

if TYPE_CHECKING:
    from distloop.learner import Learner
    from distloop.loop import Progress


@dataclass(frozen=True)
class Shard:
    """Which rank's rows, of how many ranks."""

    rank: int
    world_size: int


@dataclass(frozen=True)
class Epoch:
    """The order of one epoch's rows, and the step to begin with."""

    order: Permutation
    first_step: int


@final
class Supervised(Task[Epoch]):
    """Rows of a source in an order that seed and epoch decide, cut into global batches, each divided over the ranks.

    The last global batch of an epoch may be smaller; nothing is padded and nothing dropped.
    """

    def __init__(
        self,
        source: Source,
        shard: Shard,
        goal: Goal,
        batch_size: int,
        *,
        seed: int = 0,
        accumulate: int = 1,
        loss_function: LossFunction | None = None,
        device: torch.device | str = "cpu",
        bf16: bool = False,
        loader: Loader | None = None,
    ) -> None:
        """``batch_size``: rows of a step over all ranks. ``accumulate``: minibatches that a rank makes of its part."""
        self.source, self.shard, self.goal, self.batch_size = source, shard, goal, batch_size
        self.seed, self.accumulate, self.device = seed, accumulate, torch.device(device)
        self._loss = summed(loss_function or goal.loss)
        self._loss_of_classes = isinstance(loss_function or goal.loss, torch.nn.CrossEntropyLoss | torch.nn.NLLLoss)
        self._bf16, self._loader = bf16, loader or Loader(source)

    @property
    def steps_per_round(self) -> int:
        """Global batches of an epoch."""
        return -(-len(self.source) // self.batch_size)

    def collect(self, learners: Mapping[str, Learner], progress: Progress) -> Epoch:
        """The order of this epoch, computed row by row: nothing of the data's size is stored or shuffled."""
        return Epoch(Permutation(len(self.source), key_of(self.seed, progress.round)), progress.position)

    def extract(self, data: Epoch) -> Iterator[Minibatch]:
        """This rank's rows of each global batch."""
        indices = (data.order(positions) for positions, _, _ in self._plan(data.first_step))
        rows = self._loader.batches(indices)  # may run ahead of the loop, so the plan is walked twice
        for (_, global_rows, more), (inputs, targets) in zip(self._plan(data.first_step), rows, strict=True):
            yield Minibatch(inputs, targets, global_rows, more)

    def _plan(self, first_step: int) -> Iterator[tuple[np.ndarray[Any, np.dtype[np.int64]], int, bool]]:
        """Positions of the rows of each minibatch, the rows of its global batch, and whether more of it follow."""
        for step in range(first_step, self.steps_per_round):
            first = step * self.batch_size
            global_rows = min(self.batch_size, len(self.source) - first)
            mine = Partition.even(global_rows, self.shard.world_size).slice_of(self.shard.rank)
            cuts = Partition.even(mine.stop - mine.start, self.accumulate)
            for turn in range(self.accumulate):
                part = cuts.slice_of(turn)
                positions = np.arange(part.start, part.stop, dtype=np.int64) + (first + mine.start)
                yield positions, global_rows, turn + 1 < self.accumulate

    def apply(self, learners: Mapping[str, Learner], minibatch: Minibatch) -> Any:
        """The module's outputs; None for no rows, which many layers refuse."""
        if not len(minibatch.inputs):
            return None
        return self._forward(learners["model"].module, minibatch.inputs)

    def targets(self, minibatch: Minibatch, outputs: Any) -> Tensor:
        """The rows' own."""
        return minibatch.targets.to(self.device, non_blocking=True)

    def loss(self, outputs: Any, targets: Tensor) -> Loss:
        """The sum over the rows, with their number as its weight."""
        if outputs is None:
            return Loss(torch.zeros(()), 0.0)
        with self._precision():
            loss = self._loss(*self.goal.arrange(outputs, targets))
        if torch.is_grad_enabled() and loss.weight and not loss.total.requires_grad:
            raise ModelError(
                "the loss does not depend on any parameter that is trained, so nothing can be learned. Expected one "
                "that torch can differentiate: no item(), argmax() or detach() on its way, and not everything frozen"
            )
        return loss

    def measure(self, learners: Mapping[str, Learner], batches: Iterable[tuple[Tensor, Tensor]]) -> Sums:
        """Sums over these rows of the loss and of what the metrics need."""
        module, sums = learners["model"].module, {"loss": 0.0, "weight": 0.0}
        with torch.inference_mode(), evaluating(module):
            for inputs, targets in batches:
                if len(inputs):
                    outputs, wanted = self._forward(module, inputs), targets.to(self.device)
                    loss = self.loss(outputs, wanted)
                    found = self.goal.measure(outputs, wanted) | {"loss": float(loss.total), "weight": loss.weight}
                    sums = {name: sums.get(name, 0.0) + value for name, value in found.items()}
        return sums

    @property
    def sums(self) -> tuple[str, ...]:
        """The names of what ``measure`` adds up, which a rank without rows cannot know otherwise."""
        return ("loss", "weight", *self.goal.sums)

    def summary(self, sums: Sums) -> dict[str, float]:
        """Loss and metrics, from sums over all rows."""
        return {"loss": sums["loss"] / sums["weight"] if sums["weight"] else math.nan} | self.goal.summary(sums)

    @torch.no_grad()
    def check(self, module: torch.nn.Module) -> None:
        """Try one row, before anything is trained. Raises ModelError if model, loss and data do not fit."""
        inputs, targets = self.source.rows(np.arange(1, dtype=np.int64))
        try:
            with evaluating(module):
                outputs = self._forward(module, inputs)
        except Exception as error:
            raise ModelError(
                f"the model does not take a row of this data, inputs {_shape(inputs)}: {_told(error)}. "
                "Expected a model for inputs of that shape: see --model and --model-args"
            ) from error
        self._check_outputs(outputs, targets.to(self.device))

    def _check_outputs(self, outputs: Any, targets: Tensor) -> None:
        try:
            self.loss(outputs, targets)
            self.goal.measure(outputs, targets)
        except UserError:
            raise
        except Exception as error:
            raise ModelError(
                f"the loss does not take outputs {_shape(outputs)} with targets {_shape(targets)}: {_told(error)}. "
                "Expected a model and a loss for this data: see --model, --loss and --task"
            ) from error
        spec = self.source.spec
        given = self.goal.arrange(outputs, targets)[0].shape[-1]
        if spec.target in ("class", "tokens") and self._loss_of_classes and given < spec.output_size:
            raise ModelError(
                f"the model gives {given} outputs, for data of {spec.output_size} classes. Expected one for each: a "
                "model that is made by a class or function with an argument output_size is told how many"
            )

    def _forward(self, module: torch.nn.Module, inputs: Tensor) -> Any:
        with self._precision():
            return module(inputs.to(self.device, non_blocking=True))

    def _precision(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.bfloat16) if self._bf16 else nullcontext()


@contextmanager
def evaluating(module: torch.nn.Module) -> Iterator[None]:
    """In evaluation mode for a while; parts that were in it before (a frozen backbone) stay there."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def _shape(value: Any) -> str:
    return f"{tuple(value.shape)} {value.dtype}" if isinstance(value, Tensor) else type(value).__name__


def _told(error: Exception) -> str:
    """What went wrong, and in which line of the user's own, if it was in one."""
    ours = str(Path(__file__).parents[1])
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "site-packages" not in frame.filename and not frame.filename.startswith(ours)]
    place = f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""
    return f"{type(error).__name__}: {error}{place}"
