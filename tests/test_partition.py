"""How vectors and rows are cut: everything belongs to exactly one rank, whatever the numbers."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from distloop.partition import Partition

WORLDS = (1, 2, 3, 4, 7, 16)
LENGTHS = (0, 1, 2, 5, 64, 1001)

worlds = pytest.mark.parametrize("parts", WORLDS)
lengths = pytest.mark.parametrize("length", LENGTHS)


def covered(partition: Partition) -> list[int]:
    """Every position, in order of the rank that owns it."""
    return [
        position for rank in range(len(partition)) for position in range(partition.length)[partition.slice_of(rank)]
    ]


@worlds
@lengths
def test_even_slices_cover_everything_and_differ_by_one_at_most(length, parts):
    partition = Partition.even(length, parts)
    assert covered(partition) == list(range(length))
    assert len(partition) == parts and partition.length == length == sum(partition.counts)
    assert max(partition.counts) - min(partition.counts) <= 1
    assert list(partition.counts) == sorted(partition.counts, reverse=True)


@worlds
@lengths
def test_at_root_gives_one_rank_all(length, parts):
    for root in range(parts):
        partition = Partition.at_root(length, parts, root)
        assert covered(partition) == list(range(length))
        assert [rank for rank, count in enumerate(partition.counts) if count] == ([root] if length else [])


def test_of_counts_keeps_the_counts():
    partition = Partition.of_counts([2, 0, 3])
    assert partition.bounds == (0, 2, 2, 5)
    assert partition.counts == (2, 0, 3)
    assert partition.slice_of(1) == slice(2, 2)


@worlds
@lengths
def test_between_all_cuts_is_as_even_as_can_be(length, parts):
    partition = Partition.between(range(length + 1), parts)
    assert covered(partition) == list(range(length))
    assert max(partition.counts) - min(partition.counts) <= 1


@worlds
@pytest.mark.parametrize("seed", range(20))
def test_between_cuts_only_where_it_may(parts, seed):
    chosen = random.Random(seed)
    cuts = [0]
    for _ in range(chosen.randint(1, 12)):
        cuts.append(cuts[-1] + chosen.choice([0, 1, 5, 100, 1000]))
    partition = Partition.between(cuts, parts)
    assert covered(partition) == list(range(cuts[-1]))
    assert set(partition.bounds) <= set(cuts)
    largest = max(stop - start for start, stop in pairwise(cuts))
    assert max(partition.counts) <= cuts[-1] / parts + largest


def test_between_takes_the_nearest_cut():
    assert Partition.between([0, 4, 5, 100], 2).bounds == (0, 5, 100)
    assert Partition.between([0, 45, 90, 100], 2).bounds == (0, 45, 100)


def test_partitions_of_the_same_bounds_are_equal():
    assert Partition.even(10, 2) == Partition.of_counts([5, 5])
    assert hash(Partition.even(10, 2)) == hash(Partition.of_counts([5, 5]))
