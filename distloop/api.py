"""The one call: ``distloop.train(training_dataset, validation_dataset)`` gives back a model that predicts."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distloop.build import Given, build
from distloop.comm import World, together
from distloop.config import Config, as_yaml
from distloop.data.dataset_source import model_inputs
from distloop.errors import ConfigError
from distloop.job import Run
from distloop.learner import MakeOptimizer
from distloop.report.outputs import open_outputs
from distloop.run_folder import RunFolder
from distloop.tasks import Supervised
from distloop.tasks.losses import LossFunction


@dataclass(frozen=True)
class Trained:
    """A trained ``module``, the same on every rank, and the run's ``summary`` as summary.json has it."""

    module: nn.Module
    summary: dict[str, Any]
    task: Supervised

    def predict(self, inputs: Tensor) -> Tensor:
        """Classes (B,), numbers (B, k) or next tokens (B, T) for ``inputs`` (B, ...), on this rank alone."""
        self.module.eval()
        with torch.inference_mode():
            return self.task.goal.predict(self.module(model_inputs(inputs).to(self.task.device))).cpu()


def train(
    training: Any,
    validation: Any = None,
    *,
    model: nn.Module | str = "auto",
    loss: LossFunction | str | None = None,
    optimizer: MakeOptimizer | None = None,
    run_dir: str | Path | None = None,
    **options: Any,
) -> Trained:
    """Train ``model`` on ``training`` on all ranks, by the universal loop; collective.

    training, validation:  map-style Datasets of (input, target) pairs, or names and paths as ``--data`` takes them;
                           without ``validation`` a part of the data is held out.
    loss:                  of (outputs, targets), or an import path; by default what the targets ask for.
    optimizer:             makes one of named tensors, such as ``partial(torch.optim.SGD, lr=0.1)``; default Adam.
    run_dir:               a new folder for what the run leaves; None leaves nothing.
    options:               the fields of ``Config``: epochs, batch_size, strategy, seed, clip, ...
    Raises a UserError on all ranks for what is wrong, NotFiniteError if the loss is not finite.
    """
    world = World.start()
    given = Given(
        training=None if isinstance(training, str) else training,
        validation=None if isinstance(validation, str) else validation,
        module=model if isinstance(model, nn.Module) else None,
        loss=None if isinstance(loss, str) else loss,
    )
    named = {"data": training, "validation": validation, "model": model, "loss": loss}
    objects = {key: value for key, value in named.items() if not (value is None or isinstance(value, str))}
    options |= {key: value for key, value in named.items() if isinstance(value, str)}
    with together(world.comm.control):
        config = _config(options | {"optimizer": optimizer or partial(torch.optim.Adam, lr=3e-3, fused=True)})
        if objects.get("model") is not None and config.model_args:
            raise ConfigError("model_args were given with a model that is made already. Expected one or the other")
    told = {key: f"<{type(value).__name__}, given as an object>" for key, value in objects.items()}
    resolved = as_yaml(config, told | {"run_dir": str(run_dir)})
    job = build(config, world, given)
    folder = None if run_dir is None else partial(RunFolder.create, run_dir)
    with (
        closing(job.loader),
        open_outputs(world, resolved, job.task.goal.metrics, folder, config) as outputs,
    ):
        try:
            summary = Run(job, outputs).train()
        finally:
            job.learner.release()
    return Trained(job.learner.module, summary, job.task)


def _config(options: dict[str, Any]) -> Config:
    known = [entry.name for entry in fields(Config)]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ConfigError(f"train has no option {', '.join(unknown)}; it has {', '.join(known)}")
    return Config(**options)
