"""What a task is: the five words of the loop that depend on what is learned. Tasks know nothing of MPI."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from torch import Tensor

if TYPE_CHECKING:
    from distloop.learner import Learner
    from distloop.loop import Progress

Data = TypeVar("Data")


@dataclass
class Minibatch:
    """One rank's rows of one step, or of a part of it.

    ``inputs`` (B, ...) and ``targets`` (B, ...), B may be 0; ``global_rows``: of the whole step over all ranks.
    ``more``: further minibatches of the same step follow (gradient accumulation). ``learner``: whose step it is.
    """

    inputs: Tensor
    targets: Tensor
    global_rows: int
    more: bool = False
    learner: str = "model"

    @property
    def expected_weight(self) -> int:
        """The weight of the step's loss over all ranks, if every target of every row counts one."""
        return self.global_rows * math.prod(self.targets.shape[1:])


@dataclass
class Loss:
    """A sum over this rank's rows and the weight of that sum (rows, tokens): ranks add both up and divide once.

    ``divisor`` is a first guess at the weight of the global batch, the same on every rank, by which gradients are
    divided while they are computed; only where the true weight differs must they be touched again.
    """

    total: Tensor
    weight: float
    divisor: float = 1.0

    def __truediv__(self, divisor: float) -> Loss:
        """The same loss with that guess."""
        return Loss(self.total, self.weight, float(divisor))


class Task(ABC, Generic[Data]):
    """Supervised, self-supervised, generative or reinforcement learning."""

    @abstractmethod
    def collect(self, learners: Mapping[str, Learner], progress: Progress) -> Data:
        """The data of one round, from ``progress.position`` on: a shard, rollouts, noise."""

    @abstractmethod
    def extract(self, data: Data) -> Iterable[Minibatch]:
        """Shuffled minibatches; the same number on every rank, some of them without rows."""

    @abstractmethod
    def apply(self, learners: Mapping[str, Learner], minibatch: Minibatch) -> Any:
        """The model's outputs."""

    @abstractmethod
    def targets(self, minibatch: Minibatch, outputs: Any) -> Any:
        """What the outputs should have been."""

    @abstractmethod
    def loss(self, outputs: Any, targets: Any) -> Loss:
        """How far off they are."""
