"""Where a comparison goes: the terminal, a JSON file, a folder with the page, the plots and the timelines."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from distloop.comm import World, at_root
from distloop.comparing.options import CompareConfig
from distloop.errors import ConfigError
from distloop.report.comparison import Comparison
from distloop.report.comparison_json import as_json
from distloop.report.comparison_table import print_comparison
from distloop.report.tty import find_terminal

COLUMNS_OF_A_FILE = 120


class Outputs:
    """Rank 0 writes. Collective, as is every method."""

    def __init__(self, config: CompareConfig, world: World) -> None:
        """Makes the folders now, so that a place that cannot be written to is known before anything is measured."""
        self.config, self.world = config, world
        if config.report is not None:
            self._try(_require_matplotlib)
        self.report = None if config.report is None else Path(config.report).expanduser()
        self.timelines = (self.report or Path("timelines")) if config.timeline else None
        for folder in (self.report, self.timelines):
            if folder is not None:
                self._try(lambda folder=folder: folder.mkdir(parents=True, exist_ok=True))  # type: ignore[misc]

    def say(self, text: str) -> None:
        """How it goes, on the standard error."""
        if self.config.progress != "off":
            self.world.say_once(text)

    def write(self, comparison: Comparison) -> None:
        """All that was asked for."""
        text = json.dumps(as_json(comparison), indent=2) + "\n"
        if self.config.json == "-":
            self._try(lambda: sys.stdout.write(text))
        else:
            self._try(lambda: _show(comparison))
        if self.config.json not in (None, "-"):
            path = Path(self.config.json).expanduser()
            self._try(lambda: path.write_text(text))
        if self.report is not None:
            folder = self.report
            self._try(lambda: _write_report(comparison, text, folder))
            self.say(f"report: {folder / 'report.html'}")
        if self.timelines is not None:
            self.say(f"timelines for https://ui.perfetto.dev: {self.timelines}/timeline-*.json")

    def _try(self, write: Callable[[], object]) -> None:
        def guarded() -> None:
            try:
                write()
            except OSError as error:
                raise ConfigError(
                    f"{error.filename} cannot be written ({error.strerror}). Expected a place that can"
                ) from error

        at_root(self.world.comm.control, guarded)


def _require_matplotlib() -> None:
    """Before anything is measured."""
    if find_spec("matplotlib") is None:
        raise ConfigError("--report draws with matplotlib, which is not installed. Expected it: pip install matplotlib")


def _show(comparison: Comparison) -> None:
    terminal = find_terminal(sys.stdout)
    columns = COLUMNS_OF_A_FILE if terminal is None else terminal.columns()
    print_comparison(comparison, sys.stdout, columns, terminal is not None)
    sys.stdout.flush()


def _write_report(comparison: Comparison, text: str, folder: Path) -> None:
    from distloop.report.page import page  # matplotlib takes a second to import
    from distloop.report.plots import pictures

    for name, data in pictures(comparison).items():
        (folder / f"{name}.png").write_bytes(data)
    (folder / "report.html").write_text(page(comparison), encoding="utf-8")
    (folder / "comparison.json").write_text(text)
