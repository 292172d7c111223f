"""Tests that run under mpirun, each with a verdict of its own, started by plain ``pytest``.

A test with the marker ``mpi`` (everything in tests/mpi has it) is an ordinary function that all ranks of a job call:

    @pytest.mark.mpi(ranks=(2, 3), timeout=20)      # optional; ``pytestmark = ...`` for a module
    def test_everybody_has_the_sum(comm, tmp_path):
        total = comm.allreduce(comm.rank)
        assert total == sum(range(comm.size))

    ranks     rank counts, default 1, 2, 3 and 4;  min_size: leave smaller counts out;  mpi: names of MPIs, default all
    timeout   seconds, default 60, times DISTLOOP_TEST_TIME_SCALE; then each rank's stack is shown and the job killed

It becomes one item for each MPI and rank count: ``test_everybody_has_the_sum[openmpi-3]``. All selected items of one
MPI and rank count share one job, so torch is imported once; after a failure that leaves ranks apart the rest gets a new
job.

    comm                a duplicate of the job's world, for this test alone
    rank, world_size    of it
    tmp_path            one folder, the same on all ranks, removed afterwards
    mpi_job             .mpi, .ranks

    pytest tests/mpi/test_x.py -k "name and mpich-4"     select as ever;  -m "not mpi": none of these
    pytest --mpi mpich,openmpi                           which MPIs; without it all, skipping what is not installed
    mpirun -n 2 python -m pytest --with-mpi tests/mpi/test_x.py      one job by hand, with the output of all ranks

plugin.py runs in the pytest that you start, rank.py in each rank's; jobs.py is between them.
"""
