"""Collectives between hosts, against what the links allow:

    python -m tests.benchmarks.hosts                      # all clusters, about 5 minutes; needs root and iproute2
    python -m tests.benchmarks.hosts --clusters 2x2@1gbit 4x1@1gbit --megabytes 64 --json hosts.json

4x1@1gbit: 4 hosts of 1 rank, links of 1 Gbit/s both ways. Contenders take turns in one process, round by round, with
the yardstick among them: Bl, the bandwidth of one message one way. The bound is 2(M-1)/M N/Bl for M hosts; a time is
the largest of all ranks; medians. ``sent`` is what left the busiest host, by its interface's counter, over N.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.hosts import Hosts, finish_on

CLUSTERS = ["2x1@1gbit", "3x1@1gbit", "4x1@1gbit", "2x2@1gbit", "6x1@200mbit", "8x1@200mbit"]
STAR_ROUNDS = 2  # it takes p times as long
HEADER = (
    f"{'hosts':>6} {'link':>8} {'Bl MB/s':>8}  {'all-reduce':13} {'ms':>8} {'least':>8} {'of bound':>8} {'vs ring':>8} "
    f"{'vs MPI':>7} {'sent/N':>7}"
)


def main() -> None:
    """Start each cluster, and print its rows."""
    options = _options()
    if options.worker:
        _work(options.megabytes, options.rounds)
        return
    if reason := Hosts.missing():
        sys.exit(reason)
    results = []
    for cluster in options.clusters:
        results.append(_measure(cluster, options))
        _print(results[-1], first=len(results) == 1)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clusters", nargs="+", default=CLUSTERS)
    parser.add_argument("--megabytes", type=float, default=16.0, help="N, in 10^6 bytes of float32")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--mpi", default="mpich")
    parser.add_argument("--congestion", default="reno", help="TCP's congestion control, such as reno or bbr")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def _measure(cluster: str, options: argparse.Namespace) -> dict[str, Any]:
    size, rate = cluster.split("@")
    count, ranks = map(int, size.split("x"))
    command = [sys.executable, "-m", "tests.benchmarks.hosts", "--worker"]
    command += ["--megabytes", str(options.megabytes), "--rounds", str(options.rounds)]
    with Hosts(count, rate, options.congestion) as hosts:
        done = finish_on(hosts, [ranks] * count, *command, mpi=options.mpi, timeout=600).check()
    return {"hosts": count, "ranks": ranks, "rate": rate} | json.loads(done.stdout)


def _print(result: dict[str, Any], first: bool) -> None:
    if first:
        print(f"{result['mpi']}, N = {result['bytes'] / 1e6:g} MB, {result['rounds']} rounds", flush=True)
        print(HEADER)
    hosts = result["hosts"]
    link_bytes_per_second = result["bytes"] / statistics.median(result["seconds"]["one way"])
    bound = 2 * (hosts - 1) / hosts * result["bytes"] / link_bytes_per_second
    median = {name: statistics.median(seconds) for name, seconds in result["seconds"].items()}
    for name in list(median)[1:]:
        passed, least = median[name], min(result["seconds"][name])
        print(
            f"{hosts:>4}x{result['ranks']} {result['rate']:>8} {link_bytes_per_second / 1e6:8.1f}  {name:13} "
            f"{passed * 1e3:8.1f} {least * 1e3:8.1f} {bound / passed:8.3f} {median['ring'] / passed:8.2f} "
            f"{median['native'] / passed:7.2f} {result['sent'][name]:7.3f}",
            flush=True,
        )


def _work(megabytes: float, rounds: int) -> None:
    """On every rank."""
    import numpy as np

    from distloop.comm import Hierarchical, Native, Ring, Star, World, exchange
    from distloop.comm.mpi import MPI
    from distloop.comm.wire import Bf16
    from tests.hosts.cluster import counter_of

    world = World.start()
    control = world.comm.control
    collectives = {
        "ring": Ring(world.comm),
        "ring, bf16": Ring(world.comm, wire=Bf16()),
        "native": Native(world.comm),
        "hierarchical": Hierarchical(world.comm),
        "star": Star(world.comm),
    }
    elements = int(megabytes * 1e6) // 4
    flat = {name: it.memory.own(elements, _float32()).numpy() for name, it in collectives.items()}
    flat["one way"] = np.ones(elements, np.float32)
    partner = _partner(exchange(control, [world.node, world.local_rank]), world.rank)

    def one_way() -> None:
        if partner is not None and world.rank < partner:
            control.Send(flat["one way"], partner)
        elif partner is not None:
            control.Recv(flat["one way"], partner)

    calls: dict[str, Callable[[], None]] = {"one way": one_way}
    for name, it in collectives.items():
        calls[name] = lambda it=it, name=name: it.all_reduce(flat[name])  # type: ignore[misc]
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    sent: dict[str, float] = {}
    for turn in range(rounds + 1):
        for name, call in calls.items():
            if name == "star" and turn > STAR_ROUNDS:
                continue
            flat[name].fill(world.rank + 1)
            control.Barrier()
            before, start = counter_of("self").sent, time.perf_counter()
            call()
            passed = np.array([time.perf_counter() - start, (counter_of("self").sent - before) / (4 * elements)])
            control.Allreduce(MPI.IN_PLACE, passed, MPI.MAX)
            assert name == "one way" or (flat[name] == world.size * (world.size + 1) // 2).all(), name
            if turn:  # the first is to warm up
                seconds[name].append(float(passed[0]))
                sent[name] = float(passed[1])
    said = {"mpi": world.library, "bytes": 4 * elements, "rounds": rounds, "seconds": seconds, "sent": sent}
    world.say(json.dumps(said))


def _float32() -> Any:
    import torch

    return torch.float32


def _partner(places: list[list[int]], rank: int) -> int | None:
    """Leaders of nodes 0 and 1, 2 and 3, ... are pairs."""
    node, local_rank = places[rank]
    other = [node ^ 1, 0]
    return places.index(other) if local_rank == 0 and other in places else None


if __name__ == "__main__":
    main()
