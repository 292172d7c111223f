"""Rounds in which all have their turn, so that what disturbs the machine disturbs all alike."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from distloop.comm import Traffic, World
from distloop.comm.mpi import MPI
from distloop.comparing.runners import Runner

Turn = TypeVar("Turn")

WARM_UP_STEPS = 5
SECONDS_PER_ROUND = 1.5
MOST_STEPS = 200


@dataclass
class Timed:
    """What the rounds have found of one runner on this rank; seconds of a step are the slowest rank's."""

    step_seconds: list[float] = field(default_factory=list)
    sent: Traffic = field(default_factory=Traffic)
    steps: int = 0


def slowest(control: MPI.Intracomm, seconds: float) -> float:
    """Over the ranks. Collective."""
    longest = np.array([seconds])
    control.Allreduce(MPI.IN_PLACE, longest, MPI.MAX)
    return float(longest[0])


def steps_per_round(step_seconds: Sequence[float], rounds: int, steps: int | None) -> int:
    """As many as were asked for in all, or as fit into a second and a half."""
    if steps is not None:
        return max(1, -(-steps // rounds))
    return max(1, min(MOST_STEPS, int(SECONDS_PER_ROUND / sum(step_seconds))))


def take_turns(
    contenders: Sequence[Turn], rounds: int, turn: Callable[[Turn], None], between: Callable[[], None]
) -> None:
    """``turn`` of each, ``rounds`` times, every time beginning with another one; ``between``: after each round."""
    gc.collect()
    gc.disable()  # a collection falls into somebody's turn, and costs as long as all objects of all contenders
    try:
        for number in range(rounds):
            first = number % len(contenders)
            for contender in [*contenders[first:], *contenders[:first]]:
                turn(contender)
            between()
    finally:
        gc.enable()


def timed_steps(runner: Runner, world: World, steps: int, timed: Timed) -> None:
    """One turn: all begin together. Collective."""
    sent = world.comm.sent.copy()
    world.comm.control.Barrier()
    begin = time.perf_counter()
    runner.run(steps)
    seconds = time.perf_counter() - begin
    gone = world.comm.sent - sent
    timed.sent = Traffic(timed.sent.bytes + gone.bytes, timed.sent.messages + gone.messages)
    timed.steps += steps
    timed.step_seconds.append(slowest(world.comm.control, seconds) / steps)
