"""Bandwidth-optimal: every rank sends to its right neighbour only, all links busy all the time, in segments."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, final

import numpy as np

from distloop.comm.collective import Array, Collective, Flat
from distloop.comm.mpi import MPI
from distloop.partition import Partition

SEGMENT_BYTES = 1 << 18


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
        route = self._route(vector, partition, [self.rank - step - 2 for step in range(self.world_size - 1)])
        sent = [self._send(piece) for _, piece in self._route(vector, partition, self._first(self.rank - 1))]
        for (chunk, piece), arrived in zip(route, self._arrivals([piece for _, piece in route]), strict=True):
            piece += arrived
            if chunk != self.rank:
                sent.append(self._send(piece))
        _wait(sent)

    def all_gather(self, flat: Flat, partition: Partition) -> None:
        """Step s: send chunk r-s to the right, receive chunk r-s-1 in its place; a segment goes on as it arrives."""
        vector = self.vector("all_gather", flat)
        route = self._route(vector, partition, [self.rank - step - 1 for step in range(self.world_size - 1)])
        arriving = [self.comm.Irecv(piece, self.left) for _, piece in route]
        sent = [self._send(piece) for _, piece in self._route(vector, partition, self._first(self.rank))]
        for (chunk, piece), request in zip(route, arriving, strict=True):
            request.Wait()
            if chunk != self.right:
                sent.append(self._send(piece))
        _wait(sent)

    def _send(self, piece: Array) -> Any:
        return self.comm.Isend(piece, self.right)

    def _first(self, chunk: int) -> list[int]:
        """The chunk that nobody need wait for; alone in the world, there is nobody to send it to."""
        return [chunk][: self.world_size - 1]

    def _route(self, vector: Array, partition: Partition, chunks: list[int]) -> list[tuple[int, Array]]:
        """The segments of these chunks in the order in which they travel, each with its chunk's number."""
        elements = max(1, self.segment_bytes // vector.itemsize)
        route = []
        for chunk in (number % self.world_size for number in chunks):
            whole = vector[partition.slice_of(chunk)]
            route += [(chunk, whole[start : start + elements]) for start in range(0, whole.size, elements)]
        return route

    def _arrivals(self, pieces: list[Array]) -> Iterator[Array]:
        """What the left neighbour sends for each piece, the next one already under way while this one is summed."""
        if not pieces:
            return
        inboxes = [np.empty(max(piece.size for piece in pieces), pieces[0].dtype) for _ in range(2)]
        views = [inboxes[turn % 2][: piece.size] for turn, piece in enumerate(pieces)]
        pending = self.comm.Irecv(views[0], self.left)
        for view, following in zip(views, [*views[1:], None], strict=True):
            current, pending = pending, pending if following is None else self.comm.Irecv(following, self.left)
            current.Wait()
            yield view


def _wait(requests: list[Any]) -> None:
    for request in requests:
        request.Wait()
