"""``auto``: all ranks take the same, whatever their clocks say, and what is remembered is not tried again."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from distloop.comm import Native, Ring, Shared, World
from distloop.comm.agree import at_root, exchange
from distloop.comm.tuning import choose
from distloop.errors import ConfigError
from distloop.ownership import Replicated, Sharded

pytestmark = [pytest.mark.mpi(ranks=(2, 3, 4), timeout=60)]


class Clock:
    """Time that passes when told."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


class Played:
    """Says it takes ``alpha + bytes / bandwidth`` on the slowest rank, and each rank less than the one after it."""

    divides = False

    def __init__(self, comm, clock, alpha, bandwidth, calls):
        self.collective = Native(comm)
        self.clock, self.alpha, self.bandwidth, self.calls = clock, alpha, bandwidth, calls

    def partition(self, cuts):
        return None

    def owned(self, partition, length):
        return slice(0, length)

    def reducing(self, gradients, partition):
        return partial(self._reduce, gradients.nbytes)

    def _reduce(self, nbytes):
        self.calls.append(nbytes)
        slowest = self.alpha + nbytes / self.bandwidth
        self.clock.now += slowest * (self.collective.rank + 1) / self.collective.world_size

    def gathering(self, parameters, partition):
        return lambda: None


class Stage:
    """Candidates, and what was asked of them."""

    def __init__(self, folder):
        self.world, self.clock, self.folder = World.start(), Clock(), folder
        self.calls, self.lines, self.refused = {}, {}, set()

    def candidate(self, name, alpha, bandwidth):
        self.calls[name] = []
        self.lines[name] = lambda comm: Played(comm, self.clock, alpha, bandwidth, self.calls[name])

    def refuse(self, name):
        def refuse(comm):
            self.refused.add(name)
            raise ConfigError("not here").on_all_ranks()

        self.lines[name] = refuse

    def choose(self, size_bytes, **options):
        for calls in self.calls.values():
            calls.clear()
        options = {"budget_seconds": 1e9} | options
        choice = choose(self.world, size_bytes, 0, self.lines, folder=self.folder, clock=self.clock, **options)
        control = self.world.comm.control
        assert len(set(map(str, exchange(control, [choice.name, choice.as_dict(), choice.describe()])))) == 1
        return choice

    @property
    def tried(self):
        return {name for name, calls in self.calls.items() if calls}


@pytest.fixture
def folder(comm, tmp_path):
    """Rank 0's, which alone looks there."""
    return Path(exchange(comm, str(tmp_path))[0]) / "cache" / "distloop"


@pytest.fixture
def stage(folder):
    stage = Stage(folder)
    stage.candidate("quick start", 1e-6, 1e8)
    stage.candidate("much at once", 1e-3, 1e10)
    return stage


@pytest.mark.parametrize(("size", "best"), [(4096, "quick start"), (1 << 16, "quick start"), (1 << 21, "much at once")])
def test_the_size_decides_and_all_ranks_agree(stage, size, best):
    assert stage.choose(size).name == best


def test_between_two_sizes_and_beyond_the_largest(stage):
    choice = stage.choose(1 << 19)
    low, high = (1e-6 + size / 1e8 for size in (1 << 18, 1 << 20))
    assert choice.seconds["quick start"] == pytest.approx((low * high) ** (1 / 2))
    choice = stage.choose(1 << 30)
    assert choice.seconds["much at once"] == pytest.approx(1e-3 + (1 << 30) / 1e10)


def test_only_sizes_like_the_model_s_are_tried(stage):
    for size, tried in ((1 << 12, {1 << 12}), (1 << 15, {1 << 14, 1 << 16}), (1 << 23, {1 << 18, 1 << 22, 1 << 24})):
        stage.choose(size)
        assert set(stage.calls["much at once"]) == tried


def test_buckets_between_nodes_each_pay_their_latency(stage):
    stage.world = replace(stage.world, nodes=2)
    choice = stage.choose(1 << 24, bucket_bytes=1 << 20)
    assert choice.seconds["much at once"] == pytest.approx(16 * (1e-3 + (1 << 20) / 1e10))
    assert set(stage.calls["much at once"]) == {1 << 18, 1 << 20}


def test_what_is_remembered_is_not_tried_again(stage):
    first = stage.choose(1 << 18)
    assert stage.tried == {"quick start", "much at once"} and first.took_seconds > 0
    again = stage.choose(1 << 18)
    assert stage.tried == set() and again.took_seconds == 0 and again.seconds == first.seconds
    assert "as remembered" in again.describe()
    stage.choose(1 << 20)
    assert all(set(calls) == {1 << 20} for calls in stage.calls.values()), "only the size that was missing"


def test_a_new_candidate_is_tried_alone(stage):
    stage.choose(1 << 18)
    stage.candidate("new", 1e-9, 1e12)
    choice = stage.choose(1 << 18)
    assert stage.tried == {"new"} and choice.name == "new"


