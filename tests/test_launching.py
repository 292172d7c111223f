"""Commands under mpirun: what comes back, and what happens past their time."""

from __future__ import annotations

import signal
import subprocess
import time

import pytest

from tests.mpi_prefixes import MPIS
from tests.processes import alive

HELLO = "import os; from mpi4py import MPI; os.write(1, b'%d\\n' % MPI.COMM_WORLD.size); os.write(2, b'error\\n')"
CYCLE = """
from mpi4py import MPI
def wait_for_the_other():
    MPI.COMM_WORLD.recv(source=1 - MPI.COMM_WORLD.rank)
print("up", flush=True)
wait_for_the_other()
"""
OBEDIENT = """
import signal, sys
signal.signal(signal.SIGUSR1, lambda *_: sys.exit(3))
print("up", flush=True)
signal.pause()
"""


def test_the_world_has_the_ranks_asked_for(launch, mpi_name):
    done = launch(2, "-c", HELLO, mpi=mpi_name).check()
    assert done.stdout.split() == ["2", "2"]
    assert done.stderr.split() == ["error", "error"]


def test_without_mpirun(launch, tmp_path):
    done = launch(None, "-c", "import os; print(os.getcwd(), os.environ['SAID'])", cwd=tmp_path, env={"SAID": "yes"})
    assert done.stdout.split() == [str(tmp_path), "yes"]


def test_a_failed_command_comes_back_with_its_code(launch):
    done = launch(None, "-c", "raise SystemExit('no')")
    assert (done.returncode, done.stderr) == (1, "no\n")
    with pytest.raises(AssertionError, match="exit code 1"):
        done.check()


def test_past_its_time_it_is_killed_and_shows_its_stacks(launch):
    running = launch.start(2, "-c", CYCLE)
    running.wait_for("up")
    pids = running.pids(ranks=2)
    time.sleep(0.2)
    with pytest.raises(subprocess.TimeoutExpired) as caught:
        running.finish(timeout=0.1)
    notes = "\n".join(caught.value.__notes__)
    assert "stack of rank 0" in notes
    assert "stack of rank 1" in notes
    assert notes.count("in wait_for_the_other") == 2
    assert not any(alive(pid) for pid in pids.values())


def test_a_signal_reaches_one_rank(launch):
    running = launch.start(None, "-c", OBEDIENT)
    running.wait_for("up")
    running.signal(0, signal.SIGUSR1)
    assert running.finish(10).returncode == 3


def test_every_mpi_says_what_it_needs():
    environment = MPIS["openmpi"].environment({"PATH": "/bin", "PMI_RANK": "1", "HOME": "/home"})
    assert environment["OMPI_ALLOW_RUN_AS_ROOT"] == "1"
    assert environment["PATH"].endswith("/openmpi/bin:/bin") or MPIS["openmpi"].in_environment
    assert "PMI_RANK" not in environment
    assert environment["HOME"] == "/home"
