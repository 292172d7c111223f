"""``auto``: which way of moving gradients is the quickest here, by trying them; less than a second, then remembered."""

from __future__ import annotations

import math
import time
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from distloop.comm.agree import at_root
from distloop.comm.collective import Collective
from distloop.comm.counted import CountedComm, free
from distloop.comm.memory import Array
from distloop.comm.mpi import MPI
from distloop.comm.shared import Summed
from distloop.comm.trials import Trials, cluster_of, default_folder
from distloop.comm.world import World
from distloop.errors import ConfigError
from distloop.partition import Partition

Clock = Callable[[], float]

SIZES_BYTES = tuple(1 << power for power in range(12, 27, 2))
SAFE_BYTES = 1 << 18  # tried in any case, however slow the network is; and what is slow there stays slow
NODE_BYTES = 1 << 30  # what vectors of a trial may take on one node
HOPELESS = 4.0  # a candidate so many times slower than the best at SAFE_BYTES and more is not tried at larger sizes
TIE = 1.05  # within this of the best, the earlier candidate is taken: a difference that small is noise
ROUNDS, SLOW_ROUNDS, SLOW_SECONDS = 4, 2, 0.01
TIMED_SECONDS = 5e-4  # short calls are repeated, so that a clock can tell
BLOCK_ELEMENTS = 1 << 19  # as distloop.parts cuts what it sums
PASS_BYTES = 12  # of an element in a += b


class Mover(Protocol):
    """What of an ``Ownership`` is tried: the collective, who owns what, and the two ways."""

    collective: Collective
    divides: bool

    def partition(self, cuts: Sequence[int]) -> Partition | None:
        """Who owns what of a vector that may be cut at ``cuts``."""

    def owned(self, partition: Partition | None, length: int) -> slice:
        """What this rank owns."""

    def reducing(self, gradients: Array, partition: Partition | None) -> Callable[[], None]:
        """Sums to their owners."""

    def gathering(self, parameters: Array, partition: Partition | None) -> Callable[[], None]:
        """What brings parameters from their owners, again and again."""


Candidates = Mapping[str, Callable[[CountedComm], Mover]]
"""By the strategy's name; of two as quick the earlier one is taken, so the one that needs less memory comes first."""


@dataclass(frozen=True)
class Choice:
    """What was chosen, and why: the seconds that each candidate needs to move this model and step the optimizer."""

    name: str
    seconds: dict[str, float]
    trials: Trials = field(repr=False)
    took_seconds: float

    def describe(self) -> str:
        """For the start line: ``auto -> shared (1.20 ms; zero 3.10 ms; tried in 0.6 s)``."""
        others = sorted((seconds, name) for name, seconds in self.seconds.items() if name != self.name)
        told = [_milliseconds(self.seconds[self.name])] if self.name in self.seconds else []
        told += [f"{name} {_milliseconds(seconds)}" for seconds, name in others[:2]]
        told += [f"tried in {self.took_seconds:.1f} s" if self.took_seconds else "as remembered"] if told else []
        return f"auto → {self.name}" + (f" ({'; '.join(told)})" if told else "")

    def as_dict(self) -> dict[str, Any]:
        """For summary.json: the table by candidate and size, [seconds to move, seconds of one pass over what is owned].

        ``seconds``: predicted for this model, optimizer included.
        """
        return {
            "chosen": self.name,
            "seconds": self.seconds,
            "tried_in_seconds": self.took_seconds,
            "table": self.trials.as_dict(),
        }


def choose(
    world: World,
    size_bytes: int,
    traffic_bytes: int,
    candidates: Candidates,
    bucket_bytes: int | None = None,
    facts: Mapping[str, Any] | None = None,
    folder: Path | None = None,
    budget_seconds: float = 0.8,
    clock: Clock = time.perf_counter,
) -> Choice:
    """The quickest candidate for float32 parameters of ``size_bytes``; collective, and the same on all ranks.

    ``traffic_bytes``: what the optimizer moves through memory for one parameter (28 for Adam). ``bucket_bytes``: in
    which vectors travel between nodes. Times are the slowest rank's; rank 0 decides for all. What this cluster has
    shown before lies in ``folder``, and only what is missing there is tried. ``facts``: what else must be the same for
    that to hold, such as the type in which gradients travel. Of a single candidate nothing is tried.
    """
    control = world.comm.control
    if world.size == 1 or not size_bytes or len(candidates) == 1:
        return Choice(next(iter(candidates)), {}, Trials(), 0.0)
    folder, cluster = folder or default_folder(), cluster_of(world) | dict(facts or {})
    trials = Trials.from_dict(at_root(control, lambda: Trials.remembered(folder, cluster).as_dict()))
    trial = _Trial(control, candidates, trials, clock, budget_seconds)
    bucket_bytes = min(size_bytes, bucket_bytes or size_bytes) if world.nodes > 1 else size_bytes
    took = trial.run(_sizes(bucket_bytes, world.local_size))
    if took:
        at_root(control, lambda: trials.remember(folder, cluster))
    decide = partial(_decide, trials, candidates, size_bytes, traffic_bytes, bucket_bytes)
    name, seconds = at_root(control, decide)
    return Choice(name, seconds, trials, took)


