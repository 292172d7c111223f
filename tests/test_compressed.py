"""Compressed sums on ranks that are threads: what comes out, what is kept, what is sent."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from distloop.comm import PowerSGD, Ring, TopK
from distloop.comm.topk import SAMPLE_ELEMENTS, largest
from distloop.errors import ConfigError, ShapeError
from distloop.partition import Partition
from tests.collective_cases import Cost, integers
from tests.compressed_cases import SHAPES, WRAPPED, gradients, length_of, low_rank_lengths, normal, ring_bytes, tell
from tests.doubles import run_ranks

pytestmark = [pytest.mark.timeout(60)]

LENGTH = length_of(SHAPES)
COMPRESSIONS = {"topk": lambda inner: TopK(inner, 0.05), "powersgd": lambda inner: PowerSGD(inner, 2)}
worlds = pytest.mark.parametrize("world_size", [1, 2, 3, 4, 7])
wrapped = pytest.mark.parametrize("name", WRAPPED)
compressions = pytest.mark.parametrize("make", COMPRESSIONS.values(), ids=COMPRESSIONS)


@worlds
@wrapped
def test_topk_of_all_is_the_plain_sum(name, world_size):
    given = integers(LENGTH, world_size)

    def function(comm):
        collective = TopK(WRAPPED[name](comm), fraction=1)
        vector = gradients(collective)
        vector[:] = given[comm.rank]
        collective.all_reduce(vector)
        return vector

    for vector in run_ranks(world_size, function):
        np.testing.assert_array_equal(vector, given.sum(0))


@worlds
def test_topk_sends_the_largest_and_keeps_the_rest(world_size):
    """Against the plainest way to do it: sort by magnitude, add in order of rank. The same bits."""
    count, steps = 150, 4
    given = normal(world_size, steps * LENGTH).reshape(world_size, steps, LENGTH).swapaxes(0, 1)

    def function(comm):
        collective = TopK(Ring(comm), fraction=count / LENGTH)
        vector, found = gradients(collective), []
        for step in range(steps):
            vector[:] = given[step, comm.rank]
            collective.all_reduce(vector)
            found.append(vector.copy())
        return found

    kept, expected = np.zeros((world_size, LENGTH), np.float32), []
    for step in range(steps):
        kept += given[step]
        threshold = np.sort(np.abs(kept), axis=1)[:, -count, None]
        sent = np.where(np.abs(kept) >= threshold, kept, 0)
        kept -= sent
        expected.append(sent.sum(0))
    for found in run_ranks(world_size, function):
        np.testing.assert_array_equal(found, expected)


@worlds
@compressions
def test_what_was_sent_is_what_was_given_but_for_the_residual(make, world_size):
    """Nothing is lost, only late: over many steps, the sum of what came out and of what is still kept."""
    steps = 30
    given = normal(world_size, steps * LENGTH).reshape(world_size, steps, LENGTH)

    def function(comm):
        collective = make(Ring(comm))
        vector, total = gradients(collective), np.zeros(LENGTH, np.float64)
        for step in range(steps):
            vector[:] = given[comm.rank, step]
            collective.all_reduce(vector)
            total += vector
        return total, collective.state()["0.residual"]

    results = run_ranks(world_size, function)
    kept = sum(residual.astype(np.float64) for _, residual in results)
    assert np.linalg.norm(kept) > 1
    for total, _ in results:
        np.testing.assert_allclose(total + kept, given.sum((0, 1), dtype=np.float64), rtol=1e-4, atol=1e-3)


@worlds
@compressions
def test_all_ranks_end_with_the_same_bits(make, world_size):
    given = normal(world_size, LENGTH)

    def function(comm):
        collective = make(Ring(comm))
        vector, seen = gradients(collective), []
        for _ in range(3):
            vector[:] = given[comm.rank]
            collective.all_reduce(vector)
            seen.append(vector.tobytes())
        return seen

    results = run_ranks(world_size, function)
    assert all(seen == results[0] for seen in results)


@worlds
def test_powersgd_reproduces_a_sum_of_low_rank(world_size):
    """Though no rank's own matrix has that rank, only their sum."""
    generator = np.random.default_rng(2)
    sums = [(generator.standard_normal((40, 3)) @ generator.standard_normal((3, 30))).astype(np.float32)]
    sums += [(generator.standard_normal((50, 3)) @ generator.standard_normal((3, 20))).astype(np.float32)]
    whole = np.concatenate([matrix.ravel() for matrix in sums])
    noise = normal(world_size, whole.size)
    given = noise - noise.mean(0) + whole / world_size

    def function(comm):
        collective = PowerSGD(Ring(comm), rank=3)
        vector = gradients(collective, [matrix.shape for matrix in sums])
        vector[:] = given[comm.rank]
        collective.all_reduce(vector)
        return vector

    for vector in run_ranks(world_size, function):
        np.testing.assert_allclose(vector, whole, rtol=1e-3, atol=2e-4)


