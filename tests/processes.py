"""MPI jobs as tests start them: every process is known by a word in its environment, shows its stacks, and is ended.

A guard process ends them too, should pytest itself be killed.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path

import psutil

from tests.mpi_prefixes import CHECKOUT, Mpi

SESSION = "DISTLOOP_TEST_SESSION"
STACKS = "DISTLOOP_TEST_STACKS"
STACK_SIGNAL = getattr(signal, "SIGRTMIN", signal.SIGUSR1)
_SHARED_MEMORY = Path("/dev/shm")
_SEGMENT = re.compile(r"mpich_shm_|sm_segment\.|Intel_MPI_|ucx_shm_posix_")
_FRAMEWORK = re.compile(r"/_pytest/|/pluggy/|<frozen runpy>|/pytest/__main__|/tests/harness/.* in pytest_")


class Job:
    """``command`` under mpirun on ``ranks`` ranks, or without mpirun where ``mpi`` is None."""

    def __init__(
        self,
        mpi: Mpi | None,
        ranks: int,
        command: list[str],
        folder: Path,
        cwd: Path | None = None,
        env: dict[str, str] | None = None,
    ) -> None:
        self.folder, self.began = folder, time.time()
        self._stacks = folder / "stacks"
        self._stacks.mkdir(parents=True)
        path = [str(Path(__file__).parent / "harness" / "stacks"), str(CHECKOUT), os.environ.get("PYTHONPATH")]
        environ = dict(os.environ if mpi is None else mpi.environment())
        environ["PYTHONPATH"] = os.pathsep.join(filter(None, path))
        environ |= {SESSION: str(session_folder()), STACKS: str(self._stacks)} | (env or {})
        launcher = [] if mpi is None else [str(mpi.mpirun), "-n", str(ranks)]
        with (folder / "stdout").open("wb") as out, (folder / "stderr").open("wb") as err:
            self.process = subprocess.Popen(
                [*launcher, *command],
                cwd=cwd,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )

    @property
    def stdout(self) -> str:
        """What came so far."""
        return (self.folder / "stdout").read_text(errors="replace")

    @property
    def stderr(self) -> str:
        """What came so far."""
        return (self.folder / "stderr").read_text(errors="replace")

    def pids(self) -> dict[int, int]:
        """The process of each rank: the first Python that said so."""
        found: dict[int, int] = {}
        for file in sorted(self._stacks.iterdir(), key=lambda file: file.stat().st_ctime_ns):
            rank, pid = map(int, file.name.split("-"))
            found.setdefault(rank, pid)
        return dict(sorted(found.items()))

    def stacks(self, seconds: float = 2.0) -> dict[int, str]:
        """The Python stacks of each rank, wherever it waits."""
        files = {rank: self._stacks / f"{rank}-{pid}" for rank, pid in self.pids().items() if alive(pid)}
        for rank in files:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pids()[rank], STACK_SIGNAL)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not all(file.stat().st_size for file in files.values()):
            time.sleep(0.02)
        time.sleep(0.05)  # a stack is written in several pieces
        return {rank: shortened(file.read_text()) for rank, file in files.items()}

    def finish(self, seconds: float) -> bool:
        """Whether it ends by itself within that time."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)
        return self.process.returncode is not None

    def end(self) -> None:
        """Kill every process of the job, and remove the shared memory that they could not."""
        clean = self.process.poll() == 0
        end_all(f"{STACKS}={self._stacks}")
        self.process.wait()
        if not clean:
            remove_shared_memory(self.began)


def shortened(stacks: str) -> str:
    """Without the frames of pytest and of the harness."""
    return "".join(line for line in stacks.splitlines(keepends=True) if not _FRAMEWORK.search(line)).strip()


def innermost(stacks: str) -> str:
    """Where the main thread is, such as ``test_ring.py:12 in test_cycle``: faulthandler writes it last."""
    main = re.split(r"(?m)^(?:Current thread|Thread) .*\n", stacks)[-1]
    found = re.search(r'File "(?:.*/)?([^/"]+)", line (\d+) in (.+)', main)
    return f"{found[1]}:{found[2]} in {found[3]}" if found else "an unknown place"


def alive(pid: int) -> bool:
    """Whether it runs: a process that has ended but was not waited for does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def members(word: str) -> list[psutil.Process]:
    """The processes with ``NAME=value`` in their environment, whoever their parent is now."""
    name, value = word.split("=", 1)
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and process.environ().get(name) == value:
                found.append(process)
    return found


def end_all(word: str, seconds: float = 10.0) -> None:
    """Kill those, and those that they start meanwhile, until there are none."""
    deadline = time.monotonic() + seconds
    while (left := members(word)) and time.monotonic() < deadline:
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(left, timeout=1)


def remove_shared_memory(since: float) -> None:
    """Remove segments of MPI libraries made ``since`` then that no process maps: killed ranks leave theirs."""
    if not _SHARED_MEMORY.is_dir():
        return
    made = [file for file in _SHARED_MEMORY.iterdir() if _SEGMENT.match(file.name)]
    mapped = "".join(_maps(pid) for pid in psutil.pids()) if made else ""
    for file in made:
        with contextlib.suppress(FileNotFoundError, PermissionError):
            if file.stat().st_mtime >= since - 1 and str(file) not in mapped:
                file.unlink()


def _maps(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/maps").read_text(errors="replace")
    return ""


@cache
def session_folder() -> Path:
    """Everything that this pytest's jobs write, and the word by which their processes are known.

    A guard process ends them and removes it when pytest is gone, however it went.
    """
    folder = Path(tempfile.mkdtemp(prefix="distloop-tests-"))
    command = [sys.executable, "-m", "tests.processes", str(folder)]
    guard = subprocess.Popen(command, cwd=CHECKOUT, stdin=subprocess.PIPE, start_new_session=True)
    _guards.append(guard)
    return folder


def end_session() -> None:
    """Let the guard do its work, and end."""
    session_folder.cache_clear()
    while _guards:
        _guards.pop().communicate()


def _stand_guard(folder: str) -> None:
    began = time.time()
    sys.stdin.read()
    if members(f"{SESSION}={folder}"):
        end_all(f"{SESSION}={folder}")
        remove_shared_memory(began)
    shutil.rmtree(folder, ignore_errors=True)


_guards: list[subprocess.Popen[bytes]] = []
atexit.register(end_session)

if __name__ == "__main__":
    _stand_guard(sys.argv[1])
