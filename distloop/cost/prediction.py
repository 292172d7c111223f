"""From a strategy's model to a step: bytes, memory, seconds, and how they grow with the number of ranks."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from distloop.cost.algorithms import Path
from distloop.cost.models import MODELS, Memory
from distloop.cost.topology import Topology, Workload
from distloop.cost.traffic import Sends


@dataclass(frozen=True)
class Sending:
    """Of one step. Bytes and messages are the busiest rank's; ``node_bytes`` leave the busiest node.

    ``by_library``: they are handed to the MPI library, which decides what it sends; ``node_bytes`` is an estimate then.
    All else is exact.
    """

    rank_bytes: int
    messages: int
    node_bytes: int
    by_library: bool


@dataclass(frozen=True)
class Timing:
    """Seconds of one step. ``exposed`` is what of the communication is not hidden behind the backward.

    ``lone``: the same step in p independent copies at once, without synchronisation; each has its own optimizer.
    """

    compute: float
    communication: float
    exposed: float
    optimizer: float
    lone: float

    @property
    def step(self) -> float:
        """All of it."""
        return self.compute + self.exposed + self.optimizer

    @property
    def efficiency(self) -> float:
        """Lone over synchronised; above 1 where ranks share the optimizer's work."""
        return self.lone / self.step if self.step else 1.0


@dataclass(frozen=True)
class Prediction:
    """One strategy's step."""

    strategy: str
    sending: Sending
    rank_memory: Memory
    node_memory: Memory
    timing: Timing
    limit: str
    """What of the communication takes the longest, in words."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON, sums included."""
        timing = asdict(self.timing) | {"step": self.timing.step, "efficiency": self.timing.efficiency}
        return {
            "strategy": self.strategy,
            "sent": asdict(self.sending),
            "rank_memory_bytes": asdict(self.rank_memory) | {"total": self.rank_memory.total},
            "node_memory_bytes": asdict(self.node_memory) | {"total": self.node_memory.total},
            "seconds": timing,
            "limit": self.limit,
        }


def predict(strategy: str, workload: Workload, topology: Topology) -> Prediction | None:
    """None where the strategy cannot run there."""
    model = MODELS[strategy]
    if not model.possible(topology):
        return None
    early, late = model.paths(workload, topology)
    rank_memory, node_memory = model.memory(workload, topology)
    return Prediction(
        strategy,
        _sending(model.sends(workload, topology), early + late, topology),
        rank_memory,
        node_memory,
        timing(strategy, workload, topology),
        (early + late).limit(topology),
    )


def timing(strategy: str, workload: Workload, topology: Topology) -> Timing:
    """The seconds alone, which need no count of messages."""
    model = MODELS[strategy]
    early, late = (path.seconds(topology) for path in model.paths(workload, topology))
    hidden = workload.overlap * min(early, workload.backward_seconds) if topology.nodes > 1 else 0.0
    alone = MODELS["ring"].optimizer_seconds(workload, topology)
    return Timing(
        compute=workload.compute_seconds,
        communication=early + late,
        exposed=early + late - hidden,
        optimizer=model.optimizer_seconds(workload, topology),
        lone=workload.compute_seconds + alone,
    )


def scaling(strategy: str, workload: Workload, topology: Topology, most: int = 4096) -> dict[int, float]:
    """Efficiency by number of ranks: 1, 2, 4, ... up to a full node, then 1, 2, 4, ... nodes, up to ``most`` ranks.

    Weak scaling: each rank keeps its rows, so ``workload.compute_seconds`` stays.
    """
    node = topology.ranks_per_node
    inside = [ranks for ranks in _powers(node) if ranks < node]
    whole = [node * nodes for nodes in _powers(most // node)]
    machines = {ranks: topology.with_ranks(ranks) for ranks in inside + whole if ranks <= most}
    possible = {ranks: machine for ranks, machine in machines.items() if MODELS[strategy].possible(machine)}
    return {ranks: timing(strategy, workload, machine).efficiency for ranks, machine in possible.items()}


def _powers(most: int) -> list[int]:
    return [2**power for power in range(most.bit_length())]


def _sending(sends: Sends, path: Path, topology: Topology) -> Sending:
    leaving, by_rank = sends.leaving(topology), sends.by_rank
    return Sending(
        rank_bytes=max(sent.bytes for sent in by_rank),
        messages=max(sent.messages for sent in by_rank),
        node_bytes=round(path.link_bytes) if leaving is None else max(leaving),
        by_library=sends.by_library,
    )
