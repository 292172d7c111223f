"""Bandwidth-optimal: every rank sends to its right neighbour only, all links busy all the time, in segments."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from distloop.comm.collective import Array, Collective, Flat
from distloop.comm.mpi import MPI
from distloop.partition import Partition

SEGMENT_BYTES = 1 << 18


@dataclass(frozen=True)
class Route:
    """The segments of one half in the order in which they travel: what is sent first, then what arrives.

    Of each arriving segment the route says whether it goes on to the right.
    """

    first: list[slice]
    arriving: list[tuple[slice, bool]]


@final
class Ring(Collective):
    """Rank r sends to r+1 and receives from r-1.

    Cost, all-reduce of N bytes over p ranks: 2(p-1) steps, 2(p-1)/p N bytes sent per rank, the least possible:
    2(p-1)α + 2(p-1)/p N/B. A chunk travels in segments, so that a segment is summed and sent on while the next one is
    under way. Scratch: two segments. Each element is summed along the ring once, then copied: the same bits everywhere.
    Source: Patarasuk and Yuan, JPDC 69(2) 2009; Thakur, Rabenseifner and Gropp, IJHPCA 2005.
    """

    def __init__(self, comm: MPI.Intracomm, segment_bytes: int = SEGMENT_BYTES) -> None:
        """``segment_bytes``: large enough that latency is small beside it, small enough to stay in cache."""
        super().__init__(comm)
        self.segment_bytes = segment_bytes
        self.right, self.left = (self.rank + 1) % self.world_size, (self.rank - 1) % self.world_size
        self._routes: dict[tuple[int, Partition, int], Route] = {}
        self._inboxes: dict[np.dtype[Any], tuple[Array, Array]] = {}

    def all_reduce(self, flat: Flat) -> None:
        """The two halves, over an even partition."""
        partition = Partition.even(len(flat), self.world_size)
        self.reduce_scatter(flat, partition)
        self.all_gather(flat, partition)

    def reduce_scatter(self, flat: Flat, partition: Partition) -> None:
        """Step s: send chunk r-s-1 to the right, add what arrives to chunk r-s-2. Rank r ends with chunk r.

        The chunk just summed is the next to be sent, so each segment goes on as soon as it is summed.
        """
        vector = self.vector("reduce_scatter", flat)
        route = self._route(self.rank - 1, partition, vector.itemsize)
        sent = [self._send(vector[segment]) for segment in route.first]
        pieces = [vector[segment] for segment, _ in route.arriving]
        for piece, (_, goes_on), arrived in zip(pieces, route.arriving, self._arrivals(pieces), strict=True):
            piece += arrived
            if goes_on:
                sent.append(self._send(piece))
        _wait(sent)

    def all_gather(self, flat: Flat, partition: Partition) -> None:
        """Step s: send chunk r-s to the right, receive chunk r-s-1 in its place; a segment goes on as it arrives."""
        vector = self.vector("all_gather", flat)
        route = self._route(self.rank, partition, vector.itemsize)
        requests = [self.comm.Irecv(vector[segment], self.left) for segment, _ in route.arriving]
        sent = [self._send(vector[segment]) for segment in route.first]
        for (segment, goes_on), request in zip(route.arriving, requests, strict=True):
            request.Wait()
            if goes_on:
                sent.append(self._send(vector[segment]))
        _wait(sent)

    def _send(self, piece: Array) -> Any:
        return self.comm.Isend(piece, self.right)

    def _route(self, first: int, partition: Partition, itemsize: int) -> Route:
        """Chunk ``first`` is sent to begin with; those before it arrive, p-1 of them. Made once, not at every step."""
        key = (first, partition, itemsize)
        if key not in self._routes:
            steps = range(self.world_size - 1)
            elements = max(1, self.segment_bytes // itemsize)
            chunks = [
                [*_segments(partition.slice_of((first - step - 1) % self.world_size), elements)] for step in steps
            ]
            arriving = [(segment, step != steps[-1]) for step in steps for segment in chunks[step]]
            # Alone in the world, there is nobody to send anything to.
            opening = [*_segments(partition.slice_of(first % self.world_size), elements)] if steps else []
            self._routes[key] = Route(opening, arriving)
        return self._routes[key]

    def _arrivals(self, pieces: list[Array]) -> Iterator[Array]:
        """What the left neighbour sends for each piece, the next one already under way while this one is summed."""
        if not pieces:
            return
        inboxes = self._inbox_pair(pieces[0].dtype)
        views = [inboxes[turn % 2][: piece.size] for turn, piece in enumerate(pieces)]
        pending = self.comm.Irecv(views[0], self.left)
        for view, following in zip(views, [*views[1:], None], strict=True):
            current, pending = pending, pending if following is None else self.comm.Irecv(following, self.left)
            current.Wait()
            yield view

    def _inbox_pair(self, dtype: np.dtype[Any]) -> tuple[Array, Array]:
        if dtype not in self._inboxes:
            elements = max(1, self.segment_bytes // dtype.itemsize)
            self._inboxes[dtype] = (np.empty(elements, dtype), np.empty(elements, dtype))
        return self._inboxes[dtype]


def _segments(chunk: slice, elements: int) -> Iterator[slice]:
    for start in range(chunk.start, chunk.stop, elements):
        yield slice(start, min(start + elements, chunk.stop))


def _wait(requests: list[Any]) -> None:
    for request in requests:
        request.Wait()
