"""A ring of ranks, each of which sends to its right neighbour only: the machinery under every ring of this package.

A vector travels chunk by chunk, a chunk in segments, so that one segment is summed and sent on while the next one is
under way: once it has begun, the outgoing link is never idle. Views are made once for each vector, and used again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from distloop.comm.counted import CountedComm
from distloop.comm.memory import Array, address_of
from distloop.comm.mpi import MPI
from distloop.comm.wire import Wire

SEGMENT_BYTES = 1 << 18  # in memory: 20 times the latency of 1 Gbit/s Ethernet, and in cache when it is summed
INBOXES = 4  # receives posted ahead, so that a rank that is late for one does not hold up its left neighbour
PASSAGES = 512  # remembered; they keep no vector alive

Chunks = Sequence[Sequence[slice]]
"""What belongs to each rank of a lane, in order of rank: slices of the vector, empty ones allowed."""


@dataclass(frozen=True)
class Segment:
    """A piece of a vector in this rank's memory, what is sent of it, and the same piece in its neighbours' memory."""

    piece: Any
    image: Any
    sent: Array
    others: tuple[Any, ...]


@dataclass(frozen=True)
class Stop:
    """What happens to a segment that arrives.

    target: the memory that it arrives in: an inbox, if it is added to what is here, which ``arrived`` then views;
        else that of the segment itself, once the send number ``after`` has left it.
    complete: the sum is complete and goes to everybody, so this rank must see it as the others will.
    """

    segment: Segment
    target: Array
    arrived: Any = None
    goes_on: bool = True
    complete: bool = False
    after: int | None = None

    @property
    def spreads(self) -> bool:
        """Whether it now is what everybody should have in its place."""
        return self.complete or self.arrived is None


@dataclass(frozen=True)
class Route:
    """What is sent first, and what then arrives.

    sums: what is sent first is part of a sum, to which neighbours' parts are added before.
    spreads: it is what everybody should have in its place; neighbours too.
    """

    first: list[Segment]
    sums: bool
    spreads: bool
    arriving: list[Stop]


class Lane:
    """The ranks of ``comm`` in a ring. One vector travels at a time."""

    def __init__(self, comm: CountedComm, segment_bytes: int = SEGMENT_BYTES) -> None:
        """``segment_bytes``: large enough that latency is small beside it, small enough to stay in cache."""
        self.comm, self.rank, self.size = comm, comm.rank, comm.size
        self.right, self.left = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
        self.segment_bytes = segment_bytes
        self._passages: dict[Any, Passage] = {}
        self._inboxes: dict[np.dtype[Any], list[Array]] = {}

    def passage(
        self, vector: Array, key: Any, chunks: Callable[[], Chunks], wire: Wire, others: Sequence[Array] = ()
    ) -> Passage:
        """How ``vector`` goes round, cut into ``chunks``, for which ``key`` stands. ``others``: see Passage."""
        places = tuple(address_of(part) for part in (vector, *others))
        name = (places, vector.size, vector.dtype, key, wire)
        if name not in self._passages:
            if len(self._passages) >= PASSAGES:
                self._passages.clear()
            parts = [_unowned(part) for part in others]
            self._passages[name] = Passage(self, _unowned(vector), chunks(), wire, parts)
        return self._passages[name]

    def inboxes(self, dtype: np.dtype[Any], elements: int) -> list[Array]:
        """Where segments arrive that are added to what is here."""
        if dtype not in self._inboxes or self._inboxes[dtype][0].size < elements:
            self._inboxes[dtype] = [np.empty(elements, dtype) for _ in range(INBOXES)]
        return self._inboxes[dtype]


class Passage:
    """One vector's way round a lane, ready to be gone again and again.

    Chunks travel in the order r-1, r-2, ..., r, as seen from rank r: the sum of chunk r is complete when it gets here,
    and from here it goes to everybody in the same order. ``others``: the same vector of neighbours, whose memory this
    rank sees: it adds them to its own, in order, before it sends, and writes to them what comes back.
    """

    def __init__(self, lane: Lane, vector: Array, chunks: Chunks, wire: Wire, others: Sequence[Array]) -> None:
        self.lane, self.wire = lane, wire
        elements = max(1, lane.segment_bytes // vector.itemsize)
        order = [chunks[(lane.rank - 1 - step) % lane.size] for step in range(lane.size)]
        cut = [[here for part in chunk for here in _segments(part, elements)] for chunk in order]
        image = wire.image(vector)

        def segment(here: slice) -> Segment:
            seen = tuple(wire.piece(other[here]) for other in others)
            return Segment(wire.piece(vector[here]), wire.piece(image[here]), image[here], seen)

        *self._passing, self._own = [[segment(here) for here in chunk] for chunk in cut]
        longest = max((here.stop - here.start for chunk in cut for here in chunk), default=0)
        self._inboxes = lane.inboxes(image.dtype, longest)

    def reduce_scatter(self) -> None:
        """Step s: send chunk r-s-1 to the right, add what arrives to chunk r-s-2. Rank r ends with chunk r."""
        self._go(self._reducing)

    def all_gather(self) -> None:
        """Step s: send chunk r-s to the right, receive chunk r-s-1 in its place."""
        self._go(self._gathering)

    def all_reduce(self) -> None:
        """Both without a pause: a segment of chunk r goes to everybody as soon as its sum is complete."""
        self._go(self._both)

    @cached_property
    def _reducing(self) -> Route:
        return self._sum(complete=False)

    @cached_property
    def _gathering(self) -> Route:
        return Route(self._own, sums=False, spreads=True, arriving=self._spread(summed=False))

    @cached_property
    def _both(self) -> Route:
        route = self._sum(complete=True)
        return replace(route, arriving=[*route.arriving, *self._spread(summed=True)])

    def _sum(self, complete: bool) -> Route:
        if not self._passing:  # alone in the lane: only neighbours' parts are added
            return Route(self._own, sums=True, spreads=complete, arriving=[])
        first, *rest = self._passing
        arriving: list[Stop] = []
        for segment in (segment for chunk in rest for segment in chunk):
            arriving.append(Stop(segment, *self._inbox(len(arriving), segment)))
        for segment in self._own:
            inbox = self._inbox(len(arriving), segment)
            arriving.append(Stop(segment, *inbox, goes_on=complete, complete=complete))
        return Route(first, sums=True, spreads=False, arriving=arriving)

    def _spread(self, summed: bool) -> list[Stop]:
        """Segments come back in the order in which their sums were sent off, into the same memory."""
        segments = [segment for chunk in self._passing for segment in chunk]
        going_on = len(segments) - len(self._passing[-1]) if self._passing else 0
        return [
            Stop(segment, segment.sent, goes_on=turn < going_on, after=turn if summed else None)
            for turn, segment in enumerate(segments)
        ]

    def _inbox(self, turn: int, segment: Segment) -> tuple[Array, Any]:
        inbox = self._inboxes[turn % INBOXES][: segment.sent.size]
        return inbox, self.wire.piece(inbox)

    def _go(self, route: Route) -> None:
        sent: list[MPI.Request] = []
        expected: list[MPI.Request] = []
        self._expect(route.arriving[:INBOXES], expected, sent)
        for segment in route.first:
            if route.sums:
                self._collect(segment)
                self.wire.encode(segment.piece, segment.image)
            if self.lane.size > 1:
                sent.append(self._send(segment))
            if route.spreads:
                self._share(segment)
        for turn, stop in enumerate(route.arriving):
            self._expect(route.arriving[len(expected) : turn + INBOXES], expected, sent)
            self._take(stop, expected[turn])
            if stop.goes_on:
                sent.append(self._send(stop.segment))
            if stop.spreads:
                self._share(stop.segment)
        for request in sent:
            request.Wait()

    def _expect(self, stops: Sequence[Stop], expected: list[MPI.Request], sent: list[MPI.Request]) -> None:
        """Post receives, as far ahead as the memory that they arrive in is free."""
        for stop in stops:
            if stop.after is not None:
                if stop.after >= len(sent):
                    return
                sent[stop.after].Wait()
            expected.append(self.lane.comm.Irecv(stop.target, self.lane.left))

    def _take(self, stop: Stop, request: MPI.Request) -> None:
        """Neighbours' parts are added while the segment is under way."""
        segment = stop.segment
        if stop.arrived is None:
            request.Wait()
            self.wire.decode(segment.image, segment.piece)
            return
        self._collect(segment)
        request.Wait()
        self.wire.add(segment.piece, stop.arrived)
        if stop.goes_on:
            self.wire.encode(segment.piece, segment.image)
        if stop.complete:
            self.wire.decode(segment.image, segment.piece)

    def _collect(self, segment: Segment) -> None:
        for other in segment.others:
            self.wire.add(segment.piece, other)

    def _share(self, segment: Segment) -> None:
        for other in segment.others:
            self.wire.copy(segment.piece, other)

    def _send(self, segment: Segment) -> MPI.Request:
        return self.lane.comm.Isend(segment.sent, self.lane.right)


def _segments(part: slice, elements: int) -> Iterator[slice]:
    for start in range(part.start, part.stop, elements):
        yield slice(start, min(start + elements, part.stop))


def _unowned(vector: Array) -> Array:
    """The same memory, which may go when its owner lets it go: whoever finds a passage by an address has it there."""
    memory: Any = MPI.memory.fromaddress(address_of(vector), vector.nbytes)
    return np.frombuffer(memory, vector.dtype)
