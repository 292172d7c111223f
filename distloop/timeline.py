"""Where a step's time goes: spans of compute, wait, transfer and optimizer, kept per rank and written as one trace.

Not recording costs a tenth of a microsecond a span, recording about one. A trace opens in Perfetto (ui.perfetto.dev)
and chrome://tracing: a process per rank, a row per thread, all on rank 0's clock.
"""

from __future__ import annotations

import json
import math
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeVar, final

import numpy as np

from distloop.comm.clocks import seconds_behind_root
from distloop.comm.mpi import MPI

if TYPE_CHECKING:
    from distloop.comm import World

Phase = Literal["compute", "wait", "transfer", "optimizer", "step"]
PHASES: tuple[Phase, ...] = ("compute", "wait", "transfer", "optimizer")
CAPACITY_SPANS = 1_000_000


class Counting(Protocol):
    """What the loop yields, as far as a timeline looks at it."""

    step: int


Progress = TypeVar("Progress", bound=Counting)


class Span(NamedTuple):
    """One stretch of one thread of this rank; seconds are those of ``time.perf_counter``."""

    phase: Phase
    bucket: int
    """Which bucket of the gradient; of a step its number; -1 for none."""
    thread: int
    begin: float
    end: float


class Timeline(ABC):
    """Told by learner and caller what is going on; any thread may tell."""

    @abstractmethod
    def span(self, phase: Phase, bucket: int = -1) -> AbstractContextManager[None]:
        """What happens inside is ``phase``. A span inside another one takes its time from it."""

    @abstractmethod
    def steps(self, progress: Iterator[Progress]) -> Iterator[Progress]:
        """The loop's own steps, each of them a span; what the caller does between two of them is none."""

    @abstractmethod
    def write(self, path: Path, world: World) -> None:
        """One JSON file of all ranks' spans, in the trace event format of Chrome and Perfetto. Collective."""


@final
class NoTimeline(Timeline):
    """Keeps nothing."""

    def __init__(self) -> None:
        self._nothing = nullcontext()

    def span(self, phase: Phase, bucket: int = -1) -> AbstractContextManager[None]:
        """The same empty context every time."""
        return self._nothing

    def steps(self, progress: Iterator[Progress]) -> Iterator[Progress]:
        """As they are."""
        return progress

    def write(self, path: Path, world: World) -> None:
        """Write nothing."""


@final
class RecordedTimeline(Timeline):
    """Keeps every span, up to ``capacity`` of them; what comes later is counted in ``dropped`` only."""

    def __init__(self, capacity: int = CAPACITY_SPANS) -> None:
        """Made on the main thread of a rank."""
        self.spans: list[Span] = []
        self.capacity, self.dropped = capacity, 0
        self.main_thread = threading.get_ident()

    def span(self, phase: Phase, bucket: int = -1) -> AbstractContextManager[None]:
        """Recorded as it ends."""
        return _Recording(self, phase, bucket)

    def add(self, span: Span) -> None:
        """Keep it. A list's append is atomic, so threads need no lock."""
        if len(self.spans) < self.capacity:
            self.spans.append(span)
        else:
            self.dropped += 1

    def steps(self, progress: Iterator[Progress]) -> Iterator[Progress]:
        """The end of a round, which the loop yields as well, is no step."""
        done = 0
        while True:
            begin = time.perf_counter()
            try:
                now = next(progress)
            except StopIteration:
                return
            if now.step != done:
                done = now.step
                self.add(Span("step", done, self.main_thread, begin, time.perf_counter()))
            yield now

    def clear(self) -> None:
        """Begin anew."""
        self.spans.clear()
        self.dropped = 0

    def settled(self, control: MPI.Intracomm) -> tuple[list[Span], list[Span]]:
        """The main thread's spans and the others', without overlap, in order of time, on rank 0's clock. Collective.

        A transfer begins when the last rank comes to it: what a rank spends in it before that is ``wait``.
        """
        behind = seconds_behind_root(control)
        spans = [span._replace(begin=span.begin + behind, end=span.end + behind) for span in self.spans]
        main = [span for span in spans if span.thread == self.main_thread]
        others = [span for span in spans if span.thread != self.main_thread]
        return flattened(main + _waits(main, control)), flattened(others + _waits(others, control))

    def write(self, path: Path, world: World) -> None:
        """Rank 0 writes; no shared file system is needed."""
        control = world.comm.control
        main, others = self.settled(control)
        earliest = np.array([min((span.begin for span in [*main, *others]), default=np.inf)])
        control.Allreduce(MPI.IN_PLACE, earliest, MPI.MIN)
        origin = float(earliest[0])
        names = _names(world, bool(others), self.dropped)
        told = [*names, *_events(world.rank, 0, main, origin), *_events(world.rank, 1, others, origin)]
        lines = ",\n".join(json.dumps(event) for event in told)
        is_last = world.rank == world.size - 1
        header = '{"displayTimeUnit": "ms", "traceEvents": [\n'
        world.write_in_order(path, header, lines + ("\n]}\n" if is_last else ",\n"))


