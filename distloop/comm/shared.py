"""One node: ranks read each other's vectors where they lie. No message is sent; memory bandwidth is the limit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import final

import torch

from distloop.comm.collective import Array, Collective, Flat
from distloop.comm.counted import counted, kept
from distloop.comm.memory import NodeMemory, address_of
from distloop.comm.mpi import MPI
from distloop.errors import ConfigError
from distloop.partition import Partition

BLOCK_BYTES = 1 << 19  # what is summed at once: what has been read of each rank is in cache when the sum is written
SMALL_BYTES = 1 << 13  # up to here two barriers cost as much as the library's own all-reduce
STAGE_BYTES = 1 << 22


class Summed:
    """A slice of a vector that all ranks of the node have; ``into`` sums it in order of rank, in cache-sized blocks."""

    def __init__(self, parts: list[Array], dtype: torch.dtype | None = None) -> None:
        """``parts``: the same slice of every rank, in order of rank; of ``dtype``, which numpy may not know."""
        tensors = [torch.from_numpy(part) for part in parts]
        self.parts = tensors if dtype is None else [tensor.view(dtype) for tensor in tensors]

    def into(self, out: torch.Tensor) -> None:
        """``out`` (B,) may be one of the parts, and of a wider type than they are."""
        elements = max(1, BLOCK_BYTES // out.element_size())
        if len(out) <= elements or len(self.parts) <= 2:  # of two, everything is read and written once anyway
            add_in_order(out, self.parts)
            return
        for start in range(0, len(out), elements):
            add_in_order(out[start : start + elements], [part[start : start + elements] for part in self.parts])


def add_in_order(out: torch.Tensor, parts: Sequence[torch.Tensor]) -> None:
    """Sum ``parts`` (B,) into ``out`` (B,), in the type of ``out``, which may be one of them: the same bits, whoever
    does it."""
    if not len(out):
        return
    if len(parts) > 2 and any(part.data_ptr() == out.data_ptr() for part in parts[2:]):
        total = torch.empty_like(out)  # or a part would be overwritten before its turn
        add_in_order(total, parts)
        out.copy_(total)
        return
    if len(parts) == 1 or parts[0].dtype != out.dtype:
        if out.data_ptr() != parts[0].data_ptr():
            out.copy_(parts[0])
        rest = parts[1:]
    else:
        torch.add(parts[0], parts[1], out=out)
        rest = parts[2:]
    for part in rest:
        out.add_(part)


@final
class Shared(Collective):
    """Rank r sums slice r of everybody's vector and writes the sum where everybody reads it.

    Cost, all-reduce of N bytes over p ranks: two barriers, 2pN bytes of memory traffic on the node, the least possible:
    each slice is read p times and written p times, in blocks that fit the cache. Sent: nothing; up to 8 KiB the
    library's own is as fast, and is handed the vector. A vector outside of ``memory`` is copied through a stage of
    4 MiB a rank. Sums go in order of rank: the same bits everywhere, and at every call.
    """

    def __init__(self, comm: MPI.Intracomm) -> None:
        """Raises ConfigError on all ranks where they are not on one node."""
        comm = counted(comm)
        local = kept(comm, "memory", lambda: comm.Split_type(MPI.COMM_TYPE_SHARED, comm.rank))
        if local.size != comm.size:
            error = ConfigError(
                f"ranks on several nodes cannot share memory: this node has {local.size} of {comm.size} ranks. "
                "Expected one node, or --strategy hierarchical, which shares inside nodes and sends between them"
            )
            raise error.on_all_ranks()
        super().__init__(comm, NodeMemory(local), reads=True, handed_bytes=SMALL_BYTES)
        self._stage: Array | None = None

    def all_reduce(self, flat: Flat) -> None:
        """Barrier; sum a slice in blocks, write each block to all; barrier."""
        vector = self.vector("all_reduce", flat)
        if vector.nbytes <= self.handed_bytes:
            if vector.size:
                self.comm.Allreduce(MPI.IN_PLACE, vector)
            return
        peers = self.memory.peers(vector)
        if peers is not None:
            self._sum_to_all(peers)
            return
        for chunk, staged, everybody in self._staged(vector):
            staged[:] = chunk
            self._sum_to_all(everybody)
            chunk[:] = staged

    def reduce_scatter(self, flat: Flat, partition: Partition) -> None:
        """Barrier; sum the own slice; barrier, after which the others may change what was read."""
        vector = self.vector("reduce_scatter", flat)
        peers = self.memory.peers(vector)
        own = partition.slice_of(self.rank)
        if peers is not None:
            self.barrier()
            Summed([peer[own] for peer in peers]).into(torch.from_numpy(vector[own]))
            self.barrier()
            return
        for chunk, staged, everybody in self._staged(vector):
            staged[:] = chunk
            mine = _inside(own, chunk, vector)
            self.barrier()
            Summed([part[mine] for part in everybody]).into(torch.from_numpy(chunk[mine]))
            self.barrier()

    def all_gather(self, flat: Flat, partition: Partition) -> None:
        """Of a common vector: a barrier. Else: barrier; copy the slices of the others from where they are; barrier."""
        vector = self.vector("all_gather", flat)
        if self.memory.is_common(vector):
            self.barrier()
            return
        peers = self.memory.peers(vector)
        if peers is not None:
            self._copy_slices(vector, peers, [partition.slice_of(rank) for rank in range(self.world_size)])
            return
        for chunk, staged, everybody in self._staged(vector):
            slices = [_inside(partition.slice_of(rank), chunk, vector) for rank in range(self.world_size)]
            staged[slices[self.rank]] = chunk[slices[self.rank]]
            self._copy_slices(chunk, everybody, slices)

    def barrier(self) -> None:
        """What was written before it is read after it."""
        self.comm.control.Barrier()

    def _sum_to_all(self, peers: list[Array]) -> None:
        """In place of the first rank's block, then to the others' while it is in cache."""
        own = Partition.even(peers[0].size, self.world_size).slice_of(self.rank)
        tensors = [torch.from_numpy(peer[own]) for peer in peers]
        elements = BLOCK_BYTES // tensors[0].element_size()
        self.barrier()
        for start in range(0, len(tensors[0]), elements):
            total, *others = [tensor[start : start + elements] for tensor in tensors]
            for other in others:
                total.add_(other)
            for other in others:
                other.copy_(total)
        self.barrier()

    def _copy_slices(self, vector: Array, peers: list[Array], slices: list[slice]) -> None:
        self.barrier()
        for rank, (peer, there) in enumerate(zip(peers, slices, strict=True)):
            if rank != self.rank:
                vector[there] = peer[there]
        self.barrier()

    def _staged(self, vector: Array) -> Iterator[tuple[Array, Array, list[Array]]]:
        """Piece by piece of ``vector``: the piece, as much of this rank's stage, and of everybody's."""
        if self._stage is None:
            self._stage = self.memory.own(STAGE_BYTES, torch.uint8).numpy()
        elements = STAGE_BYTES // vector.itemsize
        for start in range(0, vector.size, elements):
            chunk = vector[start : start + elements]
            staged = self._stage[: chunk.nbytes].view(vector.dtype)
            everybody = self.memory.peers(staged)
            assert everybody is not None
            yield chunk, staged, everybody


def _inside(part: slice, chunk: Array, vector: Array) -> slice:
    """``part`` of ``vector`` as far as it lies in ``chunk``, counted from the beginning of that."""
    origin = (address_of(chunk) - address_of(vector)) // vector.itemsize
    start, stop = (min(max(edge - origin, 0), chunk.size) for edge in (part.start, part.stop))
    return slice(start, stop)
