"""The computed shuffle: a bijection for every length, uniform even for tiny ones, instant for huge ones."""

from __future__ import annotations

import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from distloop.data.permutation import Permutation, key_of

ROOT = Path(__file__).parent.parent
LENGTHS = [*range(40), 63, 64, 65, 99, 100, 101, 255, 256, 257, 1000, 1023, 1024, 1025, 1797, 4097, 60_000, 65_537]


def images(length: int, key: int) -> np.ndarray:
    return Permutation(length, key)(np.arange(length, dtype=np.int64))


@pytest.mark.parametrize("length", LENGTHS)
def test_every_position_has_one_image(length: int) -> None:
    for key in (0, 1, key_of(3, 4), (1 << 64) - 1):
        found = images(length, key)
        assert found.dtype == np.int64
        assert np.array_equal(np.sort(found), np.arange(length))


def test_image_of_a_position_does_not_depend_on_its_neighbours() -> None:
    shuffle, whole = Permutation(1797, 5), images(1797, 5)
    some = np.array([1796, 0, 3, 3], np.int64)
    assert np.array_equal(shuffle(some), whole[some])
    assert np.array_equal(some, [1796, 0, 3, 3])
    assert shuffle(np.empty(0, np.int64)).shape == (0,)


@pytest.mark.parametrize("length", [*range(2, 21), 37])
def test_every_image_is_as_likely_at_every_position(length: int) -> None:
    keys, places = 4000, np.arange(length, dtype=np.int64)
    counts = np.zeros((length, length))
    for key in range(keys):
        counts[places, Permutation(length, key_of(11, key))(places)] += 1
    expected, freedom = keys / length, (length - 1) ** 2
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert chi_square < freedom + 5 * (2 * freedom) ** 0.5 + 10


def test_all_orders_of_four_are_equally_likely() -> None:
    keys = 4800
    seen = [tuple(images(4, key_of(5, key)).tolist()) for key in range(keys)]
    counts = np.array([seen.count(order) for order in set(seen)])
    assert len(counts) == 24
    assert float(((counts - 200) ** 2 / 200).sum()) < 23 + 5 * 46**0.5 + 10


def test_neighbours_are_torn_apart() -> None:
    found = images(60_000, 3).astype(float)
    assert abs(np.corrcoef(found[:-1], found[1:])[0, 1]) < 0.02
    assert abs(np.corrcoef(np.arange(60_000), found)[0, 1]) < 0.02


def test_ten_billion_rows_take_no_time_and_no_memory() -> None:
    positions = np.random.default_rng(0).integers(0, 10**10, 32)
    tracemalloc.start()
    began = time.perf_counter()
    found = Permutation(10**10, 7)(positions)
    seconds, (_, peak_bytes) = time.perf_counter() - began, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(np.unique(found)) == len(np.unique(positions))
    assert found.min() >= 0 and found.max() < 10**10 and found.max() > 10**9
    assert peak_bytes < 100_000
    assert seconds < 0.5


def test_another_key_is_another_order() -> None:
    assert not np.array_equal(images(1000, 1), images(1000, 2))
    assert np.array_equal(images(1000, 1), images(1000, 1))


def test_keys_are_the_same_everywhere_and_differ_in_every_part() -> None:
    parts = [(seed, first, second) for seed in (-1, 0, 1, 2**63) for first in range(8) for second in range(8)]
    assert len({key_of(*each) for each in parts}) == len(parts)
    assert len({key_of(1), key_of(1, 0), key_of(1, 0, 0), key_of(0, 1), key_of(1, 1)}) == 5
    assert key_of(0) == 0xE220A8397B1DCDAF  # SplitMix64's first output for seed 0
    assert 0 <= key_of(5, 6) < 1 << 64


def test_keys_do_not_depend_on_the_hash_seed() -> None:
    program = "from distloop.data.permutation import *; print(key_of(3, 1, 4), *Permutation(9, 2)(np.arange(9)))"
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program], capture_output=True, check=True, cwd=ROOT, env={"PYTHONHASHSEED": seed}
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1
