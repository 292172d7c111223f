"""Compressed sums with a real library: the same sums, bytes and bits as on threads, and messages of every size."""

from __future__ import annotations

import numpy as np
import pytest
from torch import nn

from distloop.comm import Hierarchical, PowerSGD, Ring, Shared, TopK
from distloop.learner import Learner
from distloop.ownership import Replicated, RootOwned, Sharded
from distloop.placement import Resident
from tests.collective_cases import integers
from tests.compressed_cases import SHAPES, WRAPPED, gradients, length_of, low_rank_lengths, normal, ring_bytes
from tests.oracle import (
    OPTIMIZERS,
    Rows,
    assert_same_bits,
    assert_same_weights,
    convnet,
    global_batches,
    run,
    supervised,
    train_plainly,
)

pytestmark = [pytest.mark.mpi(timeout=60)]

LENGTH = length_of(SHAPES)
LARGE = ((1000, 700), (700,))
COMPRESSIONS = {"topk": lambda inner: TopK(inner, 0.05), "powersgd": lambda inner: PowerSGD(inner, 2)}
wrapped = pytest.mark.parametrize("name", WRAPPED)
compressions = pytest.mark.parametrize("make", COMPRESSIONS.values(), ids=COMPRESSIONS)


@wrapped
def test_topk_of_all_is_the_plain_sum(name, counted, rank, world_size):
    collective = TopK(WRAPPED[name](counted), fraction=1)
    for shapes in (SHAPES, LARGE):
        vector = gradients(collective, shapes)
        given = integers(vector.size, world_size)
        vector[:] = given[rank]
        collective.all_reduce(vector)
        np.testing.assert_array_equal(vector, given.sum(0))


@wrapped
@compressions
def test_nothing_is_lost_and_all_ranks_have_the_same_bits(make, name, counted, comm, rank, world_size):
    steps = 10
    given = normal(world_size, steps * LENGTH).reshape(world_size, steps, LENGTH)
    collective = make(WRAPPED[name](counted))
    vector, total = gradients(collective), np.zeros(LENGTH, np.float64)
    for step in range(steps):
        vector[:] = given[rank, step]
        collective.all_reduce(vector)
        assert len(set(comm.allgather(vector.tobytes()))) == 1
        total += vector
    kept = sum(comm.allgather(collective.state()["0.residual"].astype(np.float64)))
    np.testing.assert_allclose(total + kept, given.sum((0, 1), dtype=np.float64), rtol=1e-4, atol=1e-3)


@compressions
def test_in_the_memory_of_a_node(make, counted, comm, rank, world_size):
    """Pairs and products lie where the neighbours read them; what comes out is what messages give."""
    given = normal(world_size, LENGTH)
    found = []
    inners = Shared(counted), Hierarchical(counted, node_size=2), WRAPPED["native"](counted)
    for inner in inners:
        collective = make(inner)
        vector = gradients(collective)
        for _ in range(3):
            vector[:] = given[rank]
            collective.all_reduce(vector)
        assert len(set(comm.allgather(vector.tobytes()))) == 1
        found.append(vector)
    for one in found[:-1]:
        np.testing.assert_allclose(one, found[-1], rtol=1e-3, atol=1e-4)


def test_powersgd_reproduces_a_sum_of_low_rank(counted, rank, world_size):
    generator = np.random.default_rng(2)
    whole = (generator.standard_normal((1000, 3)) @ generator.standard_normal((3, 700))).astype(np.float32)
    noise = normal(world_size, whole.size)
    collective = PowerSGD(WRAPPED["ring"](counted), rank=3)
    vector = gradients(collective, [whole.shape])
    vector[:] = noise[rank] - noise.mean(0) + whole.ravel() / world_size
    collective.all_reduce(vector)
    np.testing.assert_allclose(vector.reshape(whole.shape), whole, rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("shapes", [SHAPES, LARGE], ids=["small", "large"])
def test_bytes_are_those_of_the_formulas(shapes, counted, rank, world_size):
    length, before = length_of(shapes), counted.sent.copy()
    collective = PowerSGD(WRAPPED["ring"](counted), 4)
    collective.all_reduce(gradients(collective, shapes))
    first, second = low_rank_lengths(shapes, 4)
    assert (counted.sent - before).bytes == sum(ring_bytes(part, rank, world_size) for part in (first, second))
    before, count = counted.sent.copy(), 200
    collective = TopK(WRAPPED["ring"](counted), count / length)
    collective.all_reduce(gradients(collective, shapes))
    assert (counted.sent - before).bytes == (4 + 4) * count * (world_size - 1)


@pytest.mark.parametrize("make", [lambda inner: TopK(inner, 1.0, 64), lambda inner: inner], ids=["topk", "plain"])
def test_buckets_that_are_sent_while_backward_goes_on(make, counted):
    """Each bucket is a vector with a residual of its own; with every element sent, what comes out is the plain sum."""
    source, module = Rows(24), convnet()
    expected = train_plainly(module, global_batches(source, 12, 2), OPTIMIZERS["adam"])
    ring = Ring(counted)
    ring.overlaps = True  # as if a network were in the way
    collective = make(ring)
    learner = Learner(module, Replicated(collective), Resident(), OPTIMIZERS["adam"])
    run(supervised(source, counted, 12), learner, 2)
    assert_same_bits(counted, module)
    assert_same_weights(module, expected)
    learner.release()


@pytest.mark.parametrize("name", ["ring", "zero", "parameter-server", "hierarchical"])
@compressions
def test_any_ownership_gives_the_same_weights(make, name, counted):
    """The sum is the same one, whoever owns it."""
    modules = [nn.Sequential(nn.Flatten(), nn.Linear(36, 64), nn.Tanh(), nn.Linear(64, 3)) for _ in range(2)]
    modules[1].load_state_dict(modules[0].state_dict())
    source, ownership = Rows(24), {"ring": Replicated, "parameter-server": RootOwned}.get(name, Sharded)
    inner = Hierarchical(counted, node_size=2) if name == "hierarchical" else Ring(counted)
    ownerships = Replicated(make(Ring(counted))), ownership(make(inner))
    for module, owned in zip(modules, ownerships, strict=True):
        learner = Learner(module, owned, Resident(), OPTIMIZERS["sgd"])
        run(supervised(source, counted, 12), learner, 2)
        assert_same_bits(counted, module)
        learner.release()
    assert_same_weights(modules[0], modules[1])
