"""The collective algorithms as formulas: what each rank sends, exactly, and which path the slowest byte takes.

The two halves of an all-reduce stand apart, because ZeRO puts the optimizer between them: ``reduce`` brings sums to
their owners, ``spread`` brings what owners hold to everybody. N is bytes, p ranks, M nodes, L ranks on each,
w Topology.write_allocate.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import ceil, log2
from typing import final

from distloop.cost.topology import Topology
from distloop.cost.traffic import LIBRARY, Sends, Sent, in_segments, messages_to
from distloop.partition import Partition

SEGMENT_BYTES = 1 << 18  # as comm.lane has it
SMALL_BYTES = 1 << 13  # as comm.shared has it


@dataclass(frozen=True)
class Path:
    """What the slowest byte meets.

    Latencies of messages between nodes and inside one, bytes through the busiest link (one way), bytes through the
    memory of the busiest node, messages of the busiest rank; and bytes that one rank must move while all others wait.
    """

    remote_steps: float = 0.0
    local_steps: float = 0.0
    link_bytes: float = 0.0
    memory_bytes: float = 0.0
    messages: float = 0.0
    serial_bytes: float = 0.0

    def __add__(self, other: Path) -> Path:
        return Path(*(mine + theirs for mine, theirs in zip(self._all, other._all, strict=True)))

    def __mul__(self, factor: float) -> Path:
        return Path(*(factor * value for value in self._all))

    @property
    def _all(self) -> tuple[float, ...]:
        return (
            self.remote_steps,
            self.local_steps,
            self.link_bytes,
            self.memory_bytes,
            self.messages,
            self.serial_bytes,
        )

    def parts(self, topology: Topology) -> dict[str, float]:
        """The seconds of each thing that may be the limit."""
        return {
            "the link": self.link_bytes / topology.link_bytes_per_second,
            "memory bandwidth": self.memory_bytes / topology.memory_bytes_per_second,
            "the number of messages": self.messages * topology.message_seconds,
            "latency": self.remote_steps * topology.latency_seconds + self.local_steps * topology.local_latency_seconds,
            "rank 0": self.serial_bytes / topology.rank_bytes_per_second,
        }

    def seconds(self, topology: Topology) -> float:
        """Link, memory and the core's work for messages go on at once; latencies and what one rank does come on top."""
        link, memory, messages, latency, alone = self.parts(topology).values()
        return max(link, memory, messages) + latency + alone

    def limit(self, topology: Topology) -> str:
        """What takes the longest."""
        parts = self.parts(topology)
        return max(parts, key=lambda name: parts[name])


class Algorithm(ABC):
    """One collective; ``partition`` says who owns what, in elements of ``itemsize`` bytes."""

    @abstractmethod
    def sends_all_reduce(self, length: int, topology: Topology, itemsize: int) -> Sends:
        """Of a vector of ``length`` elements."""

    @abstractmethod
    def sends_reduce(self, partition: Partition, topology: Topology, itemsize: int) -> Sends:
        """Of the reduce-scatter."""

    @abstractmethod
    def sends_spread(self, partition: Partition, topology: Topology, itemsize: int) -> Sends:
        """Of the all-gather."""

    @abstractmethod
    def all_reduce(self, size_bytes: float, topology: Topology) -> Path:
        """The path of the whole."""

    @abstractmethod
    def reduce(self, size_bytes: float, topology: Topology) -> Path:
        """The path of the first half, with slices as this algorithm's strategies own them."""

    @abstractmethod
    def spread(self, size_bytes: float, topology: Topology) -> Path:
        """The path of the second half."""


