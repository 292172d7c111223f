"""The harness must tell failures apart, let the other tests go on, and leave no process behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.mpi_prefixes import CHECKOUT, MPICH
from tests.processes import alive

pytestmark = pytest.mark.skipif(MPICH.missing is not None, reason=str(MPICH.missing))

CONFTEST = 'pytest_plugins = ["tests.harness.plugin"]\n'
TROUBLES = """
import os, signal
import pytest

pytestmark = pytest.mark.mpi(ranks=(2,))

def test_first(comm, tmp_path):
    (tmp_path / str(comm.rank)).touch()

def test_failed_on_rank_1_only(comm, rank):
    if rank == 1:
        print("what rank 1 said")
        assert rank == 7
    comm.Barrier()

def test_failed_everywhere(rank):
    assert rank == 8

def test_after_a_failure(comm):
    comm.Barrier()

def wait_for_the_other(comm):
    comm.recv(source=1 - comm.rank)

@pytest.mark.mpi(timeout=1)
def test_deadlock(comm):
    wait_for_the_other(comm)

def test_killed(comm, rank):
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    comm.Barrier()

def test_skipped():
    pytest.skip("not today")

def test_skipped_by_rank_0_only(rank):
    if rank == 0:
        pytest.skip("not me")

@pytest.mark.xfail(strict=True)
def test_known_to_fail():
    assert False

@pytest.mark.parametrize("value", ["a", "b"])
def test_last(value, mpi_job):
    assert mpi_job.ranks == 2
"""
STAYING = """
import atexit, time
import pytest

def sleep_on():
    time.sleep(99)

@pytest.mark.mpi(ranks=(1,))
def test_stays():
    atexit.register(sleep_on)
"""
HANGING = """
import os
from pathlib import Path
import pytest

@pytest.mark.mpi(ranks=(2,))
def test_hangs(comm):
    Path(os.environ["PIDS"], str(os.getpid())).touch()
    comm.recv(source=1 - comm.rank)
"""


def command_of(folder: Path, *options: str) -> dict:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--mpi", "mpich", "-rA", *options, str(folder)]
    return {"args": command, "cwd": folder, "env": kept | {"PYTHONPATH": str(CHECKOUT), "COLUMNS": "400"}}


def said_of(folder: Path) -> str:
    return subprocess.run(**command_of(folder), capture_output=True, text=True, timeout=60, check=False).stdout


@pytest.fixture(scope="module")
def troubles(tmp_path_factory):
    """What pytest says of a module full of them."""
    folder = tmp_path_factory.mktemp("troubles")
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "test_troubles.py").write_text(TROUBLES)
    return said_of(folder)


def section(output: str, name: str) -> str:
    return re.search(rf"(?s)_+ {name}\[mpich-2\] _+\n(.*?)\n(?:_____|=====)", output)[1]


def test_every_test_has_its_own_verdict(troubles):
    verdicts = {name: verdict for verdict, name in re.findall(r"(?m)^([A-Z]+) test_troubles.py::(\S+)", troubles)}
    failed = {name.split("[")[0] for name, verdict in verdicts.items() if verdict == "FAILED"}
    passed = {name for name, verdict in verdicts.items() if verdict == "PASSED"}
    assert failed == {
        "test_failed_on_rank_1_only",
        "test_failed_everywhere",
        "test_deadlock",
        "test_killed",
        "test_skipped_by_rank_0_only",
    }
    assert passed == {
        "test_first[mpich-2]",
        "test_after_a_failure[mpich-2]",
        "test_last[mpich-2-a]",
        "test_last[mpich-2-b]",
    }
    assert "5 failed, 4 passed, 1 skipped, 1 xfailed" in troubles


def test_a_failure_names_its_rank_and_shows_where_the_others_are(troubles):
    text = section(troubles, "test_failed_on_rank_1_only")
    assert text.startswith("rank 1 of 2: assert 1 == 7\n")
    assert ">           assert rank == 7" in text
    assert "stack of rank 0" in text
    assert "in test_failed_on_rank_1_only" in text
    assert "stack of rank 1" not in text
    assert "what rank 1 said" in text


def test_a_failure_on_all_ranks_is_shown_once(troubles):
    text = section(troubles, "test_failed_everywhere")
    assert text.startswith("ranks 0, 1 of 2: assert 0 == 8")
    assert text.count("def test_failed_everywhere") == 1
    assert "in the same place as rank 0" in text


def test_a_deadlock_shows_the_stack_of_each_rank(troubles):
    text = section(troubles, "test_deadlock")
    assert re.match(r"no end after \S+ s: rank 0 at test_troubles.py:\d+ in wait_for_the_other; rank 1 at", text)
    assert text.count("in test_deadlock") == 2


def test_a_killed_rank_is_named(troubles):
    text = section(troubles, "test_killed")
    assert text.startswith("the job of mpich-2 ended: rank 1 died")
    assert "signal 9" in text


def test_ranks_that_disagree_about_skipping_fail(troubles):
    assert "skipped Skipped: not me" in section(troubles, "test_skipped_by_rank_0_only")


def test_a_job_that_does_not_end_shows_where_it_hangs(tmp_path):
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_stays.py").write_text(STAYING)
    arguments = command_of(tmp_path)
    arguments["env"]["DISTLOOP_TEST_TIME_SCALE"] = "0.1"
    output = subprocess.run(**arguments, capture_output=True, text=True, timeout=60, check=False).stdout
    assert "1 passed, 1 error" in output
    assert re.search(r"does not end after its last test: rank 0 at test_stays.py:\d+ in sleep_on", output)


BROKEN = """
import os, pytest
assert "PMI_RANK" not in os.environ, "no ranks here"

