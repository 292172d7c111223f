"""Learning-rate schedules by name, made of torch's own schedulers; they step after every optimizer step."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, ReduceLROnPlateau, SequentialLR

from distloop.errors import ConfigError
from distloop.imports import is_import_path, made_by
from distloop.learner import ConstantRate, Schedule

BUILT_IN = ("constant", "linear", "cosine")


def build_schedule(
    name: str, arguments: dict[str, Any], warmup_steps: int, total_steps: int, optimizer: torch.optim.Optimizer
) -> Schedule:
    """``constant``, ``linear`` or ``cosine`` (to zero at ``total_steps``), or any scheduler of torch by import path.

    ``warmup_steps``: the rate rises linearly to its full height first.
    Raises ConfigError for a name that is none.
    """
    if arguments and name in BUILT_IN:
        raise ConfigError(f"schedule={name} takes no arguments, and was given {', '.join(arguments)}. Expected none")
    if name == "constant" and not warmup_steps:
        return ConstantRate()
    main = _main(name, arguments, max(1, total_steps - warmup_steps), optimizer)
    if not warmup_steps:
        return main
    warmup = LinearLR(optimizer, start_factor=1 / (warmup_steps + 1), total_iters=warmup_steps)
    return SequentialLR(optimizer, [warmup, main], [warmup_steps])


def _main(name: str, arguments: dict[str, Any], steps: int, optimizer: torch.optim.Optimizer) -> LRScheduler:
    if name == "constant":
        return LinearLR(optimizer, start_factor=1.0, total_iters=1)
    if name == "linear":
        return LinearLR(optimizer, start_factor=1.0, end_factor=0.0, total_iters=steps)
    if name == "cosine":
        return CosineAnnealingLR(optimizer, T_max=steps)
    if not is_import_path(name):
        raise ConfigError(
            f"schedule={name}: expected {', '.join(BUILT_IN)}, or an import path, as torch.optim.lr_scheduler.StepLR"
        )
    try:
        made = made_by(name, "schedule", optimizer=optimizer, **arguments)
    except (TypeError, ValueError, KeyError, ZeroDivisionError) as error:
        raise ConfigError(
            f"schedule={name} cannot be made: {error}. Expected arguments that it takes: --schedule-args.NAME VALUE"
        ) from error
    if not isinstance(made, LRScheduler) or isinstance(made, ReduceLROnPlateau):
        raise ConfigError(
            f"schedule={name} gives a {type(made).__name__}; expected a torch LRScheduler that steps by itself"
        )
    return made
