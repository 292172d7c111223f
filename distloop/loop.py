"""The universal training loop: all of training, for every task, strategy and number of ranks, is these lines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from distloop.learner import Gradients, Learner

if TYPE_CHECKING:
    from distloop.tasks.task import Minibatch, Task


@dataclass
class Progress:
    """How far the training is: the same on every rank, and never a matter of how many there are."""

    round: int = 0
    """Rounds ended; of a supervised task, epochs."""
    position: int = 0
    """Steps taken in this round; 0 says that one has just ended, or that none has begun."""
    step: int = 0
    """Optimizer steps taken."""
    samples: int = 0
    """Rows seen, over all ranks."""
    loss: float = float("nan")
    """Mean loss over the last global batch; where ranks step alone, since they last met."""
    loss_weight: float = 0.0
    """Rows or tokens that this is the mean of; 0 if it is no news."""

    def after_step(self, minibatch: Minibatch, gradients: Gradients) -> Progress:
        """One step further."""
        self.step += 1
        self.position += 1
        self.samples += minibatch.global_rows
        self.loss, self.loss_weight = gradients.known.mean_loss, gradients.known.weight
        return self

    def after_round(self) -> Progress:
        """One round further."""
        self.round += 1
        self.position = 0
        return self


def train(task: Task[Any], learners: Mapping[str, Learner], rounds: int, progress: Progress) -> Iterator[Progress]:
    """Train until ``rounds`` rounds are done; yields after every step, and once more after every round.

    What a run needs besides (logging, checkpoints, evaluation, stopping) lives in the caller's ``for``.
    Collective: every rank runs it, with the same task, learners and progress.
    """
    while progress.round < rounds:
        data = task.collect(learners, progress)  # a dataset shard, rollouts, noise
        for minibatch in task.extract(data):  # the same number on every rank
            learner = learners[minibatch.learner]  # a GAN's minibatches alternate between two
            outputs = task.apply(learners, minibatch)
            targets = task.targets(minibatch, outputs)
            loss = task.loss(outputs, targets)
            gradients = learner.gradients(loss / minibatch.expected_weight, minibatch.more)  # this rank's
            if minibatch.more:
                continue  # gradient accumulation: no traffic before the step's last minibatch
            for part in learner.reduce_to_owner(gradients):  # summed over the ranks, part by part
                learner.apply(part)  # the optimizer, on what this rank owns
            learner.broadcast()  # fresh on every rank
            yield progress.after_step(minibatch, gradients)
        yield progress.after_round()
