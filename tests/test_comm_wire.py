"""bfloat16 on the wire: half the bytes, sums in float32, the same bits for all; what must stay exact does."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from distloop.comm import Bf16, Hierarchical, Ring
from distloop.partition import Partition
from tests.collective_cases import integers
from tests.doubles import run_ranks

RINGS = {
    "ring": lambda comm: Ring(comm, segment_bytes=100, wire=Bf16()),
    "nodes of 2": lambda comm: Hierarchical(comm, segment_bytes=100, wire=Bf16(), node_size=2, small_bytes=0),
}
rings = pytest.mark.parametrize("make", RINGS.values(), ids=RINGS)
worlds = pytest.mark.parametrize("world_size", [1, 2, 3, 4])
pytestmark = [pytest.mark.timeout(30)]


def all_reduced(make, given):
    """What each rank has in the end, and what it has sent."""

    def function(comm):
        flat = given[comm.rank].copy()
        make(comm).all_reduce(flat)
        return flat, comm.sent.bytes

    return run_ranks(len(given), function)


@rings
@worlds
@pytest.mark.parametrize("length", [0, 1, 5, 1001])
def test_small_integers_are_summed_exactly(make, world_size, length):
    given = integers(length, world_size)
    for flat, _ in all_reduced(make, given):
        np.testing.assert_array_equal(flat, given.sum(0))


@rings
@worlds
def test_all_ranks_end_with_the_same_bits(make, world_size):
    given = np.random.default_rng(0).standard_normal((world_size, 1001), dtype=np.float32)
    flats = [flat for flat, _ in all_reduced(make, given)]
    assert {flat.tobytes() for flat in flats} == {flats[0].tobytes()}
    rounded = 2.0**-8 * np.abs(given).sum(0) * world_size
    assert (np.abs(flats[0] - given.sum(0)) <= rounded).all()


@rings
@worlds
def test_half_the_bytes(make, world_size):
    given = integers(960, world_size)
    whole, half = (all_reduced(make, given.astype(kind)) for kind in (np.int32, np.float32))
    for (_, as_it_is), (flat, sent) in zip(whole, half, strict=True):
        assert flat.dtype == np.float32
        assert 2 * sent == as_it_is


@rings
def test_the_owner_of_a_sum_has_it_in_float32(make):
    """What was added last is not rounded: only what has travelled."""
    given = np.full((2, 8), 1.0, np.float32)
    given[:] += 2.0**-20 * np.arange(2)[:, None]
    partition = Partition.even(8, 2)

    def function(comm):
        flat = given[comm.rank].copy()
        make(comm).reduce_scatter(flat, partition)
        return flat[partition.slice_of(comm.rank)].tolist()

    first, second = run_ranks(2, function)
    if make is RINGS["ring"]:
        assert first == [2.0] * 4, "rank 1 sent 1 + 2**-20, which is 1 in bfloat16"
    assert second == [2.0 + 2.0**-20] * 4


@rings
def test_what_is_gathered_stays_exact(make):
    whole = np.random.default_rng(0).standard_normal(100, dtype=np.float32)
    partition = Partition.even(100, 3)

    def function(comm):
        flat, own = np.zeros_like(whole), partition.slice_of(comm.rank)
        flat[own] = whole[own]
        make(comm).all_gather(flat, partition)
        return flat

    for flat in run_ranks(3, function):
        np.testing.assert_array_equal(flat, whole)


def test_rounding_is_to_nearest_even():
    wire, values = Bf16(), np.array([1.0, 1 + 2**-8, 1 + 3 * 2**-8, -1e30, 3e38, np.inf, 1e-40], np.float32)
    image = wire.image(values)
    wire.encode(wire.piece(values), wire.piece(image))
    decoded = np.empty_like(values)
    wire.decode(wire.piece(image), wire.piece(decoded))
    expected = torch.from_numpy(values).to(torch.bfloat16).float().numpy()
    np.testing.assert_array_equal(decoded, expected)
    assert decoded[1:3].tolist() == [1.0, 1 + 2**-6]


@pytest.mark.parametrize("dtype", [np.float64, np.int32])
def test_other_types_travel_as_they_are(dtype):
    given = (np.random.default_rng(0).standard_normal((3, 50)) * 1000).astype(dtype)

    def function(comm):
        plain, wired = given[comm.rank].copy(), given[comm.rank].copy()
        Ring(comm).all_reduce(plain)
        Ring(comm, wire=Bf16()).all_reduce(wired)
        return plain.tobytes() == wired.tobytes()

    assert run_ranks(3, function) == [True] * 3


def test_vectors_of_many_lengths_and_places_do_not_disturb_each_other():
    """Views of a vector are remembered by its address: another vector in its place, or a part of it, is another."""

    def function(comm):
        ring = Ring(comm, segment_bytes=64, wire=Bf16())
        base = np.empty(3000, np.float32)
        for turn in range(60):
            start, length = 10 * (turn % 7), 100 + 37 * (turn % 11)
            flat = base[start : start + length]
            flat.fill(comm.rank + turn)
            ring.all_reduce(flat)
            assert (flat == 3 * turn + 3).all()
            fresh = np.full(length, turn, np.float64)
            ring.all_reduce(fresh)
            assert (fresh == 3 * turn).all()
        return True

    assert run_ranks(3, function) == [True] * 3
