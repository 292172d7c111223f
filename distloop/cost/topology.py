"""What a prediction starts from: the machine in six numbers, and what a step has to do."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

ONE_CORE_BYTES_PER_SECOND = 12e9  # what one core draws from memory while the others rest, on machines of the 2020s
FLOAT32_BYTES = 4


@dataclass(frozen=True)
class Topology:
    """``nodes`` with ``ranks_per_node`` each, numbered node by node. Each node has one link, both ways at once.

    ``memory_bytes_per_second`` is that of a node with all its ranks streaming (``comm.yardstick`` measures it), as
    ``latency_seconds`` and ``link_bytes_per_second`` are those of one message between two nodes.
    """

    nodes: int = 1
    ranks_per_node: int = 1
    link_bytes_per_second: float = 1.25e9
    latency_seconds: float = 5e-6
    memory_bytes_per_second: float = 200e9
    local_latency_seconds: float = 1e-6
    message_seconds: float = 12e-6
    """A core's work for one message, sent and received: calls, waits, Python around them (LogP's overhead o).

    Measured with the ring in segments of 4 KiB, MPICH, 2 ranks on 2 cores of an EPYC.
    """
    write_allocate: int = 1
    """1 if a store that misses the cache first reads the line that it overwrites, else 0."""

    @property
    def ranks(self) -> int:
        """Of all nodes."""
        return self.nodes * self.ranks_per_node

    @property
    def rank_bytes_per_second(self) -> float:
        """What one rank draws from memory while the others wait for it."""
        alone = min(self.memory_bytes_per_second, ONE_CORE_BYTES_PER_SECOND)
        return max(self.memory_bytes_per_second / self.ranks_per_node, alone)

    def node_of(self, rank: int) -> int:
        """Where ``rank`` runs."""
        return rank // self.ranks_per_node

    def with_ranks(self, ranks: int) -> Topology:
        """The same cores with so many ranks on them: one node is filled first; ``ranks`` fills whole nodes then."""
        here = min(ranks, self.ranks_per_node)
        bandwidth = min(self.memory_bytes_per_second, here * self.rank_bytes_per_second)
        return replace(self, nodes=ranks // here, ranks_per_node=here, memory_bytes_per_second=bandwidth)


@dataclass(frozen=True)
class OptimizerCost:
    """Of one float32 parameter: bytes of state, and bytes through memory in a fused step, gradient and all."""

    state_bytes: int
    traffic_bytes: int


OPTIMIZERS = {
    "adam": OptimizerCost(state_bytes=8, traffic_bytes=28),  # reads w, g, m, v; writes w, m, v
    "momentum": OptimizerCost(state_bytes=4, traffic_bytes=20),  # reads w, g, m; writes w, m
    "sgd": OptimizerCost(state_bytes=0, traffic_bytes=12),  # reads w, g; writes w
}


@dataclass(frozen=True)
class Workload:
    """One step: so many float32 parameters, an optimizer, and a rank's seconds of forward and backward.

    ``overlap`` of the communication is hidden behind the backward where a network is in the way, as IMB defines it:
    hidden seconds over the lesser of the two. ``buckets``: the lengths, in elements, in which the vector then travels.
    ``gradient_bytes``: of an element, 2 where gradients travel as bfloat16.
    """

    parameters: int
    optimizer: OptimizerCost = OPTIMIZERS["adam"]
    compute_seconds: float = 0.0
    overlap: float = 0.7
    buckets: tuple[int, ...] | None = None
    gradient_bytes: int = FLOAT32_BYTES

    @property
    def bytes(self) -> int:
        """N: the parameters, or their gradients, as float32."""
        return FLOAT32_BYTES * self.parameters

    @property
    def backward_seconds(self) -> float:
        """Behind which gradients may travel: two of three matrix products are the backward's."""
        return self.compute_seconds * 2 / 3

    def lengths(self, topology: Topology) -> Counter[int]:
        """How often which length travels: on one node the whole vector, else buckets as ``distloop.parts`` cuts them.

        Those end where a parameter does; unless ``buckets`` says so, they are taken to be equal.
        """
        if topology.nodes == 1:
            return Counter([self.parameters])
        if self.buckets is not None:
            return Counter(self.buckets)
        elements = max(1 << 20, min(25 << 20, self.bytes // 16)) // FLOAT32_BYTES
        whole, rest = divmod(self.parameters, elements)
        return Counter({elements: whole, rest: 1})
