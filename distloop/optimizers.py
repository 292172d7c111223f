"""Which optimizers treat each element by itself, so that a parameter may be cut; and how one is shown a part of all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from distloop.errors import ConfigError

if TYPE_CHECKING:
    from distloop.parts import Block

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


def traffic_bytes(make_optimizer: MakeOptimizer) -> int:
    """What a step moves through memory for one float32 parameter: gradient, parameter twice, each state twice.

    28 for Adam. Of one that is made already (``kind``) Adam's is taken.
    """
    if getattr(make_optimizer, "kind", None) is not None:
        return 28
    sample = torch.zeros(2, 2)
    optimizer = made(make_optimizer, [("sample", sample)])
    sample.grad = torch.zeros(2, 2)
    optimizer.step()
    states = [value for value in optimizer.state[sample].values() if isinstance(value, Tensor) and value.numel() == 4]
    return 12 + 8 * len(states)


class Shown:
    """Which parameters an optimizer sees: those of one block, in the groups where it has them, or all."""

    def __init__(self, optimizer: torch.optim.Optimizer, blocks: Sequence[Block]) -> None:
        self.optimizer = optimizer
        self._all = [list(group["params"]) for group in optimizer.param_groups]
        self._pieces = [piece for block in blocks for piece in block.pieces]
        group_of = {id(tensor): number for number, tensors in enumerate(self._all) for tensor in tensors}
        self._inside: dict[int, dict[int, list[Tensor]]] = {}
        for block in blocks:
            inside = self._inside[id(block)] = {}
            for piece in block.pieces:
                if id(piece.parameter) in group_of:
                    inside.setdefault(group_of[id(piece.parameter)], []).append(piece.parameter)
        self._single, self._used = len(blocks) == 1, b""
        self._groups: list[dict[str, Any]] = []  # all of them, while the optimizer sees some

    def only(self, block: Block, used: bytes) -> None:
        """This block's, with gradients; those that nobody has used have none."""
        cleared = block.pieces and used[block.pieces[0].index] and block.pieces[0].parameter.grad is None
        if used != self._used or cleared:  # by a zero_grad of the optimizer's own
            for piece in self._pieces:
                piece.parameter.grad = piece.gradient if used[piece.index] else None
            self._used = used
        if self._single:
            return
        self._groups = self._groups or self.optimizer.param_groups
        inside = self._inside[id(block)]
        for number, tensors in inside.items():
            self._groups[number]["params"] = tensors
        self.optimizer.param_groups = [self._groups[number] for number in inside]

    def everything(self) -> None:
        """As the optimizer was made."""
        if self._groups:
            for group, tensors in zip(self._groups, self._all, strict=True):
                group["params"] = tensors
            self.optimizer.param_groups, self._groups = self._groups, []
