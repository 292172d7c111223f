"""Shuffling without memory: where row i goes is computed, so ten billion rows start as fast as a thousand."""

from __future__ import annotations

from functools import cached_property
from math import isqrt
from typing import final

import numpy as np
import numpy.typing as npt

MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15
LONGEST = 1 << 62
TABLE_ROWS = 1 << 16
# Arrays of no dimension: numpy takes them faster than scalars, and they wrap around in silence.
FIRST, SECOND, HALF = (np.array(number, np.uint64) for number in (0xBF58476D1CE4E5B9, 0x94D049BB133111EB, 32))

Positions = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]


def key_of(seed: int, *parts: int) -> int:
    """A 64-bit key for (seed, parts), the same on every machine; another seed or part gives an unrelated one.

    Source: SplitMix64 (Steele, Lea and Flood 2014), one step per number. Numbers count modulo 2^64.
    """
    key = _mixed(seed & MASK)
    for part in parts:
        key = _mixed((key ^ (part & MASK)) & MASK)
    return key


@final
class Permutation:
    """A shuffle of ``range(length)`` that is fixed by ``key``: a bijection, computed position by position.

    A position is written as (high, low) with high < ceil(sqrt(length)); each round adds a keyed hash of one half
    to the other one, modulo its size, which can be undone whatever the hash is. The grid of all pairs has fewer
    than sqrt(length) places too many; a position that lands there goes round again until it lands inside.

    Cost:    about 10 numpy calls a round, 6 rounds (16 below 1,024 rows, where few values make each round mix
             less), for a whole array of positions at a time; no memory that grows with the length. Up to 65,536
             images are kept in a table of at most 512 KiB, since looking a small batch up is 50 times as fast.
    Source:  Black and Rogaway, Ciphers with arbitrary finite domains, CT-RSA 2002 (generalised Feistel, cycle
             walking).
    """

    def __init__(self, length: int, key: int) -> None:
        assert 0 <= length <= LONGEST
        self.length = length
        self.key = key
        self._highs = isqrt(max(length - 1, 0)) + 1
        self._lows = max(-(-length // self._highs), 1)
        rounds = 6 if length >= 1024 else 16
        self._keys = tuple(np.array(key_of(key, index), np.uint64) for index in range(rounds))

    def __len__(self) -> int:
        return self.length

    def __call__(self, positions: Positions) -> Positions:
        """The images, all different, of ``positions`` (n,), each in [0, length). Both are int64."""
        return self._table[positions] if self.length <= TABLE_ROWS else self._computed(positions)

    @cached_property
    def _table(self) -> Positions:
        return self._computed(np.arange(self.length, dtype=np.int64))

    def _computed(self, positions: Positions) -> Positions:
        images = self._round_trip(positions.astype(np.uint64))
        if self._highs * self._lows > self.length:
            while (outside := images >= self.length).any():
                images[outside] = self._round_trip(images[outside])
        return images.view(np.int64)

    def _round_trip(self, places: Words) -> Words:
        highs, lows = np.array(self._highs, np.uint64), np.array(self._lows, np.uint64)
        high, low = np.divmod(places, lows)
        for key_high, key_low in zip(self._keys[::2], self._keys[1::2], strict=True):
            high += _hashed(low, key_high, highs)
            high %= highs
            low += _hashed(high, key_low, lows)
            low %= lows
        high *= lows
        high += low
        return high


def _hashed(values: Words, key: Words, bound: Words) -> Words:
    """A keyed hash of each value, below ``bound`` (at most 2^32)."""
    words = values + key
    words *= FIRST
    words ^= words >> HALF
    words *= SECOND
    words >>= HALF
    words *= bound
    words >>= HALF
    return words


def _mixed(word: int) -> int:
    word = (word + GOLDEN) & MASK
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & MASK
    return word ^ (word >> 31)
