"""One run: the loop, and around it what a run needs besides (progress, metrics, evaluation, stopping, its folder)."""

from __future__ import annotations

import math
import statistics
import time
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distloop import loop
from distloop.build import Job
from distloop.comm import Traffic, exchange
from distloop.errors import NotFiniteError
from distloop.evaluation import evaluate
from distloop.loop import Progress
from distloop.report import Fast, Learned, Plan, Sent, Summary
from distloop.report.outputs import Outputs
from distloop.run_folder import versions, weights_sha256
from distloop.timeline import NoTimeline, RecordedTimeline, Timeline


@dataclass
class Clock:
    """Seconds spent in steps, without evaluations; the last 10,000 of them one by one, for the median."""

    spent: float = 0.0
    started: float = 0.0

    def __post_init__(self) -> None:
        """An empty ring."""
        self.steps = array("d")
        self.count = 0

    def start(self) -> None:
        """A step begins."""
        self.started = time.perf_counter()

    def stop(self) -> None:
        """A step has ended, and the next begins."""
        now = time.perf_counter()
        seconds, self.started = now - self.started, now
        self.spent += seconds
        if self.count < 10_000:
            self.steps.append(seconds)
        else:
            self.steps[self.count % 10_000] = seconds
        self.count += 1


@dataclass
class EpochLoss:
    """The mean of the steps' losses over an epoch, weighted by rows or tokens."""

    total: float = 0.0
    weight: float = 0.0

    def add(self, mean: float, weight: float) -> None:
        """What is newly known; a step whose loss had no weight has no mean, and does not count."""
        if weight:
            self.total += mean * weight
            self.weight += weight

    @property
    def mean(self) -> float:
        """nan before the first step."""
        return self.total / self.weight if self.weight else math.nan


