"""Shared memory inside nodes, rings between them: the least that can be sent, each rank of a node sending its share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, final

import numpy as np
import torch

from distloop.comm.agree import exchange
from distloop.comm.collective import Array, Collective, Flat
from distloop.comm.counted import counted, kept
from distloop.comm.lane import SEGMENT_BYTES, Lane, Passage
from distloop.comm.memory import NodeMemory
from distloop.comm.mpi import MPI
from distloop.comm.shared import SMALL_BYTES, STAGE_BYTES
from distloop.comm.wire import Plain, Wire
from distloop.partition import Partition

_PLAIN = Plain()


@dataclass(frozen=True)
class Nodes:
    """Which ranks are on which node: ``ranks[n][k]`` is local rank k of node n. Nodes may differ in size.

    There are as many lanes as the smallest node has ranks. Lane l joins local rank l of all nodes, and carries what
    local ranks l, l + lanes, l + 2 lanes, ... own.
    """

    ranks: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, comm: MPI.Comm, local: MPI.Comm) -> Nodes:
        """``local``: the ranks of ``comm`` on this node. Collective."""
        leaders = exchange(comm, exchange(local, comm.rank)[0])
        ranks = [[rank for rank, leader in enumerate(leaders) if leader == first] for first in sorted(set(leaders))]
        return cls(tuple(map(tuple, ranks)))

    @property
    def lanes(self) -> int:
        """Of each, a node has one rank."""
        return min(map(len, self.ranks))

    def chunks(self, lane: int, partition: Partition) -> list[list[slice]]:
        """What ``lane`` carries of a vector whose slices belong to ranks: a list of slices for each node."""
        return [[partition.slice_of(rank) for rank in members[lane :: self.lanes]] for members in self.ranks]

    def even(self, length: int) -> Partition:
        """Each node the same, and in it each lane; ranks without a lane have none."""
        shares = Partition.even(length, len(self.ranks) * self.lanes)
        counts = [0] * sum(map(len, self.ranks))
        for node, members in enumerate(self.ranks):
            for lane in range(self.lanes):
                counts[members[lane]] = shares.counts[node * self.lanes + lane]
        return Partition.of_counts(counts)


def _node_of(comm: MPI.Intracomm, node_size: int | None) -> MPI.Intracomm:
    """The ranks that share memory, or so many successive ones."""
    if node_size is None:
        return counted(comm.Split_type(MPI.COMM_TYPE_SHARED, comm.rank))
    return counted(comm.Split(comm.rank // node_size, comm.rank))


@final
class Hierarchical(Collective):
    """Rank l of each node sums, in the memory that the node shares, and sends, along lane l, its share of the vector.

    Reduce-scatter: barrier on the node; for the piece of each node in turn, a lane's rank adds up its node's vectors,
    adds what has arrived from the node to the left, and sends that to the right, segment by segment; what belongs to a
    rank without a lane is written where that rank reads it; barrier. All-gather: barrier; owned pieces go round the
    lanes, and arrive in a vector that the node has in common, or are written to the neighbours' own; barrier.
    A vector outside of ``memory`` is copied through a stage of 4 MiB a rank, piece by piece.

    Cost, all-reduce of N bytes over M nodes with L lanes: a node sends 2(M-1)/M N, the least possible, divided among
    its lanes: (LM-1)/(L(M-1)) less than a ring of all ranks; 2(M-1)α. Half of it with ``wire=Bf16()``.
    Sums go along the lanes, on a node in order of rank after the rank that sums: the same bits on all ranks.
    Measure: python -m tests.benchmarks.hosts
    Source: Jia et al., arXiv 1807.11205, with a lane for each rank; Patarasuk and Yuan, JPDC 69(2) 2009, for a lane.
    """

    def __init__(
        self,
        comm: MPI.Intracomm,
        segment_bytes: int = SEGMENT_BYTES,
        wire: Wire = _PLAIN,
        node_size: int | None = None,
        small_bytes: int = SMALL_BYTES,
    ) -> None:
        """``node_size``: take so many successive ranks for a node, though there may be more on it.

        ``small_bytes``: up to here the MPI library's own all-reduce is used, whose latency is less.
        """
        comm = counted(comm)
        local = kept(comm, ("node", node_size), partial(_node_of, comm, node_size))
        within = local.size == comm.size
        super().__init__(comm, NodeMemory(local), overlaps=not within, reads=within, handed_bytes=small_bytes)
        self.local, self.wire = local, wire
        self.nodes = Nodes.of(self.comm.control, local)
        color = min(local.rank, self.nodes.lanes)
        lane = kept(comm, ("lane", node_size), lambda: counted(comm.Split(color, comm.rank)))
        lane.sent = self.comm.sent
        self.lane = Lane(lane, segment_bytes) if local.rank < self.nodes.lanes else None
        self.node = next(node for node, members in enumerate(self.nodes.ranks) if self.rank in members)
        self._stage: Array | None = None

    def all_reduce(self, flat: Flat) -> None:
        """The two halves, without a pause between them, over a partition that gives each node the same."""
        vector = self.vector("all_reduce", flat)
        if vector.nbytes <= self.handed_bytes:
            if vector.size:
                self.comm.Allreduce(MPI.IN_PLACE, vector)
            return
        peers = self.memory.peers(vector)
        if peers is not None:
            self._reduce_to_all(vector, peers)
            return
        for chunk, staged, everybody in self._staged(vector):
            staged[:] = chunk
            self._reduce_to_all(staged, everybody)
            chunk[:] = staged

    def reduce_scatter(self, flat: Flat, partition: Partition) -> None:
        """Step s on a lane: send the chunk of node n-s-1 to the right, add what arrives to that of node n-s-2."""
        vector = self.vector("reduce_scatter", flat)
        peers = self.memory.peers(vector)
        if peers is not None:
            self._reduce_to_owners(vector, peers, partition)
            return
        for places, staged, everybody, cut in self._staged_slices(vector, partition):
            for rank, place in enumerate(places):
                staged[cut.slice_of(rank)] = vector[place]
            self._reduce_to_owners(staged, everybody, cut)
            vector[places[self.rank]] = staged[cut.slice_of(self.rank)]

    def all_gather(self, flat: Flat, partition: Partition) -> None:
        """Step s on a lane: send the chunk of node n-s to the right, receive that of node n-s-1."""
        vector = self.vector("all_gather", flat)
        peers = self.memory.peers(vector)
        if peers is not None:
            self._gather(vector, peers, partition)
            return
        for places, staged, everybody, cut in self._staged_slices(vector, partition):
            staged[cut.slice_of(self.rank)] = vector[places[self.rank]]
            self._gather(staged, everybody, cut)
            for rank, place in enumerate(places):
                vector[place] = staged[cut.slice_of(rank)]

    def _reduce_to_all(self, vector: Array, peers: list[Array]) -> None:
        partition = self.nodes.even(vector.size)
        self.local.Barrier()
        if self.lane is not None:
            wire = self.wire.carries(vector.dtype)
            self._passage(self.lane, vector, partition, wire, self._others(peers)).all_reduce()
        self.local.Barrier()

    def _reduce_to_owners(self, vector: Array, peers: list[Array], partition: Partition) -> None:
        self.local.Barrier()
        if self.lane is not None:
            wire = self.wire.carries(vector.dtype)
            self._passage(self.lane, vector, partition, wire, self._others(peers)).reduce_scatter()
            for peer, owned in self._without_lane(peers, partition):
                peer[owned] = vector[owned]
        self.local.Barrier()

    def _gather(self, vector: Array, peers: list[Array], partition: Partition) -> None:
        others = [] if self.memory.is_common(vector) else self._others(peers)
        self.local.Barrier()
        if self.lane is not None:
            if others:
                for peer, owned in self._without_lane(peers, partition):
                    vector[owned] = peer[owned]
            self._passage(self.lane, vector, partition, _PLAIN, others).all_gather()
        self.local.Barrier()

    def _others(self, peers: list[Array]) -> list[Array]:
        return [peer for local_rank, peer in enumerate(peers) if local_rank != self.local.rank]

    def _passage(self, lane: Lane, vector: Array, partition: Partition, wire: Wire, others: Sequence[Array]) -> Passage:
        return lane.passage(vector, partition, lambda: self.nodes.chunks(self.local.rank, partition), wire, others)

    def _without_lane(self, peers: list[Array], partition: Partition) -> Iterator[tuple[Array, slice]]:
        """Vectors of neighbours whose slices this rank's lane carries besides its own, and those slices."""
        members = self.nodes.ranks[self.node]
        for local_rank in range(self.local.rank + self.nodes.lanes, len(members), self.nodes.lanes):
            yield peers[local_rank], partition.slice_of(members[local_rank])

    def _staged(self, vector: Array) -> Iterator[tuple[Array, Array, list[Array]]]:
        """Piece by piece of ``vector``: the piece, as much of this rank's stage, and of everybody's on the node."""
        elements = STAGE_BYTES // vector.itemsize
        for start in range(0, vector.size, elements):
            chunk = vector[start : start + elements]
            yield chunk, *self._stages(chunk.size, vector.dtype)

    def _staged_slices(
        self, vector: Array, partition: Partition
    ) -> Iterator[tuple[list[slice], Array, list[Array], Partition]]:
        """A part of every slice at a time, so that all lanes are busy: where they are, their stages, and their cut."""
        room = STAGE_BYTES // vector.itemsize - len(partition)
        turns = -(-vector.size // room)
        for turn in range(turns):
            places = [_share(partition.slice_of(rank), turn, turns) for rank in range(len(partition))]
            cut = Partition.of_counts([place.stop - place.start for place in places])
            yield places, *self._stages(cut.length, vector.dtype), cut

    def _stages(self, length: int, dtype: np.dtype[Any]) -> tuple[Array, list[Array]]:
        if self._stage is None:
            self._stage = self.memory.own(STAGE_BYTES, torch.uint8).numpy()
        staged = self._stage[: length * dtype.itemsize].view(dtype)
        everybody = self.memory.peers(staged)
        assert everybody is not None
        return staged, everybody


def _share(whole: slice, turn: int, turns: int) -> slice:
    length = whole.stop - whole.start
    return slice(whole.start + length * turn // turns, whole.start + length * (turn + 1) // turns)