class _Recording(AbstractContextManager[None]):
    """A span under way."""

    __slots__ = ("begin", "bucket", "phase", "timeline")

    def __init__(self, timeline: RecordedTimeline, phase: Phase, bucket: int) -> None:
        self.timeline, self.phase, self.bucket = timeline, phase, bucket

    def __enter__(self) -> None:
        self.begin = time.perf_counter()

    def __exit__(self, *error: object) -> None:
        end = time.perf_counter()
        self.timeline.add(Span(self.phase, self.bucket, threading.get_ident(), self.begin, end))


def flattened(spans: Sequence[Span]) -> list[Span]:
    """One thread's spans, in order of time: where one lies in another, the inner one has the time.

    Inside a step, what is nothing else is compute: forward, loss, data, and Python itself. Steps come first, whole.
    """
    pieces: list[Span] = []
    around: list[Span] = []  # the spans that hold the moment ``now``, the innermost last
    now = 0.0

    def go_to(moment: float) -> None:
        nonlocal now
        while around:
            inner = around[-1]
            end = min(inner.end, moment)
            if end > now:
                kind = inner._replace(phase="compute", bucket=-1) if inner.phase == "step" else inner
                pieces.append(kind._replace(begin=now, end=end))
                now = end
            if inner.end > moment:
                break
            around.pop()
        now = moment

    for span in sorted(spans, key=lambda span: (span.begin, -span.end, span.phase != "step")):
        go_to(span.begin)
        around.append(span)
    go_to(math.inf)
    return [span for span in spans if span.phase == "step"] + pieces


def _waits(spans: Sequence[Span], control: MPI.Intracomm) -> list[Span]:
    """Of each transfer what a rank spends in it before the last rank comes to it.

    All ranks take part in the same transfers in the same order, so the k-th here is the k-th there; where a rank has
    dropped some, nobody knows.
    """
    transfers = [span for span in spans if span.phase == "transfer"]
    counts = np.array([len(transfers), -len(transfers)], dtype=np.int64)
    control.Allreduce(MPI.IN_PLACE, counts, MPI.MAX)
    if counts[0] != -counts[1]:
        return []
    latest = np.array([span.begin for span in transfers])
    control.Allreduce(MPI.IN_PLACE, latest, MPI.MAX)
    ends = [min(span.end, end) for span, end in zip(transfers, latest.tolist(), strict=True)]
    return [span._replace(phase="wait", end=end) for span, end in zip(transfers, ends, strict=True) if end > span.begin]


def exposed(main: Sequence[Span], others: Sequence[Span]) -> list[Span]:
    """The main thread's settled spans, a wait being a transfer where another thread was at one: it was for that."""
    moving = [span for span in others if span.phase == "transfer"]
    pieces: list[Span] = []
    first = 0
    for span in main:
        if span.phase != "wait":
            pieces.append(span)
            continue
        now = span.begin
        while first < len(moving) and moving[first].end <= now:
            first += 1
        for transfer in moving[first:]:
            if transfer.begin >= span.end:
                break
            begin, end = max(now, transfer.begin), min(span.end, transfer.end)
            pieces += [span._replace(begin=now, end=begin)] if begin > now else []
            pieces.append(span._replace(phase="transfer", bucket=transfer.bucket, begin=begin, end=end))
            now = end
        pieces += [span._replace(begin=now)] if span.end > now else []
    return pieces


def seconds_by_phase(spans: Sequence[Span]) -> dict[str, float]:
    """Sums over settled spans of one thread."""
    sums: dict[str, float] = dict.fromkeys(map(str, PHASES), 0.0)
    for span in spans:
        if span.phase in sums:
            sums[span.phase] += span.end - span.begin
    return sums


def _names(world: World, two_threads: bool, dropped: int) -> Iterator[dict[str, Any]]:
    about: dict[str, Any] = {"ph": "M", "pid": world.rank}
    lost = f", {dropped} spans dropped" if dropped else ""
    yield about | {"name": "process_name", "args": {"name": f"rank {world.rank} on node {world.node}{lost}"}}
    yield about | {"name": "process_sort_index", "args": {"sort_index": world.rank}}
    for thread, name in enumerate(["main", "communication"] if two_threads else ["main"]):
        yield about | {"name": "thread_name", "tid": thread, "args": {"name": name}}


def _events(rank: int, thread: int, spans: Sequence[Span], origin: float) -> Iterator[dict[str, Any]]:
    """Complete events, in microseconds since the earliest one of all ranks, rounded so that they still nest."""
    for span in spans:
        begin, end = round((span.begin - origin) * 1e9), round((span.end - origin) * 1e9)
        numbered = f"step {span.bucket}" if span.phase == "step" else f"{span.phase} of bucket {span.bucket}"
        yield {
            "name": span.phase if span.bucket < 0 else numbered,
            "cat": span.phase,
            "ph": "X",
            "ts": begin / 1000,
            "dur": (end - begin) / 1000,
            "pid": rank,
            "tid": thread,
        }
