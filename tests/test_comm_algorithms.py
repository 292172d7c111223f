"""Every collective on ranks that are threads, on a communicator that behaves as MPI does at its worst."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from distloop.comm import Native, Ring, as_array
from distloop.errors import ShapeError
from distloop.partition import Partition
from tests.collective_cases import ALGORITHMS, LENGTHS, PARTITIONS, Cost, integers
from tests.doubles import run_ranks
from tests.stand_in_device import stand_in

pytestmark = [pytest.mark.timeout(30)]

algorithms = pytest.mark.parametrize("name", ALGORITHMS)
worlds = pytest.mark.parametrize("world_size", [1, 2, 3, 4, 7])
lengths = pytest.mark.parametrize("length", LENGTHS)
partitions = pytest.mark.parametrize("cut", PARTITIONS.values(), ids=PARTITIONS)


def on_ranks(name, world_size, call):
    """``call(collective)`` on each rank; what it returned, and what the rank sent."""

    def function(comm):
        collective = ALGORITHMS[name](comm)
        return call(collective), comm.sent

    return run_ranks(world_size, function)


@algorithms
@worlds
@lengths
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32])
def test_all_reduce(name, world_size, length, dtype):
    given = integers(length, world_size, dtype)

    def call(collective):
        flat = given[collective.rank].copy()
        collective.all_reduce(flat)
        return flat

    for rank, (flat, sent) in enumerate(on_ranks(name, world_size, call)):
        np.testing.assert_array_equal(flat, given.sum(0, dtype=dtype))
        assert sent == Cost(name, rank, world_size, np.dtype(dtype).itemsize).all_reduce(length)


@algorithms
@worlds
@lengths
@partitions
def test_reduce_scatter(name, world_size, length, cut):
    given, partition = integers(length, world_size), cut(length, world_size)

    def call(collective):
        flat = given[collective.rank].copy()
        collective.reduce_scatter(flat, partition)
        return flat[partition.slice_of(collective.rank)]

    for rank, (owned, sent) in enumerate(on_ranks(name, world_size, call)):
        np.testing.assert_array_equal(owned, given.sum(0)[partition.slice_of(rank)])
        assert sent == Cost(name, rank, world_size).reduce_scatter(partition)


@algorithms
@worlds
@lengths
@partitions
def test_all_gather(name, world_size, length, cut):
    whole, partition = integers(length, 1)[0], cut(length, world_size)

    def call(collective):
        flat, own = np.full_like(whole, np.nan), partition.slice_of(collective.rank)
        flat[own] = whole[own]
        collective.all_gather(flat, partition)
        return flat

    for rank, (flat, sent) in enumerate(on_ranks(name, world_size, call)):
        np.testing.assert_array_equal(flat, whole)
        assert sent == Cost(name, rank, world_size).all_gather(partition)


@algorithms
@worlds
@lengths
def test_broadcast_from_every_root(name, world_size, length):
    given = integers(length, world_size)

    def call(collective):
        flats = []
        for root in range(world_size):
            flats.append(given[collective.rank].copy())
            collective.broadcast(flats[-1], root)
        return np.stack(flats)

    for rank, (flats, sent) in enumerate(on_ranks(name, world_size, call)):
        np.testing.assert_array_equal(flats, given)
        roots = [Partition.at_root(length, world_size, root) for root in range(world_size)]
        costs = [Cost(name, rank, world_size).all_gather(partition) for partition in roots]
        assert (sent.bytes, sent.messages) == (sum(c.bytes for c in costs), sum(c.messages for c in costs))


@algorithms
@worlds
def test_all_ranks_end_with_the_same_bits(name, world_size):
    given = np.random.default_rng(0).standard_normal((world_size, 1001), dtype=np.float32)

    def call(collective):
        flat = given[collective.rank].copy()
        collective.all_reduce(flat)
        return flat

    flats = [flat for flat, _ in on_ranks(name, world_size, call)]
    assert {flat.tobytes() for flat in flats} == {flats[0].tobytes()}
    np.testing.assert_allclose(flats[0], given.sum(0, dtype=np.float64), rtol=1e-5, atol=1e-5)


@algorithms
def test_a_tensor_and_its_views_see_the_result(name):
    given = integers(64, 3)

    def call(collective):
        module = torch.nn.Linear(7, 8)
        flat = torch.from_numpy(given[collective.rank].copy())
        module.weight.data, module.bias.data = flat[:56].view(8, 7), flat[56:]
        collective.all_reduce(flat)
        return torch.cat([module.weight.detach().flatten(), module.bias.detach()]).numpy()

    for flat, _ in on_ranks(name, 3, call):
        np.testing.assert_array_equal(flat, given.sum(0))


@algorithms
@pytest.mark.parametrize("shared", ["parameter", "slice of a larger one"])
def test_a_tensor_is_changed_in_its_own_memory(name, shared):
    def call(collective):
        base = torch.nn.Parameter(torch.ones(30))
        flat = base if shared == "parameter" else base.detach()[10:20]
        collective.all_reduce(flat)
        return base.detach().tolist()

    inside = [2.0] * 30 if shared == "parameter" else [1.0] * 10 + [2.0] * 10 + [1.0] * 10
    assert [base for base, _ in on_ranks(name, 2, call)] == [inside] * 2


@algorithms
@pytest.mark.parametrize(
    "flats",
    [(np.zeros(5, np.float32), np.zeros(6, np.float32)), (np.zeros(5, np.float32), np.zeros(5, np.float64))],
    ids=["lengths", "types"],
)
def test_ranks_that_differ_all_get_a_shape_error(name, flats):
    given = [flats[0], flats[1], flats[0]]

    def call(collective):
        with pytest.raises(ShapeError) as raised:
            collective.all_reduce(given[collective.rank])
        assert raised.value.everywhere
        return str(raised.value)

    texts = [text for text, _ in on_ranks(name, 3, call)]
    assert len(set(texts)) == 1
    for rank, flat in enumerate(given):
        assert f"rank {rank}: " in texts[0] and f"of {flat.size} {flat.dtype}" in texts[0]


def test_different_calls_are_a_shape_error_too():
    def function(comm):
        flat = np.zeros(4, np.float32)
        with pytest.raises(ShapeError, match=r"rank 0: all_reduce of 4 float32; rank 1: reduce_scatter of 4 float32"):
            if comm.rank == 0:
                Native(comm).all_reduce(flat)
            else:
                Native(comm).reduce_scatter(flat, Partition.even(4, 2))

    run_ranks(2, function)


REFUSED = {
    "bfloat16": lambda: torch.zeros(4, dtype=torch.bfloat16),
    "on an accelerator": lambda: torch.zeros(4, device=stand_in()),
    "without memory": lambda: torch.zeros(4, device="meta"),
    "strided": lambda: torch.zeros(8)[::2],
    "strided array": lambda: np.zeros(8, np.float32)[::2],
    "a matrix": lambda: torch.zeros(2, 2),
    "one number": lambda: np.zeros((), np.float32),
}


@pytest.mark.parametrize("make", REFUSED.values(), ids=REFUSED)
def test_what_mpi_cannot_take_is_refused(make):
    with pytest.raises(ShapeError, match="Expected"):
        as_array(make())


@algorithms
def test_a_second_call_agrees_on_nothing_again(name):
    """The exchange of lengths and types is for the first time only, so that a step does not pay for it."""

    def function(comm):
        collective, flat = ALGORITHMS[name](comm), np.ones(8, np.float32)
        collective.all_reduce(flat)
        agreed = comm.control.sent.copy()
        collective.all_reduce(flat)
        return comm.control.sent == agreed and flat.tolist() == [4.0] * 8

    assert run_ranks(2, function) == [True, True]


def test_a_segment_is_never_less_than_an_element():
    def function(comm):
        flat = np.ones(9, np.float64)
        Ring(comm, segment_bytes=1).all_reduce(flat)
        return flat.tolist()

    assert run_ranks(3, function) == [[3.0] * 9] * 3
