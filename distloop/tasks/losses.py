"""Losses as sums with weights, so that the mean over the global batch is right whatever each rank holds."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from typing import Any

from torch import Tensor, nn

from distloop.errors import ConfigError
from distloop.tasks.task import Loss

LossFunction = Callable[[Any, Any], Any]

# Their mean is their sum over the number of targets; of others, the mean over rows is taken as it is.
_SUMMABLE = (
    nn.BCELoss,
    nn.BCEWithLogitsLoss,
    nn.CrossEntropyLoss,
    nn.HuberLoss,
    nn.L1Loss,
    nn.MSELoss,
    nn.NLLLoss,
    nn.SmoothL1Loss,
)


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
    if getattr(loss_function, "reduction", None) == "mean" and isinstance(loss_function, _SUMMABLE):
        summing = copy(loss_function)
        summing.reduction = "sum"
        return lambda outputs, targets: Loss(summing(outputs, targets), _weight(summing, targets))
    return lambda outputs, targets: _as_loss(loss_function(outputs, targets), targets)


def _as_loss(value: Any, targets: Tensor) -> Loss:
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], Tensor) and value[0].ndim == 0:
        return Loss(value[0], float(value[1]))
    if not isinstance(value, Tensor):
        given = (
            f"({', '.join(type(part).__name__ for part in value)})"
            if isinstance(value, tuple)
            else type(value).__name__
        )
        raise ConfigError(
            f"the loss returned {given}. Expected a tensor: the mean, or a value for each row or element; or a pair of "
            "a sum, which is a tensor without dimensions, and its weight"
        )
    if value.ndim == 0:
        return Loss(value * len(targets), float(len(targets)))
    return Loss(value.sum(), float(value.numel()))


def _weight(loss_function: nn.Module, targets: Tensor) -> float:
    """What torch's own mean divides the sum by: targets, less the ignored ones, each as its class weighs."""
    if not isinstance(loss_function, nn.CrossEntropyLoss | nn.NLLLoss):
        return float(targets.numel())
    if targets.is_floating_point():  # probabilities (B, classes, ...): one target for all classes
        return float(targets.numel() // targets.shape[1])
    counted = targets != loss_function.ignore_index
    if loss_function.weight is None:
        return float(counted.sum())
    return float(loss_function.weight[targets[counted]].sum())
