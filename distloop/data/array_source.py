"""Rows of two arrays, in memory or in files: only the rows that are asked for are read and converted."""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from typing import Any, final

import numpy as np
import numpy.typing as npt
import torch

from distloop.data.checks import BLOCK_ROWS, Array, as_float32, as_labels, check_finite, check_labels, target_of
from distloop.data.mapped import MappedArray
from distloop.data.permutation import Positions
from distloop.data.source import Spec, Target, Task
from distloop.errors import DataError

Held = Array | MappedArray


@final
class ArraySource:
    """Row i is (inputs[i], targets[i]).

    inputs:   (rows, ...) numbers; float32 for the model, uint8 divided by 255 unless ``divisor`` says otherwise. Of
              shape (rows,): one column.
    targets:  (rows,) whole numbers are labels, unless ``task`` is regression; (rows, k) or fractions are numbers;
              with the task language, inputs and targets are tokens (rows, T).
    classes:  how many; None counts the labels, at once in memory, by `target_range` and `with_classes` in a file.
    name:     what errors call the data.

    An array in memory is checked once, here; a memory-mapped one row by row, as it is read.
    """

    def __init__(
        self,
        inputs: Array | MappedArray,
        targets: Array | MappedArray,
        *,
        task: Task = "auto",
        classes: int | None = None,
        class_names: tuple[str, ...] | None = None,
        divisor: float | None = None,
        name: str = "the arrays",
    ) -> None:
        self._inputs, self._targets, self._name = _held(inputs), _held(targets), name
        _check_arrays(self._inputs, self._targets, name)
        target = target_of(self._inputs, self._targets, task, name)
        self._divisor = divisor or (255.0 if self._inputs.dtype == np.uint8 and target != "tokens" else 1.0)
        classes = len(class_names) if class_names and classes is None else classes
        self._spec = self._make_spec(target, classes, class_names)
        self._check_memory()
        if self._spec.classes is None and target in ("class", "tokens") and not isinstance(self._targets, MappedArray):
            self._spec = self._spec.with_classes(self.target_range(0, len(self))[1] + 1)

    @property
    def spec(self) -> Spec:
        """What the rows are."""
        return self._spec

    def __len__(self) -> int:
        return len(self._inputs)

    def rows(self, indices: Positions) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows by index; labels are checked each time, since the classes may be the user's."""
        inputs = self._converted_inputs(self._inputs[indices], indices, isinstance(self._inputs, MappedArray))
        targets = self._converted_targets(self._targets[indices], indices, isinstance(self._targets, MappedArray))
        return torch.from_numpy(inputs), torch.from_numpy(targets)

    def target_range(self, start: int, stop: int) -> tuple[int, int]:
        """The smallest and largest label of rows [start, stop), read block by block."""
        assert self._spec.target in ("class", "tokens"), "only labels and tokens have a range"
        low, high = 0, -1
        for rows in _blocks(start, stop, BLOCK_ROWS):
            labels = self._labels(rows)
            low = int(labels.min()) if high < 0 else min(low, int(labels.min()))
            high = max(high, int(labels.max()))
        return low, high

    def with_classes(self, classes: int) -> ArraySource:
        """The same arrays with that many classes; labels in memory are checked at once."""
        if self._spec.target not in ("class", "tokens"):
            return self
        other = copy(self)
        other._spec = self._spec.with_classes(classes)
        if not isinstance(self._targets, MappedArray):
            other.target_range(0, len(other))
        return other

    def _labels(self, rows: Positions) -> npt.NDArray[np.int64]:
        part = slice(rows[0], rows[-1] + 1)
        labels = self._converted_targets(self._targets[part], rows, True)
        if self._spec.target == "tokens":
            return np.concatenate([labels, self._converted_inputs(self._inputs[part], rows, True)])
        return labels

    def _make_spec(self, target: Target, classes: int | None, names: tuple[str, ...] | None) -> Spec:
        if target == "tokens":
            return Spec(self._inputs.shape[1:], torch.int64, target, classes)
        numbers = 1 if target == "class" or self._targets.ndim == 1 else self._targets.shape[-1]
        shape = self._inputs.shape[1:] or (1,)
        return Spec(shape, torch.float32, target, classes, names if target == "class" else None, numbers)

    def _converted_inputs(self, raw: Array, rows: Positions, check: bool) -> npt.NDArray[Any]:
        if self._spec.target == "tokens":
            tokens = raw.astype(np.int64)
            check_labels(tokens, self._spec.classes, rows, self._name)
            return tokens
        inputs = as_float32(raw, self._divisor)
        if check and raw.dtype.kind == "f":
            check_finite(inputs, rows, "the inputs", self._name)
        return inputs.reshape(len(rows), *self._spec.input_shape)

    def _converted_targets(self, raw: Array, rows: Positions, check: bool) -> npt.NDArray[Any]:
        if self._spec.target in ("class", "tokens"):
            raw = raw.reshape(len(rows)) if self._spec.target == "class" else raw
            labels = as_labels(raw, rows, self._name)
            check_labels(labels, self._spec.classes, rows, self._name)
            return labels
        targets = as_float32(raw)
        if check and raw.dtype.kind == "f":
            check_finite(targets, rows, "the targets", self._name)
        return targets.reshape(len(rows), 1) if raw.ndim == 1 else targets

    def _check_memory(self) -> None:
        """Tokens in memory are checked row by row, as their classes may not be counted yet."""
        width = max(int(np.prod(self._inputs.shape[1:])), 1)
        for rows in _blocks(0, len(self), max(BLOCK_ROWS * 16 // width, 1)):
            part = slice(rows[0], rows[-1] + 1)
            if not isinstance(self._inputs, MappedArray) and self._inputs.dtype.kind == "f":
                self._converted_inputs(self._inputs[part], rows, True)
            if not isinstance(self._targets, MappedArray):
                self._converted_targets(self._targets[part], rows, True)


def _held(array: Array | MappedArray) -> Held:
    return MappedArray.of(array) if isinstance(array, np.memmap) else array


def _blocks(start: int, stop: int, size: int) -> Iterator[Positions]:
    for first in range(start, stop, size):
        yield np.arange(first, min(first + size, stop), dtype=np.int64)


def _check_arrays(inputs: Held, targets: Held, name: str) -> None:
    for what, array in (("inputs", inputs), ("targets", targets)):
        if array.dtype.kind not in "buif":
            raise DataError(f"{name}: {what} are of type {array.dtype}; expected numbers: save them as float32")
        if array.ndim == 0:
            raise DataError(f"{name}: {what} are a single number; expected one row for each sample")
    if len(inputs) != len(targets):
        raise DataError(
            f"{name}: {len(inputs)} rows of inputs, {len(targets)} of targets; expected the same number: row i of the "
            "one belongs to row i of the other"
        )
