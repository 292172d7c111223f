"""Losses as sums with weights, so that the mean over the global batch is right whatever each rank holds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from distloop.errors import ConfigError
from distloop.tasks.task import Loss

LossFunction = Callable[[Any, Any], Any]


def summed(loss_function: LossFunction) -> Callable[[Any, Tensor], Loss]:
    """What ``loss_function(outputs, targets)`` averages over, made a sum and a weight.

    It may return a scalar, the mean over its rows; one value per row or element; or a pair (sum, weight).
    torch's cross-entropy with class weights or ``ignore_index`` divides by less than the rows: that is followed.
    Raises ConfigError for torch losses with reduction='sum', whose step would grow with the batch.
    """
    if getattr(loss_function, "reduction", "mean") == "sum":
        raise ConfigError(
            f"loss {type(loss_function).__name__} has reduction='sum'. Expected 'mean' or 'none': the mean over the "
            "global batch is taken for you, at any number of ranks"
        )
    if isinstance(loss_function, nn.CrossEntropyLoss | nn.NLLLoss):
        return lambda outputs, targets: _class_loss(loss_function, outputs, targets)
    return lambda outputs, targets: _as_loss(loss_function(outputs, targets), targets)


def _as_loss(value: Any, targets: Tensor) -> Loss:
    if isinstance(value, tuple):
        total, weight = value
        return Loss(total, float(weight))
    if not isinstance(value, Tensor):
        raise ConfigError(f"the loss returned a {type(value).__name__}. Expected a tensor, or a pair (sum, weight)")
    if value.ndim == 0:
        return Loss(value * len(targets), float(len(targets)))
    return Loss(value.sum(), float(value.numel()))


def _class_loss(loss_function: nn.CrossEntropyLoss | nn.NLLLoss, outputs: Tensor, targets: Tensor) -> Loss:
    """What torch's own mean divides by: the sum of the weights of the classes that are not ignored."""
    mean = loss_function(outputs, targets)
    if targets.is_floating_point():
        return Loss(mean * len(targets), float(len(targets)))
    counted = targets != loss_function.ignore_index
    if loss_function.weight is None:
        weight = float(counted.sum())
    else:
        weight = float(loss_function.weight[targets[counted]].sum())
    return Loss(mean * weight if weight else torch.zeros_like(mean), weight)
