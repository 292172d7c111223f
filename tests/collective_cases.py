"""The collectives under test, what they are given, and what each should cost, written down apart from the product."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np

from distloop.comm import Collective, Hierarchical, Native, Ring, Star, Traffic
from distloop.partition import Partition

RINGS = {"ring-8B": 8, "ring-100B": 100, "ring-1KiB": 1024, "ring": 1 << 18}
NODE_SIZES = {"nodes of 2": 2, "nodes of 3": 3}
NODE_SEGMENT_BYTES = 100
ALGORITHMS: dict[str, Callable[[Any], Collective]] = {
    "star": Star,
    "native": Native,
    **{name: partial(Ring, segment_bytes=size) for name, size in RINGS.items()},
    **{
        name: partial(Hierarchical, segment_bytes=NODE_SEGMENT_BYTES, node_size=size, small_bytes=0)
        for name, size in NODE_SIZES.items()
    },
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
        size = NODE_SIZES.get(name, 1)
        self.nodes = [range(first, min(first + size, world_size)) for first in range(0, world_size, size)]
        self.node, self.lane = divmod(rank, size)
        self.lanes = min(map(len, self.nodes))

    def all_reduce(self, length: int) -> Traffic:
        """Ring: both halves. Star: a peer its vector, the centre everybody's sum. Native: the vector.

        Nodes: both halves, each node the same, divided among its lanes.
        """
        if self.name in RINGS or self.name in NODE_SIZES:
            cut = self._even(length)
            scattered, gathered = self.reduce_scatter(cut), self.all_gather(cut)
            return Traffic(scattered.bytes + gathered.bytes, scattered.messages + gathered.messages)
        if self.name == "star":
            return self._messages([length] * (self.world_size - 1) if self.rank == 0 else [length])
        return self._messages([length])

    def reduce_scatter(self, partition: Partition) -> Traffic:
        """Ring: all chunks but one's own. Star: a peer its vector, the centre each peer's slice. Native: the vector.

        Nodes: the lane's part of what belongs to ranks of other nodes.
        """
        if self.name in RINGS:
            return self._ring(count for rank, count in enumerate(partition.counts) if rank != self.rank)
        if self.name in NODE_SIZES:
            return self._along_lane(partition, but=self.node)
        if self.name == "star" and self.rank == 0:
            return self._messages(partition.counts[1:])
        return self._messages([partition.length])

    def all_gather(self, partition: Partition) -> Traffic:
        """Ring: all chunks but the right neighbour's. Star: a peer its slice, the centre all. Native: a slice.

        Nodes: the lane's part of what does not belong to ranks of the next node.
        """
        if self.name in RINGS:
            right = (self.rank + 1) % self.world_size
            return self._ring(count for rank, count in enumerate(partition.counts) if rank != right)
        if self.name in NODE_SIZES:
            return self._along_lane(partition, but=(self.node + 1) % len(self.nodes))
        if self.name == "star":
            peers = [partition.length] * (self.world_size - 1)
            return self._messages(peers if self.rank == 0 else [partition.counts[self.rank]])
        return Traffic(partition.counts[self.rank] * self.itemsize, int(partition.length > 0))

    def _even(self, length: int) -> Partition:
        if self.name in RINGS:
            return Partition.even(length, self.world_size)
        shares = iter(Partition.even(length, len(self.nodes) * self.lanes).counts)
        return Partition.of_counts(
            [next(shares) if place < self.lanes else 0 for node in self.nodes for place in range(len(node))]
        )

    def _along_lane(self, partition: Partition, but: int) -> Traffic:
        """Local ranks l, l + lanes, ... of each node are served by its rank on lane l."""
        if self.lane >= self.lanes:
            return Traffic()
        others = [node[self.lane :: self.lanes] for index, node in enumerate(self.nodes) if index != but]
        return self._segments((partition.counts[rank] for ranks in others for rank in ranks), NODE_SEGMENT_BYTES)

    def _messages(self, counts: Iterable[int]) -> Traffic:
        """One for each that is not empty."""
        sent = [count * self.itemsize for count in counts if count]
        return Traffic(sum(sent), len(sent))

    def _ring(self, counts: Iterable[int]) -> Traffic:
        return self._segments(counts, RINGS[self.name])

    def _segments(self, counts: Iterable[int], segment_bytes: int) -> Traffic:
        """Each chunk in segments, the last one perhaps shorter."""
        segment = segment_bytes // self.itemsize
        whole = list(counts)
        return Traffic(sum(whole) * self.itemsize, sum(-(-count // segment) for count in whole))
