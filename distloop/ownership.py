"""Who updates what: everybody everything, each its slice, or the root all of it.

Classic data parallelism, ZeRO and the parameter server differ only in the partition of the flat vector; so the
partition is what an ownership decides, and the collective moves the bytes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import final

from distloop.comm.collective import Array, Collective
from distloop.partition import Partition


def nothing() -> None:
    """Everybody has everything."""


class Ownership(ABC):
    """Which rank updates which elements of a flat vector, and how gradients get there and parameters back."""

    def __init__(self, collective: Collective) -> None:
        """``collective`` moves the bytes."""
        self.collective = collective
        self.rank, self.world_size = collective.rank, collective.world_size

    divides: bool
    """Whether each element has one owner, from which the others get it, so that a node needs it only once."""

    @abstractmethod
    def partition(self, cuts: Sequence[int]) -> Partition | None:
        """Who owns what of a vector that may be cut at ``cuts`` only; None: everybody owns everything."""

    @final
    def owned(self, partition: Partition | None, length: int) -> slice:
        """What this rank owns."""
        return slice(0, length) if partition is None else partition.slice_of(self.rank)

    @final
    def reducing(self, gradients: Array, partition: Partition | None) -> Callable[[], None]:
        """What sums ``gradients`` (P,) over the ranks where they are owned; elsewhere they become scratch."""
        return self.collective.reducing(gradients, partition)

    @final
    def gathering(self, parameters: Array, partition: Partition | None) -> Callable[[], None]:
        """What gives every rank the fresh ``parameters`` (P,) that others own, step after step. Collective."""
        return nothing if partition is None else self.collective.gathering(parameters, partition)


@final
class Replicated(Ownership):
    """Everybody owns everything: the sum goes to all, all take the same step, nothing is left to broadcast.

    Cost: an all-reduce; parameters and optimizer state p times. Source: Li et al., PyTorch Distributed, VLDB 2020.
    """

    divides = False

    def partition(self, cuts: Sequence[int]) -> Partition | None:
        """Nothing is divided."""
        return None


@final
class Sharded(Ownership):
    """Each rank owns one slice: sums only that, holds only its optimizer state, then gathers the others' parameters.

    Cost: the same bytes as an all-reduce, 1/p of the optimizer's state and work a rank.
    Source: Rajbhandari et al., ZeRO, arXiv 1910.02054, stages 1 and 2.
    """

    divides = True

    def partition(self, cuts: Sequence[int]) -> Partition | None:
        """As even as the cuts allow."""
        return Partition.between(cuts, self.world_size)


@final
class RootOwned(Ownership):
    """Rank 0 owns all: a parameter server. The others hold no optimizer state.

    Cost: that of the collective with everything at one rank. Source: Li et al., Parameter Server, OSDI 2014.
    """

    divides = True

    def partition(self, cuts: Sequence[int]) -> Partition | None:
        """Everything at rank 0."""
        return Partition.at_root(cuts[-1], self.world_size)
