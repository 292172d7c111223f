"""What the machine can do, measured in about a second, to hold everything else against: B of a node, Bl of a link.

A figure without its yardstick is worth little: on shared machines both change from minute to minute. So rounds can be
taken one at a time, in between those of what is measured. All here is collective over an uncounted communicator.
"""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from distloop.comm.agree import exchange
from distloop.comm.memory import Array, NodeMemory
from distloop.comm.mpi import MPI
from distloop.comm.world import World
from distloop.cost import Topology

Clock = Callable[[], float]

MOST_BYTES = 256 << 20
USUAL_CACHE_BYTES = 32 << 20
MIXED_BYTES = 12  # of an element of float32 in a += b: two reads and a write
CHUNK_BYTES = 1 << 20
IN_FLIGHT = 8
CACHES = Path("/sys/devices/system/cpu")


@dataclass(frozen=True)
class Bandwidth:
    """The median over rounds, and the interquartile range as a part of it: above 0.1 it is not to be trusted."""

    bytes_per_second: float
    spread: float

    @classmethod
    def of(cls, rounds: Sequence[float]) -> Bandwidth:
        """Bytes per second of each round."""
        median = statistics.median(rounds)
        low, _, high = statistics.quantiles(rounds, n=4) if len(rounds) > 1 else (median, median, median)
        return cls(median, (high - low) / median)


@dataclass(frozen=True)
class Link:
    """From one rank to another: half a round trip of a small message, and a stream of large ones, one way."""

    latency_seconds: float
    bandwidth: Bandwidth


