"""What the harness gives to tests, with every MPI."""

from __future__ import annotations

import pytest
from mpi4py import MPI

VENDORS = {"mpich": "MPICH", "openmpi": "Open MPI", "impi": "Intel MPI"}


def test_the_job_is_the_one_asked_for(comm, rank, world_size, mpi_job):
    assert MPI.get_vendor()[0] == VENDORS[mpi_job.mpi]
    assert comm.size == world_size == mpi_job.ranks
    assert comm.allgather(rank) == list(range(world_size))


def test_the_communicator_is_for_this_test_alone(comm):
    assert MPI.Comm.Compare(comm, MPI.COMM_WORLD) == MPI.CONGRUENT


def test_all_ranks_share_the_folder(comm, rank, tmp_path):
    assert not list(tmp_path.iterdir())
    comm.Barrier()
    (tmp_path / str(rank)).touch()
    comm.Barrier()
    assert sorted(path.name for path in tmp_path.iterdir()) == [str(other) for other in range(comm.size)]


@pytest.mark.mpi(min_size=3)
def test_small_worlds_can_be_left_out(world_size):
    assert world_size in (3, 4)
