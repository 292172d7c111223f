"""One report out of those of several ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from _pytest._code.code import ReprFileLocation
from _pytest._io import TerminalWriter


@dataclass
class Verdict:
    """What pytest shows of a failure: a line for the summary, and a text under a heading for each rank."""

    message: str
    parts: Sequence[tuple[str, Any]]
    path: str = ""
    line: int = 0

    @property
    def reprcrash(self) -> ReprFileLocation:
        """Where pytest looks for the summary's line."""
        return ReprFileLocation(self.path, self.line, self.message)

    def toterminal(self, tw: TerminalWriter) -> None:
        """As pytest calls it."""
        tw.line(self.message, red=True, bold=True)
        for heading, content in self.parts:
            tw.sep("-", heading)
            if hasattr(content, "toterminal"):
                content.toterminal(tw)
            else:
                tw.line(str(content))

    def __str__(self) -> str:
        parts = [f"---- {heading} ----\n{content}" for heading, content in self.parts]
        return "\n".join([self.message, *parts])


def failure(item: pytest.Item, verdict: Verdict, when: str = "call", seconds: float = 0.0) -> pytest.TestReport:
    """A failed report that no rank wrote."""
    keywords = dict.fromkeys(item.keywords, 1)
    return pytest.TestReport(
        item.nodeid,
        item.location,
        keywords,
        "failed",
        verdict,
        when,
        duration=seconds,  # type: ignore[arg-type]
    )


def merged(reports: dict[int, pytest.TestReport], ranks: int) -> pytest.TestReport:
    """Of one phase of one test: failed if it failed on any rank, or if some skipped it and others did not."""
    failed = {rank: report for rank, report in reports.items() if report.failed}
    outcomes = {report.outcome for report in reports.values()}
    one = next(iter((failed or reports).values()))
    if failed:
        one.longrepr = _verdict(failed, ranks)  # type: ignore[assignment]
        one.sections = [(f"{name}, rank {rank}", text) for rank, r in failed.items() for name, text in r.sections]
    elif len(outcomes) > 1:
        parts = [(f"rank {rank}", f"{r.outcome} {_reason(r)}") for rank, r in reports.items()]
        one.outcome = "failed"
        one.longrepr = Verdict("some ranks skipped, others did not", parts)  # type: ignore[assignment]
    one.duration = max(report.duration for report in reports.values())
    return one


def _verdict(failed: dict[int, pytest.TestReport], ranks: int) -> Verdict:
    """The whole text where ranks fail in different places; one of them, and the others' messages, where in the same."""
    first = next(iter(failed.values()))
    crash = getattr(first.longrepr, "reprcrash", None)
    shown: dict[Any, int] = {}
    parts: list[tuple[str, Any]] = []
    for rank, report in failed.items():
        where = _place(report)
        if where in shown:
            parts.append((f"rank {rank} of {ranks}, in the same place as rank {shown[where]}", _message(report)))
        else:
            shown[where] = rank
            parts.append((f"rank {rank} of {ranks}", report.longrepr))
    names = ", ".join(map(str, failed))
    message = f"rank{'s' * (len(failed) > 1)} {names} of {ranks}: {_message(first)}"
    return Verdict(message, parts, getattr(crash, "path", ""), getattr(crash, "lineno", 0))


def _reason(report: pytest.TestReport) -> str:
    return report.longrepr[2] if isinstance(report.longrepr, tuple) else ""


def _place(report: pytest.TestReport) -> Any:
    crash = getattr(report.longrepr, "reprcrash", None)
    return (crash.path, crash.lineno) if crash else report.longreprtext


def _message(report: pytest.TestReport) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    return str(crash.message if crash else report.longrepr).strip()
