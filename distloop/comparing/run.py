"""The whole of a comparison: make the contenders, warm them up, check their weights, give them turns, trace them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

import numpy as np

from distloop.build import Given, Ingredients, make_task, prepare
from distloop.comm import World, together
from distloop.comm.mpi import MPI
from distloop.comparing.agreement import Reference
from distloop.comparing.bandwidths import bandwidths, bare_collectives, fitting_bytes, sizes
from distloop.comparing.ddp import Ddp, stop_gloo
from distloop.comparing.footprint import held_bytes
from distloop.comparing.options import CompareConfig
from distloop.comparing.rounds import WARM_UP_STEPS, Timed, slowest, steps_per_round, take_turns, timed_steps
from distloop.comparing.runners import Plain, Runner, Synchronised
from distloop.comparing.specs import Spec, specs_of
from distloop.comparing.sticks import Sticks
from distloop.data import Loader
from distloop.errors import DistloopError
from distloop.report.comparison import ALONE, Agreement, Bandwidth
from distloop.report.comparison_table import binary_size
from distloop.tasks import Shard
from distloop.timeline import NoTimeline, RecordedTimeline, exposed, seconds_by_phase

TRACED_STEPS = 10
HIDDEN = "hidden"


@dataclass
class Entry:
    """One contender with what is known of it so far.

    ``split``: seconds of a step by phase, a mean over the ranks; besides, under ``HIDDEN``, those of transfers that
    went on while the rank computed.
    """

    runner: Runner
    memory_bytes: float | None
    warm_seconds: float
    agreement: Agreement | None
    spec: Spec | None = None
    timed: Timed = field(default_factory=Timed)
    split: dict[str, float] | None = None

    @property
    def name(self) -> str:
        """As typed."""
        return self.runner.name

    @property
    def strategy(self) -> str | None:
        """What it trains with, as ``auto`` has chosen it; None for what is not ours, or another training."""
        runner = self.runner
        return runner.strategy if isinstance(runner, Synchronised) and not runner.spec.approximate else None


class Field:
    """All contenders, warmed up and checked. Collective, as is every method."""

    def __init__(self, config: CompareConfig, world: World, given: Given, say: Callable[[str], None]) -> None:
        """Raises a UserError on all ranks for what is wrong; what cannot run is ``left_out`` unless it was named."""
        self.config, self.world, self.given, self.say = config, world, given, say
        self.found: Ingredients = prepare(config, world, given)
        with together(world.comm.control):
            self.specs = specs_of(config.strategies, config)
        self.warm_up = max([WARM_UP_STEPS, *(spec.sync_every for spec in self.specs)])
        self.reference = Reference(config, world, self.found, given, self.warm_up)
        self.sticks = Sticks(world)
        self.entries: list[Entry] = []
        self.left_out: dict[str, str] = {}
        self._enter(lambda: self._plain(ALONE), None)
        self.entries.clear()  # the first to run loads libraries; its second start is the one that counts
        self._enter(lambda: self._plain(ALONE), None)
        for spec in self.specs:
            self._enter_if_possible(spec)
        if config.against == "ddp":
            self._enter(lambda: Ddp(config, world, self.found), None, checked=True)

    def _plain(self, name: str) -> Runner:
        config, world, found = self.config, self.world, self.found
        shard = Shard(world.rank, world.size)
        task = make_task(config, self.given, found.data, shard, found.device, Loader(found.data.train))
        return Plain(name, config, found, task, 1 / world.size)

    def _enter_if_possible(self, spec: Spec) -> None:
        try:
            self._enter(lambda: Synchronised(spec, self.world, self.found), spec, checked=True)
        except DistloopError as error:
            if not error.everywhere or self.config.strategies != "all":
                raise
            self.left_out[spec.name] = str(error)

    def _enter(self, make: Callable[[], Runner], spec: Spec | None, checked: bool = False) -> None:
        control = self.world.comm.control
        before = held_bytes(control)
        runner = make()
        runner.run(self.warm_up - 2)
        control.Barrier()
        begin = time.perf_counter()
        runner.run(2)
        warm = slowest(control, time.perf_counter() - begin) / 2
        after = held_bytes(control)
        memory = None if before is None or after is None else max(0.0, after - before)
        self.entries.append(
            Entry(runner, memory, warm, self.reference.compare(runner.module) if checked else None, spec)
        )

    def race(self) -> int:
        """The rounds; returns the steps of each."""
        config, entries = self.config, self.entries
        steps = steps_per_round([entry.warm_seconds for entry in entries], config.rounds, config.steps)
        seconds = steps * config.rounds * sum(entry.warm_seconds for entry in entries)
        self.say(f"{len(entries)} contenders, {config.rounds} rounds of {steps} steps each, about {seconds:.0f} s")
        take_turns(
            entries,
            config.rounds,
            lambda entry: timed_steps(entry.runner, self.world, steps, entry.timed),
            self.sticks.round,
        )
        return steps

    def trace(self, folder: Path | None) -> None:
        """Some more steps of each with a timeline, for the split of its time; written to ``folder`` where given."""
        for entry in self.entries:
            entry.split = self._traced(entry.runner, folder)
        split = {entry.name: entry.split for entry in self.entries}
        alone, ddp = split[ALONE], split.get("ddp")
        if ddp and alone:
            ddp["transfer"] = max(0.0, ddp["compute"] - alone["compute"])
            ddp["compute"] -= ddp["transfer"]

    def _traced(self, runner: Runner, folder: Path | None) -> dict[str, float]:
        control = self.world.comm.control
        timeline = RecordedTimeline()
        runner.record(timeline)
        control.Barrier()
        runner.run(TRACED_STEPS)
        runner.record(NoTimeline())
        main, others = timeline.settled(control)
        found = seconds_by_phase(exposed(main, others))
        found[HIDDEN] = max(0.0, seconds_by_phase(others)["transfer"] - found["transfer"]) if others else 0.0
        sums = np.array(list(found.values())) / TRACED_STEPS / control.size
        control.Allreduce(MPI.IN_PLACE, sums)
        if folder is not None:
            timeline.write(folder / f"timeline-{runner.name}.json", self.world)
        return dict(zip(found, sums.tolist(), strict=True))

    def bandwidths(self) -> list[Bandwidth]:
        """Of the bare collectives, if they were asked for."""
        config, world = self.config, self.world
        if not config.collectives:
            return []
        specs = [entry.spec for entry in self.entries if entry.spec is not None]
        largest = fitting_bytes(world, config.largest_bytes, len(specs) + 1)
        bare = bare_collectives(specs, world, largest, gloo=config.against == "ddp")
        self.say(f"bare collectives, 1 KiB to {binary_size(sizes(largest)[-1])}: {', '.join(one.name for one in bare)}")
        return bandwidths(bare, world, self.sticks, largest, config.rounds)

    def losses(self) -> list[float]:
        """Of each, the mean of its last steps' losses, over the ranks where they differ."""
        own = np.array([fmean(entry.runner.losses or [math.nan]) for entry in self.entries]) / self.world.size
        self.world.comm.control.Allreduce(MPI.IN_PLACE, own)
        return [float(loss) for loss in own]

    def close(self) -> None:
        """Threads, windows, gloo."""
        for entry in self.entries:
            entry.runner.release()
        self.found.loader.close()
        self.sticks.close()
        stop_gloo()
