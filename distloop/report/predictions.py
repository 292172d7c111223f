"""Predicted steps as a person compares them: one line a strategy, the best first, as wide as the terminal allows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from distloop.cost import Prediction
from distloop.report.words import amount, data_size, duration


@dataclass(frozen=True)
class Outlook:
    """One strategy: what it would cost, whether its memory fits, and the largest model that would.

    None: nobody said how much memory there is.
    """

    prediction: Prediction
    fits: bool | None = None
    most_parameters: float | None = None


@dataclass(frozen=True)
class Column:
    """``rank``: the columns of the highest rank are left out first where the terminal is narrow."""

    title: str
    rank: int
    text: Callable[[Outlook], str]


def _handed(outlook: Outlook, text: str) -> str:
    return f"({text})" if outlook.prediction.sending.by_library else text


def _leaves(outlook: Outlook) -> str:
    sending = outlook.prediction.sending
    return f"{'≈' if sending.by_library else ''}{data_size(sending.node_bytes)}"


def _efficiency(outlook: Outlook) -> str:
    """Said of a step that computes; of one that does not it is a ratio of two small numbers."""
    timing = outlook.prediction.timing
    return f"{timing.efficiency:.2f}" if timing.compute else ""


def _fits_up_to(outlook: Outlook) -> str:
    return "" if outlook.most_parameters is None else amount(outlook.most_parameters)


COLUMNS = (
    Column("strategy", 0, lambda outlook: outlook.prediction.strategy),
    Column("step", 0, lambda outlook: duration(outlook.prediction.timing.step)),
    Column("communi-\ncation", 1, lambda outlook: duration(outlook.prediction.timing.communication)),
    Column("not\nhidden", 5, lambda outlook: duration(outlook.prediction.timing.exposed)),
    Column("optimizer", 4, lambda outlook: duration(outlook.prediction.timing.optimizer)),
    Column("effi-\nciency", 2, _efficiency),
    Column("memory\nper node", 0, lambda outlook: data_size(outlook.prediction.node_memory.total)),
    Column("fits", 0, lambda outlook: {True: "yes", False: "no", None: ""}[outlook.fits]),
    Column("fits\nup to", 3, _fits_up_to),
    Column("memory\nper rank", 2, lambda outlook: data_size(outlook.prediction.rank_memory.total)),
    Column("sent\nper rank", 1, lambda outlook: _handed(outlook, data_size(outlook.prediction.sending.rank_bytes))),
    Column("messages\nper rank", 3, lambda outlook: _handed(outlook, f"{outlook.prediction.sending.messages:,}")),
    Column("leaves\na node", 3, _leaves),
)
NOTES = (
    "(in parentheses: handed to the MPI library, which decides what it sends; ≈ is an estimate)",
    "(efficiency: the speed of ranks that do not synchronise is 1; more where they share the optimizer's work)",
    "(memory: parameters, gradients and optimizer state; activations come on top)",
)
_GAP = 2


def outlooks_text(outlooks: Sequence[Outlook]) -> str:
    """All columns, aligned, for a log."""
    columns = _told(outlooks)
    titles = [column.title.replace("-\n", "").replace("\n", " ") for column in columns]
    rows = [titles, *([column.text(outlook) for column in columns] for outlook in outlooks)]
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    aligned = [
        [
            cell.rjust(width) if index else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        for row in rows
    ]
    return "\n".join((" " * _GAP).join(row).rstrip() for row in aligned)


def notes(outlooks: Sequence[Outlook]) -> tuple[str, ...]:
    """What must be known to read the columns."""
    return NOTES if any(outlook.prediction.timing.compute for outlook in outlooks) else (NOTES[0], NOTES[2])


def outlooks_table(outlooks: Sequence[Outlook], console: Console) -> Table:
    """As many columns as ``console`` is wide; the first row, the best, stands out, and what does not fit recedes."""
    columns = _told(outlooks)
    unbounded = console.options.update(width=10_000)
    while console.measure(table := _table(columns, outlooks), options=unbounded).maximum > console.width:
        dropped = max(column.rank for column in columns)
        if not dropped:
            break
        columns.remove([column for column in columns if column.rank == dropped][-1])
    return table


def _table(columns: Sequence[Column], outlooks: Sequence[Outlook]) -> Table:
    table = Table(box=SIMPLE_HEAD, border_style="bright_black", padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column.title, justify="right" if index else "left", no_wrap=True, vertical="bottom")
    for index, outlook in enumerate(outlooks):
        best = index == 0 and outlook.fits is not False
        style = "bold green" if best else "bright_black" if outlook.fits is False else ""
        table.add_row(*(Text(column.text(outlook)) for column in columns), style=style)
    return table


def _told(outlooks: Sequence[Outlook]) -> list[Column]:
    """Without columns that say nothing."""
    return [column for column in COLUMNS if any(column.text(outlook) for outlook in outlooks)]