def test_another_cluster_is_another_table(stage, monkeypatch):
    stage.choose(1 << 12)
    monkeypatch.setattr("distloop.comm.tuning.cluster_of", lambda world: {"hosts": ["elsewhere"]})
    stage.choose(1 << 12)
    assert stage.tried == {"quick start", "much at once"}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '{"cluster": {}}',
        "\ud83d",
        "[" * 100_000,
        '{"cluster": CLUSTER, "trials": {"table": {"quick start": {"4096": [-1, 0]}}, "impossible": []}}',
        '{"cluster": CLUSTER, "trials": {"table": {"quick start": {"4096": [NaN, 0]}}, "impossible": []}}',
        '{"cluster": CLUSTER, "trials": {"table": {"quick start": 3}, "impossible": []}}',
    ],
    ids=["empty", "cut off", "a list", "nothing", "no trials", "no text", "deep", "negative", "nan", "no table"],
)
def test_a_broken_memory_is_made_again(stage, text):
    stage.choose(1 << 12)

    def break_it():
        (path,) = stage.folder.iterdir()
        cluster = json.dumps(json.loads(path.read_text())["cluster"])
        path.write_bytes(text.replace("CLUSTER", cluster).encode("utf-8", "surrogatepass"))

    at_root(stage.world.comm.control, break_it)
    choice = stage.choose(1 << 12)
    assert choice.name == "quick start" and stage.tried == {"quick start", "much at once"}
    stage.choose(1 << 12)
    assert stage.tried == set()


def test_nothing_is_left_beside_it(stage):
    stage.choose(1 << 12)
    names = at_root(stage.world.comm.control, lambda: [path.name for path in stage.folder.iterdir()])
    assert len(names) == 1 and names[0].startswith("tuning-") and names[0].endswith(".json")


def test_a_home_that_cannot_be_written_to_is_fine(stage):
    at_root(stage.world.comm.control, lambda: stage.folder.parent.write_text("a file where the folder should be") and 0)
    assert stage.choose(1 << 12).name == "quick start"
    assert stage.choose(1 << 12).took_seconds > 0


def test_what_cannot_run_is_left_out_and_remembered(stage):
    stage.refuse("elsewhere")
    choice = stage.choose(1 << 12)
    assert choice.name == "quick start" and "elsewhere" not in choice.seconds and stage.refused == {"elsewhere"}
    stage.refused.clear()
    stage.choose(1 << 12)
    assert not stage.refused
    stage.refuse("nowhere")
    stage.calls.clear()
    stage.lines = {name: stage.lines[name] for name in ("elsewhere", "nowhere")}
    with pytest.raises(ConfigError, match="none of elsewhere, nowhere can run here") as raised:
        stage.choose(1 << 12)
    assert raised.value.everywhere


def test_a_tie_goes_to_the_first(stage):
    stage.lines.clear()
    stage.candidate("first", 1.04e-3, math.inf)
    stage.candidate("second", 1e-3, math.inf)
    assert stage.choose(1 << 12).name == "first"
    stage.candidate("third", 0.9e-3, math.inf)
    assert stage.choose(1 << 12).name == "third"


def test_the_hopeless_are_spared_large_sizes(stage):
    stage.candidate("hopeless", 1e-6, 1e6)
    stage.choose(1 << 24)
    assert max(stage.calls["hopeless"]) == 1 << 18


def test_the_time_is_limited(stage):
    """Small sizes are tried in any case; larger ones as long as there is time for all that is left to try."""
    stage.lines.clear()
    stage.candidate("slow", 0.0, 1e6)
    stage.candidate("slow too", 0.0, 1.1e6)
    choice = stage.choose(1 << 26, budget_seconds=30.0)
    assert max(stage.calls["slow"]) == max(stage.calls["slow too"]) == 1 << 18
    assert choice.seconds["slow too"] == pytest.approx((1 << 26) / 1.1e6)


def test_real_ones(folder):
    """Nothing is said of which one wins; the run's own traffic is not touched, and results are numbers."""
    world = World.start()
    before = world.comm.sent.copy()
    candidates = {
        "shared": lambda comm: Sharded(Shared(comm)),
        "zero": lambda comm: Sharded(Ring(comm)),
        "native": lambda comm: Replicated(Native(comm)),
    }
    choice = choose(world, 1 << 19, 28, candidates, folder=folder, budget_seconds=0.1)
    assert choice.name in candidates and set(choice.seconds) == set(candidates)
    assert all(0 < seconds < 10 for seconds in choice.seconds.values())
    assert world.comm.sent == before
    assert choice.describe().startswith(f"auto → {choice.name} (")
    json.dumps(choice.as_dict())
    flat = np.ones(8, np.float32)
    Ring(world.comm).all_reduce(flat)
    assert flat.tolist() == [world.size] * 8


def test_of_one_candidate_nothing_is_tried(stage):
    del stage.lines["quick start"]
    assert stage.choose(1 << 20).describe() == "auto → much at once" and stage.tried == set()


def test_facts_part_what_is_remembered(stage):
    stage.choose(1 << 12, facts={"gradient_dtype": "float32"})
    stage.choose(1 << 12, facts={"gradient_dtype": "bf16"})
    assert stage.tried == {"quick start", "much at once"}
    stage.choose(1 << 12, facts={"gradient_dtype": "float32"})
    assert stage.tried == set()


@pytest.mark.mpi(ranks=(1,))
def test_alone_there_is_nothing_to_try(folder):
    def never(comm):
        raise AssertionError

    choice = choose(World.start(), 1 << 20, 28, {"first": never, "second": never}, folder=folder)
    assert choice.name == "first" and choice.describe() == "auto → first" and not folder.exists()
