"""Several hosts with links between them: what ranks see of each other, and every byte that leaves a host."""

from __future__ import annotations

import json
import sys

import pytest

from tests.hosts import Hosts, finish_on
from tests.hosts.probe import ELEMENTS
from tests.main_jobs import run_all
from tests.processes import alive

MISSING = Hosts.missing()
pytestmark = [pytest.mark.skipif(MISSING is not None, reason=str(MISSING)), pytest.mark.timeout(240)]
N = 4 * ELEMENTS
# Headers are 4.6 % of what TCP sends, less where the kernel hands on large packets; meetings of ranks come on top.
OVERHEAD, MEETINGS_BYTES = 1.06, 100_000


@pytest.fixture
def two_hosts():
    with Hosts(2) as hosts:
        yield hosts


def probed(hosts, ranks, mpi):
    done = finish_on(hosts, ranks, sys.executable, "-m", "tests.hosts.probe", mpi=mpi).check()
    return json.loads(done.stdout)


def sends(said, algorithm):
    """What each rank handed to the transport, exactly; what left each host, and what reached it."""
    by_rank = [rank[algorithm] for rank in said]
    hosts = {rank["host"]: rank[algorithm][1:] for rank in said}
    return [sent for sent, _, _ in by_rank], [sent for sent, _ in hosts.values()], [came for _, came in hosts.values()]


def about(expected):
    """A counter of an interface: never less than the formula, and not much more."""
    return pytest.approx(
        expected * (1 + OVERHEAD) / 2 + MEETINGS_BYTES / 2, abs=expected * (OVERHEAD - 1) / 2 + MEETINGS_BYTES / 2
    )


def test_bytes_are_those_of_the_formulas(two_hosts, mpi_name):
    """Two hosts of two ranks. A ring of all ranks crosses each link with 2(p-1)/p N, one of nodes with 2(M-1)/M N."""
    said = probed(two_hosts, [2, 2], mpi_name)
    assert [rank["who"] for rank in said] == [[0, 2, 0, 2], [0, 2, 1, 2], [1, 2, 0, 2], [1, 2, 1, 2]]
    assert [rank["host"] for rank in said] == ["dl0", "dl0", "dl1", "dl1"]
    assert all(rank["overlaps"] == [False, True, True, False, True] for rank in said)
    expected = {
        "star": ([3 * N, N, N, N], [2 * N, 2 * N]),
        "ring": ([N * 3 // 2] * 4, [N * 3 // 2] * 2),
        "ring-bf16": ([N * 3 // 4] * 4, [N * 3 // 4] * 2),
        "zero over ring": ([N * 3 // 2] * 4, [N * 3 // 2] * 2),
        "hierarchical": ([N // 2] * 4, [N] * 2),
        "zero over hierarchical": ([N // 2] * 4, [N] * 2),
    }
    for algorithm, (by_rank, by_host) in expected.items():
        handed, left, came = sends(said, algorithm)
        assert handed == by_rank, algorithm
        assert left == [about(host) for host in by_host], algorithm
        assert came == [about(host) for host in by_host], algorithm


def test_hosts_may_hold_different_numbers_of_ranks(two_hosts, mpi_name):
    said = probed(two_hosts, [3, 1], mpi_name)
    assert [rank["who"] for rank in said] == [[0, 2, 0, 3], [0, 2, 1, 3], [0, 2, 2, 3], [1, 2, 0, 1]]
    handed, left, came = sends(said, "hierarchical")
    assert handed == [N, 0, 0, N]
    assert [*left, *came] == [about(N)] * 4
    handed, left, came = sends(said, "zero over hierarchical")
    assert handed == [N, 0, 0, N], "what one host owns goes to it summed, and comes from it updated"
    assert [*left, *came] == [about(N)] * 4


JOBS = {
    name: ["--strategy", name, "--epochs", "1", "--model-args.hidden", "16"]
    for name in ("ring", "zero", "hierarchical")
}


@pytest.fixture(scope="module")
def on_one_host(tmp_path_factory):
    return run_all(4, JOBS, tmp_path_factory.mktemp("here"))


def test_the_main_job_trains_across_hosts(two_hosts, on_one_host, mpi_name, tmp_path):
    """A ring sums in the same order wherever its ranks are: the same weights as on one host, bit by bit."""

    def on_hosts(ranks, *args, **options):
        return finish_on(two_hosts, [2, 2], sys.executable, *args, timeout=180, **options)

    outcomes = run_all(4, JOBS, tmp_path, run=on_hosts, mpi=mpi_name)
    assert [outcome.code for outcome in outcomes.values()] == [0, 0, 0]
    for name, outcome in outcomes.items():
        here, there = on_one_host[name].summary, outcome.summary
        assert "4 ranks on 2 nodes" in outcome.stdout
        assert there["train_loss"] == pytest.approx(here["train_loss"], rel=1e-4)
        if name != "hierarchical":
            assert there["weights_sha256"] == here["weights_sha256"]
            assert there["sent_bytes_per_rank"] == here["sent_bytes_per_rank"]
    between = [sum(outcomes[name].summary["sent_bytes_per_rank"]) for name in ("ring", "hierarchical")]
    assert between[1] < 0.4 * between[0], "inside a host nothing is sent: 2 N of all ranks instead of 6 N"


def test_nothing_stays_behind(two_hosts):
    holders = two_hosts.pids
    with Hosts(1) as another:
        assert another.names == ["dl0"], "two clusters do not see each other"
    assert all(alive(pid) for pid in holders)
    two_hosts.down()
    assert not any(alive(pid) for pid in holders)
