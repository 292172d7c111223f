"""What memory and wire can do, measured in the same rounds as the contenders, and what follows: bounds, predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from distloop.comm import World, exchange
from distloop.comm.yardstick import Bandwidth, MemoryYardstick, far_pair, link, survey
from distloop.cost import MODELS, OPTIMIZERS, OptimizerCost, Topology, Workload, scaling, timing
from distloop.report.comparison import Scaling, Yardstick

LINK_SECONDS = 0.15
USUAL_LINK = 25e9 / 8
_KINDS = {
    "Adam": "adam",
    "AdamW": "adam",
    "NAdam": "adam",
    "RAdam": "adam",
    "Adamax": "adam",
    "RMSprop": "momentum",
    "Adagrad": "momentum",
}


class Sticks:
    """Measures once a round. Collective, as is every method but ``topology`` and ``told``."""

    def __init__(self, world: World) -> None:
        self.world, self._control = world, world.comm.control
        self._known = survey(world)
        self._memory = MemoryYardstick(self._control)
        self._memory_rounds, self._link_rounds = list[float](), list[float]()
        self._pair = far_pair(exchange(self._control, world.node))

    def round(self) -> None:
        """Memory of a node; a link too, where there is one."""
        self._memory_rounds.append(self._memory.round())
        if self.world.nodes > 1:
            found = link(self._control, *self._pair, seconds=LINK_SECONDS).bandwidth.bytes_per_second
            self._link_rounds.append(found)

    def close(self) -> None:
        """Give its memory back."""
        self._memory.close()

    @property
    def topology(self) -> Topology:
        """With the medians of the rounds."""
        memory = Bandwidth.of(self._memory_rounds).bytes_per_second if self._memory_rounds else None
        wire = Bandwidth.of(self._link_rounds).bytes_per_second if self._link_rounds else None
        known = self._known
        return replace(
            known,
            memory_bytes_per_second=memory or known.memory_bytes_per_second,
            link_bytes_per_second=wire or known.link_bytes_per_second,
        )

    @property
    def told(self) -> list[Yardstick]:
        """For the reports."""
        rounds = {"memory of a node": self._memory_rounds, "link between two nodes, one way": self._link_rounds}
        found = {name: Bandwidth.of(values) for name, values in rounds.items() if values}
        return [Yardstick(name, one.bytes_per_second, one.spread) for name, one in found.items()]


def optimizer_cost(optimizer: torch.optim.Optimizer) -> OptimizerCost | None:
    """By the state that it keeps; None for one that the cost model does not know."""
    name = type(optimizer).__name__
    if name == "SGD":
        return OPTIMIZERS["momentum" if optimizer.defaults.get("momentum") else "sgd"]
    return OPTIMIZERS[_KINDS[name]] if name in _KINDS else None


@dataclass(frozen=True)
class Model:
    """The cost model, with what was measured here put in."""

    workload: Workload
    topology: Topology

    def step_seconds(self, strategy: str) -> float | None:
        """None for what the model does not know, or what cannot run here."""
        model = MODELS.get(strategy)
        if model is None or not model.possible(self.topology):
            return None
        return timing(strategy, self.workload, self.topology).step

    @property
    def bound_seconds(self) -> float:
        """The least that any strategy can take besides computing.

        On one node each gradient is read by whoever sums it, and the optimizer makes one pass without reading it again:
        (p + 6) N / B for Adam. Between nodes 2 (M-1)/M N / Bl, which a node's link must carry at the least.
        """
        size, here, machine = self.workload.bytes, self.topology.ranks_per_node, self.topology
        passes = here + self.workload.optimizer.traffic_bytes / 4 - 1
        wire = 2 * (machine.nodes - 1) / machine.nodes * size / machine.link_bytes_per_second
        return max(passes * size / machine.memory_bytes_per_second, wire)

    def scaling(self, strategies: Sequence[str], link_bytes: float | None) -> Scaling:
        """To 4,096 ranks over the network of this machine, or one of so many bytes a second."""
        found = link_bytes or (self.topology.link_bytes_per_second if self.topology.nodes > 1 else USUAL_LINK)
        machine = replace(self.topology, link_bytes_per_second=found, nodes=1)
        seconds: dict[str, Mapping[int, float]] = {}
        for name in strategies:
            ranks = [count for count in scaling(name, self.workload, machine) if count > 1]
            if ranks and ranks[-1] > machine.ranks_per_node:
                seconds[name] = {count: timing(name, self.workload, machine.with_ranks(count)).step for count in ranks}
        alone = timing("ring", self.workload, machine).lone
        per_node = f"{machine.ranks_per_node} a node, {found * 8 / 1e9:.3g} Gbit/s between nodes"
        return Scaling(per_node, seconds, alone)


def bound_seconds(operation: str, size_bytes: int, topology: Topology) -> float:
    """The least that memory of a node, or the link of one, leave. N bytes, p ranks of a node, M nodes.

    Memory: an all-reduce reads each slice p times and writes it p times, 2pN; a reduce-scatter writes it once, (p+1)N;
    in an all-gather p-1 ranks read it and write it. Link, one way: (M-1)/M N, and twice that for an all-reduce.
    """
    ranks, nodes = topology.ranks_per_node, topology.nodes
    passes = {"all-reduce": 2 * ranks, "reduce-scatter": ranks + 1, "all-gather": 2 * (ranks - 1)}[operation]
    crossings = (2 if operation == "all-reduce" else 1) * (nodes - 1) / nodes
    memory = passes * size_bytes / topology.memory_bytes_per_second
    return max(memory, crossings * size_bytes / topology.link_bytes_per_second)
