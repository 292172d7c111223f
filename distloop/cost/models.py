"""Strategies as models: who owns what over which algorithm, and from that memory, traffic and seconds of a step.

Left out, as it is the same for all: activations, the gradients' landing, and the forward and backward themselves, whose
seconds are given. One element is 4 bytes; N is the bytes of the parameters, p the ranks, L the ranks of a node.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
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
    """One strategy. ``shares_node``: whether a node has the parameters once, and its ranks read each other's gradients.

    ``scratch``: in N, at the fullest rank. ``master_bytes``: of an owned element, what a copy in host memory takes
    besides the state. ``narrows``: whether gradients may travel in fewer bytes than they have.
    """

    algorithm: Algorithm
    owners: Owners
    shares_node: bool = False
    scratch: float = 0.0
    master_bytes: int = 0
    narrows: bool = True

    def possible(self, topology: Topology) -> bool:
        """Whether it runs there at all."""
        return topology.nodes == 1 or not isinstance(self.algorithm, Shared)

    def sends(self, workload: Workload, topology: Topology) -> Sends:
        """What every rank sends in a step: each bucket to its owners, and its parameters back."""
        lengths = workload.lengths(topology).items()
        return total(
            (self._sends_bucket(length, workload, topology) * times for length, times in lengths), topology.ranks
        )

    def _sends_bucket(self, length: int, workload: Workload, topology: Topology) -> Sends:
        partition = self.owners.partition(length, topology.ranks)
        if partition is None:
            return self._narrowed(self.algorithm.sends_all_reduce(length, topology, FLOAT32_BYTES), workload)
        reduced = self._narrowed(self.algorithm.sends_reduce(partition, topology, FLOAT32_BYTES), workload)
        return reduced + self.algorithm.sends_spread(partition, topology, FLOAT32_BYTES)

    def _narrowed(self, sends: Sends, workload: Workload) -> Sends:
        return sends.as_halves() if self._gradient_bytes(workload) < FLOAT32_BYTES else sends

    def _gradient_bytes(self, workload: Workload) -> int:
        return workload.gradient_bytes if self.narrows else FLOAT32_BYTES

    def _reads(self, topology: Topology) -> bool:
        """Whether owners take sums out of the others' memory, block by block, and consume them in cache."""
        return self.shares_node and topology.nodes == 1 and topology.ranks > 1

    def memory(self, workload: Workload, topology: Topology) -> tuple[Memory, Memory]:
        """Of the fullest rank, and of the fullest node; what a node shares counts for each of its ranks in equal parts.

        With Adam on one node: replicated 4pN, zero (2p+2)N, shared (p+3)N.
        """
        here, size = topology.ranks_per_node, float(workload.bytes)
        state = workload.parameters * (workload.optimizer.state_bytes + self.master_bytes)
        of_rank, of_node = self.owners.shares(topology)
        copies = 1 if self.shares_node else here
        gradients = workload.parameters * self._gradient_bytes(workload) if self._reads(topology) else size
        rank = Memory(size * copies / here, gradients, state * of_rank, size * self.scratch)
        node = Memory(size * copies, gradients * here, state * of_node, size * self.scratch)
        return rank, node

    def paths(self, workload: Workload, topology: Topology) -> tuple[Path, Path]:
        """What gradients travel, and what must wait for the optimizer. Nothing travels where there is one rank."""
        early, late = Path(), Path()
        if topology.ranks == 1:
            return early, late
        for length, times in workload.lengths(topology).items():
            size = length * FLOAT32_BYTES
            if isinstance(self.owners, Everybody):
                early += self._thinned(self.algorithm.all_reduce(size, topology), workload, topology) * times
            else:
                early += self._thinned(self.algorithm.reduce(size, topology), workload, topology) * times
                late += self.algorithm.spread(size, topology) * times
        return early, late

    def _thinned(self, path: Path, workload: Workload, topology: Topology) -> Path:
        """Gradients of fewer bytes: on the wire, and in memory where they are read in place."""
        part = self._gradient_bytes(workload) / FLOAT32_BYTES
        memory = path.memory_bytes * (part if self._reads(topology) else 1)
        return replace(path, link_bytes=path.link_bytes * part, memory_bytes=memory)

    def optimizer_seconds(self, workload: Workload, topology: Topology) -> float:
        """28 bytes a parameter for Adam, at the speed of the node, or of one rank where that is the limit."""
        cached = FLOAT32_BYTES if self._reads(topology) else 0  # the gradient is there from its sum
        traffic = workload.parameters * (workload.optimizer.traffic_bytes - cached + 2 * self.master_bytes)
        of_rank, of_node = self.owners.shares(topology)
        return traffic * max(of_rank / topology.rank_bytes_per_second, of_node / topology.memory_bytes_per_second)


MODELS: Mapping[str, Model] = {
    "star": Model(Star(), Everybody(), scratch=1.0, narrows=False),
    "ring": Model(Ring(), Everybody()),
    "native": Model(Native(), Everybody(), narrows=False),
    "shared": Model(Shared(), EachItsSlice(), shares_node=True),
    "hierarchical": Model(Hierarchical(), EachItsSlice(), shares_node=True),
    "parameter-server": Model(Star(), Root(), scratch=1.0, narrows=False),
    "zero": Model(Ring(), EachItsSlice()),
    "zero-offload": Model(Ring(), EachItsSlice(), master_bytes=4),
}
"""All strategies but ``auto``, which is one of these."""
