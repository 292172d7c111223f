"""The bare collectives of the strategies, from 1 KiB up, in rounds; what is wrong is counted element by element."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import Tensor

from distloop.comm import Collective, World
from distloop.comm.mpi import MPI
from distloop.comparing.rounds import slowest, take_turns
from distloop.comparing.specs import AUTO, Spec
from distloop.comparing.sticks import Sticks, bound_seconds
from distloop.cost import AlphaBeta
from distloop.partition import Partition
from distloop.report.comparison import OPERATIONS, Bandwidth
from distloop.strategies import strategy

LEAST_BYTES = 1 << 10
FACTOR = 4
PLACES = 64  # of a vector that take turns, so that a small one is not always found in cache
TURN_SECONDS = 5e-3
MOST_CALLS = 100
WARM_UP_CALLS = 5
PERIOD = 16  # of the small whole numbers that are summed: exact in float32


Call = Callable[[Tensor], object]


@dataclass
class Bare:
    """One collective. ``vector`` lies where it is moved fastest, and is as long as the largest size.

    ``operations`` make, for a partition of a place, what is called with that place.
    """

    name: str
    vector: Tensor
    operations: Mapping[str, Callable[[Partition], Call]]
    places: list[Tensor] = field(default_factory=list)
    calls: int = 1
    seconds: list[float] = field(default_factory=list)

    def prepare(self, operation: str, size_bytes: int, control: MPI.Intracomm) -> int:
        """Make places of that size, and touch them all; the number of wrong elements. Collective."""
        length = size_bytes // self.vector.element_size()
        self.places = list(torch.split(self.vector, length)[: min(PLACES, len(self.vector) // length)])
        partition = Partition.even(length, control.size)
        self.call = self.operations[operation](partition)
        wrong = wrong_elements(operation, self.places[0], self.call, partition, control)
        self.calls = len(self.places)
        self.turn(control)
        self.seconds, self.calls = [], 1
        for _ in range(WARM_UP_CALLS):
            self.turn(control)
        self.calls = max(1, min(MOST_CALLS, int(TURN_SECONDS / min(self.seconds))))
        self.seconds = []
        return wrong

    def turn(self, control: MPI.Intracomm) -> None:
        """So many calls, of which the mean counts; of the slowest rank. Collective."""
        places, call = [self.places[number % len(self.places)] for number in range(self.calls)], self.call
        control.Barrier()
        begin = time.perf_counter()
        for place in places:
            call(place)
        seconds = time.perf_counter() - begin
        self.seconds.append(slowest(control, seconds) / self.calls)


@dataclass(frozen=True)
class _Found:
    name: str
    operation: str
    size_bytes: int
    seconds: list[float]
    wrong: int


def bandwidths(bare: Sequence[Bare], world: World, sticks: Sticks, largest_bytes: int, rounds: int) -> list[Bandwidth]:
    """Of each collective, operation after operation, size after size. Collective."""
    control, found = world.comm.control, list[_Found]()
    for operation in OPERATIONS:
        able = [one for one in bare if operation in one.operations]
        for size in sizes(largest_bytes):
            wrong = [one.prepare(operation, size, control) for one in able]
            take_turns(able, rounds, lambda one: one.turn(control), sticks.round)
            found += [
                _Found(one.name, operation, size, one.seconds, count) for one, count in zip(able, wrong, strict=True)
            ]
    return _with_models(found, world, sticks)


def _with_models(found: list[_Found], world: World, sticks: Sticks) -> list[Bandwidth]:
    """Each with the bound, and with what a line through all sizes of the same collective says of this one."""
    machine, told = sticks.topology, list[Bandwidth]()
    for one in found:
        own = [other for other in found if (other.name, other.operation) == (one.name, one.operation)]
        fit = AlphaBeta.fit([other.size_bytes for other in own], [median(other.seconds) for other in own])
        bound = bound_seconds(one.operation, one.size_bytes, machine)
        predicted = fit.seconds(one.size_bytes)
        told.append(
            Bandwidth(
                one.name, one.size_bytes, world.size, one.seconds, one.wrong, bound, predicted, operation=one.operation
            )
        )
    return told


def sizes(largest_bytes: int) -> list[int]:
    """1 KiB, 4 KiB, 16 KiB, ..."""
    found = [LEAST_BYTES]
    while found[-1] * FACTOR <= largest_bytes:
        found.append(found[-1] * FACTOR)
    return found


def wrong_elements(operation: str, place: Tensor, call: Call, partition: Partition, control: MPI.Intracomm) -> int:
    """Over all ranks, of one call on whole numbers that float32 sums exactly; zeros are left. Collective."""
    rank, ranks = control.rank, control.size
    pattern = torch.arange(PERIOD, dtype=place.dtype).repeat(-(-len(place) // PERIOD))[: len(place)]
    own = partition.slice_of(rank)
    if operation == "all-gather":
        place.fill_(-1.0)[own] = pattern[own] + rank
        for owner in range(ranks):
            pattern[partition.slice_of(owner)] += owner
    else:
        torch.add(pattern, rank, out=place)
        pattern.mul_(ranks).add_(ranks * (ranks - 1) // 2)
    call(place)
    looked_at = own if operation == "reduce-scatter" else slice(None)
    count = np.array([int((place[looked_at] != pattern[looked_at]).sum())])
    control.Allreduce(MPI.IN_PLACE, count)
    place.zero_()
    return int(count[0])


def fitting_bytes(world: World, wanted_bytes: int, vectors: int) -> int:
    """The largest size of which so many vectors a rank leave half of the free memory free. Collective."""
    room = np.array([_available_bytes() // (2 * world.local_size * max(1, vectors))])
    world.comm.control.Allreduce(MPI.IN_PLACE, room, MPI.MIN)
    return max(LEAST_BYTES, min(wanted_bytes, int(room[0])))


def _available_bytes() -> int:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return 1 << 33
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), 1 << 33)


def bare_collectives(specs: Sequence[Spec], world: World, largest_bytes: int, gloo: bool) -> list[Bare]:
    """One of each kind that the strategies use, each with a vector in its own memory. Collective."""
    kinds: dict[type[Collective], Collective] = {}
    for spec in specs:
        if not spec.approximate and spec.config.strategy != AUTO:
            collective = strategy(spec.config.strategy, world.comm)[0].collective
            kinds.setdefault(type(collective), collective)
    length = sizes(largest_bytes)[-1] // 4
    found = [
        Bare(kind.__name__.lower(), collective.memory.own(length, torch.float32).zero_(), _operations(collective))
        for kind, collective in kinds.items()
    ]
    if gloo:
        from torch import distributed

        found.append(Bare("gloo", torch.zeros(length), {"all-reduce": lambda partition: distributed.all_reduce}))
    return found


def _operations(collective: Collective) -> dict[str, Callable[[Partition], Call]]:
    return {
        "all-reduce": lambda partition: collective.all_reduce,
        "reduce-scatter": lambda partition: partial(collective.reduce_scatter, partition=partition),
        "all-gather": lambda partition: partial(collective.all_gather, partition=partition),
    }
