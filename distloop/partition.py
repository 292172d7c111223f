"""How a vector, or a list of rows, is cut among ranks: contiguous slices, one per rank, empty ones allowed."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate, pairwise


@dataclass(frozen=True)
class Partition:
    """Slice r, ``[bounds[r], bounds[r + 1])``, belongs to rank r; together they are ``[0, length)``."""

    bounds: tuple[int, ...]

    @classmethod
    @lru_cache(maxsize=256)
    def even(cls, length: int, parts: int) -> Partition:
        """Slices that differ by one element at most, the longer ones first."""
        share, rest = divmod(length, parts)
        return cls.of_counts([share + (part < rest) for part in range(parts)])

    @classmethod
    def at_root(cls, length: int, parts: int, root: int = 0) -> Partition:
        """Everything on one rank."""
        return cls.of_counts([length if part == root else 0 for part in range(parts)])

    @classmethod
    def between(cls, cuts: Sequence[int], parts: int) -> Partition:
        """As even as cutting only at ``cuts`` (ascending, from 0 to the length) allows."""
        length = cuts[-1]
        ideal = [length * part // parts for part in range(1, parts)]
        inner = [_nearest(cuts, position) for position in ideal]
        return cls((0, *inner, length))

    @classmethod
    def of_counts(cls, counts: Sequence[int]) -> Partition:
        """Slices of the given lengths, in order of rank."""
        return cls((0, *accumulate(counts)))

    def slice_of(self, rank: int) -> slice:
        """What ``rank`` owns."""
        return slice(self.bounds[rank], self.bounds[rank + 1])

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """The length of each slice."""
        return tuple(stop - start for start, stop in pairwise(self.bounds))

    @property
    def length(self) -> int:
        """The length of what is cut."""
        return self.bounds[-1]

    def __len__(self) -> int:
        return len(self.bounds) - 1


def _nearest(ascending: Sequence[int], position: int) -> int:
    index = bisect_left(ascending, position)
    return min(ascending[max(index - 1, 0) : index + 1], key=lambda cut: abs(cut - position))
