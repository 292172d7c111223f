"""Those who take part: a learner with a strategy, plain torch by itself, and torch's DistributedDataParallel."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any, cast, final

import torch
from torch import nn

from distloop import loop
from distloop.build import Ingredients, make_learner, settled
from distloop.comm import World
from distloop.comparing.specs import Spec
from distloop.config import Config
from distloop.learner import Learner
from distloop.loop import Progress
from distloop.optimizers import made
from distloop.tasks import Minibatch, Supervised
from distloop.timeline import NoTimeline, Timeline

ROUNDS_WITHOUT_END = 1 << 60
LOSSES_KEPT = 10


class Runner(ABC):
    """Takes steps when asked to, from the same weights and on the same rows as every other.

    Random numbers (dropout) are its own: they go on where its last turn has left them.
    """

    def __init__(
        self, name: str, module: nn.Module, optimizer: torch.optim.Optimizer, progress: Iterator[Progress]
    ) -> None:
        self.name, self.module, self.optimizer = name, module, optimizer
        self._device = next(module.parameters()).device
        self.timeline: Timeline = NoTimeline()
        self.losses: deque[float] = deque(maxlen=LOSSES_KEPT)
        self._progress = progress
        self._random = torch.get_rng_state()

    @final
    def run(self, steps: int) -> None:
        """So many steps."""
        torch.set_rng_state(self._random)
        progress = self.timeline.steps(self._progress)
        for _ in range(steps):
            now = next(progress)
            while not now.position:  # the end of a round is no step
                now = next(progress)
            if not math.isnan(now.loss):  # where ranks step alone it is known when they meet
                self.losses.append(now.loss)
        if self._device.type != "cpu":
            torch.accelerator.synchronize(self._device)
        self._random = torch.get_rng_state()

    @abstractmethod
    def record(self, timeline: Timeline) -> None:
        """From now on tell ``timeline``."""

    @abstractmethod
    def release(self) -> None:
        """Give back memory and hooks."""


@final
class Synchronised(Runner):
    """One of distloop's strategies."""

    def __init__(self, spec: Spec, world: World, found: Ingredients) -> None:
        """Collective. Raises on all ranks what the strategy raises that cannot run here."""
        self.spec = spec
        config, _ = settled(spec.config, world, found.module)
        self.strategy = config.strategy
        self.learner = make_learner(config, world, found, copy.deepcopy(found.module))
        progress = loop.train(found.task, {"model": self.learner}, ROUNDS_WITHOUT_END, Progress())
        super().__init__(spec.name, self.learner.module, self.learner.optimizer, progress)

    def record(self, timeline: Timeline) -> None:
        """The learner tells."""
        self.timeline = self.learner.timeline = timeline

    def release(self) -> None:
        """The learner's windows and hooks."""
        self._progress = iter(())
        self.learner.release()


@final
class Plain(Runner):
    """Plain torch on this task's rows, which nobody else hears of; ``divide``: the loss by this part of its weight."""

    def __init__(self, name: str, config: Config, found: Ingredients, task: Supervised, divide: float) -> None:
        module = copy.deepcopy(found.module)
        self._steps = PlainSteps(module, module, config, found, task, divide)
        super().__init__(name, module, self._steps.optimizer, iter(self._steps))

    def record(self, timeline: Timeline) -> None:
        """The loop tells."""
        self.timeline = self._steps.timeline = timeline

    def release(self) -> None:
        """Its gradients and optimizer."""
        self._progress = iter(())
        del self._steps


class PlainSteps:
    """The loop of any torch tutorial: ``called`` is what forward calls, ``module`` or what wraps it."""

    def __init__(
        self, module: nn.Module, called: nn.Module, config: Config, found: Ingredients, task: Supervised, divide: float
    ) -> None:
        self.module, self.called, self.task, self.divide, self.clip = module, called, task, divide, config.clip
        self.trained = [(name, each) for name, each in module.named_parameters() if each.requires_grad]
        self.optimizer = made(config.optimizer, cast("list[tuple[str, torch.Tensor]]", self.trained))
        self.schedule = found.schedule(self.optimizer)
        self.timeline: Timeline = NoTimeline()

    def __iter__(self) -> Iterator[Progress]:
        """Without end."""
        progress = Progress()
        learners = cast("Mapping[str, Learner]", {"model": SimpleNamespace(module=self.called)})
        while True:
            for minibatches in _by_step(self.task.extract(self.task.collect(learners, progress))):
                self.optimizer.zero_grad()
                progress.loss = self._backward(learners, minibatches)
                with self.timeline.span("optimizer"):
                    if self.clip is not None:
                        nn.utils.clip_grad_norm_([each for _, each in self.trained], self.clip)
                    self.optimizer.step()
                self.schedule.step()
                progress.step += 1
                progress.position += 1
                yield progress
            progress.after_round()
            yield progress

    def _backward(self, learners: Mapping[str, Learner], minibatches: list[Minibatch]) -> float:
        """Gradients of the mean over the rows; returns that mean."""
        total, weight, expected = 0.0, 0.0, 0.0
        for minibatch in minibatches:
            outputs = self.task.apply(learners, minibatch)
            loss = self.task.loss(outputs, self.task.targets(minibatch, outputs))
            expected = minibatch.expected_weight * self.divide
            if loss.total.requires_grad:
                torch.autograd.backward(loss.total / expected)
            total, weight = total + loss.total.item(), weight + loss.weight
        if weight and self.divide == 1.0 and weight != expected:
            for _, each in self.trained:
                if each.grad is not None:
                    each.grad.mul_(expected / weight)
        return total / weight if weight else float("nan")


def _by_step(minibatches: Any) -> Iterator[list[Minibatch]]:
    step: list[Minibatch] = []
    for minibatch in minibatches:
        step.append(minibatch)
        if not minibatch.more:
            yield step
            step = []