def _sizes(size_bytes: int, local_size: int) -> list[int]:
    """The next below and above, as far as there is memory for them, and before them one that is safe."""
    most = max(SAFE_BYTES, NODE_BYTES // (4 * local_size))
    allowed = [size for size in SIZES_BYTES if size <= most]
    above = min(bisect_left(allowed, size_bytes), len(allowed) - 1)
    around = allowed[max(0, above - 1) : above + 1]
    return sorted({min(SAFE_BYTES, around[0]), *around})


def _decide(
    trials: Trials, candidates: Candidates, size_bytes: int, traffic_bytes: int, bucket_bytes: int
) -> tuple[str, dict[str, float]]:
    """The first of those that are as quick as the quickest."""
    passes = traffic_bytes / PASS_BYTES
    seconds = {
        name: trials.seconds(name, size_bytes, passes, bucket_bytes) for name in candidates if trials.knows(name)
    }
    if not seconds:
        raise ConfigError(f"--strategy auto: none of {', '.join(candidates)} can run here. Expected one that can")
    least = min(seconds.values())
    return next(name for name, needed in seconds.items() if needed <= least * TIE), seconds


class _Trial:
    """Tries what is not known yet, small sizes first, until the time is up."""

    def __init__(
        self, control: MPI.Intracomm, candidates: Candidates, trials: Trials, clock: Clock, budget_seconds: float
    ) -> None:
        self._control, self._candidates, self._trials = control, candidates, trials
        self._clock, self._budget = clock, budget_seconds
        self._movers: dict[str, Mover] = {}

    def run(self, sizes: Sequence[int]) -> float:
        """Seconds taken, the same on all ranks; 0 where all was known."""
        if not any(self._missing(size) for size in sizes):
            return 0.0
        start, spent = self._clock(), 0.0
        counting = CountedComm(self._control)
        for size in sizes:
            missing = self._missing(size)
            if size > SAFE_BYTES and spent + self._expected(missing, size) > self._budget:
                break
            for name in missing:
                self._one(name, size, counting)
            (spent,) = self._slowest([self._clock() - start])
        self._movers.clear()
        free(counting)
        return spent

    def _missing(self, size: int) -> list[str]:
        hopeless = self._trials.hopeless(self._candidates, size, HOPELESS)
        return [name for name in self._candidates if not self._trials.has(name, size) and name not in hopeless]

    def _expected(self, names: Sequence[str], size: int) -> float:
        """Seconds, by what is known."""
        known = [self._trials.seconds(name, size, 1.0, size) for name in names if self._trials.knows(name)]
        return sum(seconds * (_rounds(seconds) + 2) for seconds in known)

    def _one(self, name: str, size: int, counting: CountedComm) -> None:
        mover = self._mover(name, counting)
        if mover is None:
            self._trials.impossible.add(name)
            return
        move, touch = _step(mover, size // 4)
        for function in (move, touch):
            function()  # the first call allocates and agrees
        (once,) = self._slowest(self._timed(move, 1))
        often = max(1, min(20, int(TIMED_SECONDS / max(once, 1e-9))))
        rounds = [self._timed(move, often) + self._timed(touch, often) for _ in range(_rounds(once))]
        moved, touched = (min(times) for times in zip(*self._pairs(rounds), strict=True))
        self._trials.add(name, size, moved, touched)

    def _timed(self, function: Callable[[], None], often: int) -> list[float]:
        self._control.Barrier()
        start = self._clock()
        for _ in range(often):
            function()
        return [(self._clock() - start) / often]

    def _pairs(self, rounds: Sequence[list[float]]) -> list[list[float]]:
        """Of the slowest rank. The quickest round counts: what disturbs only ever adds."""
        flat = self._slowest([seconds for pair in rounds for seconds in pair])
        return [flat[index : index + 2] for index in range(0, len(flat), 2)]

    def _slowest(self, seconds: list[float]) -> list[float]:
        array = np.array(seconds, dtype=np.float64)
        self._control.Allreduce(MPI.IN_PLACE, array, MPI.MAX)
        return [float(value) for value in array]

    def _mover(self, name: str, counting: CountedComm) -> Mover | None:
        """None where it cannot run, such as shared memory between nodes."""
        if name not in self._movers:
            try:
                self._movers[name] = self._candidates[name](counting)
            except ConfigError as error:
                if not error.everywhere:
                    raise
                return None
        return self._movers[name]


def _rounds(seconds: float) -> int:
    return ROUNDS if seconds < SLOW_SECONDS else SLOW_ROUNDS


def _step(mover: Mover, length: int) -> tuple[Callable[[], None], Callable[[], None]]:
    """What a step moves of ``length`` elements, and one pass over what this rank's optimizer has to touch."""
    memory, partition = mover.collective.memory, mover.partition(range(length + 1))
    gradients = memory.own(length, torch.float32)
    parameters = memory.common(length, torch.float32) if mover.divides else gradients
    sums, wire = gradients.numpy(), parameters.numpy()
    owned = mover.owned(partition, length)
    peers = mover.collective.readable(sums) if mover.divides else None
    reduce = mover.reducing(sums, partition) if peers is None else _summing([peer[owned] for peer in peers])
    state, taken = torch.zeros(owned.stop - owned.start), gradients[owned]

    gather = mover.gathering(wire, partition)

    def move() -> None:
        reduce()
        gather()

    def touch() -> None:
        state.add_(taken)

    return move, touch


def _summing(parts: Sequence[Array]) -> Callable[[], None]:
    """As a learner does it where it can read the others' gradients: block by block, into the cache."""
    length = len(parts[0])
    cuts = [slice(start, min(start + BLOCK_ELEMENTS, length)) for start in range(0, length, BLOCK_ELEMENTS)]
    blocks = [Summed([part[cut] for part in parts]) for cut in cuts]
    total = torch.empty(min(length, BLOCK_ELEMENTS))

    def reduce() -> None:
        for block in blocks:
            block.into(total[: len(block.parts[0])])

    return reduce


def _milliseconds(seconds: float) -> str:
    digits = max(0, 2 - math.floor(math.log10(max(seconds * 1e3, 1e-3))))
    return f"{seconds * 1e3:.{min(digits, 3)}f} ms"
