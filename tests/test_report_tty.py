import io
import os
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import pytest

from distloop.report.tty import Terminal, ancestors, find_terminal


@pytest.fixture
def tty() -> Iterator[str]:
    """A pseudo-terminal 90 columns wide."""
    master, slave = os.openpty()
    termios.tcsetwinsize(slave, (24, 90))
    yield os.ttyname(slave)
    os.close(slave)
    os.close(master)


@pytest.fixture
def pipe() -> Iterator[TextIO]:
    """What a rank of MPICH has for a stdout."""
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as stream:
        yield stream
    os.close(reading)


def table(proc: Path, *processes: tuple[str, str]) -> Path:
    """Our own process and then its ancestors, nearest first: (name, what its stdout is)."""
    pids = [os.getpid(), *range(10_000_000, 10_000_000 + len(processes)), 0]
    for pid, parent, (name, stdout) in zip(pids, pids[1:], [("python", ""), *processes], strict=False):
        (proc / str(pid) / "fd").mkdir(parents=True)
        (proc / str(pid) / "stat").write_text(f"{pid} ({name}) S {parent} 1 1 0\n")
        (proc / str(pid) / "fd" / "1").symlink_to(stdout or "pipe:[1]")
    return proc


def test_ancestors_with_odd_names(tmp_path: Path) -> None:
    table(tmp_path, ("a) S (b", ""), ("mpirun", ""))
    assert [process.name for process in ancestors(os.getpid(), tmp_path)] == ["a) S (b", "mpirun"]


def test_ancestors_of_this_process() -> None:
    assert next(ancestors(os.getpid())).pid == os.getppid()


def test_the_launcher_writes_to_a_terminal(tmp_path: Path, tty: str, pipe: TextIO) -> None:
    table(tmp_path, ("hydra_pmi_proxy", "pipe:[2]"), ("mpiexec.hydra", tty), ("mpirun", tty), ("bash", tty))
    terminal = find_terminal(pipe, tmp_path)
    assert terminal is not None
    assert terminal.columns() == 90
    os.close(terminal.fd)


def test_the_launcher_writes_to_a_file(tmp_path: Path, tty: str) -> None:
    """Open MPI gives the rank a pseudo-terminal all the same."""
    table(tmp_path, ("prterun", "/tmp/job.log"), ("bash", tty))
    with Path(tty).open("w") as stream:
        assert find_terminal(stream, tmp_path) is None


def test_the_launcher_is_on_another_node(tmp_path: Path, tty: str) -> None:
    table(tmp_path, ("prted", "/dev/null"), ("sshd", "/dev/null"))
    with Path(tty).open("w") as stream:
        assert find_terminal(stream, tmp_path) is None


def test_no_launcher(tmp_path: Path, tty: str, pipe: TextIO) -> None:
    table(tmp_path, ("bash", tty))
    assert find_terminal(pipe, tmp_path) is None
    with Path(tty).open("w") as stream:
        terminal = find_terminal(stream, tmp_path)
        assert terminal is not None
        assert terminal.columns() == 90


def test_the_rank_writes_to_a_file_of_its_own(tmp_path: Path, tty: str) -> None:
    table(tmp_path, ("mpirun", tty))
    with (tmp_path / "rank.log").open("w") as stream:
        assert find_terminal(stream, tmp_path) is None
    assert find_terminal(io.StringIO(), tmp_path) is None


def test_a_terminal_that_cannot_be_opened() -> None:
    assert Terminal.at("/dev/pts/nobody") is None
    assert Terminal.at("/dev/null") is None


def test_a_width_follows_a_resize_and_is_never_zero() -> None:
    master, slave = os.openpty()
    terminal = Terminal(slave)
    widths = []
    for columns in (120, 0):
        termios.tcsetwinsize(slave, (24, columns))
        widths.append(terminal.columns())
    os.close(slave)
    os.close(master)
    assert [*widths, terminal.columns()] == [120, 80, 80]
