"""What the person sees of a run, from rank 0 alone: a live line on a terminal, lines in a log, or nothing.

No thread redraws the bar (it would take a core from training): ``step`` does, when a tenth of a second has
passed, and otherwise costs one look at the clock.
"""

from __future__ import annotations

import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from os import environ
from types import TracebackType
from typing import Literal, Self, SupportsFloat, TextIO, final

from rich.box import Box
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from distloop.report.lines import bar_line, epoch_fields, fitted, plain, step_fields
from distloop.report.metrics import Row
from distloop.report.pace import Pace, Plan
from distloop.report.summary import Summary
from distloop.report.tty import find_terminal

Progress = Literal["auto", "bar", "plain", "off"]
Clock = Callable[[], float]

REFRESH_SECONDS = 0.1
_UNKNOWN_COLUMNS = 80
_FRAME = Box("╭──╮\n│  │\n├──┤\n│  │\n├──┤\n├──┤\n│  │\n╰──╯\n")


class Reporter(ABC):
    """Tells the person how a run goes. A context manager: leaving it gives the terminal back as it was."""

    @abstractmethod
    def start(self, headline: str, plan: Plan) -> None:
        """Show ``headline`` (ranks, library, strategy, device); the run begins now."""

    @abstractmethod
    def step(self, epoch: int, step: int, samples: int, loss: SupportsFloat) -> None:
        """Tell of a step: ``epoch`` from 1, ``step`` and ``samples`` (of all ranks) done so far.

        ``loss`` is read only if it is shown now, so a tensor on an accelerator is waited for at most ten
        times a second.
        """

    @abstractmethod
    def epoch(self, row: Row) -> None:
        """Tell of an epoch: the row that ``MetricsLog`` gets."""

    @abstractmethod
    def say(self, text: str) -> None:
        """Show one line that stays."""

    @abstractmethod
    def finish(self, summary: Summary) -> None:
        """Show what the run has come to."""

    @abstractmethod
    def close(self) -> None:
        """Give the terminal back as it was; harmless when repeated."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@final
class Silent(Reporter):
    """Says nothing: every rank but 0, and rank 0 when asked."""

    def start(self, headline: str, plan: Plan) -> None:
        """Say nothing."""

    def step(self, epoch: int, step: int, samples: int, loss: SupportsFloat) -> None:
        """Say nothing."""

    def epoch(self, row: Row) -> None:
        """Say nothing."""

    def say(self, text: str) -> None:
        """Say nothing."""

    def finish(self, summary: Summary) -> None:
        """Say nothing."""

    def close(self) -> None:
        """Do nothing."""


@final
class Plain(Reporter):
    """Lines for a log: one per epoch, one per ``log_every`` steps (0: none), each one write.

    A launcher merges what the ranks write piece by piece; a line in one piece stays whole.
    """

    def __init__(self, stream: TextIO, log_every: int = 0, clock: Clock = time.perf_counter) -> None:
        self.stream = stream
        self.log_every = log_every
        self.clock = clock
        self.pace = Pace(Plan(0, None), clock())

    def start(self, headline: str, plan: Plan) -> None:
        """Write the headline."""
        self.pace = Pace(plan, self.clock())
        self.say(headline)

    def step(self, epoch: int, step: int, samples: int, loss: SupportsFloat) -> None:
        """Write a line if ``log_every`` divides ``step``."""
        if self.log_every and step % self.log_every == 0:
            now = self.clock()
            self.pace.mark(now, samples)
            self.say(plain(step_fields(self.pace, now, epoch, step, float(loss))))

    def epoch(self, row: Row) -> None:
        """Write a line."""
        self.say(plain(epoch_fields(row, self.pace.plan)))

    def say(self, text: str) -> None:
        """Write ``text`` and a newline in one piece."""
        self.stream.write(_writable(text, self.stream) + "\n")
        self.stream.flush()

    def finish(self, summary: Summary) -> None:
        """Write the summary as aligned lines."""
        self.say(summary.text())

    def close(self) -> None:
        """Do nothing: every line is out already."""


@final
class Bar(Reporter):
    """A live line below the lines that stay; ``columns`` is asked for the width at every redraw."""

    def __init__(self, stream: TextIO, columns: Callable[[], int], clock: Clock = time.perf_counter) -> None:
        self.stream = stream
        self.columns = columns
        self.clock = clock
        self.console = Console(file=stream, force_terminal=True, width=columns(), height=25, highlight=False)
        self.live = Live(console=self.console, auto_refresh=False, transient=True, redirect_stderr=False)
        self.glyphs = "━─" if self.console.encoding.startswith("utf") else "#-"
        self.pace = Pace(Plan(0, None), clock())
        self.due = 0.0

    def start(self, headline: str, plan: Plan) -> None:
        """Show the headline and open the live line."""
        self.pace = Pace(plan, self.clock())
        self.due = self.pace.began + REFRESH_SECONDS
        self._print(Text(_writable(headline, self.stream), "bold cyan"))
        self.live.start()
        # A hidden cursor would stay hidden in the person's shell when another rank's failure kills this one.
        self.console.show_cursor(True)

    def step(self, epoch: int, step: int, samples: int, loss: SupportsFloat) -> None:
        """Redraw the live line if a tenth of a second has passed since it was drawn."""
        now = self.clock()
        if now >= self.due:
            self.due = now + REFRESH_SECONDS
            self._draw(now, epoch, step, samples, float(loss))

    def epoch(self, row: Row) -> None:
        """Leave a line above the live one."""
        self._print(fitted(epoch_fields(row, self.pace.plan), self.columns()))

    def say(self, text: str) -> None:
        """Leave ``text`` above the live line."""
        self._print(Text(_writable(text, self.stream)), whole=True)

    def finish(self, summary: Summary) -> None:
        """Replace the live line by a table."""
        self.close()
        self._print(summary_table(summary))
        if summary.folder is not None:
            folder = _writable(str(summary.folder), self.stream)
            self._print(Text.assemble("  run folder  ", (folder, "bold")), whole=True)

    def close(self) -> None:
        """Take the live line away."""
        self.live.stop()

    def _draw(self, now: float, epoch: int, step: int, samples: int, loss: float) -> None:
        self.console.width = self.columns()
        self.pace.mark(now, samples)
        fields = step_fields(self.pace, now, epoch, step, loss)
        # One column stays free, because a full line would wrap in some terminals, and two part the line from
        # what another rank may print behind it.
        line = bar_line(fields, self.pace.fraction(step), self.console.width - 3, self.glyphs)
        self.live.update(line.append("  "), refresh=True)

    def _print(self, what: Text | Table, whole: bool = False) -> None:
        """Print above the live line; ``whole``: no newlines of ours in it, so that a path can be copied."""
        self.console.width = self.columns()
        self.console.print(what, soft_wrap=whole)


def summary_table(summary: Summary) -> Table:
    """Return the end of a run as a table of three sections."""
    table = Table(box=_FRAME, show_header=False, border_style="bright_black", padding=(0, 1))
    table.add_column(style="bold cyan")
    table.add_column(style="dim")
    table.add_column(style="bold", justify="right")
    for section, rows in summary.sections():
        for index, (label, value) in enumerate(rows):
            last = index == len(rows) - 1
            table.add_row(Text(section if index == 0 else ""), Text(label), Text(value), end_section=last)
    return table


def open_reporter(rank: int, progress: Progress = "auto", log_every: int = 0, stream: TextIO | None = None) -> Reporter:
    """Return what reports on this rank: ``auto`` is a bar where the person sits at a terminal, else lines.

    ``log_every`` asks for a line per so many steps where lines are written. ``stream``: stdout unless given.
    """
    stream = sys.stdout if stream is None else stream
    if rank != 0 or progress == "off":
        return Silent()
    terminal = None if progress == "plain" else find_terminal(stream)
    if terminal is not None and environ.get("TERM", "dumb") not in ("dumb", "unknown"):
        return Bar(stream, terminal.columns)
    return Bar(stream, _asked_columns) if progress == "bar" else Plain(stream, log_every)


def _asked_columns() -> int:
    asked = environ.get("COLUMNS", "")
    return int(asked) if asked.isdigit() and int(asked) else _UNKNOWN_COLUMNS


def _writable(text: str, stream: TextIO) -> str:
    """Replace what the stream cannot encode: a name with an accent must not end a run."""
    encoding = stream.encoding or "utf-8"
    return text.encode(encoding, "replace").decode(encoding)
