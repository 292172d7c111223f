"""Spans that lie in each other, cut so that each moment of a thread belongs to one phase."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest

from distloop.timeline import PHASES, NoTimeline, RecordedTimeline, Span, exposed, flattened, seconds_by_phase


def step(number, begin, end):
    return Span("step", number, 1, begin, end)


def phases(spans):
    return [(span.phase, span.begin, span.end) for span in spans if span.phase != "step"]


def test_a_step_is_compute_where_it_is_nothing_else():
    spans = [Span("transfer", 0, 1, 2.0, 4.0), Span("optimizer", -1, 1, 5.0, 6.0), step(1, 0.0, 7.0)]
    assert phases(flattened(spans)) == [
        ("compute", 0.0, 2.0),
        ("transfer", 2.0, 4.0),
        ("compute", 4.0, 5.0),
        ("optimizer", 5.0, 6.0),
        ("compute", 6.0, 7.0),
    ]
    assert flattened(spans)[0] == step(1, 0.0, 7.0)


def test_an_inner_span_takes_its_time_from_the_outer_one():
    spans = [Span("wait", 0, 1, 1.0, 2.0), Span("transfer", 0, 1, 0.0, 3.0)]
    assert phases(flattened(spans)) == [("transfer", 0.0, 1.0), ("wait", 1.0, 2.0), ("transfer", 2.0, 3.0)]


def test_one_that_begins_and_ends_with_another():
    spans = [Span("transfer", 0, 1, 0.0, 3.0), Span("wait", 0, 1, 0.0, 3.0), step(1, 0.0, 3.0)]
    assert phases(flattened(spans)) == [("wait", 0.0, 3.0)]


def test_nothing_between_two_steps():
    spans = [step(1, 0.0, 1.0), step(2, 5.0, 6.0)]
    assert phases(flattened(spans)) == [("compute", 0.0, 1.0), ("compute", 5.0, 6.0)]
    assert seconds_by_phase(flattened(spans)) == {"compute": 2.0, "wait": 0.0, "transfer": 0.0, "optimizer": 0.0}


@pytest.mark.parametrize("seed", range(5))
def test_phases_of_any_nesting_make_up_the_steps(seed):
    """Random brackets: the sum over the phases is the steps' time, and no two pieces overlap."""
    import random

    chance, spans = random.Random(seed), []

    def fill(begin: int, end: int, depth: int) -> None:
        while depth and begin + 2 < end:
            start = chance.randrange(begin, end - 1)
            stop = chance.randrange(start + 1, end)
            spans.append(Span(chance.choice(PHASES), depth, 1, float(start), float(stop)))
            fill(start, stop, depth - 1)
            begin = stop

    fill(0, 1000, 4)
    spans.append(step(1, 0.0, 1000.0))
    found = flattened(spans)
    assert sum(seconds_by_phase(found).values()) == 1000.0
    pieces = phases(found)
    assert all(one[2] == other[1] for one, other in itertools.pairwise(pieces))


def test_a_wait_for_another_threads_transfer_is_one():
    main = [Span("compute", -1, 1, 0.0, 2.0), Span("wait", -1, 1, 2.0, 9.0), Span("wait", -1, 1, 11.0, 12.0)]
    others = [Span("transfer", number, 2, *ends) for number, ends in enumerate([(1.0, 3.0), (4.0, 5.0), (8.0, 11.5)])]
    assert phases(exposed(main, others)) == [
        ("compute", 0.0, 2.0),
        ("transfer", 2.0, 3.0),
        ("wait", 3.0, 4.0),
        ("transfer", 4.0, 5.0),
        ("wait", 5.0, 8.0),
        ("transfer", 8.0, 9.0),
        ("transfer", 11.0, 11.5),
        ("wait", 11.5, 12.0),
    ]
    assert exposed(main, []) == main


def progress(*counts):
    now = SimpleNamespace(step=0)
    for count in counts:
        now.step = count
        yield now


def test_the_end_of_a_round_is_no_step():
    timeline = RecordedTimeline()
    assert [now.step for now in timeline.steps(progress(1, 2, 2, 3))] == [1, 2, 2, 3]
    assert [(span.phase, span.bucket) for span in timeline.spans] == [("step", 1), ("step", 2), ("step", 3)]


def test_a_span_is_kept_where_it_ends_in_an_error_too():
    timeline = RecordedTimeline()
    with pytest.raises(KeyError), timeline.span("transfer", 3):
        raise KeyError
    (span,) = timeline.spans
    assert (span.phase, span.bucket, span.thread) == ("transfer", 3, timeline.main_thread)
    assert span.end >= span.begin


def test_more_than_fit_are_counted():
    timeline = RecordedTimeline(capacity=2)
    for _ in range(5):
        with timeline.span("wait"):
            pass
    assert (len(timeline.spans), timeline.dropped) == (2, 3)
    timeline.clear()
    assert (len(timeline.spans), timeline.dropped) == (0, 0)


def test_no_timeline_makes_nothing():
    timeline = NoTimeline()
    assert timeline.span("wait", 1) is timeline.span("optimizer")
    counting = progress(1)
    assert timeline.steps(counting) is counting
