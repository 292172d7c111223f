"""The cost model against what the transport counts, against formulas written down apart from it, and its own claims."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from math import inf

import numpy as np
import pytest

from distloop.comm import Native, Ring, Star, lane, shared
from distloop.cost import MODELS, OPTIMIZERS, AlphaBeta, Path, Topology, Workload, algorithms, predict, scaling, timing
from distloop.cost.topology import ONE_CORE_BYTES_PER_SECOND
from distloop.ownership import Replicated, RootOwned, Sharded
from distloop.strategies import NAMES
from tests.collective_cases import LENGTHS, NODE_SEGMENT_BYTES, NODE_SIZES, PARTITIONS, Cost
from tests.doubles import run_ranks

OWNERSHIPS = {
    "star": lambda comm: Replicated(Star(comm)),
    "ring": lambda comm: Replicated(Ring(comm)),
    "native": lambda comm: Replicated(Native(comm)),
    "parameter-server": lambda comm: RootOwned(Star(comm)),
    "zero": lambda comm: Sharded(Ring(comm)),
    "zero-offload": lambda comm: Sharded(Ring(comm)),
}
MACHINES = [(1, 1), (1, 2), (1, 3), (1, 8), (2, 1), (2, 2), (3, 1), (3, 4), (8, 1), (64, 32)]
machines = pytest.mark.parametrize("machine", MACHINES, ids=["x".join(map(str, machine)) for machine in MACHINES])
LONG = 1_000_003


def counts(sends):
    return [(sent.bytes, sent.messages) for sent in sends.by_rank]


def test_every_strategy_has_a_model():
    assert set(NAMES) - {"auto"} <= set(MODELS)


def test_constants_are_those_of_the_algorithms():
    assert algorithms.SEGMENT_BYTES == lane.SEGMENT_BYTES and algorithms.SMALL_BYTES == shared.SMALL_BYTES


@pytest.mark.parametrize("name", OWNERSHIPS)
@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("length", [*LENGTHS, LONG])
def test_a_step_sends_what_the_transport_counts(name, world_size, length):
    def step(comm):
        ownership = OWNERSHIPS[name](comm)
        partition = ownership.partition(range(length + 1))
        vector = np.zeros(length, np.float32)
        ownership.reducing(vector, partition)()
        ownership.gathering(vector, partition)()
        return comm.sent.bytes, comm.sent.messages

    sends = MODELS[name].sends(Workload(length), Topology(1, world_size))
    assert counts(sends) == run_ranks(world_size, step)


@pytest.mark.parametrize(
    ("name", "model"), [("ring", algorithms.Ring()), ("star", algorithms.Star()), ("native", algorithms.Native())]
)
@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 7])
def test_algorithms_send_by_the_formulas_of_the_tests(name, model, world_size):
    machine = Topology(1, world_size)
    for length in (*LENGTHS, LONG):
        costs = [Cost(name, rank, world_size) for rank in range(world_size)]
        whole = [cost.all_reduce(length) for cost in costs]
        assert counts(model.sends_all_reduce(length, machine, 4)) == [(sent.bytes, sent.messages) for sent in whole]
        for cut in PARTITIONS.values():
            partition = cut(length, world_size)
            halves = [(cost.reduce_scatter(partition), cost.all_gather(partition)) for cost in costs]
            reduced, spread = model.sends_reduce(partition, machine, 4), model.sends_spread(partition, machine, 4)
            assert counts(reduced) == [(sent.bytes, sent.messages) for sent, _ in halves]
            assert counts(spread) == [(sent.bytes, sent.messages) for _, sent in halves]


def test_buckets_send_as_so_many_vectors():
    machine, buckets = Topology(3, 1), (1001, 64, 1001, 5)
    for name, model in MODELS.items():
        if model.possible(machine):
            whole = counts(model.sends(Workload(sum(buckets), buckets=buckets), machine))
            parts = [counts(model.sends(Workload(length, buckets=(length,)), machine)) for length in buckets]
            assert whole == [tuple(map(sum, zip(*rank, strict=True))) for rank in zip(*parts, strict=True)], name


@pytest.mark.parametrize(("name", "world_size"), [("nodes of 2", 4), ("nodes of 2", 8), ("nodes of 3", 6)])
def test_lanes_send_by_the_formulas_of_the_tests(name, world_size):
    machine = Topology(world_size // NODE_SIZES[name], NODE_SIZES[name])
    model = algorithms.Hierarchical(NODE_SEGMENT_BYTES, small_bytes=0)
    for length in (*LENGTHS, LONG):
        costs = [Cost(name, rank, world_size) for rank in range(world_size)]
        whole = [cost.all_reduce(length) for cost in costs]
        assert counts(model.sends_all_reduce(length, machine, 4)) == [(sent.bytes, sent.messages) for sent in whole]
        for cut in PARTITIONS.values():
            partition = cut(length, world_size)
            reduced, spread = model.sends_reduce(partition, machine, 4), model.sends_spread(partition, machine, 4)
            assert counts(reduced) == [
                (one.bytes, one.messages) for one in (c.reduce_scatter(partition) for c in costs)
            ]
            assert counts(spread) == [(one.bytes, one.messages) for one in (c.all_gather(partition) for c in costs)]


def test_bf16_halves_what_gradients_send_and_what_is_read_of_them():
    workload, cluster, node = Workload(10**6), Topology(4, 2), Topology(1, 4)
    half = replace(workload, gradient_bytes=2)

    def bytes_sent(name, given):
        return sum(sent.bytes for sent in MODELS[name].sends(given, cluster).by_rank)

    assert bytes_sent("ring", half) * 2 == bytes_sent("ring", workload)
    for name in ("zero", "hierarchical"):
        assert bytes_sent(name, half) * 4 == bytes_sent(name, workload) * 3, "parameters keep their four bytes"
    for name in ("star", "native", "parameter-server"):
        assert bytes_sent(name, half) == bytes_sent(name, workload)
    memory = MODELS["shared"].memory(half, node)[1].total / workload.bytes
    assert memory == 4 / 2 + 3
    quick = Topology(1, 4, local_latency_seconds=0)
    traffic = timing("shared", half, quick).step * quick.memory_bytes_per_second
    assert traffic == pytest.approx((4 / 2 + 6) * workload.bytes)


def test_shared_sends_nothing_but_small_vectors():
    machine = Topology(1, 4)
    assert counts(MODELS["shared"].sends(Workload(5), machine)) == [(0, 0)] * 4
    assert counts(algorithms.Shared().sends_all_reduce(2048, machine, 4)) == [(8192, 1)] * 4
    assert counts(algorithms.Shared().sends_all_reduce(2049, machine, 4)) == [(0, 0)] * 4


@pytest.mark.parametrize(("nodes", "here"), [(2, 2), (2, 8), (4, 3)])
def test_what_leaves_a_node(nodes, here):
    """Hierarchical: 2(M-1)/M N, all lanes together; a flat ring (LM-1)/(L(M-1)) times that; star all that is far."""
    machine, length = Topology(nodes, here), nodes * here * 1000
    size, ranks = 4 * length, nodes * here
    leaving = {
        name: MODELS[name].sends(Workload(length, buckets=(length,)), machine).leaving(machine)
        for name in MODELS
        if name != "shared"
    }
    assert leaving["hierarchical"] == [2 * (nodes - 1) * size // nodes] * nodes
    assert leaving["zero"] == leaving["ring"] == [2 * (ranks - 1) * size // ranks] * nodes
    ratio = Fraction(ranks - 1, here * (nodes - 1))
    assert Fraction(leaving["ring"][0], leaving["hierarchical"][0]) == ratio
    assert leaving["star"] == [(ranks - here) * size] + [here * size] * (nodes - 1)
    assert leaving["native"] is None


def test_lanes_go_from_node_to_node():
    sends = algorithms.Hierarchical(small_bytes=0).sends_all_reduce(600, Topology(3, 2), 4)
    assert [list(peers) for peers in sends.to] == [[2], [3], [4], [5], [0], [1]]
    assert counts(sends) == [(1600, 4)] * 6


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_memory_of_a_node(ranks):
    """In units of N, with Adam."""
    workload, machine = Workload(1000), Topology(1, ranks)
    node = {name: model.memory(workload, machine)[1].total / workload.bytes for name, model in MODELS.items()}
    assert node["ring"] == node["native"] == 4 * ranks
    assert node["zero"] == 2 * ranks + 2
    assert node["shared"] == node["hierarchical"] == ranks + 3
    assert node["parameter-server"] == 2 * ranks + 2 + 1
    assert node["zero-offload"] == 2 * ranks + 3


@machines
def test_memory_of_a_rank_is_its_part_of_the_node(machine):
    workload, machine = Workload(1000), Topology(*machine)
    for name in ("ring", "zero", "shared", "hierarchical"):
        rank, node = MODELS[name].memory(workload, machine)
        assert rank.total * machine.ranks_per_node == pytest.approx(node.total)


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_bytes_through_memory_of_a_whole_step(ranks):
    """(p+6)N for shared; 7pN and the all-reduce for ring, segmented: (p-1)N(5+w); star and native (p-1)N(7+2w)."""
    workload, machine = Workload(1000), Topology(1, ranks, local_latency_seconds=0, message_seconds=0)
    N, w = workload.bytes, machine.write_allocate  # noqa: N806
    step = {name: timing(name, workload, machine).step * machine.memory_bytes_per_second for name in MODELS}
    assert step["shared"] == step["hierarchical"] == pytest.approx((ranks + 6) * N)
    assert step["ring"] == pytest.approx((7 * ranks + (ranks - 1) * (5 + w)) * N)
    assert step["zero"] == pytest.approx((7 + (ranks - 1) * (5 + w)) * N)
    assert step["native"] == pytest.approx((7 * ranks + (ranks - 1) * (7 + 2 * w)) * N)
    alone = MODELS["star"].paths(workload, machine)[0].serial_bytes
    assert alone == (ranks - 1) * (7 + 2 * w) * N
    assert MODELS["shared"].algorithm.all_reduce(N, machine).memory_bytes == 2 * ranks * N


LINK, ALPHA = 125e6, 50e-6


def cluster(hosts):
    return Topology(hosts, 1, LINK, ALPHA, memory_bytes_per_second=inf, message_seconds=0)


def test_seconds_between_hosts():
    """Ring 2(p-1)(alpha) + 2(p-1)/p N/B; star p times the bytes; Rabenseifner 2 log2 p alpha; doubling for small."""
    size = 64e6
    for hosts in (2, 3, 4, 6, 8):
        machine = cluster(hosts)
        ring = algorithms.Ring().all_reduce(size, machine).seconds(machine)
        assert ring == pytest.approx(2 * (hosts - 1) * ALPHA + 2 * (hosts - 1) / hosts * size / LINK)
        hierarchical = algorithms.Hierarchical().all_reduce(size, machine).seconds(machine)
        assert hierarchical == pytest.approx(ring)
        star = algorithms.Star().all_reduce(size, machine)
        assert star.link_bytes == pytest.approx(2 * (hosts - 1) * size)
        assert star.remote_steps == 2 * (hosts - 1)


@pytest.mark.parametrize(("hosts", "times"), [(2, 1), (4, 1), (8, 1), (3, 2.25), (6, 2.1)])
def test_a_library_moves_more_where_hosts_are_no_power_of_two(hosts, times):
    machine = cluster(hosts)
    least = 2 * (hosts - 1) / hosts * 64e6
    assert algorithms.Native().all_reduce(64e6, machine).link_bytes == pytest.approx(times * least)
    small = algorithms.Native().all_reduce(8, machine)
    folds = 2 * (hosts in (3, 6))
    assert small.remote_steps == {2: 1, 3: 1, 4: 2, 6: 2, 8: 3}[hosts] + folds


def test_what_limits():
    machine = Topology(4, 8)
    for limit, path in {
        "the link": Path(link_bytes=1e9),
        "memory bandwidth": Path(memory_bytes=1e12),
        "the number of messages": Path(messages=1e6),
        "latency": Path(remote_steps=1e4),
        "rank 0": Path(serial_bytes=1e11),
    }.items():
        assert path.limit(machine) == limit
    assert Path().seconds(machine) == 0


@machines
def test_predictions_hold_together(machine):
    machine = Topology(*machine)
    workload = Workload(10**6, compute_seconds=0.01)
    for name, model in MODELS.items():
        found = predict(name, workload, machine)
        if found is None:
            assert not model.possible(machine) and name == "shared" and machine.nodes > 1
            continue
        time = found.timing
        assert 0 <= time.exposed <= time.communication
        assert time.step == pytest.approx(time.compute + time.exposed + time.optimizer)
        assert time.efficiency > 0
        assert found.node_memory.total >= found.rank_memory.total > 0
        assert found.as_dict()["seconds"]["step"] == time.step
        if machine.ranks == 1:
            assert time.communication == 0 and time.efficiency == pytest.approx(1, rel=0.2)
        if machine.nodes == 1:
            assert found.sending.node_bytes == 0 and time.exposed == time.communication


def test_communication_hides_behind_backward_only_and_only_what_may():
    """All of an all-reduce travels with the gradients; of ZeRO the parameters wait for the optimizer."""
    machine, workload = cluster(4), Workload(10**6, compute_seconds=100.0)
    ring, zero = (timing(name, workload, machine) for name in ("ring", "zero"))
    assert ring.exposed == pytest.approx(0.3 * ring.communication)
    assert zero.exposed == pytest.approx((0.5 + 0.5 * 0.3) * zero.communication)
    short = timing("ring", replace(workload, compute_seconds=0.003, overlap=1.0), machine)
    assert short.exposed == pytest.approx(short.communication - 0.002)


def test_optimizers_cost_what_they_touch():
    """Read weight, gradient and state; write weight and state: four bytes each."""
    for cost in OPTIMIZERS.values():
        states = cost.state_bytes // 4
        assert cost.traffic_bytes == 4 * ((2 + states) + (1 + states))


def test_a_parameter_server_steps_at_the_speed_of_one_core():
    machine = Topology(1, 32)
    seconds = MODELS["parameter-server"].optimizer_seconds(Workload(10**6), machine)
    assert seconds == pytest.approx(28e6 / ONE_CORE_BYTES_PER_SECOND)
    assert MODELS["zero"].optimizer_seconds(Workload(10**6), machine) == pytest.approx(28e6 / 200e9)


def test_scaling_to_4096_ranks():
    workload, machine = Workload(10**8, compute_seconds=1.0), Topology(4, 8, 12.5e9)
    curves = {name: scaling(name, workload, machine) for name in MODELS}
    assert list(curves["ring"]) == [2**power for power in range(13)]
    assert list(curves["shared"]) == [1, 2, 4, 8]
    assert list(scaling("ring", workload, Topology(2, 6))) == [1, 2, 4, 6, 12, 24, 48, 96, 192, 384, 768, 1536, 3072]
    for name in ("ring", "star", "native", "zero"):
        assert curves[name][1] == pytest.approx(1.0)
    assert curves["star"][4096] < curves["ring"][4096] < curves["hierarchical"][4096]
    assert curves["shared"][8] > 1, "the optimizer's work is shared"


def test_with_ranks_fills_a_node_first():
    machine = Topology(4, 8, memory_bytes_per_second=100e9)
    assert [(some.nodes, some.ranks_per_node) for some in map(machine.with_ranks, (1, 4, 8, 16))] == [
        (1, 1),
        (1, 4),
        (1, 8),
        (2, 8),
    ]
    assert machine.with_ranks(1).memory_bytes_per_second == machine.rank_bytes_per_second


def test_a_fit_finds_what_made_the_times():
    sizes = [1 << power for power in range(10, 29, 2)]
    line = AlphaBeta(50e-6, 117e6)
    fitted = AlphaBeta.fit(sizes, [line.seconds(size) for size in sizes])
    assert fitted.alpha_seconds == pytest.approx(50e-6) and fitted.bytes_per_second == pytest.approx(117e6)


def test_a_fit_bears_noise():
    generator = np.random.default_rng(0)
    sizes = [1 << power for power in range(10, 29)]
    line = AlphaBeta(20e-6, 1e9)
    noisy = [line.seconds(size) * (1 + 0.05 * generator.standard_normal()) for size in sizes]
    fitted = AlphaBeta.fit(sizes, noisy)
    assert fitted.alpha_seconds == pytest.approx(20e-6, rel=0.1)
    assert fitted.bytes_per_second == pytest.approx(1e9, rel=0.1)


def test_a_fit_never_has_negative_parts():
    assert AlphaBeta.fit([1000, 2000], [1e-6, 4e-6]).alpha_seconds == 0
    falling = AlphaBeta.fit([1000, 2000, 4000], [3e-6, 2e-6, 1e-6])
    assert falling.bytes_per_second == inf and falling.seconds(8000) == falling.alpha_seconds > 0
    assert AlphaBeta.fit([1000], [1e-6]).seconds(2000) == pytest.approx(2e-6)
    for sizes, seconds in (([], []), ([1], [0.0]), ([1, 2], [1.0])):
        with pytest.raises(ValueError, match="expected as many"):
            AlphaBeta.fit(sizes, seconds)
