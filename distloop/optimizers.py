"""Which optimizers treat each element by itself, so that a parameter may be cut between two ranks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from distloop.errors import ConfigError

ELEMENTWISE: tuple[type[torch.optim.Optimizer], ...] = (
    torch.optim.ASGD,
    torch.optim.Adadelta,
    torch.optim.Adagrad,
    torch.optim.Adam,
    torch.optim.AdamW,
    torch.optim.Adamax,
    torch.optim.NAdam,
    torch.optim.RAdam,
    torch.optim.RMSprop,
    torch.optim.Rprop,
    torch.optim.SGD,
)


MakeOptimizer = Callable[[Any], torch.optim.Optimizer]


def made(make_optimizer: MakeOptimizer, named: list[tuple[str, Tensor]]) -> torch.optim.Optimizer:
    """The optimizer of these tensors; a rank that owns none gets one of a matrix without elements.

    Raises ConfigError where torch refuses the arguments, or a tensor (Muon takes matrices only).
    """
    try:
        return make_optimizer(named or [("nothing", torch.empty(0, 0))])
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"the optimizer cannot be made: {error}. Expected arguments and parameters that it takes"
        ) from error


def cuts_allowed(make_optimizer: MakeOptimizer) -> bool:
    """Whether the optimizer is known to be elementwise. Of others (Adafactor, Muon, a user's own) whole
    parameters are owned, since they may look at rows, columns or norms. One that is made already names its ``kind``.
    """
    kind = getattr(make_optimizer, "kind", None) or type(made(make_optimizer, [("sample", torch.zeros(2, 2))]))
    if issubclass(kind, torch.optim.LBFGS | torch.optim.SparseAdam):
        raise ConfigError(
            f"optimizer {kind.__name__} cannot be used: LBFGS evaluates the loss several times a step, and "
            "SparseAdam wants sparse gradients. Expected one that steps once on dense gradients, such as Adam or SGD"
        )
    return kind in ELEMENTWISE