def test_powersgd_is_the_algorithm_of_the_paper():
    """Written out in float64, for one matrix and two ranks, over several steps with warm start and error feedback."""
    n, m, r, steps = 45, 40, 2, 5
    given = normal(2, steps * n * m).reshape(2, steps, n, m)

    def function(comm):
        collective = PowerSGD(Ring(comm), rank=r)
        vector = gradients(collective, [(n, m)])
        start, found = collective.state()["0.right"].copy(), []
        for step in range(steps):
            vector[:] = given[comm.rank, step].ravel()
            collective.all_reduce(vector)
            found.append(vector.reshape(n, m).copy())
        return start, found

    results = run_ranks(2, function)
    right, kept = results[0][0].reshape(m, r).astype(np.float64), np.zeros((2, n, m))
    for step in range(steps):
        kept += given[:, step]
        left = np.linalg.qr(sum(kept[rank] @ np.linalg.qr(right)[0] for rank in range(2)))[0]
        own = [kept[rank].T @ left for rank in range(2)]
        kept -= np.stack([left @ one.T for one in own])
        right = sum(own)
        for _, found in results:
            np.testing.assert_allclose(found[step], left @ right.T, rtol=1e-3, atol=1e-3)


def test_powersgd_finds_the_best_approximation_of_what_stays_the_same():
    """Warm start: the same gradient again and again, without its residual, ends at the truncated SVD."""
    matrix = normal(1, 50 * 40)[0].reshape(50, 40) + 3 * np.outer(np.arange(50), np.arange(40)).astype(np.float32) / 99

    def function(comm):
        collective = PowerSGD(Ring(comm), rank=1)
        vector = gradients(collective, [(50, 40)])
        for _ in range(20):
            collective.state()["0.residual"][:] = 0
            vector[:] = matrix.ravel() / 2
            collective.all_reduce(vector)
        return vector.reshape(50, 40)

    left, values, right = np.linalg.svd(matrix)
    for found in run_ranks(2, function):
        np.testing.assert_allclose(found, values[0] * np.outer(left[:, 0], right[0]), rtol=1e-3, atol=1e-3)


@worlds
@pytest.mark.parametrize("rank_of_matrices", [1, 4, 9])
def test_bytes_of_powersgd(world_size, rank_of_matrices):
    first, second = low_rank_lengths(SHAPES, rank_of_matrices)
    assert first + second < LENGTH

    def function(comm):
        collective = PowerSGD(Ring(comm), rank_of_matrices)
        collective.all_reduce(gradients(collective))
        return comm.sent.bytes

    sent = run_ranks(world_size, function)
    assert sent == [ring_bytes(first, r, world_size) + ring_bytes(second, r, world_size) for r in range(world_size)]


@worlds
def test_bytes_of_topk(world_size):
    count = 64

    def function(comm):
        collective = TopK(Ring(comm), count / LENGTH)
        collective.all_reduce(gradients(collective))
        return comm.sent.bytes

    assert run_ranks(world_size, function) == [(4 + 4) * count * (world_size - 1)] * world_size


