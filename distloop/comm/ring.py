"""Bandwidth-optimal: every rank sends to its right neighbour only, all links busy all the time, in segments."""

from __future__ import annotations

from typing import final

from distloop.comm.collective import Array, Collective, Flat
from distloop.comm.lane import SEGMENT_BYTES, Lane, Passage
from distloop.comm.mpi import MPI
from distloop.comm.wire import Plain, Wire
from distloop.partition import Partition

_PLAIN = Plain()


@final
class Ring(Collective):
    """Rank r sends to r+1 and receives from r-1.

    Cost, all-reduce of N bytes over p ranks: 2(p-1) steps, 2(p-1)/p N bytes sent per rank, the least possible:
    2(p-1)α + 2(p-1)/p N/B; half the bytes with ``wire=Bf16()``. A chunk travels in segments, so that a segment is
    summed and sent on while the next one is under way. Scratch: four segments, and what the wire takes.
    Each element is summed along the ring once, then copied: the same bits everywhere.
    Measure: python -m tests.benchmarks.hosts
    Source: Patarasuk and Yuan, JPDC 69(2) 2009; Thakur, Rabenseifner and Gropp, IJHPCA 2005.
    """

    def __init__(self, comm: MPI.Intracomm, segment_bytes: int = SEGMENT_BYTES, wire: Wire = _PLAIN) -> None:
        """``wire``: how sums travel; an all-gather, which spreads what is exact, sends it as it is."""
        super().__init__(comm, overlaps=spans_nodes(comm))
        self.lane, self.wire = Lane(self.comm, segment_bytes), wire

    def all_reduce(self, flat: Flat) -> None:
        """The two halves over an even partition, without a pause between them."""
        vector = self.vector("all_reduce", flat)
        partition = Partition.even(vector.size, self.world_size)
        self._passage(vector, partition, self.wire).all_reduce()

    def reduce_scatter(self, flat: Flat, partition: Partition) -> None:
        """Step s: send chunk r-s-1 to the right, add what arrives to chunk r-s-2. Rank r ends with chunk r."""
        self._passage(self.vector("reduce_scatter", flat), partition, self.wire).reduce_scatter()

    def all_gather(self, flat: Flat, partition: Partition) -> None:
        """Step s: send chunk r-s to the right, receive chunk r-s-1 in its place; a segment goes on as it arrives."""
        self._passage(self.vector("all_gather", flat), partition, _PLAIN).all_gather()

    def _passage(self, vector: Array, partition: Partition, wire: Wire) -> Passage:
        def chunks() -> list[list[slice]]:
            return [[partition.slice_of(rank)] for rank in range(self.world_size)]

        return self.lane.passage(vector, partition, chunks, wire.carries(vector.dtype))


def spans_nodes(comm: MPI.Intracomm) -> bool:
    """Whether some ranks of ``comm`` can only be reached over a network. Collective."""
    local = comm.Split_type(MPI.COMM_TYPE_SHARED, comm.rank)
    spans: bool = local.size < comm.size
    local.Free()
    return spans
