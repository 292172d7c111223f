"""Launchers, cores and processes: who may start MPI, with which library, and how many threads it gets."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys

import pytest

from tests.mpi_prefixes import MPIS

SMALL = ["-m", "distloop.train", "--steps", "2", "--model", "linear"]
SPAWNING = """
import multiprocessing, sys
import distloop
from distloop.comm import World
def work(_):
    try:
        World.start()
    except distloop.ConfigError as error:
        return str(error)
if __name__ == "__main__":
    world = World.start()
    with multiprocessing.get_context(sys.argv[1]).Pool(1) as pool:
        world.say(pool.map(work, [0])[0])
    world.comm.control.Barrier()
"""


@pytest.mark.parametrize(("launcher", "library"), list(itertools.permutations(MPIS, 2)))
def test_the_launcher_of_one_mpi_with_the_library_of_another(launch, tmp_path, monkeypatch, launcher, library):
    for mpi in (launcher, library):
        if MPIS[mpi].missing:
            pytest.skip(MPIS[mpi].missing)
    library_path = str(MPIS[library].prefix / "lib" / MPIS[library].library)
    done = launch(2, *SMALL, mpi=launcher, cwd=tmp_path, env={"MPI4PY_LIBMPI": library_path})
    if done.returncode == 0:
        assert "openmpi" not in (launcher, library)  # MPICH and Intel MPI start each other's ranks
        assert done.stdout.count("2 ranks on 1 node") == 1
        return
    assert done.stderr.count("distloop: error: ") == 1, done.stderr
    assert "started 2 ranks, but the MPI library that Python loaded is" in done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.skipif(shutil.which("taskset") is None, reason="taskset is not installed")
def test_threads_follow_from_the_cores_that_the_job_may_use(tmp_path):
    core = min(os.sched_getaffinity(0))
    command = ["taskset", "-c", str(core), str(MPIS["mpich"].mpirun), "-n", "2", sys.executable, *SMALL]
    if MPIS["mpich"].missing:
        pytest.skip(MPIS["mpich"].missing)
    environment = MPIS["mpich"].environment()
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.startswith("2 ranks on 1 node, 1 thread each, 1 core (oversubscribed) · ")


@pytest.mark.parametrize(("ranks", "method"), [(2, "spawn"), (None, "forkserver")])
def test_worker_processes_of_a_users_script_leave_mpi_alone(launch, tmp_path, ranks, method):
    (tmp_path / "script.py").write_text(SPAWNING)
    done = launch(ranks, "script.py", method, cwd=tmp_path).check()
    assert done.stdout.startswith("MPI was asked for in a worker process of multiprocessing")