@compressions
@pytest.mark.parametrize("case", ["short", "float64", "not told"])
def test_what_is_no_long_vector_of_gradients_is_exact(make, case):
    length = 500 if case == "short" else 4000
    given = integers(length, 3, np.float64 if case == "float64" else np.float32)

    def function(comm):
        collective = make(Ring(comm))
        vector = given[comm.rank].copy()
        if case != "not told":
            tell(collective, vector, [(length // 20, 20)])
        before = comm.sent.copy()
        collective.all_reduce(vector)
        assert comm.sent - before == Cost("ring", comm.rank, 3, vector.itemsize).all_reduce(length)
        assert collective.state() == {}
        return vector

    for vector in run_ranks(3, function):
        np.testing.assert_array_equal(vector, given.sum(0))


@compressions
@worlds
def test_halves(make, world_size):
    """A reduce-scatter gives the owner what an all-reduce would; an all-gather is exact; so is a broadcast."""
    given, partition = normal(world_size, LENGTH), Partition.even(LENGTH, world_size)

    def function(comm):
        whole, half = make(Ring(comm)), make(Ring(comm))
        one, two, own = gradients(whole), gradients(half), partition.slice_of(comm.rank)
        one[:] = two[:] = given[comm.rank]
        whole.all_reduce(one)
        half.reduce_scatter(two, partition)
        np.testing.assert_array_equal(two[own], one[own])
        half.all_gather(two, partition)
        np.testing.assert_array_equal(two, one)
        two[:] = given[comm.rank]
        half.broadcast(two, world_size - 1)
        np.testing.assert_array_equal(two, given[-1])

    run_ranks(world_size, function)


@compressions
def test_a_gradient_that_is_not_finite_is_so_everywhere_and_leaves_nothing_behind(make):
    given = normal(3, LENGTH)

    def function(comm):
        collective, fresh = make(Ring(comm)), make(Ring(comm))
        vector, other = gradients(collective), gradients(fresh)
        for value in (np.nan, np.inf):
            vector[:] = given[comm.rank]
            if comm.rank == 1:
                vector[[3, -1]] = value
            collective.all_reduce(vector)
            assert not np.isfinite(vector).all()
        if comm.rank == 1 or isinstance(collective, PowerSGD):
            assert np.isfinite(collective.state()["0.residual"]).all()
        for _ in range(3):
            vector[:] = other[:] = given[comm.rank]
            collective.all_reduce(vector)
            fresh.all_reduce(other)
        return vector, other

    results = run_ranks(3, function)
    assert np.isfinite(results[0][0]).all()
    assert {vector.tobytes() for vector, _ in results} == {results[0][0].tobytes()}


@compressions
def test_it_goes_on_from_its_state(make):
    given = normal(2, 4 * LENGTH).reshape(2, 4, LENGTH)

    def steps(collective, vector, rank, chosen):
        for step in chosen:
            vector[:] = given[rank, step]
            collective.all_reduce(vector)
        return vector.copy()

    def function(comm):
        straight, first, second = (make(Ring(comm)) for _ in range(3))
        expected = steps(straight, gradients(straight), comm.rank, range(4))
        steps(first, gradients(first), comm.rank, range(2))
        saved = {name: part.copy() for name, part in first.state().items()}
        vector = gradients(second)
        second.load(saved)
        np.testing.assert_array_equal(steps(second, vector, comm.rank, range(2, 4)), expected)
        with pytest.raises(ShapeError, match="the same model") as raised:
            second.load(saved if comm.rank else {})
        assert raised.value.everywhere

    run_ranks(2, function)


def test_vectors_have_their_own_residuals():
    def function(comm):
        collective = TopK(Ring(comm), 0.01)
        one, two = gradients(collective), gradients(collective)
        one[:], two[:] = 1, 2
        collective.all_reduce(one)
        collective.all_reduce(two)
        state = collective.state()
        assert list(state) == ["0.residual", "1.residual"]
        assert (state["0.residual"].max(), state["1.residual"].max()) == (1, 2)

    run_ranks(2, function)


@pytest.mark.parametrize("fraction", [0, -1, 1.01, float("nan")])
def test_fractions_that_mean_nothing(fraction):
    def function(comm):
        with pytest.raises(ConfigError, match="at most 1"):
            TopK(Ring(comm), fraction)

    run_ranks(1, function)


def test_ranks_that_mean_nothing():
    def function(comm):
        with pytest.raises(ConfigError, match="at least 1"):
            PowerSGD(Ring(comm), 0)

    run_ranks(1, function)


MAGNITUDES = {
    "normal": lambda n: torch.randn(n, generator=torch.Generator().manual_seed(0)).abs(),
    "ascending": lambda n: torch.arange(n, dtype=torch.float32),
    "all equal": torch.ones,
    "zero": torch.zeros,
    "few not zero": lambda n: torch.arange(n).remainder(1000).eq(7).float() * torch.arange(n),
    "where no sample falls": lambda n: (torch.arange(n) % max(1, n // SAMPLE_ELEMENTS) == 1).float(),
}


@pytest.mark.parametrize("make", MAGNITUDES.values(), ids=MAGNITUDES)
@pytest.mark.parametrize(("length", "count"), [(1, 1), (50, 7), (50, 50), (200_003, 2000), (200_003, 1)])
def test_the_largest(make, length, count):
    magnitudes = make(length)
    found = largest(magnitudes, count)
    assert found.numel() == count == found.unique().numel()
    assert (found.sort().values == found).all()
    assert torch.equal(magnitudes[found].sort().values, magnitudes.sort().values[-count:])
