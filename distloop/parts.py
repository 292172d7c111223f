"""What is reduced together and stepped together: buckets of a flat vector, cut into blocks that fit the cache."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Self, final

import torch
from torch import Tensor

from distloop.comm.memory import Array
from distloop.comm.shared import Summed
from distloop.flat import Flat
from distloop.ownership import Ownership, nothing
from distloop.partition import Partition
from distloop.placement import Carried, Placed, Placement

# 4 MiB of float32, a core's share of the last-level cache on today's servers: summed, and consumed by the optimizer
# while it is there. A step of torch's optimizers costs 80 µs of Python, so much smaller blocks would cost more than
# they save.
BLOCK_ELEMENTS = 1 << 20


@dataclass(frozen=True)
class Piece:
    """What this rank owns of one parameter in one block: a whole one keeps its shape, a cut one only its number of
    dimensions.

    So a rule such as "weight decay for matrices only", which looks at that number, holds for both.
    """

    name: str
    parameter: Tensor
    gradient: Tensor
    index: int


class Block(ABC):
    """What the optimizer takes at once: ``gradients`` (B,), once they are ``ready``, for what is in ``pieces``."""

    gradients: Tensor
    pieces: list[Piece]

    @abstractmethod
    def ready(self) -> None:
        """Put the reduced gradients into ``gradients``; the part has been reduced before."""

    @abstractmethod
    def scale(self, factor: float) -> None:
        """Multiply them."""


class Part(ABC):
    """One bucket: ``number`` counts them in the order in which backward comes to them."""

    def __init__(self, number: int, placed: Placed, partition: Partition | None, indices: range) -> None:
        """``indices``: those of the parameters in it, numbered through over all flat vectors."""
        self.number, self.placed, self.partition, self.indices = number, placed, partition, indices
        self.blocks: list[Block] = []
        self._sum: Callable[[], None] = nothing
        self._spread: Callable[[], None] = nothing

    @final
    def by(self, ownership: Ownership) -> Self:
        """With the ways in which gradients and parameters travel, made once. Collective."""
        self._sum = ownership.reducing(self.placed.wire_gradients, self.partition)
        self._spread = ownership.gathering(self.placed.wire_parameters, self.partition)
        return self

    @property
    def pieces(self) -> list[Piece]:
        """Of all blocks."""
        return [piece for block in self.blocks for piece in block.pieces]

    @abstractmethod
    def reduce(self) -> None:
        """Sum over the ranks, as far as it takes all of them together. Collective."""

    @final
    def gather(self) -> None:
        """Fresh parameters, where others own some. Collective."""
        if self.partition is None:
            self.placed.keep()
        else:
            self.placed.give()
            self._spread()
            self.placed.spread()


@final
class Moved(Part):
    """Its sum is brought to where it is owned before anything is done with it: one block."""

    def __init__(self, number: int, placed: Placed, partition: Partition | None, indices: range) -> None:
        super().__init__(number, placed, partition, indices)
        self.blocks = [_MovedBlock(placed, indices)]

    def reduce(self) -> None:
        """By the collective."""
        self._sum()


@final
class _MovedBlock(Block):
    def __init__(self, placed: Placed, indices: range) -> None:
        self._placed = placed
        self.gradients = placed.gradients
        self.pieces = list(_pieces(placed, placed.owned, placed.gradients, indices))

    def ready(self) -> None:
        self._placed.take()

    def scale(self, factor: float) -> None:
        self.gradients.mul_(factor)


@final
class Read(Part):
    """Its owner sums it out of the memory of all ranks, block by block, just before the optimizer takes the block.

    Then p reads of the gradients are all the traffic that the reduction costs: the sum is consumed in cache.
    Nobody may change its gradients before the parameters have been gathered, and all must have landed before.
    """

    def __init__(
        self,
        number: int,
        placed: Placed,
        partition: Partition | None,
        indices: range,
        peers: list[Array],
        cuts: Sequence[slice],
        sums: Tensor,
    ) -> None:
        """``peers``: everybody's gradients, of the bucket; ``cuts``: the blocks, counted in what is owned.

        ``sums``: float32, as long as what is owned, or as the longest block, which then replaces the one before.
        """
        super().__init__(number, placed, partition, indices)
        start = placed.owned.start - placed.reach.start
        whole = len(sums) == len(placed.parameters)
        cast = sums if sums.dtype == placed.parameters.dtype else torch.empty_like(sums, dtype=placed.parameters.dtype)
        for cut in cuts:
            parts = [peer[start + cut.start : start + cut.stop] for peer in peers]
            there = cut if whole else slice(0, cut.stop - cut.start)
            owned = slice(placed.owned.start + cut.start, placed.owned.start + cut.stop)
            summed = Summed(parts, placed.carried.gradients.host.dtype)
            total = sums[there]
            self.blocks.append(
                _ReadBlock(placed, owned, indices, summed, total, total if cast is sums else cast[there])
            )

    def reduce(self) -> None:
        """Nothing is moved."""


@final
class _ReadBlock(Block):
    def __init__(
        self, placed: Placed, owned: slice, indices: range, summed: Summed, total: Tensor, gradients: Tensor
    ) -> None:
        self.gradients, self._summed, self._total = gradients, summed, total
        self.pieces = list(_pieces(placed, owned, gradients, indices))

    def ready(self) -> None:
        self._summed.into(self._total)
        if self.gradients is not self._total:
            self.gradients.copy_(self._total)

    def scale(self, factor: float) -> None:
        self.gradients.mul_(factor)


@final
class Joined(Block):
    """All blocks as one, for an optimizer that must take its whole step at once."""

    def __init__(self, blocks: Sequence[Block]) -> None:
        self._blocks = blocks
        self.pieces = [piece for block in blocks for piece in block.pieces]

    def ready(self) -> None:
        """Of each."""
        for block in self._blocks:
            block.ready()

    def scale(self, factor: float) -> None:
        """Of each."""
        for block in self._blocks:
            block.scale(factor)


@dataclass(frozen=True)
class Cutting:
    """How vectors are cut. ``anywhere``: also within a parameter; ``keeps``: all sums are needed before the first step,
    as for their norm; ``bucket_bytes``: at least so many travel together, None: all."""

    anywhere: bool
    keeps: bool
    bucket_bytes: int | None


def bucket_bytes(total_bytes: int) -> int:
    """Of buckets that are sent while backward goes on: a sixteenth of all, from 1 to 25 MiB.

    Then little is left to send when backward ends; and at the larger end a ring of 64 ranks on 100 Gbit/s is
    still at 0.9 of its bandwidth.
    """
    return max(1 << 20, min(25 << 20, total_bytes // 16))


def parts_of(flats: Sequence[Flat], ownership: Ownership, placement: Placement, cutting: Cutting) -> list[Part]:
    """Of all vectors, in the order of ``flats`` and, within each, in that of backward."""
    return list(_parts(flats, ownership, placement, cutting))


def _parts(flats: Sequence[Flat], ownership: Ownership, placement: Placement, cutting: Cutting) -> Iterator[Part]:
    first, number = 0, 0
    for flat in flats:
        carried = Carried(flat)
        whole = [slice(0, flat.length)]
        for reach in whole if cutting.bucket_bytes is None else flat.buckets(cutting.bucket_bytes):
            inside = flat.indices_in(reach)
            indices = range(first + inside.start, first + inside.stop)
            yield _part(number, carried, reach, indices, ownership, placement, cutting).by(ownership)
            number += 1
        first += len(flat.slots)


def _part(
    number: int,
    carried: Carried,
    reach: slice,
    indices: range,
    ownership: Ownership,
    placement: Placement,
    cutting: Cutting,
) -> Part:
    flat, length = carried.flat, reach.stop - reach.start
    edges = [edge - reach.start for edge in flat.boundaries if reach.start <= edge <= reach.stop]
    partition = ownership.partition(range(length + 1) if cutting.anywhere else edges)
    mine = ownership.owned(partition, length)
    placed = placement.place(carried, reach, slice(reach.start + mine.start, reach.start + mine.stop))
    peers = ownership.collective.readable(placed.wire_gradients)
    ownership.collective.layouts.tell(
        placed.wire_gradients,
        [(slice(slot.start - reach.start, slot.stop - reach.start), slot.shape) for slot in flat.slots_in(reach)],
    )
    if partition is None or peers is None or placed.gradients.device.type != "cpu":
        return Moved(number, placed, partition, indices)
    owned = mine.stop - mine.start
    size = BLOCK_ELEMENTS if cutting.anywhere else max(owned, 1)
    cuts = [slice(start, min(start + size, owned)) for start in range(0, max(owned, 1), size)]
    return Read(number, placed, partition, indices, peers, cuts, _sums(placed, cuts, cutting.keeps))


def _sums(placed: Placed, cuts: Sequence[slice], keeps: bool) -> Tensor:
    """Memory for sums: a block's, used again for the next; or, where all are kept, the gradients' own if it is wide."""
    reduced = placed.carried.gradients.host[placed.owned]
    if len(cuts) > 1 and not keeps:
        length = max(cut.stop - cut.start for cut in cuts)
    elif reduced.dtype in (torch.float32, torch.float64):
        return reduced
    else:
        length = len(reduced)
    return torch.empty(length, dtype=torch.float64 if reduced.dtype == torch.float64 else torch.float32)


def _pieces(placed: Placed, owned: slice, gradients: Tensor, indices: range) -> Iterator[Piece]:
    """``gradients`` (owned,); ``owned`` in the whole vector, and a part of what is placed."""
    origin, flat = placed.owned.start, placed.flat
    for index, slot in zip(indices, flat.slots_in(placed.reach), strict=True):
        start, stop = max(slot.start, owned.start), min(slot.stop, owned.stop)
        if start >= stop:
            continue
        whole = stop - start == slot.stop - slot.start
        shape = slot.shape if whole else torch.Size([1] * (len(slot.shape) - 1) + [stop - start])
        parameter = placed.parameters[start - origin : stop - origin].view(shape)
        yield Piece(slot.name, parameter, gradients[start - owned.start : stop - owned.start].view(shape), index)


__all__ = ["Block", "Cutting", "Joined", "Part", "Piece", "bucket_bytes", "parts_of"]