class MemoryYardstick:
    """B: bytes per second through the memory of a node while all its ranks stream at once; of the slowest node.

    Each rank adds one vector to another, a += b, in memory that the node shares: two reads and one write of an element,
    all of them counted, since a line that is written has been read before and costs no write-allocate. Vectors of all
    ranks together are 4 times as large as the last-level caches, at most 256 MB. Source: McCalpin, STREAM.
    """

    def __init__(self, comm: MPI.Intracomm, clock: Clock = time.perf_counter) -> None:
        """Allocates and touches the vectors; ``close`` when done."""
        self._comm, self._clock = comm, clock
        self._local = comm.Split_type(MPI.COMM_TYPE_SHARED, comm.rank)
        total_bytes = min(MOST_BYTES, 4 * _cache_bytes(self._local))
        self._elements = max(1, total_bytes // (2 * 4 * self._local.size))
        memory = NodeMemory(self._local)
        self._sums, self._terms = (memory.own(self._elements, torch.float32).fill_(1.0) for _ in range(2))

    def round(self) -> float:
        """One pass: bytes per second. From the first start to the last end, which ranks of a node see on one clock."""
        self._comm.Barrier()
        start = self._clock()
        self._sums.add_(self._terms)
        times = np.array([-start, self._clock()])
        self._local.Allreduce(MPI.IN_PLACE, times, MPI.MAX)
        passed = np.array([MIXED_BYTES * self._elements * self._local.size / float(times.sum())])
        self._comm.Allreduce(MPI.IN_PLACE, passed, MPI.MIN)
        return float(passed[0])

    def close(self) -> None:
        """Give the memory back."""
        del self._sums, self._terms
        self._local.Free()


def memory_bandwidth(comm: MPI.Intracomm, rounds: int = 15) -> Bandwidth:
    """B, in 0.1 to 0.5 seconds; 3 rounds more to warm up."""
    yardstick = MemoryYardstick(comm)
    passed = [yardstick.round() for _ in range(rounds + 3)][3:]
    yardstick.close()
    return Bandwidth.of(passed)


def link(
    comm: MPI.Intracomm, sender: int, receiver: int, seconds: float = 0.5, clock: Clock = time.perf_counter
) -> Link:
    """What goes from ``sender`` to ``receiver``; the other ranks sleep. Takes about ``seconds``."""
    if sender == receiver:
        return Link(0.0, Bandwidth(math.inf, 0.0))
    found: list[float] = []
    if comm.rank == sender:
        found = _Sender(comm, receiver, clock).measure(seconds)
    elif comm.rank == receiver:
        _echo(comm, sender)
    done = comm.Ibarrier()
    while not done.Test():
        time.sleep(1e-3)  # a rank that spins would take a core from the two that are measured
    latency, *passed = exchange(comm, found)[sender]
    return Link(latency, Bandwidth.of(passed))


def far_pair(nodes: Sequence[int]) -> tuple[int, int]:
    """Rank 0 and the first rank of another node, or its neighbour where there is none; ``nodes``: of each rank."""
    far = (rank for rank, node in enumerate(nodes) if node != nodes[0])
    return 0, next(far, min(1, len(nodes) - 1))


def survey(world: World) -> Topology:
    """The machine that this job runs on, for the cost model: about a second.

    Latency inside a node and between nodes, the bandwidth of one link, B of one node. With unequal numbers of ranks the
    fullest node counts.
    """
    control = world.comm.control
    nodes = exchange(control, world.node)
    here = max(nodes.count(node) for node in set(nodes))
    near = next((rank for rank in range(1, world.size) if nodes[rank] == nodes[0]), None)
    local = None if near is None else link(control, 0, near, seconds=0.1)
    remote = None if world.nodes == 1 else link(control, *far_pair(nodes))
    memory = memory_bandwidth(control)
    known = Topology(world.nodes, here, memory_bytes_per_second=memory.bytes_per_second)
    return Topology(
        nodes=known.nodes,
        ranks_per_node=known.ranks_per_node,
        link_bytes_per_second=remote.bandwidth.bytes_per_second if remote else known.link_bytes_per_second,
        latency_seconds=remote.latency_seconds if remote else known.latency_seconds,
        memory_bytes_per_second=known.memory_bytes_per_second,
        local_latency_seconds=local.latency_seconds if local else known.local_latency_seconds,
    )


class _Sender:
    """The side that decides and keeps the time; each exchange begins with how many messages there will be."""

    def __init__(self, comm: MPI.Intracomm, peer: int, clock: Clock) -> None:
        self._comm, self._peer, self._clock = comm, peer, clock
        self._count, self._answer = np.zeros(1, np.int64), np.zeros(1, np.int64)
        self._chunk = np.zeros(CHUNK_BYTES, np.uint8)

    def measure(self, seconds: float) -> list[float]:
        """Latency, then the bandwidth of each burst."""
        trips = [self._burst(0) for _ in range(20)][4:]
        until = self._clock() + seconds / 5
        while self._clock() < until and len(trips) < 1000:
            trips.append(self._burst(0))
        trip = statistics.median(trips)
        messages, took = 1, self._burst(1)
        while took < seconds / 8:
            messages *= 2
            took = self._burst(messages)
        bursts = [self._burst(messages) for _ in range(5)]
        self._say(-1)
        return [trip / 2, *(messages * CHUNK_BYTES / max(took - trip, 1e-9) for took in bursts)]

    def _burst(self, messages: int) -> float:
        start = self._clock()
        self._say(messages)
        requests = [self._comm.Isend(self._chunk, self._peer) for _ in range(messages)]
        for request in requests:
            request.Wait()
        self._comm.Recv(self._answer, self._peer)
        return self._clock() - start

    def _say(self, messages: int) -> None:
        self._count[0] = messages
        self._comm.Send(self._count, self._peer)


def _echo(comm: MPI.Intracomm, peer: int) -> None:
    """The other side: receive what is announced, a few messages ahead, and say when all of it is there."""
    count = np.zeros(1, np.int64)
    inboxes = [np.zeros(CHUNK_BYTES, np.uint8) for _ in range(IN_FLIGHT)]
    while True:
        comm.Recv(count, peer)
        if count[0] < 0:
            return
        _receive(comm, peer, int(count[0]), inboxes)
        comm.Send(count, peer)


def _receive(comm: MPI.Intracomm, peer: int, messages: int, inboxes: Sequence[Array]) -> None:
    pending = [comm.Irecv(inboxes[turn], peer) for turn in range(min(messages, IN_FLIGHT))]
    for turn in range(messages):
        pending[turn % IN_FLIGHT].Wait()
        if turn + IN_FLIGHT < messages:
            pending[turn % IN_FLIGHT] = comm.Irecv(inboxes[turn % IN_FLIGHT], peer)


def _cache_bytes(local: MPI.Comm) -> int:
    """Of the last-level caches that the cores of these ranks have together, each counted once."""
    told = exchange(local, [_last_level(CACHES / f"cpu{core}") for core in sorted(os.sched_getaffinity(0))])
    caches = {cores: size for answer in told for cores, size in answer if size}
    return sum(caches.values()) or USUAL_CACHE_BYTES


def _last_level(core: Path) -> tuple[str, int]:
    """Which cores share it, as Linux writes it, and its bytes; 0 where Linux does not tell."""
    try:
        cache = max(core.glob("cache/index*"), key=lambda index: int((index / "level").read_text()))
        size = (cache / "size").read_text().strip()
        scale = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(size[-1:], 1)
        return (cache / "shared_cpu_list").read_text().strip(), int(size.rstrip("KMG")) * scale
    except (OSError, ValueError):
        return "", 0
