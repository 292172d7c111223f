"""The collectives under test, what they are given, and what each should cost, written down apart from the product."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np

from distloop.comm import Collective, Native, Ring, Star, Traffic
from distloop.partition import Partition

RINGS = {"ring-8B": 8, "ring-100B": 100, "ring-1KiB": 1024, "ring": 1 << 18}
ALGORITHMS: dict[str, Callable[[Any], Collective]] = {
    "star": Star,
    "native": Native,
    **{name: partial(Ring, segment_bytes=size) for name, size in RINGS.items()},
}
LENGTHS = (0, 1, 5, 64, 1001)


def odd(length: int, parts: int) -> Partition:
    """Slices of very different lengths, one of them empty."""
    counts = [length * (part % 3) // (3 * parts) for part in range(parts - 1)]
    return Partition.of_counts([*counts, length - sum(counts)])


PARTITIONS: dict[str, Callable[[int, int], Partition]] = {
    "even": Partition.even,
    "at first": Partition.at_root,
    "at last": lambda length, parts: Partition.at_root(length, parts, parts - 1),
    "odd": odd,
}


def integers(length: int, world_size: int, dtype: Any = np.float32) -> np.ndarray:
    """A row for each rank (world_size, length), of numbers whose sums are exact in any order."""
    return np.random.default_rng(length).integers(-9, 10, (world_size, length)).astype(dtype)


class Cost:
    """What rank ``rank`` of ``world_size`` sends in each call, by the formula of the algorithm ``name``."""

    def __init__(self, name: str, rank: int, world_size: int, itemsize: int = 4) -> None:
        self.name, self.rank, self.world_size, self.itemsize = name, rank, world_size, itemsize

    def all_reduce(self, length: int) -> Traffic:
        """Ring: both halves. Star: a peer its vector, the centre everybody's sum. Native: the vector."""
        if self.name in RINGS:
            even = Partition.even(length, self.world_size)
            scattered, gathered = self.reduce_scatter(even), self.all_gather(even)
            return Traffic(scattered.bytes + gathered.bytes, scattered.messages + gathered.messages)
        if self.name == "star":
            return self._messages([length] * (self.world_size - 1) if self.rank == 0 else [length])
        return self._messages([length])

    def reduce_scatter(self, partition: Partition) -> Traffic:
        """Ring: all chunks but one's own. Star: a peer its vector, the centre each peer's slice. Native: the vector."""
        if self.name in RINGS:
            return self._ring(count for rank, count in enumerate(partition.counts) if rank != self.rank)
        if self.name == "star" and self.rank == 0:
            return self._messages(partition.counts[1:])
        return self._messages([partition.length])

    def all_gather(self, partition: Partition) -> Traffic:
        """Ring: all chunks but the right neighbour's. Star: a peer its slice, the centre all. Native: a slice."""
        if self.name in RINGS:
            right = (self.rank + 1) % self.world_size
            return self._ring(count for rank, count in enumerate(partition.counts) if rank != right)
        if self.name == "star":
            peers = [partition.length] * (self.world_size - 1)
            return self._messages(peers if self.rank == 0 else [partition.counts[self.rank]])
        return Traffic(partition.counts[self.rank] * self.itemsize, int(partition.length > 0))

    def _messages(self, counts: Iterable[int]) -> Traffic:
        """One for each that is not empty."""
        sent = [count * self.itemsize for count in counts if count]
        return Traffic(sum(sent), len(sent))

    def _ring(self, counts: Iterable[int]) -> Traffic:
        """Each chunk in segments, the last one perhaps shorter."""
        segment = RINGS[self.name] // self.itemsize
        whole = list(counts)
        return Traffic(sum(whole) * self.itemsize, sum(-(-count // segment) for count in whole))
