"""What is learned from a row: a class, numbers, or the next token. Each has a loss, metrics and a prediction."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import final

from torch import Tensor, nn

from distloop.data import Spec

Sums = dict[str, float]


class Goal(ABC):
    """Metrics are sums over rows until the very end, so that each row counts once at any number of ranks."""

    loss: nn.Module
    metrics: tuple[str, ...]
    sums: tuple[str, ...]

    @abstractmethod
    def arrange(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs and targets in the shapes that the loss takes."""

    @abstractmethod
    def measure(self, outputs: Tensor, targets: Tensor) -> Sums:
        """Sums over the rows given."""

    @abstractmethod
    def summary(self, sums: Sums) -> dict[str, float]:
        """The metrics, from sums over all rows."""

    @abstractmethod
    def predict(self, outputs: Tensor) -> Tensor:
        """What a person wants to know: the class, the number, the most likely token."""


@final
class Classification(Goal):
    """Outputs (B, classes), targets (B,)."""

    def __init__(self) -> None:
        self.loss, self.metrics = nn.CrossEntropyLoss(), ("accuracy",)
        self.sums = ("right", "rows")

    def arrange(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """As they are."""
        return outputs, targets

    def measure(self, outputs: Tensor, targets: Tensor) -> Sums:
        """How many are right."""
        return {"right": float((outputs.argmax(-1) == targets).sum()), "rows": float(len(targets))}

    def summary(self, sums: Sums) -> dict[str, float]:
        """The fraction that is right."""
        return {"accuracy": sums["right"] / sums["rows"]}

    def predict(self, outputs: Tensor) -> Tensor:
        """The most likely class."""
        return outputs.argmax(-1)


@final
class Regression(Goal):
    """Outputs (B, k) or, for k = 1, (B,); targets (B, k)."""

    def __init__(self) -> None:
        self.loss, self.metrics = nn.MSELoss(), ("rmse", "r2")
        self.sums = ("error", "sum", "square", "count")

    def arrange(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """A model without a last dimension of 1 is given one: (B,) broadcast with (B, 1) is wrong in silence."""
        return outputs.reshape(targets.shape), targets

    def measure(self, outputs: Tensor, targets: Tensor) -> Sums:
        """First and second moments."""
        wide, wanted = outputs.reshape(targets.shape).double(), targets.double()
        squares = {"error": (wide - wanted).square().sum(), "sum": wanted.sum(), "square": wanted.square().sum()}
        return {name: float(value) for name, value in squares.items()} | {"count": float(targets.numel())}

    def summary(self, sums: Sums) -> dict[str, float]:
        """Root mean squared error, and the fraction of the variance that is explained."""
        spread = sums["square"] - sums["sum"] ** 2 / sums["count"]
        r2 = 1 - sums["error"] / spread if spread > 0 else math.nan
        return {"rmse": math.sqrt(sums["error"] / sums["count"]), "r2": r2}

    def predict(self, outputs: Tensor) -> Tensor:
        """The numbers."""
        return outputs


@final
class NextToken(Goal):
    """Outputs (B, T, tokens), targets (B, T): every position predicts its successor."""

    def __init__(self) -> None:
        self.loss, self.metrics = nn.CrossEntropyLoss(), ("accuracy", "bits_per_token")
        self.sums = ("right", "nats", "rows")

    def arrange(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Every token is a row of the loss."""
        return outputs.flatten(0, 1), targets.flatten()

    def measure(self, outputs: Tensor, targets: Tensor) -> Sums:
        """How many are right, and how surprising they were."""
        nats = nn.functional.cross_entropy(*self.arrange(outputs.float(), targets), reduction="sum")
        return {
            "right": float((outputs.argmax(-1) == targets).sum()),
            "nats": float(nats),
            "rows": float(targets.numel()),
        }

    def summary(self, sums: Sums) -> dict[str, float]:
        """Per token."""
        return {"accuracy": sums["right"] / sums["rows"], "bits_per_token": sums["nats"] / sums["rows"] / math.log(2)}

    def predict(self, outputs: Tensor) -> Tensor:
        """The most likely successor of each position."""
        return outputs.argmax(-1)


def goal_of(spec: Spec) -> Goal:
    """What the targets of a source ask for."""
    if spec.target == "class":
        return Classification()
    return NextToken() if spec.target == "tokens" else Regression()


__all__ = ["Classification", "Goal", "NextToken", "Regression", "Sums", "goal_of"]
