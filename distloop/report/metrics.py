"""The numbers of a run on disk: JSON lines and CSV always, TensorBoard on request; a row is there at once."""

from __future__ import annotations

import csv
import io
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from math import isfinite
from numbers import Integral
from pathlib import Path
from typing import Literal, SupportsFloat, final

from distloop.errors import ConfigError

Kind = Literal["step", "epoch"]
Value = SupportsFloat | str | None
Row = Mapping[str, Value]

COLUMNS = (
    "epoch",
    "step",
    "samples",
    "train_loss",
    "learning_rate",
    "gradient_norm",
    "seconds",
    "samples_per_second",
    "validation_loss",
)
"""Of every row, after its kind: epochs, steps and samples done so far, seconds since the run began."""


class Log(ABC):
    """Keeps the rows of a run; ``kind`` says whether a row sums up an epoch or is one step's."""

    @abstractmethod
    def write(self, kind: Kind, row: Row) -> None:
        """Keep one row: names of columns to numbers, absent ones left out."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the files."""


@final
class NoLog(Log):
    """Keeps nothing: for ranks that do not report."""

    def write(self, kind: Kind, row: Row) -> None:
        """Drop the row."""

    def close(self) -> None:
        """Do nothing."""


@final
class Logs(Log):
    """Hands each row to several logs."""

    def __init__(self, logs: Sequence[Log]) -> None:
        self.logs = tuple(logs)

    def write(self, kind: Kind, row: Row) -> None:
        """Keep one row in every log."""
        for log in self.logs:
            log.write(kind, row)

    def close(self) -> None:
        """Close every log."""
        for log in self.logs:
            log.close()


@final
class MetricsLog(Log):
    """``metrics.jsonl`` and ``metrics.csv`` in ``folder``; rows are appended, each in one write.

    JSON has neither nan nor infinity: both become null there, and stand as such in the CSV file, where an
    empty cell means absent. ``metrics`` names the columns of this run beside ``COLUMNS``.
    """

    def __init__(self, folder: Path, metrics: Sequence[str] = ()) -> None:
        self.columns = ("kind", *COLUMNS, *(name for name in metrics if name not in COLUMNS))
        # Unbuffered: what is written has reached the file, whole lines at a time.
        self.json_lines = (folder / "metrics.jsonl").open("ab", buffering=0)
        self.table = (folder / "metrics.csv").open("ab", buffering=0)
        if self.table.tell() == 0:
            self.table.write(_csv_line(self.columns))

    def write(self, kind: Kind, row: Row) -> None:
        """Append one row to both files; ConfigError if it holds a column that was not named."""
        strangers = [name for name in row if name not in self.columns]
        if strangers:
            raise ConfigError(
                f"metrics {', '.join(strangers)} are no columns of this log; expected them in ``metrics``"
            )
        values = {"kind": kind, **{name: _simple(value) for name, value in row.items()}}
        finite = {name: value if _is_finite(value) else None for name, value in values.items()}
        self.json_lines.write(json.dumps(finite, allow_nan=False).encode() + b"\n")
        self.table.write(_csv_line([values.get(name) for name in self.columns]))

    def close(self) -> None:
        """Close both files."""
        self.json_lines.close()
        self.table.close()


@final
class TensorBoardLog(Log):
    """Scalars for TensorBoard in ``folder``, named ``epoch/train_loss`` and so on, at their step.

    Raises:  ConfigError if the package tensorboard is missing.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ConfigError(
                "TensorBoard files were asked for, but the package tensorboard cannot be imported "
                f"({error}); pip install 'distloop[tensorboard]', or leave them out: "
                "metrics.jsonl and metrics.csv hold the same numbers"
            ) from error
        self.writer = SummaryWriter(str(folder))

    def write(self, kind: Kind, row: Row) -> None:
        """Keep the numbers of one row that has a step."""
        step = _simple(row["step"])
        for name, value in _numbers(row):
            if name != "step":
                self.writer.add_scalar(f"{kind}/{name}", value, step)
        if kind == "epoch":
            self.writer.flush()

    def close(self) -> None:
        """Write what is pending and end the writer's thread."""
        self.writer.close()


def _numbers(row: Row) -> Iterator[tuple[str, float]]:
    for name, value in row.items():
        simple = _simple(value)
        if isinstance(simple, int | float):
            yield name, simple


def _simple(value: Value) -> int | float | str | None:
    if value is None or isinstance(value, str):
        return value
    return int(value) if isinstance(value, Integral) else float(value)


def _is_finite(value: int | float | str | None) -> bool:
    return not isinstance(value, float) or isfinite(value)


def _csv_line(cells: Sequence[int | float | str | None]) -> bytes:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(cells)
    return line.getvalue().encode()
