"""What rows must hold: finite numbers, labels inside the classes; errors name the row (counted from 0)."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from distloop.data.source import Target, Task
from distloop.errors import DataError

Array = npt.NDArray[Any]
BLOCK_ROWS = 1 << 16


class Shaped(Protocol):
    """An array, in memory or in a file."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows first."""
        ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of its elements."""
        ...


def target_of(inputs: Shaped, targets: Shaped, task: Task, name: str) -> Target:
    """What targets (rows, ...) beside inputs (rows, ...) are, by shape and type, where ``task`` leaves it open."""
    whole, shape = targets.dtype.kind in "bui", targets.shape
    one_each = len(shape) == 1 or shape[1:] == (1,)
    pairs = len(shape) == 2 and inputs.shape == shape and whole and inputs.dtype.kind in "ui"
    if task == "language" and not pairs:
        raise DataError(
            f"{name}: inputs {inputs.shape} {inputs.dtype}, targets {shape} {targets.dtype}; expected whole numbers of "
            "the same shape (rows, tokens) for the task language"
        )
    if task == "classification" and not one_each:
        raise DataError(f"{name}: targets have shape {shape}; expected one class for each row, ({shape[0]},)")
    if task == "language" or (task == "auto" and pairs and not one_each and inputs.dtype != np.uint8):
        return "tokens"
    if task == "classification" or (task == "auto" and whole and one_each):
        return "class"
    return "number" if len(shape) <= 2 else None


def as_float32(raw: Array, divisor: float = 1.0) -> npt.NDArray[np.float32]:
    """A float32 copy, divided; what float32 cannot hold becomes infinite, for `check_finite` to find."""
    with np.errstate(over="ignore"):
        if divisor == 1.0:
            return raw.astype(np.float32)
        return np.divide(raw, np.float32(divisor), dtype=np.float32, casting="same_kind")


def as_labels(raw: Array, rows: npt.NDArray[np.int64], name: str) -> npt.NDArray[np.int64]:
    """An int64 copy; numbers with a fraction (or none at all) are no labels."""
    with np.errstate(invalid="ignore"):
        labels = raw.astype(np.int64)
    if raw.dtype.kind == "f" and (different := labels != raw).any():
        row = _first(different)
        raise DataError(
            f"{name}: row {rows[row]} has the target {raw[row]}; expected a class, which is a whole number from 0 up. "
            "Correct it, or learn numbers: task=regression"
        )
    return labels


def check_finite(values: Array, rows: npt.NDArray[np.int64], what: str, name: str) -> None:
    """``values`` (B, ...) are those of ``rows`` (B,)."""
    finite = np.isfinite(values)
    if not finite.all():
        place = np.unravel_index(_first(~finite.ravel()), values.shape)
        column = f", column {', '.join(map(str, place[1:]))}" if values.ndim > 1 and values[0].size > 1 else ""
        raise DataError(
            f"{name}: {what} of row {rows[place[0]]}{column} are {values[place]} as float32; expected finite numbers. "
            "Fill or remove such rows"
        )


def check_labels(labels: npt.NDArray[np.int64], classes: int | None, rows: npt.NDArray[np.int64], name: str) -> None:
    """``labels`` (B, ...), those of ``rows`` (B,), must lie in [0, classes), or be at least 0 if None."""
    if labels.size == 0:
        return
    if labels.min() >= 0 and (classes is None or labels.max() < classes):
        return
    wrong = labels < 0 if classes is None else (labels < 0) | (labels >= classes)
    place = np.unravel_index(_first(wrong.ravel()), labels.shape)
    expected = "0 or more" if classes is None else f"0 to {classes - 1}, for {classes} classes"
    raise DataError(
        f"{name}: row {rows[place[0]]} has the label {labels[place]}; expected {expected}. Number the labels from 0, "
        "or give the number of classes that there are"
    )


def _first(wrong: Array) -> int:
    return int(np.argmax(wrong))