@pytest.mark.mpi(ranks=(1,))
def test_nothing():
    pass
"""


def test_a_module_that_ranks_cannot_import_leaves_the_others_alone(tmp_path):
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_broken.py").write_text(BROKEN)
    (tmp_path / "test_good.py").write_text(BROKEN.replace("assert", "# assert"))
    output = said_of(tmp_path)
    assert "not collected on rank [0]" in output
    assert "AssertionError: no ranks here" in output
    assert "1 failed, 1 passed" in output


def test_a_job_that_does_not_come_up_is_tried_once_and_shows_its_output(tmp_path):
    (tmp_path / "conftest.py").write_text(CONFTEST + BROKEN)
    (tmp_path / "test_good.py").write_text(BROKEN.replace("assert", "# assert") + "test_same = test_nothing\n")
    output = said_of(tmp_path)
    assert output.count("before a test began; mpirun's exit code is") == 4
    assert "AssertionError: no ranks here" in output
    assert "2 failed" in output


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda sent: sent.name)
def test_nothing_survives_an_interrupted_pytest(tmp_path, sent):
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_hanging.py").write_text(HANGING)
    (tmp_path / "pids").mkdir()
    arguments = command_of(tmp_path)
    (tmp_path / "tmp").mkdir()
    arguments["env"] |= {"PIDS": str(tmp_path / "pids"), "TMPDIR": str(tmp_path / "tmp")}
    with subprocess.Popen(**arguments, stdout=subprocess.DEVNULL) as process:
        wait_until(lambda: len(list((tmp_path / "pids").iterdir())) == 2)
        process.send_signal(sent)
    ranks = [int(file.name) for file in (tmp_path / "pids").iterdir()]
    wait_until(lambda: not any(alive(pid) for pid in ranks))
    wait_until(lambda: not list((tmp_path / "tmp").glob("distloop-*")))


def test_a_process_that_survives_its_test_is_ended_and_fails_the_session(tmp_path):
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_leaves.py").write_text(
        "import subprocess, sys\n"
        "started = []\n"
        "def test_leaves():\n"
        "    started.append(subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(99)']))\n"
    )
    done = subprocess.run(**command_of(tmp_path), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "1 passed" in done.stdout
    pid = int(re.search(r"a process survived the tests: (\d+) ", done.stdout)[1])
    assert not alive(pid)


def wait_until(condition, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
