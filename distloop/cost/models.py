"""Strategies as models: who owns what over which algorithm, and from that memory, traffic and seconds of a step.

Left out, as it is the same for all: activations, the gradients' landing, and the forward and backward themselves, whose
seconds are given. One element is 4 bytes; N is the bytes of the parameters, p the ranks, L the ranks of a node.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from distloop.cost.algorithms import Algorithm, Hierarchical, Native, Path, Ring, Shared, Star
from distloop.cost.topology import FLOAT32_BYTES, Topology, Workload
from distloop.cost.traffic import Sends, total
from distloop.partition import Partition


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank or one node: what a step needs to exist, without activations."""

    parameters: float = 0.0
    gradients: float = 0.0
    state: float = 0.0
    scratch: float = 0.0

    @property
    def total(self) -> float:
        """All of it."""
        return self.parameters + self.gradients + self.state + self.scratch

    def __add__(self, other: Memory) -> Memory:
        return Memory(
            self.parameters + other.parameters,
            self.gradients + other.gradients,
            self.state + other.state,
            self.scratch + other.scratch,
        )

    def __mul__(self, factor: float) -> Memory:
        return Memory(self.parameters * factor, self.gradients * factor, self.state * factor, self.scratch * factor)


class Owners(ABC):
    """Who updates what."""

    @abstractmethod
    def partition(self, length: int, ranks: int) -> Partition | None:
        """As ``ownership.Ownership`` cuts a vector of elements that may be cut anywhere; None: everybody owns all."""

    @abstractmethod
    def shares(self, topology: Topology) -> tuple[float, float]:
        """The largest part of the optimizer's work and state that one rank has, and one node; above 1 if repeated."""


@final
class Everybody(Owners):
    """Replicated."""

    def partition(self, length: int, ranks: int) -> Partition | None:
        """Nothing is divided."""
        return None

    def shares(self, topology: Topology) -> tuple[float, float]:
        """All of it, as often as there are ranks on the node."""
        return 1.0, float(topology.ranks_per_node)


@final
class EachItsSlice(Owners):
    """Sharded."""

    def partition(self, length: int, ranks: int) -> Partition | None:
        """Evenly."""
        return Partition.between(range(length + 1), ranks)

    def shares(self, topology: Topology) -> tuple[float, float]:
        """As many parts as ranks."""
        return 1 / topology.ranks, 1 / topology.nodes


@final
class Root(Owners):
    """A parameter server."""

    def partition(self, length: int, ranks: int) -> Partition | None:
        """Everything at rank 0."""
        return Partition.at_root(length, ranks)

    def shares(self, topology: Topology) -> tuple[float, float]:
        """Rank 0 all of it."""
        return 1.0, 1.0


@dataclass(frozen=True)
class Model:
    """One strategy. ``shares_node``: whether a node has the parameters once; ``scratch``: in N, at the fullest rank.

    ``cached_bytes``: of each element's optimizer traffic, what is still in cache from the sum. ``master_bytes``: of an
    owned element, what a copy in host memory takes besides the state.
    """

    algorithm: Algorithm
    owners: Owners
    shares_node: bool = False
    scratch: float = 0.0
    cached_bytes: int = 0
    master_bytes: int = 0

    def possible(self, topology: Topology) -> bool:
        """Whether it runs there at all."""
        return topology.nodes == 1 or not isinstance(self.algorithm, Shared)

    def sends(self, workload: Workload, topology: Topology) -> Sends:
        """What every rank sends in a step: each bucket to its owners, and its parameters back."""
        lengths = workload.lengths(topology).items()
        return total((self._sends_bucket(length, topology) * times for length, times in lengths), topology.ranks)

    def _sends_bucket(self, length: int, topology: Topology) -> Sends:
        partition = self.owners.partition(length, topology.ranks)
        if partition is None:
            return self.algorithm.sends_all_reduce(length, topology, FLOAT32_BYTES)
        reduced = self.algorithm.sends_reduce(partition, topology, FLOAT32_BYTES)
        return reduced + self.algorithm.sends_spread(partition, topology, FLOAT32_BYTES)

    def memory(self, workload: Workload, topology: Topology) -> tuple[Memory, Memory]:
        """Of the fullest rank, and of the fullest node; what a node shares counts for each of its ranks in equal parts.

        With Adam on one node: replicated 4pN, zero (2p+2)N, shared (p+3)N.
        """
        here, size = topology.ranks_per_node, float(workload.bytes)
        state = workload.parameters * (workload.optimizer.state_bytes + self.master_bytes)
        of_rank, of_node = self.owners.shares(topology)
        copies = 1 if self.shares_node else here
        rank = Memory(size * copies / here, size, state * of_rank, size * self.scratch)
        node = Memory(size * copies, size * here, state * of_node, size * self.scratch)
        return rank, node

    def paths(self, workload: Workload, topology: Topology) -> tuple[Path, Path]:
        """What gradients travel, and what must wait for the optimizer. Nothing travels where there is one rank."""
        early, late = Path(), Path()
        if topology.ranks == 1:
            return early, late
        for length, times in workload.lengths(topology).items():
            size = length * FLOAT32_BYTES
            if isinstance(self.owners, Everybody):
                early += self.algorithm.all_reduce(size, topology) * times
            else:
                early += self.algorithm.reduce(size, topology) * times
                late += self.algorithm.spread(size, topology) * times
        return early, late

    def optimizer_seconds(self, workload: Workload, topology: Topology) -> float:
        """28 bytes a parameter for Adam, at the speed of the node, or of one rank where that is the limit."""
        cached = self.cached_bytes if topology.ranks > 1 else 0
        traffic = workload.parameters * (workload.optimizer.traffic_bytes - cached + 2 * self.master_bytes)
        of_rank, of_node = self.owners.shares(topology)
        return traffic * max(of_rank / topology.rank_bytes_per_second, of_node / topology.memory_bytes_per_second)


MODELS: Mapping[str, Model] = {
    "star": Model(Star(), Everybody(), scratch=1.0),
    "ring": Model(Ring(), Everybody()),
    "native": Model(Native(), Everybody()),
    "shared": Model(Shared(), EachItsSlice(), shares_node=True, cached_bytes=4),
    "hierarchical": Model(Hierarchical(), EachItsSlice(), shares_node=True),
    "parameter-server": Model(Star(), Root(), scratch=1.0),
    "zero": Model(Ring(), EachItsSlice()),
    "zero-offload": Model(Ring(), EachItsSlice(), master_bytes=4),
}
"""All strategies but ``auto``, which is one of these."""