class Run:
    """Trains a job and keeps its record. Collective: all ranks run it, rank 0 writes."""

    def __init__(self, job: Job, outputs: Outputs) -> None:
        """``outputs``: null objects on all ranks but 0."""
        self.job, self.reporter, self.log, self.archive = job, outputs.reporter, outputs.log, outputs.archive
        self.progress, self.clock = Progress(), Clock()
        self.train_loss, self.validation = math.nan, dict[str, float]()
        self.epoch_loss, self.kept_sha256 = EpochLoss(), ""
        self.began = time.perf_counter()
        self.start = job.world.comm.sent.copy()
        self.timeline: Timeline = RecordedTimeline() if job.config.timeline else NoTimeline()
        job.learner.timeline = self.timeline

    def train(self) -> dict[str, Any]:
        """Until the end, or until the loss is not finite; what was learned is saved either way. Returns the summary."""
        job = self.job
        plan = Plan(job.rounds, job.total_steps)
        self.reporter.start(job.describe(), plan)
        self._keep_weights()
        try:
            for _ in self._epochs():
                self._end_of_epoch()
        except NotFiniteError as error:
            if self.epoch_loss.weight:
                self.train_loss = self.epoch_loss.mean
            if not self._broken():
                self._keep_weights()
            self._conclude(str(error))
            raise
        return self._conclude(None)

    def _epochs(self) -> Iterator[None]:
        """The loop; yields when an epoch, or the whole run in mid-epoch, has ended."""
        job, progress, last = self.job, self.progress, self.job.total_steps
        every = job.config.log_every
        learners = {"model": job.learner}
        self.clock.start()
        for _ in self.timeline.steps(loop.train(job.task, learners, job.rounds, progress)):
            if progress.position:
                self.clock.stop()
                self.epoch_loss.add(progress.loss, progress.loss_weight)
                self.reporter.step(progress.round + 1, progress.step, progress.samples, progress.loss)
                if every and progress.step % every == 0:
                    self.log.write("step", self._row(progress.loss))
                if progress.step < last or progress.position == job.task.steps_per_round:
                    continue
            known = job.learner.meet()
            self.epoch_loss.add(known.mean_loss, known.weight)
            self.train_loss, self.epoch_loss = self.epoch_loss.mean, EpochLoss()
            yield
            if progress.step >= last:
                return
            self.clock.start()

    def _end_of_epoch(self) -> None:
        job = self.job
        if broken := self._broken():
            error = NotFiniteError(
                f"parameter {broken} is not finite after step {self.progress.step}, though the loss was. The weights "
                "that are kept are those of the epoch before: lower the learning rate, or clip the gradient"
            )
            raise error.on_all_ranks()
        self._keep_weights()
        self.validation = evaluate(job.task, {"model": job.learner}, job.data.validation, job.world.comm.control)
        row = self._row(self.train_loss) | self._named_validation()
        self.log.write("epoch", row)
        self.reporter.epoch(row)

    def _named_validation(self) -> dict[str, float]:
        return {f"validation_{name}": value for name, value in self.validation.items()}

    def _row(self, train_loss: float) -> dict[str, float | int]:
        progress = self.progress
        return {
            "epoch": progress.round + (progress.position > 0),
            "step": progress.step,
            "samples": progress.samples,
            "train_loss": train_loss,
            "learning_rate": float(self.job.learner.optimizer.param_groups[0]["lr"]),
            "gradient_norm": self.job.learner.norm,
            "seconds": time.perf_counter() - self.began,
            "samples_per_second": progress.samples / self.clock.spent if self.clock.spent else math.nan,
        }

    def _broken(self) -> str | None:
        """The first parameter that is not finite, the same on every rank."""
        named = self.job.learner.module.named_parameters()
        return next((name for name, parameter in named if not parameter.isfinite().all()), None)

    def _keep_weights(self) -> None:
        """At the start, and whenever they are known to be good."""
        module = self.job.learner.module
        self.kept_sha256 = weights_sha256(module.named_parameters())
        self.archive.keep(module.state_dict())

    def _conclude(self, stopped: str | None) -> dict[str, Any]:
        summary = self._summary(stopped)
        self.timeline.write((self.archive.path or Path()) / "timeline.json", self.job.world)
        self.archive.conclude(summary)
        sent = exchange(self.job.world.comm.control, (self.job.world.comm.sent - self.start).messages)
        self.reporter.finish(
            Summary(
                Learned(summary["parameters"], self.train_loss, self._named_validation(), summary["weights_sha256"]),
                Fast(summary["seconds"], summary["samples_per_second"], self.progress.step, summary["step_seconds"]),
                Sent(tuple(summary["sent_bytes_per_rank"]), sum(sent)),
                self.archive.path,
            )
        )
        return summary

    def _summary(self, stopped: str | None) -> dict[str, Any]:
        job, progress, clock = self.job, self.progress, self.clock
        sent: Traffic = job.world.comm.sent - self.start
        spec, module = job.data.train.spec, job.learner.module
        return {
            "strategy": job.config.strategy,
            "auto": None if job.choice is None else job.choice.as_dict(),
            "world_size": job.world.size,
            "nodes": job.world.nodes,
            "threads_per_rank": job.threads,
            "device": str(job.device),
            "epochs": progress.round,
            "steps": progress.step,
            "samples": progress.samples,
            "train_loss": self.train_loss,
            "validation": self.validation,
            "seconds": time.perf_counter() - self.began,
            "samples_per_second": progress.samples / clock.spent if clock.spent else 0.0,
            "step_seconds": statistics.median(clock.steps) if clock.steps else 0.0,
            "sent_bytes_per_rank": exchange(job.world.comm.control, sent.bytes),
            "parameters": sum(parameter.numel() for parameter in module.parameters()),
            "weights_sha256": self.kept_sha256,
            "inputs": {"shape": list(spec.input_shape), "dtype": str(spec.input_dtype).removeprefix("torch.")},
            "outputs": {
                "target": spec.target,
                "classes": spec.classes,
                "numbers": spec.numbers,
                "class_names": spec.class_names and list(spec.class_names),
            },
            "stopped": stopped,
            "mpi": job.world.library,
            "versions": versions(),
        }
