"""What a finished run has to tell: what it learned, how fast it was and what it sent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from distloop.report.words import data_size, duration, number, speed

Rows = list[tuple[str, str]]


@dataclass(frozen=True)
class Learned:
    """What the run is for."""

    parameters: int
    """Elements of the model, those of all ranks counted once."""
    train_loss: float
    """Mean over the last epoch."""
    validation: Mapping[str, float]
    """The metrics of the validation rows by name: validation_loss first, then the task's own."""
    weights_sha256: str | None = None
    """As ``run_folder.weights_sha256`` gives it."""

    def rows(self) -> Rows:
        """Return labels and values in the order in which they are shown."""
        shown = [(name.replace("_", " "), number(value)) for name, value in self.validation.items()]
        shown = shown or [("validation", "none, no rows are held out")]
        shown += [("train loss", number(self.train_loss)), ("parameters", f"{self.parameters:,}")]
        return shown + ([("weights", f"sha256 {self.weights_sha256[:16]}")] if self.weights_sha256 else [])


@dataclass(frozen=True)
class Fast:
    """What the run cost in time."""

    seconds: float
    """From the first step to the last evaluation."""
    samples_per_second: float
    """Of all ranks together."""
    steps: int
    step_seconds: float
    """The median (p50) time of a step."""

    def rows(self) -> Rows:
        """Return labels and values in the order in which they are shown."""
        return [
            ("time", duration(self.seconds)),
            ("samples/s", speed(self.samples_per_second)),
            ("steps", f"{self.steps:,}"),
            ("time per step (p50)", duration(self.step_seconds)),
        ]


@dataclass(frozen=True)
class Sent:
    """What the ranks sent to each other."""

    bytes_per_rank: tuple[int, ...]
    """Sent by each rank, in order of rank."""
    messages: int
    """Of all ranks together."""

    def rows(self, steps: int) -> Rows:
        """Return labels and values in the order in which they are shown, for a run of ``steps``."""
        least, most, total = min(self.bytes_per_rank), max(self.bytes_per_rank), sum(self.bytes_per_rank)
        shown = dict.fromkeys((data_size(least), data_size(most)))
        span = " to ".join(shown)
        return [
            ("per rank", span),
            ("per rank and step", data_size(most / max(steps, 1))),
            ("all ranks", data_size(total)),
            ("messages", f"{self.messages:,}"),
        ]


@dataclass(frozen=True)
class Summary:
    """Everything that is shown at the end of a run."""

    learned: Learned
    fast: Fast
    sent: Sent
    folder: Path | None
    """The run folder, if there is one."""

    def sections(self) -> list[tuple[str, Rows]]:
        """Return (section, its rows) in the order in which they are shown."""
        return [
            ("learned", self.learned.rows()),
            ("fast", self.fast.rows()),
            ("sent", self.sent.rows(self.fast.steps)),
        ]

    def text(self) -> str:
        """Return the summary as aligned lines, for a log."""
        sections = self.sections()
        label_width = max(len(label) for _, rows in sections for label, _ in rows)
        lines = [
            f"{section if first else '':<8} {label:<{label_width}}  {value}"
            for section, rows in sections
            for first, (label, value) in zip([True] + [False] * len(rows), rows, strict=False)
        ]
        if self.folder is not None:
            lines.append(f"{'saved':<8} {'run folder':<{label_width}}  {self.folder}")
        return "\n".join(lines)
