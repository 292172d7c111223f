"""What the machine can do, measured on it: nothing is said here of how much it is, only that it is all there."""

from __future__ import annotations

import math
import time
from itertools import count

import numpy as np
import pytest

from distloop.comm import World, yardstick
from distloop.comm.agree import exchange
from distloop.comm.yardstick import Bandwidth, MemoryYardstick, far_pair, link, memory_bandwidth, survey

pytestmark = [pytest.mark.mpi(timeout=60)]


def same_everywhere(comm, value):
    assert exchange(comm, value) == [value] * comm.size


def test_memory_bandwidth(comm):
    measured = memory_bandwidth(comm, rounds=5)
    same_everywhere(comm, [measured.bytes_per_second, measured.spread])
    assert 1e8 < measured.bytes_per_second < 1e13 and 0 <= measured.spread < math.inf


def test_a_round_counts_what_it_moves(comm, rank, world_size, monkeypatch):
    """Ranks that start at rank seconds and end at 10 + rank took 10 + p - 1 together."""
    monkeypatch.setattr(yardstick, "_cache_bytes", lambda local: 1 << 16)
    reads = count()
    stick = MemoryYardstick(comm, clock=lambda: float(rank + 10 * (next(reads) % 2)))
    elements = (4 << 16) // 8 // world_size
    assert stick.round() == pytest.approx(12 * elements * world_size / (10 + world_size - 1))
    assert (stick._sums.numpy() == 2).all() and (stick._terms.numpy() == 1).all()
    stick.close()


def test_vectors_are_larger_than_the_caches(comm, world_size):
    stick = MemoryYardstick(comm)
    total_bytes = 2 * 4 * stick._elements * world_size
    assert (32 << 20) <= total_bytes <= (256 << 20)
    stick.close()


@pytest.mark.mpi(min_size=2)
def test_link(comm, world_size):
    measured = link(comm, world_size - 1, 0, seconds=0.05)
    same_everywhere(comm, [measured.latency_seconds, measured.bandwidth.bytes_per_second, measured.bandwidth.spread])
    assert 0 < measured.latency_seconds < 1 and 1e6 < measured.bandwidth.bytes_per_second < 1e13
    total = np.ones(1)
    comm.Allreduce(total.copy(), total)
    assert total[0] == world_size, "nothing is left on the communicator"


@pytest.mark.mpi(min_size=2)
def test_a_stream_is_timed_by_its_sender(comm, rank, world_size):
    """A clock that moves by a millisecond at each look: every burst and every round trip takes one."""
    ticks = count()
    measured = link(comm, 0, 1, seconds=8 * 0.0009, clock=lambda: next(ticks) * 1e-3)
    assert measured.latency_seconds == pytest.approx(0.5e-3)
    assert measured.bandwidth.bytes_per_second > 1e9, "no more than the round trip, which is taken off"


def test_a_rank_and_itself(comm):
    assert link(comm, 0, 0).latency_seconds == 0


def test_survey(comm):
    world = World.start()
    began = time.perf_counter()
    machine = survey(world)
    assert (machine.nodes, machine.ranks_per_node) == (world.nodes, world.local_size)
    same_everywhere(comm, [machine.memory_bytes_per_second, machine.local_latency_seconds, machine.latency_seconds])
    assert time.perf_counter() - began < 30


@pytest.mark.mpi(ranks=(1,))
def test_pairs_and_spreads():
    assert far_pair([0]) == (0, 0)
    assert far_pair([0, 0, 0]) == (0, 1)
    assert far_pair([0, 0, 1, 1]) == (0, 2)
    assert Bandwidth.of([3.0]) == Bandwidth(3.0, 0.0)
    assert Bandwidth.of([1.0, 2.0, 3.0]).bytes_per_second == 2.0
    assert Bandwidth.of([2.0] * 5).spread == 0
