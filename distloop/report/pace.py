"""How fast a run goes now, and how long it will still take."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from math import inf
from typing import final

_WINDOW = 50  # marks; five seconds of a bar that is drawn ten times a second


@dataclass(frozen=True)
class Plan:
    """What a run is going to do, and what it had done already when it was resumed."""

    epochs: int
    steps: int | None
    """Of the whole run; None where nobody knows, and then no time remaining is shown."""
    steps_done: int = 0
    samples_done: int = 0


@final
class Pace:
    """Speed over the last marks; time remaining at the speed of the whole run, evaluations included."""

    def __init__(self, plan: Plan, now: float) -> None:
        self.plan = plan
        self.began = now
        self.marks = deque([(now, plan.samples_done)], maxlen=_WINDOW)

    def mark(self, now: float, samples: int) -> None:
        """Note that ``samples`` of the run were done at ``now`` (seconds)."""
        self.marks.append((now, samples))

    def samples_per_second(self) -> float:
        """Return the speed over the last marks; 0 before there are two."""
        (first, before), (last, after) = self.marks[0], self.marks[-1]
        return (after - before) / (last - first) if last > first else 0.0

    def fraction(self, step: int) -> float | None:
        """Return how much of the run is done after ``step`` steps, 0 to 1."""
        return min(step / self.plan.steps, 1.0) if self.plan.steps else None

    def remaining_seconds(self, now: float, step: int) -> float:
        """Return the time still to go after ``step`` steps; infinite where nobody knows."""
        done = step - self.plan.steps_done
        if self.plan.steps is None or done <= 0:
            return inf
        return (now - self.began) * (self.plan.steps - step) / done
