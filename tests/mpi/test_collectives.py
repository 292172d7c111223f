"""Every collective with a real library: what the thread double cannot know of it, and vectors too long to be eager."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from distloop.comm import Ring
from distloop.errors import ShapeError
from distloop.partition import Partition
from tests.collective_cases import ALGORITHMS, LENGTHS, PARTITIONS, Cost, integers

LONG = 1_000_003  # 4 MB of float32: no library sends that before the other side asks for it

pytestmark = [pytest.mark.mpi(timeout=60)]
algorithms = pytest.mark.parametrize("name", ALGORITHMS)
dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32], ids=["float32", "float64", "int32"])


@algorithms
@dtypes
def test_all_reduce(name, dtype, counted, rank, world_size):
    collective = ALGORITHMS[name](counted)
    for length in LENGTHS:
        given, before = integers(length, world_size, dtype), counted.sent.copy()
        flat = given[rank].copy()
        collective.all_reduce(flat)
        np.testing.assert_array_equal(flat, given.sum(0, dtype=dtype))
        assert counted.sent - before == Cost(name, rank, world_size, flat.itemsize).all_reduce(length)


@algorithms
def test_both_halves(name, counted, rank, world_size):
    collective = ALGORITHMS[name](counted)
    for length in LENGTHS:
        given = integers(length, world_size)
        for cut in PARTITIONS.values():
            partition = cut(length, world_size)
            flat, own, before = given[rank].copy(), partition.slice_of(rank), counted.sent.copy()
            collective.reduce_scatter(flat, partition)
            np.testing.assert_array_equal(flat[own], given.sum(0)[own])
            assert counted.sent - before == Cost(name, rank, world_size).reduce_scatter(partition)
            before = counted.sent.copy()
            collective.all_gather(flat, partition)
            np.testing.assert_array_equal(flat, given.sum(0))
            assert counted.sent - before == Cost(name, rank, world_size).all_gather(partition)


@algorithms
def test_broadcast_from_every_root(name, counted, rank, world_size):
    collective = ALGORITHMS[name](counted)
    for length in LENGTHS:
        given = integers(length, world_size)
        for root in range(world_size):
            flat = given[rank].copy()
            collective.broadcast(flat, root)
            np.testing.assert_array_equal(flat, given[root])


@pytest.mark.parametrize("name", ["star", "native", "ring"])
def test_vectors_longer_than_any_eager_limit(name, counted, rank, world_size):
    """A ring whose ranks all send first, and receive then, stands still here."""
    collective = ALGORITHMS[name](counted)
    flat = np.full(LONG, rank + 1, np.float32)
    collective.all_reduce(flat)
    assert (flat == sum(range(1, world_size + 1))).all()
    if rank == world_size - 1:
        flat[:] = np.arange(LONG)
    collective.broadcast(flat, world_size - 1)
    assert (flat == np.arange(LONG, dtype=np.float32)).all()


def test_segments_longer_than_any_eager_limit(counted, rank, world_size):
    flat = np.full(LONG, rank + 1, np.float64)
    Ring(counted, segment_bytes=1 << 30).all_reduce(flat)
    assert (flat == sum(range(1, world_size + 1))).all()


@algorithms
def test_all_ranks_end_with_the_same_bits(name, counted, comm, rank):
    flat = np.random.default_rng(rank).standard_normal(1001, dtype=np.float32)
    ALGORITHMS[name](counted).all_reduce(flat)
    assert len(set(comm.allgather(flat.tobytes()))) == 1


@pytest.mark.mpi(min_size=2)
@algorithms
def test_ranks_that_differ_all_get_a_shape_error(name, counted, rank, world_size):
    collective, partition = ALGORITHMS[name](counted), Partition.even(4, world_size)
    with pytest.raises(ShapeError, match=rf"rank {world_size - 1}: \w+ of 5 float32"):
        collective.all_reduce(np.zeros(4 + (rank == world_size - 1), np.float32))
    with pytest.raises(ShapeError, match=r"rank 0: \w+ of 4 float64; rank 1: \w+ of 4 float32"):
        collective.reduce_scatter(np.zeros(4, np.float32 if rank else np.float64), partition)
    flat = np.ones(4, np.float32)
    collective.all_reduce(flat)
    assert flat.tolist() == [world_size] * 4, "and the next call finds nothing of it"


@algorithms
def test_vectors_in_memory_that_the_collective_gives(name, counted, rank, world_size):
    """Where neighbours see each other's vectors, nothing is copied first; and parameters may be there once a node."""
    collective = ALGORITHMS[name](counted)
    for length in LENGTHS:
        given = integers(length, world_size)
        flat = collective.memory.own(length, torch.float32).numpy()
        common = collective.memory.common(length, torch.float32).numpy()
        for cut in PARTITIONS.values():
            partition = cut(length, world_size)
            own, before = partition.slice_of(rank), counted.sent.copy()
            flat[:] = given[rank]
            collective.reduce_scatter(flat, partition)
            np.testing.assert_array_equal(flat[own], given.sum(0)[own])
            common[own] = flat[own]
            collective.all_gather(common, partition)
            collective.all_gather(flat, partition)
            np.testing.assert_array_equal(flat, given.sum(0))
            np.testing.assert_array_equal(common, flat)
            cost = Cost(name, rank, world_size)
            gathered = cost.all_gather(partition).bytes
            assert (counted.sent - before).bytes == cost.reduce_scatter(partition).bytes + 2 * gathered
            counted.Barrier()  # or a neighbour would fill what others still look at
        flat[:] = given[rank]
        collective.all_reduce(flat)
        np.testing.assert_array_equal(flat, given.sum(0))