@final
class Star(Algorithm):
    """Everything through rank 0, one peer after another: 2(p-1)(alpha + N/B), and its core sums alone."""

    def sends_all_reduce(self, length: int, topology: Topology, itemsize: int) -> Sends:
        """A peer its vector, the centre everybody's sum."""
        everything = Partition.at_root(length, topology.ranks)
        return self.sends_reduce(everything, topology, itemsize) + self.sends_spread(everything, topology, itemsize)

    def sends_reduce(self, partition: Partition, topology: Topology, itemsize: int) -> Sends:
        """A peer its vector, the centre each peer's slice."""
        slices = {peer: partition.counts[peer] for peer in range(1, topology.ranks)}
        peer = messages_to({0: partition.length}, itemsize)
        return Sends((messages_to(slices, itemsize), *[peer] * (topology.ranks - 1)))

    def sends_spread(self, partition: Partition, topology: Topology, itemsize: int) -> Sends:
        """A peer its slice, the centre everybody the whole."""
        whole = messages_to(dict.fromkeys(range(1, topology.ranks), partition.length), itemsize)
        return Sends((whole, *(messages_to({0: count}, itemsize) for count in partition.counts[1:])))

    def all_reduce(self, size_bytes: float, topology: Topology) -> Path:
        """There and back."""
        return self.reduce(size_bytes, topology) + self.spread(size_bytes, topology)

    def reduce(self, size_bytes: float, topology: Topology) -> Path:
        """To rank 0: of each peer a copy, then a pass that reads two vectors and writes one."""
        return self._way(size_bytes, topology) + Path(serial_bytes=3 * size_bytes * (topology.ranks - 1))

    def spread(self, size_bytes: float, topology: Topology) -> Path:
        """From rank 0."""
        return self._way(size_bytes, topology)

    def _way(self, size_bytes: float, topology: Topology) -> Path:
        near, far = topology.ranks_per_node - 1, topology.ranks - topology.ranks_per_node
        copied = size_bytes * near * (2 + topology.write_allocate)
        return Path(far, near, link_bytes=far * size_bytes, messages=topology.ranks - 1, serial_bytes=copied)


