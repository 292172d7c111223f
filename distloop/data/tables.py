"""CSV tables: read fast by numpy; only if that fails, read again slowly to say where the fault is."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from distloop.data.array_source import ArraySource
from distloop.data.source import Task
from distloop.data.table_layout import HOLES, Layout, layout_of
from distloop.errors import DataError

MOST_CLASSES = 100
WHOLE = re.compile(r"[+-]?\d+")
Table = npt.NDArray[Any]


def open_table(
    path: Path, *, target: str | None = None, task: Task = "auto", class_names: tuple[str, ...] | None = None
) -> ArraySource:
    """Rows of numbers with the target in the last column, or in the one that ``target`` names.

    Text in the target column names classes, numbered in sorted order, or as ``class_names`` has them. The whole
    numbers 0 to k - 1, each of them seen and k at most 100, are classes too, unless ``task`` is regression.
    Raises DataError, naming line and column, for a hole, text among numbers or a line of another length.
    """
    layout = layout_of(path, target, text_target=class_names is not None)
    if layout.text_target:
        return _with_named_classes(layout, task, class_names)
    table = _load(layout)
    inputs, targets = np.delete(table, layout.target, axis=1), table[:, layout.target].copy()
    if task == "auto":
        task = "classification" if _are_classes(layout, targets) else "regression"
    return ArraySource(_narrowed(inputs), targets, task=task, name=str(path))


def table_inputs(path: Path, columns: int) -> npt.NDArray[np.float32] | None:
    """All columns of a table that has exactly so many, all of them inputs; None for any other."""
    layout = layout_of(path, None, text_target=False)
    return _narrowed(_load(layout)) if layout.width == columns else None


def _with_named_classes(layout: Layout, task: Task, class_names: tuple[str, ...] | None) -> ArraySource:
    if task == "regression":
        raise DataError(
            f"{layout.path}: {layout.column(layout.target)} holds text; expected numbers for task=regression"
        )
    seen: dict[str, int] = {}
    table = _load(layout, {layout.target: lambda cell: seen.setdefault(cell.strip(), len(seen))})
    if any(name.lower() in HOLES for name in seen):
        raise layout.fault("the target column has holes")
    names = class_names or tuple(sorted(seen))
    if unknown := set(seen) - set(names):
        raise _unknown(layout, unknown, names)
    label_of_seen = np.array([names.index(name) for name in seen], np.int64)
    labels = label_of_seen[table[:, layout.target].astype(np.int64)]
    inputs = np.delete(table, layout.target, axis=1)
    return ArraySource(_narrowed(inputs), labels, class_names=names, task="classification", name=str(layout.path))


def _load(layout: Layout, converters: dict[int, Callable[[str], float]] | None = None) -> Table:
    """All rows as float64, finite."""
    table = _loadtxt(layout, dtype=np.float64, converters=converters)
    if table.shape[1] != layout.width or not np.isfinite(table).all():
        raise layout.fault("a number is missing or not finite")
    return table


def _loadtxt(layout: Layout, **options: Any) -> Table:
    try:
        table: Table = np.loadtxt(
            str(layout.path),
            delimiter=layout.delimiter,
            skiprows=layout.header_lines,
            comments=None,
            quotechar='"',
            encoding="utf-8-sig",
            ndmin=2,
            **options,
        )
    except (ValueError, EOFError, OSError, zlib.error) as error:
        raise layout.fault(f"{error}; expected rows of numbers, separated by commas") from error
    return table


def _narrowed(inputs: Table) -> npt.NDArray[np.float32]:
    """As float32, in half the memory; what does not fit becomes infinite, for the source to refuse."""
    with np.errstate(over="ignore"):
        return inputs.astype(np.float32)


def _are_classes(layout: Layout, targets: Table) -> bool:
    """Whether a column is 0 to k - 1, each of them seen, and written without a point."""
    if (targets % 1 != 0).any() or targets.min() < 0 or targets.max() >= MOST_CLASSES:
        return False
    if not np.bincount(targets.astype(np.int64)).all():
        return False
    written: dict[str, int] = {}
    noted = {layout.target: lambda cell: written.setdefault(cell.strip(), 0)}
    _loadtxt(layout, dtype=np.float64, usecols=[layout.target], converters=noted)
    return all(map(WHOLE.fullmatch, written))


def _unknown(layout: Layout, unknown: set[str], names: tuple[str, ...]) -> DataError:
    row, (line, cells) = next(found for found in enumerate(layout.rows()) if found[1][1][layout.target] in unknown)
    shown = ", ".join(islice(names, 20)) + (", ..." if len(names) > 20 else "")
    return DataError(
        f"{layout.path}: line {line} (row {row}) has the class {cells[layout.target]!r}; expected one of those in the "
        f"training data: {shown}"
    )
