"""Who sends how much to whom: exact integers, as the transport counts them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import reduce

from distloop.cost.topology import Topology

LIBRARY = -1
"""Stands for a peer that only the MPI library knows."""


@dataclass(frozen=True)
class Sent:
    """What one rank sends: bytes of payload, and messages that are not empty."""

    bytes: int = 0
    messages: int = 0

    def __add__(self, other: Sent) -> Sent:
        return Sent(self.bytes + other.bytes, self.messages + other.messages)

    def __mul__(self, times: int) -> Sent:
        return Sent(self.bytes * times, self.messages * times)


@dataclass(frozen=True)
class Sends:
    """What every rank sends in a call: ``to[rank][peer]``."""

    to: tuple[Mapping[int, Sent], ...]

    def __add__(self, other: Sends) -> Sends:
        return Sends(tuple(_merged(mine, theirs) for mine, theirs in zip(self.to, other.to, strict=True)))

    def __mul__(self, times: int) -> Sends:
        return Sends(tuple({peer: sent * times for peer, sent in peers.items()} for peers in self.to))

    def as_halves(self) -> Sends:
        """The same messages, with two bytes where there were four."""
        halves = ({peer: Sent(sent.bytes // 2, sent.messages) for peer, sent in peers.items()} for peers in self.to)
        return Sends(tuple(halves))

    @property
    def by_rank(self) -> list[Sent]:
        """In order of rank, to all peers together."""
        return [reduce(Sent.__add__, peers.values(), Sent()) for peers in self.to]

    @property
    def by_library(self) -> bool:
        """Whether the MPI library is handed something and decides what it sends."""
        return any(LIBRARY in peers for peers in self.to)

    def leaving(self, topology: Topology) -> list[int] | None:
        """Bytes of payload that leave each node through its interface; None where only the library knows."""
        if self.by_library:
            return None
        bytes_of = [0] * topology.nodes
        for rank, peers in enumerate(self.to):
            node = topology.node_of(rank)
            bytes_of[node] += sum(sent.bytes for peer, sent in peers.items() if topology.node_of(peer) != node)
        return bytes_of


def _merged(mine: Mapping[int, Sent], theirs: Mapping[int, Sent]) -> Mapping[int, Sent]:
    return dict(mine) | {peer: mine.get(peer, Sent()) + sent for peer, sent in theirs.items()}


def total(calls: Iterable[Sends], ranks: int) -> Sends:
    """Of several calls."""
    return reduce(Sends.__add__, calls, Sends(({},) * ranks))


def messages_to(lengths: Mapping[int, int], itemsize: int) -> dict[int, Sent]:
    """One to each peer, of its length in elements; none where that is 0."""
    return {peer: Sent(count * itemsize, 1) for peer, count in lengths.items() if count}


def in_segments(counts: Iterable[int], segment_elements: int, itemsize: int) -> Sent:
    """Chunks that travel in segments, each the last one perhaps shorter."""
    sizes = Counter(counts)
    return Sent(
        itemsize * sum(count * times for count, times in sizes.items()),
        sum(-(-count // segment_elements) * times for count, times in sizes.items()),
    )
