"""Starting the product as a user does, from the shell, with or without mpirun.

    def test_help(launch):
        done = launch(2, "-m", "distloop.train", "--help")          # mpirun -n 2 python -m distloop.train --help
        assert done.returncode == 0 and "usage" in done.stdout

    def test_saves_when_told(launch, mpi_name):                     # for each MPI that is installed
        running = launch.start(3, "-m", "distloop.train", mpi=mpi_name)
        running.wait_for("step 3")
        running.signal(1, signal.SIGUSR1)
        done = running.finish(timeout=60)

``None`` as rank count: no mpirun. Past its time a command is killed, and the error shows the Python stack of each rank.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.harness.jobs import SCALE
from tests.mpi_prefixes import MPIS
from tests.processes import Job, session_folder


@dataclass(frozen=True)
class Finished:
    """What a command did."""

    command: tuple[str, ...]
    returncode: int
    stdout: str
    stderr: str
    seconds: float

    def check(self) -> Finished:
        """Itself, if the command succeeded."""
        if self.returncode != 0:
            command = " ".join(self.command)
            raise AssertionError(f"{command}\nexit code {self.returncode}\n{self.stdout}\n{self.stderr}")
        return self


class Running:
    """A command under way."""

    def __init__(self, ranks: int | None, args: tuple[Any, ...], mpi: str, env: Any, cwd: Any) -> None:
        if ranks is not None and MPIS[mpi].missing:
            pytest.skip(MPIS[mpi].missing)
        self.command = (sys.executable, *map(str, args))
        self.began = time.monotonic()
        self.folder = Path(tempfile.mkdtemp(prefix="launch-", dir=session_folder()))
        chosen = None if ranks is None else MPIS[mpi]
        self.job = Job(chosen, ranks or 1, list(self.command), self.folder, cwd, env)

    def pids(self, seconds: float = 30.0, ranks: int = 1) -> dict[int, int]:
        """The process of each rank, once there are at least ``ranks`` of them."""
        deadline = time.monotonic() + seconds * SCALE
        while len(self.job.pids()) < ranks and time.monotonic() < deadline and self.job.process.poll() is None:
            time.sleep(0.01)
        return self.job.pids()

    def signal(self, rank: int, number: int) -> None:
        """Send it to the process of one rank."""
        os.kill(self.pids(ranks=rank + 1)[rank], number)

    def wait_for(self, text: str, seconds: float = 30.0) -> None:
        """Until the command has said ``text``, on either stream."""
        deadline = time.monotonic() + seconds * SCALE
        while text not in (said := self.job.stdout + self.job.stderr):
            if self.job.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"{' '.join(self.command)}\nnever said {text!r}:\n{said}")
            time.sleep(0.01)

    def finish(self, timeout: float = 60.0) -> Finished:
        """Wait for its end; past ``timeout`` kill it, and raise TimeoutExpired with the stacks of its ranks."""
        try:
            if not self.job.finish(timeout * SCALE):
                raise self._too_late(timeout * SCALE)
            seconds = time.monotonic() - self.began
            return Finished(self.command, self.job.process.returncode, self.job.stdout, self.job.stderr, seconds)
        finally:
            self.end()

    def end(self) -> None:
        """Leave nothing of it behind."""
        if self.folder.exists():
            self.job.end()
            shutil.rmtree(self.folder, ignore_errors=True)

    def _too_late(self, seconds: float) -> subprocess.TimeoutExpired:
        error = subprocess.TimeoutExpired(self.command, seconds, self.job.stdout, self.job.stderr)
        for rank, stack in self.job.stacks().items():
            error.add_note(f"stack of rank {rank}:\n{stack}")
        error.add_note(f"stdout:\n{self.job.stdout[-4000:]}\nstderr:\n{self.job.stderr[-4000:]}")
        return error


def mpirun(
    ranks: int | None,
    *args: Any,
    mpi: str = "mpich",
    timeout: float = 60.0,
    env: dict[str, str] | None = None,
    cwd: Path | None = None,
) -> Finished:
    """``mpirun -n ranks python args...`` to its end; ``env`` comes on top of this process's environment."""
    return Running(ranks, args, mpi, env, cwd).finish(timeout)


class Launcher:
    """The fixture ``launch``: call it, or ``start`` a command and look at it while it runs."""

    def __init__(self) -> None:
        self.started: list[Running] = []

    def __call__(self, ranks: int | None, *args: Any, timeout: float = 60.0, **options: Any) -> Finished:
        """As ``mpirun``."""
        return self.start(ranks, *args, **options).finish(timeout)

    def start(
        self,
        ranks: int | None,
        *args: Any,
        mpi: str = "mpich",
        env: dict[str, str] | None = None,
        cwd: Path | None = None,
    ) -> Running:
        """Do not wait for it; what still runs when the test ends is killed."""
        running = Running(ranks, args, mpi, env, cwd)
        self.started.append(running)
        return running


@pytest.fixture
def launch() -> Iterator[Launcher]:
    """Start commands under mpirun."""
    launcher = Launcher()
    yield launcher
    for running in launcher.started:
        running.end()
