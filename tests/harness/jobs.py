"""One MPI and one rank count: its items run in one mpirun job, or in more where a failure leaves ranks apart."""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.harness.reports import Verdict, failure, merged
from tests.mpi_prefixes import MPIS
from tests.processes import Job, innermost, session_folder

JOB = "DISTLOOP_TEST_JOB"
SCALE = float(os.environ.get("DISTLOOP_TEST_TIME_SCALE", "1"))
DEFAULT_SECONDS = 60.0
START_SECONDS = 120.0  # importing torch on more ranks than cores
GRACE_SECONDS = 1.0  # for the other ranks to fail too, which spares a new job
EXIT_SECONDS = 20.0
DEATH_SECONDS = 5.0  # in which a launcher notices that it has lost a rank
_POLL_SECONDS = 0.005
_PHASES = ("setup", "call", "teardown")


@dataclass(frozen=True)
class MpiJob:
    """Which MPI, and how many ranks: the parameter of every test with the marker ``mpi``."""

    mpi: str
    ranks: int

    def __str__(self) -> str:
        return f"{self.mpi}-{self.ranks}"


@dataclass(frozen=True)
class Options:
    """What the marker ``mpi`` says, the closest one first."""

    ranks: tuple[int, ...]
    mpi: tuple[str, ...]
    seconds: float

    @classmethod
    def of(cls, item: pytest.Item) -> Options:
        said: dict[str, Any] = {}
        for mark in reversed(list(item.iter_markers("mpi"))):
            said |= mark.kwargs
        least = said.get("min_size", 1)
        ranks = said.get("ranks", tuple(count for count in (1, 2, 3, 4) if count >= least))
        return cls(tuple(ranks), tuple(said.get("mpi", MPIS)), said.get("timeout", DEFAULT_SECONDS) * SCALE)


class RankLog:
    """What one rank has written so far."""

    def __init__(self, path: Path) -> None:
        self.path, self.offset = path, 0
        self.pid: int | None = None
        self.started: set[str] = set()
        self.ended: set[str] = set()
        self.reports: dict[str, list[Any]] = {}
        self.collected: list[str] = []
        self.errors: list[str] = []

    def read(self) -> None:
        """Take in whole lines; the rest of a line comes next time."""
        if not self.path.exists():
            return
        with self.path.open() as file:
            file.seek(self.offset)
            text = file.read()
        whole = text[: text.rfind("\n") + 1]
        self.offset += len(whole.encode())
        for line in whole.splitlines():
            self._take(json.loads(line))

    def runs(self, nodeid: str) -> bool:
        """Whether the rank is in this test, or should be: it has neither ended nor failed it."""
        return nodeid not in self.ended and not self.failed(nodeid)

    def failed(self, nodeid: str) -> bool:
        """Whether the rank has reported a failure."""
        return any(report["outcome"] == "failed" for report in self.reports.get(nodeid, []))

    def _take(self, event: dict[str, Any]) -> None:
        if "ready" in event:
            self.pid, self.collected, self.errors = event["ready"], event["nodeids"], event["errors"]
        elif "start" in event:
            self.started.add(event["start"])
        elif "end" in event:
            self.ended.add(event["end"])
        else:
            self.reports.setdefault(event["nodeid"], []).append(event["report"])