@final
class Ring(Algorithm):
    """Each rank to its right neighbour: 2(p-1) alpha + 2(p-1)/p N/B. Source: Patarasuk and Yuan 2009.

    Of the p-1 hops of a half M-1 cross a network. Memory: (p-1)N(5+w) on one node for both halves, in segments.
    """

    def __init__(self, segment_bytes: int = SEGMENT_BYTES) -> None:
        """``segment_bytes``: in which a chunk travels."""
        self.segment_bytes = segment_bytes

    def sends_all_reduce(self, length: int, topology: Topology, itemsize: int) -> Sends:
        """Both halves, over an even partition."""
        even = Partition.even(length, topology.ranks)
        return self.sends_reduce(even, topology, itemsize) + self.sends_spread(even, topology, itemsize)

    def sends_reduce(self, partition: Partition, topology: Topology, itemsize: int) -> Sends:
        """All chunks but one's own."""
        return self._round(partition, 0, itemsize)

    def sends_spread(self, partition: Partition, topology: Topology, itemsize: int) -> Sends:
        """All chunks but the right neighbour's."""
        return self._round(partition, 1, itemsize)

    def all_reduce(self, size_bytes: float, topology: Topology) -> Path:
        """Both halves."""
        return self.reduce(size_bytes, topology) * 2

    def reduce(self, size_bytes: float, topology: Topology) -> Path:
        """p-1 chunks to the right."""
        ranks, share = topology.ranks, size_bytes / topology.ranks
        hops = ranks - 1
        return Path(
            remote_steps=topology.nodes - 1,
            local_steps=ranks - topology.nodes,
            link_bytes=hops * share * (topology.nodes > 1),
            memory_bytes=topology.ranks_per_node * hops * share * (5 + topology.write_allocate) / 2,
            messages=hops * ceil(share / self.segment_bytes),
        )

    def spread(self, size_bytes: float, topology: Topology) -> Path:
        """The same without a sum; its memory is counted as half of both."""
        return self.reduce(size_bytes, topology)

    def _round(self, partition: Partition, left_out: int, itemsize: int) -> Sends:
        """Each rank sends all chunks but that of the rank ``left_out`` to its right."""
        segment, counts = max(1, self.segment_bytes // itemsize), partition.counts
        whole, ranks = in_segments(counts, segment, itemsize), len(counts)
        sends = []
        for rank in range(ranks):
            skipped = in_segments([counts[(rank + left_out) % ranks]], segment, itemsize)
            sent = Sent(whole.bytes - skipped.bytes, whole.messages - skipped.messages)
            sends.append({(rank + 1) % ranks: sent} if sent.messages else {})
        return Sends(tuple(sends))


@final
class Native(Algorithm):
    """The library's own, as far as it is known: by node first, between M nodes the better of two algorithms.

    Recursive doubling: log2 M (alpha + N/B). Rabenseifner: 2 log2 M alpha + 2(M-1)/M N/B. Where M is no power of two,
    both first fold the rest into the largest one below it and unfold it in the end: 2 alpha + 2N/B more, so 2.25 times
    the least at M=3. Counted as sent: what it is handed. Source: Thakur, Rabenseifner and Gropp 2005.
    """

    def sends_all_reduce(self, length: int, topology: Topology, itemsize: int) -> Sends:
        """The vector."""
        return _handed([length] * topology.ranks, itemsize)

    def sends_reduce(self, partition: Partition, topology: Topology, itemsize: int) -> Sends:
        """The vector."""
        return _handed([partition.length] * topology.ranks, itemsize)

    def sends_spread(self, partition: Partition, topology: Topology, itemsize: int) -> Sends:
        """A slice, though an empty one is handed over as well."""
        handed = [{LIBRARY: Sent(count * itemsize, 1)} for count in partition.counts]
        return Sends(tuple(handed) if partition.length else ({},) * topology.ranks)

    def all_reduce(self, size_bytes: float, topology: Topology) -> Path:
        """Inside nodes a message-sized temporary is filled and read: (L-1)N(7+2w)."""
        others = topology.ranks_per_node - 1
        inside = Path(
            local_steps=2 * ceil(log2(topology.ranks_per_node)),
            memory_bytes=others * size_bytes * (7 + 2 * topology.write_allocate),
        )
        return inside + self._between(size_bytes, topology)

    def reduce(self, size_bytes: float, topology: Topology) -> Path:
        """Half of it."""
        return self.all_reduce(size_bytes, topology) * 0.5

    def spread(self, size_bytes: float, topology: Topology) -> Path:
        """Half of it."""
        return self.all_reduce(size_bytes, topology) * 0.5

    def _between(self, size_bytes: float, topology: Topology) -> Path:
        steps = int(log2(topology.nodes))
        folded = 2.0 * (2**steps != topology.nodes)
        doubling = Path(steps + folded, link_bytes=(steps + folded) * size_bytes)
        halves = 2 * (1 - 2**-steps)
        halving = Path(2 * steps + folded, link_bytes=(halves + folded) * size_bytes)
        return min(doubling, halving, key=lambda path: path.seconds(topology))


def _handed(lengths: list[int], itemsize: int) -> Sends:
    return Sends(tuple(messages_to({LIBRARY: length}, itemsize) for length in lengths))


@final
class Shared(Algorithm):
    """One node, nobody sends: 2pN bytes of memory for an all-reduce, pN where the sum is consumed in cache."""

    def sends_all_reduce(self, length: int, topology: Topology, itemsize: int) -> Sends:
        """Nothing; a small vector is handed to the library."""
        small = length * itemsize <= SMALL_BYTES
        return _handed([length * small] * topology.ranks, itemsize)

    def sends_reduce(self, partition: Partition, topology: Topology, itemsize: int) -> Sends:
        """Nothing."""
        return Sends(({},) * topology.ranks)

    def sends_spread(self, partition: Partition, topology: Topology, itemsize: int) -> Sends:
        """Nothing."""
        return Sends(({},) * topology.ranks)

    def all_reduce(self, size_bytes: float, topology: Topology) -> Path:
        """Each slice is read p times and written p times."""
        return self._barrier(topology) * 2 + Path(memory_bytes=2 * topology.ranks * size_bytes)

    def reduce(self, size_bytes: float, topology: Topology) -> Path:
        """Each slice is read p times; its sum meets the optimizer in cache."""
        return self._barrier(topology) + Path(memory_bytes=topology.ranks * size_bytes)

    def spread(self, size_bytes: float, topology: Topology) -> Path:
        """The optimizer has written where everybody reads."""
        return self._barrier(topology)

    def _barrier(self, topology: Topology) -> Path:
        return Path(local_steps=ceil(log2(topology.ranks)))


@final
class Hierarchical(Algorithm):
    """Shared inside nodes, between them a ring per lane: local rank l of each node moves slice l.

    2(M-1) alpha + 2(M-1)/M N/B, all lanes together: the least that a node's link must carry.
    """

    def __init__(self, segment_bytes: int = SEGMENT_BYTES, small_bytes: int = SMALL_BYTES) -> None:
        """``segment_bytes``: of the lanes' rings. ``small_bytes``: up to here the library's all-reduce is used."""
        self.lane, self.small_bytes = Ring(segment_bytes), small_bytes

    def sends_all_reduce(self, length: int, topology: Topology, itemsize: int) -> Sends:
        """Each lane both halves of its slice; a small vector is handed to the library."""
        if length * itemsize <= self.small_bytes:
            return _handed([length] * topology.ranks, itemsize)
        even = Partition.even(length, topology.ranks)
        return self.sends_reduce(even, topology, itemsize) + self.sends_spread(even, topology, itemsize)

    def sends_reduce(self, partition: Partition, topology: Topology, itemsize: int) -> Sends:
        """A lane's ring over the nodes."""
        return self._lanes(partition, topology, 0, itemsize)

    def sends_spread(self, partition: Partition, topology: Topology, itemsize: int) -> Sends:
        """A lane's ring over the nodes."""
        return self._lanes(partition, topology, 1, itemsize)

    def all_reduce(self, size_bytes: float, topology: Topology) -> Path:
        """Local sums, the lanes, and a copy of every slice to all."""
        local = Path(memory_bytes=topology.ranks_per_node * size_bytes)
        return self.reduce(size_bytes, topology) + self.spread(size_bytes, topology) + local

    def reduce(self, size_bytes: float, topology: Topology) -> Path:
        """(L+1)N of memory for the node's sums, then the lanes' first half."""
        local = Path(
            local_steps=ceil(log2(topology.ranks_per_node)),
            memory_bytes=(topology.ranks_per_node + (topology.nodes > 1)) * size_bytes,
        )
        return local + self._lane_half(size_bytes, topology)

    def spread(self, size_bytes: float, topology: Topology) -> Path:
        """The lanes' second half, into memory that the node sees."""
        return Path(local_steps=ceil(log2(topology.ranks_per_node))) + self._lane_half(size_bytes, topology)

    def _lane_half(self, size_bytes: float, topology: Topology) -> Path:
        lane_bytes, between = size_bytes / topology.ranks_per_node, Topology(topology.nodes, 1)
        one = self.lane.reduce(lane_bytes, between)
        every = one * topology.ranks_per_node
        return Path(one.remote_steps, 0, every.link_bytes, every.memory_bytes, one.messages)

    def _lanes(self, partition: Partition, topology: Topology, left_out: int, itemsize: int) -> Sends:
        to: list[dict[int, Sent]] = [{} for _ in range(topology.ranks)]
        for lane in range(topology.ranks_per_node):
            members = range(lane, topology.ranks, topology.ranks_per_node)
            chunks = Partition.of_counts([partition.counts[rank] for rank in members])
            between = Topology(topology.nodes, 1)
            sends = self.lane.sends_spread if left_out else self.lane.sends_reduce
            for rank, peers in zip(members, sends(chunks, between, itemsize).to, strict=True):
                to[rank] = {members[peer]: sent for peer, sent in peers.items()}
        return Sends(tuple(to))
