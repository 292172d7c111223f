"""The bare all-reduce of each strategy, from 1 KiB up, in rounds; right or wrong is counted element by element."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from distloop.comm import Collective, World
from distloop.comm.mpi import MPI
from distloop.comparing.rounds import slowest, take_turns
from distloop.comparing.specs import AUTO, Spec
from distloop.comparing.sticks import Sticks, all_reduce_bound
from distloop.cost import AlphaBeta
from distloop.report.comparison import Bandwidth
from distloop.strategies import strategy

LEAST_BYTES = 1 << 10
FACTOR = 4
PLACES = 64  # of a vector that take turns, so that a small one is not always found in cache
TURN_SECONDS = 5e-3
MOST_CALLS = 100
WARM_UP_CALLS = 5
PERIOD = 16  # of the small whole numbers that are summed: exact in float32


@dataclass
class Bare:
    """One collective. ``vector`` lies where it is moved fastest, and is as long as the largest size."""

    name: str
    vector: Tensor
    all_reduce: Callable[[Tensor], object]
    places: list[Tensor] = field(default_factory=list)
    calls: int = 1
    seconds: list[float] = field(default_factory=list)

    def cut(self, size_bytes: int) -> None:
        """Make places of that size: once, not at every call."""
        length = size_bytes // self.vector.element_size()
        self.places = list(torch.split(self.vector, length)[: min(PLACES, len(self.vector) // length)])
        self.seconds, self.calls = [], 1

    def turn(self, control: MPI.Intracomm) -> None:
        """So many calls, of which the mean counts; of the slowest rank. Collective."""
        places = [self.places[call % len(self.places)] for call in range(self.calls)]
        control.Barrier()
        begin = time.perf_counter()
        for place in places:
            self.all_reduce(place)
        seconds = time.perf_counter() - begin
        self.seconds.append(slowest(control, seconds) / self.calls)


def bandwidths(bare: Sequence[Bare], world: World, sticks: Sticks, largest_bytes: int, rounds: int) -> list[Bandwidth]:
    """Of each collective, size after size. Collective."""
    control, found = world.comm.control, list[tuple[str, int, list[float], int]]()
    for size in sizes(largest_bytes):
        wrong = {}
        for one in bare:
            one.cut(size)
            wrong[one.name] = wrong_elements(one, control)
            for _ in range(WARM_UP_CALLS):
                one.turn(control)
            one.calls = max(1, min(MOST_CALLS, int(TURN_SECONDS / min(one.seconds))))
            one.seconds.clear()
        take_turns(bare, rounds, lambda one: one.turn(control), sticks.round)
        found += [(one.name, size, one.seconds, wrong[one.name]) for one in bare]
    return _with_models(found, world, sticks)


def _with_models(found: list[tuple[str, int, list[float], int]], world: World, sticks: Sticks) -> list[Bandwidth]:
    fits = {}
    for name in {name for name, *_ in found}:
        own = [(size, float(np.median(seconds))) for other, size, seconds, _ in found if other == name]
        fits[name] = AlphaBeta.fit([size for size, _ in own], [seconds for _, seconds in own])
    machine = sticks.topology
    return [
        Bandwidth(name, size, world.size, seconds, wrong, all_reduce_bound(size, machine), fits[name].seconds(size))
        for name, size, seconds, wrong in sorted(found, key=lambda one: one[1])
    ]


def sizes(largest_bytes: int) -> list[int]:
    """1 KiB, 4 KiB, 16 KiB, ..."""
    found = [LEAST_BYTES]
    while found[-1] * FACTOR <= largest_bytes:
        found.append(found[-1] * FACTOR)
    return found


def wrong_elements(one: Bare, control: MPI.Intracomm) -> int:
    """Over all ranks, of one call on whole numbers that float32 sums exactly; zeros are left. Collective."""
    place = one.places[0]
    pattern = torch.arange(PERIOD, dtype=place.dtype).repeat(-(-len(place) // PERIOD))[: len(place)]
    place.copy_(pattern).add_(control.rank)
    one.all_reduce(place)
    pattern.mul_(control.size).add_(control.size * (control.size - 1) // 2)
    count = np.array([int((place != pattern).sum())])
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
        Bare(kind.__name__.lower(), collective.memory.own(length, torch.float32), collective.all_reduce)
        for kind, collective in kinds.items()
    ]
    if gloo:
        from torch import distributed

        found.append(Bare("gloo", torch.zeros(length), distributed.all_reduce))
    return found
