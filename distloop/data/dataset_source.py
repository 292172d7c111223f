"""A user's own torch Dataset as a source: items are collated to batches, and checked like everything else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from typing import Any, Protocol, final, runtime_checkable

import numpy as np
import torch
from torch.utils.data import default_collate

from distloop.data.checks import as_labels, check_finite, check_labels, target_of
from distloop.data.permutation import Positions
from distloop.data.source import Spec, Task
from distloop.errors import DataError

BLOCK_ITEMS = 256


@runtime_checkable
class MapStyle(Protocol):
    """What a map-style Dataset has."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any, /) -> Any: ...


@final
class DatasetSource:
    """Rows are the items, (input, target), of a map-style Dataset.

    collate:  makes (inputs (B, ...), targets (B, ...)) of a list of items; items must be pairs only for torch's own.

    Fractions become float32 and uint8 inputs are divided by 255; other whole inputs stay int64, for embeddings. A
    whole number as target is a label, unless ``task`` is regression. The attribute ``classes`` of a Dataset, as
    torchvision's have it, names the classes; without it they must be counted (`target_range`).
    """

    def __init__(
        self, dataset: MapStyle, *, task: Task = "auto", collate: Callable[[list[Any]], Any] | None = None
    ) -> None:
        self._dataset, self._collate, self._name = dataset, collate, f"Dataset {type(dataset).__name__}"
        if len(dataset) == 0:
            raise DataError(f"{self._name} has no items; expected at least one")
        inputs, targets = self._collated([0])
        target = target_of(inputs.numpy(), targets.numpy(), task, self._name)
        names = _class_names(dataset) if target == "class" else None
        shape = tuple(inputs.shape[1:]) or (1,)
        numbers = 1 if targets.ndim == 1 or target == "class" else targets.shape[-1]
        dtype = model_inputs(inputs).dtype
        self._spec = Spec(shape, dtype, target, len(names) if names else None, names, numbers)
        self._empty = tuple(part[:0] for part in self.rows(np.zeros(1, np.int64)))

    @property
    def spec(self) -> Spec:
        """What the first item says that all items are."""
        return self._spec

    def __len__(self) -> int:
        return len(self._dataset)

    def rows(self, indices: Positions) -> tuple[torch.Tensor, torch.Tensor]:
        """Items by index, fetched one by one unless the Dataset has ``__getitems__``."""
        if indices.size == 0:
            return self._empty[0], self._empty[1]
        inputs, targets = self._collated(indices.tolist())
        inputs = model_inputs(inputs).reshape(len(indices), *inputs.shape[1:] or (1,))
        if inputs.is_floating_point():
            check_finite(inputs.numpy(), indices, "the inputs", self._name)
        if self._spec.target == "tokens":
            check_labels(inputs.numpy(), self._spec.classes, indices, self._name)
        return inputs, self._model_targets(targets, indices)

    def target_range(self, start: int, stop: int) -> tuple[int, int]:
        """The smallest and largest label of items [start, stop), all of which are fetched for it."""
        low, high = 0, -1
        for first in range(start, stop, BLOCK_ITEMS):
            indices = np.arange(first, min(first + BLOCK_ITEMS, stop), dtype=np.int64)
            inputs, targets = self.rows(indices)
            labels = torch.cat([inputs, targets]) if self._spec.target == "tokens" else targets
            low = int(labels.min()) if high < 0 else min(low, int(labels.min()))
            high = max(high, int(labels.max()))
        return low, high

    def with_classes(self, classes: int) -> DatasetSource:
        """The same items with that many classes; labels are checked as they are read."""
        if self._spec.target not in ("class", "tokens"):
            return self
        other = copy(self)
        other._spec = self._spec.with_classes(classes)
        return other

    def _collated(self, indices: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        fetch = getattr(self._dataset, "__getitems__", None)
        items = list(fetch(indices)) if fetch else [self._dataset[index] for index in indices]
        if self._collate is None:
            self._check_pairs(items, indices)
        try:
            batch = (self._collate or default_collate)(items)
        except (TypeError, RuntimeError) as error:
            raise DataError(
                f"{self._name}: items {_shown(indices)} cannot be collated: {error}. Expected "
                "tensors, arrays or numbers of one shape: transform the items so"
            ) from error
        return self._checked(batch, indices)

    def _check_pairs(self, items: list[Any], indices: list[int]) -> None:
        for index, item in zip(indices, items, strict=True):
            if not isinstance(item, tuple | list) or len(item) != 2:
                given = f"{len(item)} parts" if isinstance(item, tuple | list) else f"a {type(item).__name__}"
                raise DataError(f"{self._name}: item {index} is {given}; expected a pair (input, target)")

    def _checked(self, batch: Any, indices: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        if not isinstance(batch, tuple | list) or len(batch) != 2 or not all(map(torch.is_tensor, batch)):
            given = [type(part).__name__ for part in batch] if isinstance(batch, tuple | list) else type(batch).__name__
            raise DataError(
                f"{self._name}: items {_shown(indices)} collate to {given}; expected two tensors, inputs and targets"
            )
        if any(part.ndim == 0 or len(part) != len(indices) for part in batch):
            shapes = [tuple(part.shape) for part in batch]
            raise DataError(f"{self._name}: {len(indices)} items collate to {shapes}; expected one row for each item")
        return batch[0], batch[1]

    def _model_targets(self, targets: torch.Tensor, indices: Positions) -> torch.Tensor:
        if self._spec.target in ("class", "tokens"):
            targets = targets.reshape(len(indices)) if self._spec.target == "class" else targets
            labels = as_labels(targets.numpy(), indices, self._name)
            check_labels(labels, self._spec.classes, indices, self._name)
            return torch.from_numpy(labels)
        if self._spec.target == "number" or targets.is_floating_point():
            targets = targets.to(torch.float32)
            check_finite(targets.numpy(), indices, "the targets", self._name)
        return targets.reshape(len(indices), 1) if targets.ndim == 1 else targets


def model_inputs(inputs: torch.Tensor) -> torch.Tensor:
    """As models are given them: bytes as fractions of 255, other numbers as float32, whole ones as int64."""
    if inputs.dtype == torch.uint8:
        return inputs.to(torch.float32).div_(255)
    return inputs.to(torch.float32 if inputs.is_floating_point() or inputs.dtype == torch.bool else torch.int64)


def _class_names(dataset: MapStyle) -> tuple[str, ...] | None:
    names = getattr(dataset, "classes", None)
    return tuple(map(str, names)) if isinstance(names, Sequence) and not isinstance(names, str) and names else None


def _shown(indices: list[int]) -> str:
    return ", ".join(map(str, indices[:8])) + (", ..." if len(indices) > 8 else "")
