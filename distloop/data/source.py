"""What training reads: rows by index, whatever holds them; parts of a source cost no memory."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, Protocol, final, runtime_checkable

import numpy as np
import torch

from distloop.data.permutation import Permutation, Positions, key_of
from distloop.errors import ConfigError

HOLDOUT_KEY = key_of(0, 1)

Target = Literal["class", "number", "tokens"] | None
Task = Literal["auto", "classification", "regression", "language"]


@dataclass(frozen=True)
class Spec:
    """What the rows of a source are, and so what a model must take and give.

    input_shape:  of one row, such as (1, 28, 28); float32, or int64 for tokens.
    target:       class (int64 (B,)), number (float32 (B, numbers)), tokens (int64 (B, T)), or None for whatever
                  else a user's Dataset gives.
    classes:      labels and tokens lie in [0, classes); None until they have been counted (`with_classes`).
    numbers:      the last dimension of a target that is not a label.
    """

    input_shape: tuple[int, ...]
    input_dtype: torch.dtype
    target: Target
    classes: int | None = None
    class_names: tuple[str, ...] | None = None
    numbers: int = 1

    @property
    def output_size(self) -> int:
        """What the last dimension of the model's output must be; the classes must have been counted."""
        if self.target in ("class", "tokens"):
            assert self.classes is not None, "the classes of this source have not been counted yet"
            return self.classes
        return self.numbers

    def with_classes(self, classes: int) -> Spec:
        """The same with that many classes; names stay only if there is one for each."""
        named = self.class_names if self.class_names and len(self.class_names) == classes else None
        return replace(self, classes=classes, class_names=named)


@runtime_checkable
class Source(Protocol):
    """Rows that can be read by index, in any order; anything with these five is one."""

    @property
    def spec(self) -> Spec:
        """What the rows are."""
        ...

    def __len__(self) -> int: ...

    def rows(self, indices: Positions) -> tuple[torch.Tensor, torch.Tensor]:
        """The inputs (B, ...) and targets (B, ...) of the rows ``indices`` (B,), in that order; B may be 0.

        Raises DataError, naming the row, for a number that is not finite or a label outside the classes.
        """
        ...

    def target_range(self, start: int, stop: int) -> tuple[int, int]:
        """The smallest and largest label (or token) of a share of the rows; (0, -1) if it is empty.

        Shares [start, stop) that make up range(len(source)) cover all labels, so that ranks can divide the scan:
        the largest of their maxima + 1 is what `with_classes` wants. Raises DataError, naming the row, for a label
        that is negative, or not below the classes where these are known.
        """
        ...

    def with_classes(self, classes: int) -> Source:
        """The same rows with that many classes; rows in memory are checked at once, others when they are read."""
        ...


@final
class Subset:
    """Rows [start, stop) of a source, or of the source as ``permutation`` shuffles it."""

    def __init__(self, source: Source, permutation: Permutation | None, start: int, stop: int) -> None:
        assert 0 <= start <= stop <= len(source)
        assert permutation is None or len(permutation) == len(source)
        self.source = source
        self.permutation = permutation
        self.start = start
        self.stop = stop

    @property
    def spec(self) -> Spec:
        """As the source's."""
        return self.source.spec

    def __len__(self) -> int:
        return self.stop - self.start

    def rows(self, indices: Positions) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows by index in this part; errors name the row in the whole source."""
        if indices.size and not (indices.min() >= 0 and indices.max() < len(self)):
            raise IndexError(f"a row outside range({len(self)}) was asked for")
        places = indices + np.int64(self.start)
        return self.source.rows(places if self.permutation is None else self.permutation(places))

    def target_range(self, start: int, stop: int) -> tuple[int, int]:
        """The range in a share of the whole source, read in its own order: both parts of a split know all classes."""
        whole, part = len(self.source), max(len(self), 1)
        return self.source.target_range(whole * start // part, whole * stop // part)

    def with_classes(self, classes: int) -> Subset:
        """The same part of the source with that many classes."""
        return Subset(self.source.with_classes(classes), self.permutation, self.start, self.stop)


def split(source: Source, holdout: float, key: int = HOLDOUT_KEY) -> tuple[Subset, Subset]:
    """Cut a source into rows to train on and rows held out, by a shuffle that is the same in every run.

    ``holdout`` is a fraction; unless it is 0, at least one row is held out, and at least one is left.
    """
    held, length = _held_out(len(source), holdout), len(source)
    permutation = Permutation(length, key)
    return Subset(source, permutation, held, length), Subset(source, permutation, 0, held)


def split_tail(source: Source, holdout: float) -> tuple[Subset, Subset]:
    """As `split`, but the rows stay in order and the last ones are held out: neighbouring rows may overlap."""
    length = len(source)
    kept = length - _held_out(length, holdout)
    return Subset(source, None, 0, kept), Subset(source, None, kept, length)


def _held_out(length: int, holdout: float) -> int:
    if not 0 <= holdout < 1:
        raise ConfigError(f"holdout is {holdout}; expected a fraction of the rows, from 0 to below 1, such as 0.1")
    if holdout == 0 or length < 2:
        return 0
    return min(max(round(length * holdout), 1), length - 1)
