"""Timelines of all ranks: one clock, waits for the last rank, one file."""

from __future__ import annotations

import itertools
import json
import time

import numpy as np
import pytest

from distloop import loop
from distloop.comm import World
from distloop.comm.clocks import seconds_behind_root
from distloop.learner import Learner
from distloop.loop import Progress
from distloop.strategies import NAMES, strategy
from distloop.timeline import RecordedTimeline, Span, seconds_by_phase
from tests.oracle import OPTIMIZERS, Rows, convnet, supervised


def test_a_clock_that_is_off_is_found_out(comm):
    """By half a round trip, which lies between the reading before and the one after."""
    off = 1000.0 * comm.rank
    began = time.perf_counter()
    found = seconds_behind_root(comm, lambda: time.perf_counter() + off)
    slack = time.perf_counter() - began
    assert abs(found + off) <= slack


def of_rank(rank: int, offset: float) -> list[Span]:
    """Rank r comes r seconds late to a transfer that ends for all at 10."""
    own = time.perf_counter() + offset
    return [
        Span("transfer", 0, 1, own + rank, own + 10.0),
        Span("optimizer", -1, 1, own + 10.0, own + 11.0),
        Span("step", 1, 1, own - 5.0, own + 12.0),
    ]


def test_a_transfer_begins_when_the_last_rank_comes(comm):
    timeline = RecordedTimeline()
    timeline.main_thread = 1
    comm.Barrier()
    timeline.spans = of_rank(comm.rank, 100.0)
    main, others = timeline.settled(comm)
    found = seconds_by_phase(main)
    late = comm.size - 1 - comm.rank
    assert others == []
    assert found["wait"] == pytest.approx(late, abs=0.5)
    assert found["transfer"] == pytest.approx(10 - comm.rank - late, abs=0.5)
    assert found["optimizer"] == pytest.approx(1.0)
    assert sum(found.values()) == pytest.approx(17.0)


@pytest.mark.mpi(min_size=2)
def test_where_a_rank_has_dropped_some_nobody_waits(comm):
    timeline = RecordedTimeline()
    timeline.main_thread = 1
    timeline.spans = of_rank(comm.rank, 0.0) * (1 + (comm.rank == 1))
    assert seconds_by_phase(timeline.settled(comm)[0])["wait"] == 0.0


@pytest.mark.parametrize("name", NAMES)
def test_a_trace_of_all_ranks(name, counted, tmp_path):
    world = World.start()
    timeline = RecordedTimeline()
    learner = Learner(convnet(), *strategy(name, counted), OPTIMIZERS["adam"])
    learner.timeline = timeline
    task = supervised(Rows(24), counted, 8)
    for _ in timeline.steps(loop.train(task, {"model": learner}, 2, Progress())):
        pass
    learner.release()
    timeline.write(tmp_path / "trace.json", world)
    told = json.loads((tmp_path / "trace.json").read_text())
    events = [event for event in told["traceEvents"] if event["ph"] == "X"]
    assert {event["pid"] for event in events} == set(range(counted.size))
    for rank in range(counted.size):
        own = [event for event in events if event["pid"] == rank]
        assert {event["cat"] for event in own} >= {"step", "compute", "optimizer"}
        assert [event["name"] for event in own if event["cat"] == "step"] == [f"step {n}" for n in range(1, 7)]
        assert {event["cat"] for event in own} & {"transfer", "wait"}
        _nested(own)
    assert min(event["ts"] for event in events) == 0.0


def _nested(events) -> None:
    """Pieces of a thread follow one another, and steps hold all of the main thread's."""
    for thread in {event["tid"] for event in events}:
        pieces = sorted((e["ts"], e["ts"] + e["dur"]) for e in events if e["tid"] == thread and e["cat"] != "step")
        assert all(one[1] <= other[0] + 1e-6 for one, other in itertools.pairwise(pieces))
    steps = [(event["ts"], event["ts"] + event["dur"]) for event in events if event["cat"] == "step"]
    inside = np.array([(e["ts"], e["ts"] + e["dur"]) for e in events if e["tid"] == 0 and e["cat"] != "step"])
    assert all(any(b <= begin + 1e-6 and end <= e + 1e-6 for b, e in steps) for begin, end in inside)
