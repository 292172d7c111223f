"""Where the person sits: under mpirun a rank's stdout says nothing about that, the launcher's does.

MPICH and Intel MPI give a rank a pipe even when mpirun writes to a terminal; Open MPI gives it a
pseudo-terminal even when mpirun writes to a file. So the nearest launcher among our ancestors decides,
and our own stdout only where no launcher is.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO, final

LAUNCHERS = frozenset({"mpirun", "mpiexec", "mpiexec.hydra", "prterun", "orterun", "srun"})
"""Processes whose stdout is what the person sees (names as in /proc/PID/stat: 15 characters)."""

DAEMONS = frozenset({"hydra_pmi_proxy", "hydra_bstrap_pr", "prted", "orted"})
"""Processes that stand between a launcher and its ranks; on another node they are all that we can see."""

_TERMINALS = ("/dev/pts/", "/dev/tty", "/dev/console")
_USUAL_COLUMNS = 80


@final
class Terminal:
    """A terminal that is held open to be asked for its width."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    @classmethod
    def at(cls, device: str) -> Terminal | None:
        """Open ``device``; None if it is not a terminal of ours."""
        if not device.startswith(_TERMINALS):
            return None
        try:
            # Without O_NOCTTY a rank that leads a session would take the person's terminal for its own.
            fd = os.open(device, os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return None
        return cls(fd)

    def columns(self) -> int:
        """Return the width now: one ioctl, so that a resize is followed."""
        try:
            return os.get_terminal_size(self.fd).columns or _USUAL_COLUMNS
        except OSError:
            return _USUAL_COLUMNS


@dataclass(frozen=True)
class Process:
    """One line of the process table."""

    pid: int
    parent: int
    name: str

    @classmethod
    def read(cls, pid: int, proc: Path) -> Process | None:
        """Return process ``pid``; None if it is gone or hidden from us."""
        try:
            text = (proc / str(pid) / "stat").read_text(errors="replace")
        except OSError:
            return None
        # The name stands in parentheses and may hold spaces and parentheses itself.
        name, _, rest = text[text.index("(") + 1 :].rpartition(")")
        return cls(pid, int(rest.split()[1]), name)


def ancestors(pid: int, proc: Path = Path("/proc")) -> Iterator[Process]:
    """Yield the parent of ``pid``, its parent, and so on as far as we may look."""
    process = Process.read(pid, proc)
    while process is not None and process.parent > 0:
        process = Process.read(process.parent, proc)
        if process is not None:
            yield process


def find_terminal(stream: TextIO, proc: Path = Path("/proc")) -> Terminal | None:
    """Return the terminal on which what we write to ``stream`` appears; None if there is none.

    A rank on another node than its launcher's finds none: nothing there tells what the launcher writes to.
    """
    if _is_file(stream):
        return None
    behind_daemon = False
    for process in ancestors(os.getpid(), proc):
        if process.name in LAUNCHERS:
            return Terminal.at(_stdout_of(process, proc))
        behind_daemon = behind_daemon or process.name in DAEMONS
    return Terminal(stream.fileno()) if stream.isatty() and not behind_daemon else None


def _is_file(stream: TextIO) -> bool:
    try:
        return stat.S_ISREG(os.fstat(stream.fileno()).st_mode)
    except (OSError, ValueError):
        return True  # a stream in memory


def _stdout_of(process: Process, proc: Path) -> str:
    try:
        return str((proc / str(process.pid) / "fd" / "1").readlink())
    except OSError:
        return ""
