"""What ranks on several hosts see and send, as JSON from rank 0: python -m tests.hosts.probe, under mpirun.

Each rank reads the counters of its own host's interface: a network namespace has its own /proc/net/dev.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np

from distloop.comm import CountedComm, Hierarchical, Native, Ring, Star, World, exchange
from distloop.comm.mpi import MPI
from distloop.comm.wire import Bf16
from distloop.partition import Partition
from tests.hosts.cluster import counter_of

ELEMENTS = 1_000_000


def moved(comm: CountedComm, call: Callable[[], None]) -> list[Any]:
    """What ``call`` makes this rank send, by the transport's count, and its host, by the interface's."""
    comm.control.Barrier()
    sent, passed = comm.sent.copy(), counter_of("self")
    comm.control.Barrier()
    call()
    comm.control.Barrier()
    delta = counter_of("self") - passed
    comm.control.Barrier()
    return [(comm.sent - sent).bytes, delta.sent, delta.received]


def main() -> None:
    """Every algorithm once, on vectors whose sums are known."""
    world = World.start()
    comm, partition = world.comm, Partition.even(ELEMENTS, world.size)
    collectives = {
        "star": Star(comm),
        "ring": Ring(comm),
        "ring-bf16": Ring(comm, wire=Bf16()),
        "native": Native(comm),
        "hierarchical": Hierarchical(comm),
    }
    flat = np.empty(ELEMENTS, np.float32)
    told: dict[str, Any] = {"who": [world.node, world.nodes, world.local_rank, world.local_size]}
    told |= {"host": MPI.Get_processor_name(), "overlaps": [it.overlaps for it in collectives.values()]}
    for name, collective in collectives.items():
        flat.fill(world.rank + 1)
        told[name] = moved(comm, lambda it=collective: it.all_reduce(flat))  # type: ignore[misc]
        assert (flat == world.size * (world.size + 1) // 2).all(), name
    for name in ("ring", "hierarchical"):
        flat.fill(world.rank + 1)

        def both_halves(it: Any = collectives[name]) -> None:
            it.reduce_scatter(flat, partition)
            it.all_gather(flat, partition)

        told[f"zero over {name}"] = moved(comm, both_halves)
        assert (flat == world.size * (world.size + 1) // 2).all(), name
    said = exchange(comm.control, told)
    world.say(json.dumps(said))


if __name__ == "__main__":
    main()
