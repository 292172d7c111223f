"""How a CSV table is written, and where its faults are: what numpy's fast reader does not say."""

from __future__ import annotations

import csv
import gzip
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, cast

import numpy as np

from distloop.errors import ConfigError, DataError

HOLES = {"", "nan", "na", "n/a", "null", "none", "?", "-"}


@dataclass(frozen=True)
class Layout:
    """How a table is written: its separator, its header (None without one), its width, which column is the target."""

    path: Path
    delimiter: str
    header: tuple[str, ...] | None
    header_lines: int
    width: int
    target: int
    text_target: bool

    def column(self, index: int) -> str:
        """A column as errors call it: by number, counted from 1, and by name."""
        return f"column {index + 1}" + (f" ({self.header[index]})" if self.header else "")

    def rows(self) -> Iterator[tuple[int, list[str]]]:
        """Each row below the header: its line in the file, counted from 1, and its cells."""
        return islice(_cells(self.path, self.delimiter), 1 if self.header else 0, None)

    def fault(self, otherwise: str) -> DataError:
        """The first fault in the table, or ``otherwise`` if there is none to be found."""
        return DataError(f"{self.path}: {next(self._faults(), otherwise)}")

    def _faults(self) -> Iterator[str]:
        for line, cells in self.rows():
            if len(cells) != self.width:
                yield f"line {line} has {len(cells)} columns; expected {self.width}, as in the first line"
                continue
            for index, cell in enumerate(cells):
                is_text = self.text_target and index == self.target
                if problem := _cell_fault(cell, is_text, line == 1):
                    yield f"line {line}, {self.column(index)}: {problem}"


def layout_of(path: Path, target: str | None, text_target: bool) -> Layout:
    """What the first lines say. A header is a first line without a number, or one that names ``target``.

    ``text_target`` demands classes with names, even if the first one looks like a number.
    """
    first = next(_text_lines(path), "")
    delimiter = max(",;\t", key=first.count)
    lines = list(islice(_cells(path, delimiter), 2))
    if not lines:
        raise DataError(f"{path} is empty; expected a table of numbers with a target column")
    line, cells = lines[0]
    has_header = not any(is_number(cell) for cell in cells) or (target is not None and target in cells)
    if has_header and len(lines) < 2:
        raise DataError(f"{path} has a header and no rows; expected rows of numbers below it")
    if len(cells) < 2:
        raise DataError(f"{path} has one column; expected inputs and a target, separated by commas")
    header = tuple(cells) if has_header else None
    column = _target_column(path, cells, has_header, target)
    example = lines[1][1] if has_header else cells
    names_class = column < len(example) and is_text(example[column])
    return Layout(path, delimiter, header, line if has_header else 0, len(cells), column, text_target or names_class)


def is_number(cell: str) -> bool:
    """Whether a cell is a number, be it infinite; a hole is none."""
    try:
        float(cell)
    except ValueError:
        return False
    return "_" not in cell and cell.lower() not in HOLES


def is_text(cell: str) -> bool:
    """Whether a cell is neither a number nor a hole."""
    return not is_number(cell) and cell.lower() not in HOLES


def _cell_fault(cell: str, text_allowed: bool, first_line: bool) -> str | None:
    if cell.lower() in HOLES:
        return f"a hole ({cell!r}); expected a value: fill or remove such rows"
    if text_allowed:
        return None
    if not is_number(cell):
        hint = ". If this line is a header, no name in it may be a number" if first_line else ""
        return f"{cell!r} is not a number; expected one{hint}"
    return None if np.isfinite(float(cell)) else f"{cell} is not finite; expected a finite number"


def _target_column(path: Path, first: list[str], has_header: bool, target: str | None) -> int:
    if target is None:
        return len(first) - 1
    if target in first:
        return first.index(target)
    shown = ", ".join(first[:20]) + (", ..." if len(first) > 20 else "")
    if has_header:
        raise ConfigError(f"target={target} is no column of {path}; expected one of {shown}")
    raise ConfigError(
        f"target={target} is not in the first line of {path} ({shown}), which is no header, as it holds a number; "
        "expected the name of a column there, or no target, for the last column"
    )


def _cells(path: Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Each line that is not blank: its number in the file, from 1, and its cells."""
    reader = csv.reader(_text_lines(path), delimiter=delimiter)
    try:
        for cells in reader:
            if len(cells) > 1 or "".join(cells).strip():
                yield reader.line_num, [cell.strip() for cell in cells]
    except csv.Error as error:
        raise DataError(
            f"{path}: line {reader.line_num} cannot be read: {error}; expected comma-separated text"
        ) from error


def _text_lines(path: Path) -> Iterator[str]:
    try:
        with _opened(path) as file:
            yield from file
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not text in UTF-8: {error}. Save the table as UTF-8") from error
    except (EOFError, OSError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}. Expected a whole file: copy it again") from error


def _opened(path: Path) -> IO[str]:
    if path.suffix == ".gz":
        return cast("IO[str]", gzip.open(path, "rt", encoding="utf-8-sig", newline=""))
    return path.open(encoding="utf-8-sig", newline="")