class Group:
    """The items of one MPI and rank count, in the order in which pytest will ask for them."""

    def __init__(self, key: MpiJob, items: list[pytest.Item], config: pytest.Config) -> None:
        self.key, self.items, self.config = key, items, config
        self.job: Job | None = None
        self.hopeless: Verdict | None = None

    def reports(self, item: pytest.Item) -> list[pytest.TestReport]:
        """Of its setup, call and teardown: waits for the job to come so far."""
        if self.hopeless:
            return [failure(item, self.hopeless)]
        if self.job is None:
            self._start(self.items[self.items.index(item) :])
        broken = self._follow(item)
        self.progress = time.monotonic()
        reports = self._merged(item)
        if broken is not None:
            # A failure that ranks reported says more than how the job ended.
            told = next((report for report in reports if report.failed), None)
            if told is None:
                reports = [*(report for report in reports if report.when == "setup"), failure(item, broken)]
            else:
                told.longrepr.parts = [*told.longrepr.parts, *broken.parts]  # type: ignore[union-attr]
            if not self._together_without(item):
                self.end()
        if self.job is not None and item is self.items[-1]:
            reports += self._leave(item)
        return reports

    def end(self) -> None:
        """Leave nothing of the job behind."""
        if self.job is not None:
            self.job.end()
            for descriptor in self.watched:
                os.close(descriptor)
            shutil.rmtree(self.job.folder, ignore_errors=True)
            self.job = None

    def _start(self, items: list[pytest.Item]) -> None:
        folder = Path(tempfile.mkdtemp(prefix=f"{self.key}-", dir=session_folder()))
        told = {"mpi": self.key.mpi, "ranks": self.key.ranks, "nodeids": [item.nodeid for item in items]}
        (folder / "job.json").write_text(json.dumps(told))
        self.logs = [RankLog(folder / f"rank-{rank}.jsonl") for rank in range(self.key.ranks)]
        self.first_dead: list[int] = []
        self.watched: dict[int, int] = {}
        command = [sys.executable, "-m", "pytest", *self._arguments(items)]
        environment = {JOB: str(folder)}
        self.job = Job(MPIS[self.key.mpi], self.key.ranks, command, folder, self.config.rootpath, environment)
        self.progress = time.monotonic()

    def _arguments(self, items: list[pytest.Item]) -> list[str]:
        ini = ["-c", str(self.config.inipath)] if self.config.inipath else []
        show = ["--tb", self.config.option.tbstyle, *(["--showlocals"] if self.config.option.showlocals else [])]
        plain = ["--with-mpi", "-q", "-p", "no:cacheprovider", "-o", "addopts=", "--continue-on-collection-errors"]
        place = ["--rootdir", str(self.config.rootpath)]
        return [*plain, *place, *ini, *show, *dict.fromkeys(str(item.path) for item in items)]

    def _follow(self, item: pytest.Item) -> Verdict | None:
        """Wait until all ranks have ended the test, or something else has ended it: then say what."""
        limit, began, failed, dead = Options.of(item).seconds, None, None, None
        while True:
            exited = self.job.process.poll() is not None
            for log in self.logs:
                log.read()
            if all(item.nodeid in log.ended for log in self.logs):
                return None
            if exited:
                return self._died(item)
            now = time.monotonic()
            if self.first_dead:
                dead = dead or now
            if dead and now - dead > DEATH_SECONDS:
                return self._died(item)
            if any(item.nodeid in log.started for log in self.logs):
                began = began or now
            if any(log.failed(item.nodeid) for log in self.logs):
                failed = failed or now
            if failed and now - failed > GRACE_SECONDS:
                return self._stopped(item, "")
            if began and now - began > limit:
                return self._stopped(item, f"no end after {limit:g} s")
            if began is None and (problem := self._not_starting(item, now)):
                return problem
            self._pause()

    def _not_starting(self, item: pytest.Item, now: float) -> Verdict | None:
        if all(log.pid for log in self.logs):
            lacking = [rank for rank, log in enumerate(self.logs) if item.nodeid not in log.collected]
            errors = [(f"rank {rank}", "\n".join(self.logs[rank].errors)) for rank in lacking]
            if lacking:
                return Verdict(f"{self.key}: not collected on rank {lacking}", errors)
        if now - self.progress > START_SECONDS * SCALE:
            return self._stopped(item, f"not begun after {START_SECONDS * SCALE:g} s")
        return None

    def _together_without(self, item: pytest.Item) -> bool:
        """Whether no rank knows this test, and all the same others: then the job goes on."""
        known = [log.collected for log in self.logs]
        return all(log.pid for log in self.logs) and item.nodeid not in known[0] and known.count(known[0]) == len(known)

    def _pause(self) -> None:
        """A moment, cut short by the death of a rank: a launcher that has lost one soon ends the others."""
        if self.first_dead or not all(log.pid for log in self.logs):
            time.sleep(_POLL_SECONDS)
            return
        try:
            self.watched = self.watched or {os.pidfd_open(log.pid): rank for rank, log in enumerate(self.logs)}
        except ProcessLookupError:
            return
        ready, _, _ = select.select(self.watched, [], [], _POLL_SECONDS)
        self.first_dead = [self.watched[descriptor] for descriptor in ready]

    def _stopped(self, item: pytest.Item, why: str) -> Verdict:
        """With the stack of each rank that is not done with the test; of all, where all are."""
        running = {rank for rank, log in enumerate(self.logs) if log.runs(item.nodeid)}
        stacks = {rank: stack for rank, stack in self.job.stacks().items() if rank in running or not running}
        places = "; ".join(f"rank {rank} at {innermost(stack)}" for rank, stack in stacks.items())
        return Verdict(f"{why}: {places}", [(f"stack of rank {rank}", stack) for rank, stack in stacks.items()])

    def _died(self, item: pytest.Item) -> Verdict:
        up = any(log.pid for log in self.logs)
        who = self._culprit() if up else "before a test began"
        code = self.job.process.returncode
        verdict = Verdict(f"the job of {self.key} ended: {who}; mpirun's exit code is {code}", [self._output()])
        self.hopeless = None if up else verdict
        return verdict

    def _culprit(self) -> str:
        """The rank that died first: by the launcher's word where that is reliable, else by who was missing first."""
        pids = {log.pid: rank for rank, log in enumerate(self.logs)}
        named = re.search(r"PID (\d+)", self.job.stdout + self.job.stderr)
        if named and self.key.mpi != "impi":  # Intel's names all ranks, in order
            self.first_dead = [pids[pid] for pid in (int(named[1]),) if pid in pids] or self.first_dead
        how = re.search(r"(?i)signal:? \d+ \(.*?\)|\w+ \(signal \d+\)|Abort\(\d+\)", self.job.stdout + self.job.stderr)
        ranks = " or ".join(f"rank {rank}" for rank in self.first_dead) or "some rank"
        return f"{ranks} died{f', {how[0]}' if how else ''}"

    def _leave(self, item: pytest.Item) -> list[pytest.TestReport]:
        """The job must end by itself after its last test."""
        ended = self.job.finish(EXIT_SECONDS * SCALE)
        problem = None if ended else self._stopped(item, "the job does not end after its last test")
        if ended and self.job.process.returncode != 0:
            problem = self._died(item)
        self.end()
        return [] if problem is None else [failure(item, problem, when="teardown")]

    def _output(self) -> tuple[str, str]:
        lines = (self.job.stdout + self.job.stderr).splitlines()
        return f"output of the job of {self.key}", "\n".join(line for line in lines if line.strip())[-4000:]

    def _merged(self, item: pytest.Item) -> list[pytest.TestReport]:
        phases: dict[str, dict[int, pytest.TestReport]] = {phase: {} for phase in _PHASES}
        for rank, log in enumerate(self.logs):
            for data in log.reports.get(item.nodeid, []):
                report = self.config.hook.pytest_report_from_serializable(config=self.config, data=data)
                if isinstance(report.longrepr, list):  # a reason to skip; JSON has no tuples
                    report.longrepr = tuple(report.longrepr)
                phases[report.when][rank] = report
        return [merged(reports, self.key.ranks) for reports in phases.values() if reports]
