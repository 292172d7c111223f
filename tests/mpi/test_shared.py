"""One node: memory that its ranks share, sums taken where they lie, and the optimizer's step fused with the sum."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest
import torch

from distloop import parts
from distloop.comm import NodeMemory, Shared
from distloop.comm.shared import SMALL_BYTES, STAGE_BYTES
from distloop.learner import Learner
from distloop.ownership import Replicated, RootOwned, Sharded
from distloop.placement import Offloaded, Resident
from distloop.tasks import Loss
from tests.collective_cases import PARTITIONS, integers
from tests.lopsided import cross_entropy, lopsided, mlp
from tests.oracle import (
    OPTIMIZERS,
    Rows,
    assert_same_bits,
    assert_same_weights,
    convnet,
    global_batches,
    matrices,
    run,
    step,
    supervised,
    train_plainly,
)

pytestmark = [pytest.mark.mpi(timeout=90)]
LENGTHS = (0, 1, 5, 1001, SMALL_BYTES // 4 + 3, STAGE_BYTES // 4 + 77)
kinds = pytest.mark.parametrize("kind", ["private", "own"])


# ---- memory ---------------------------------------------------------------------------------------------------------


def test_each_sees_what_the_others_have(counted, rank, world_size):
    memory = NodeMemory(counted.control)
    mine = memory.own(1000, torch.float32)
    mine.copy_(torch.arange(1000) + 1000 * rank)
    counted.control.Barrier()
    seen = memory.peers(mine[10:20].numpy())
    assert [part.tolist() for part in seen] == [
        list(range(1000 * other + 10, 1000 * other + 20)) for other in range(world_size)
    ]
    assert not memory.is_common(mine.numpy())
    counted.control.Barrier()


def test_what_is_common_is_there_once(counted, rank, world_size):
    memory = NodeMemory(counted.control)
    common = memory.common(world_size, torch.float64)
    common[rank] = rank + 1
    counted.control.Barrier()
    assert common.tolist() == list(range(1, world_size + 1))
    assert memory.is_common(common[:1].numpy())
    counted.control.Barrier()


def test_half_types_and_empty_vectors(counted, rank):
    memory = NodeMemory(counted.control)
    half = memory.own(3, torch.bfloat16)
    half.fill_(rank)
    counted.control.Barrier()
    peers = memory.peers(half.view(torch.int16).numpy())
    assert [float(torch.from_numpy(peer).view(torch.bfloat16)[0]) for peer in peers] == list(range(counted.size))
    assert memory.own(0, torch.float32).shape == memory.common(0, torch.float32).shape == (0,)
    counted.control.Barrier()


def test_memory_of_its_own_is_none_that_others_see(counted):
    memory = NodeMemory(counted.control)
    assert memory.peers(np.zeros(4)) is None
    assert not memory.is_common(np.zeros(4))


def test_it_lives_as_long_as_somebody_views_it(counted):
    memory, before = NodeMemory(counted.control), set(Path("/dev/shm").iterdir())
    kept = memory.own(1000, torch.float32)[5:]
    gc.collect()
    assert memory.peers(kept.numpy()) is not None
    assert len(memory._segments) == 1
    del kept
    gc.collect()
    assert not memory._segments
    assert set(Path("/dev/shm").iterdir()) <= before, "it never had a name"


# ---- collectives ----------------------------------------------------------------------------------------------------


@kinds
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32], ids=["float32", "float64", "int32"])
def test_all_reduce(kind, dtype, counted, rank, world_size):
    collective = Shared(counted)
    for length in LENGTHS:
        given, before = integers(length, world_size, dtype), counted.sent.copy()
        flat = _vector(collective, kind, given[rank])
        collective.all_reduce(flat)
        np.testing.assert_array_equal(flat, given.sum(0, dtype=dtype))
        handed_over = 0 < flat.nbytes <= SMALL_BYTES
        assert (counted.sent - before).messages == int(handed_over), "what is not small is not sent"


@kinds
@pytest.mark.parametrize("cut", PARTITIONS.values(), ids=PARTITIONS)
def test_both_halves(kind, cut, counted, rank, world_size):
    collective, before = Shared(counted), counted.sent.copy()
    for length in LENGTHS:
        given, partition = integers(length, world_size), cut(length, world_size)
        flat, own = _vector(collective, kind, given[rank]), partition.slice_of(rank)
        collective.reduce_scatter(flat, partition)
        np.testing.assert_array_equal(flat[own], given.sum(0)[own])
        collective.all_gather(flat, partition)
        np.testing.assert_array_equal(flat, given.sum(0))
    assert counted.sent == before


@kinds
def test_broadcast_from_every_root(kind, counted, rank, world_size):
    collective = Shared(counted)
    for length in LENGTHS:
        given = integers(length, world_size)
        for root in range(world_size):
            flat = _vector(collective, kind, given[rank])
            collective.broadcast(flat, root)
            np.testing.assert_array_equal(flat, given[root])


@kinds
def test_sums_are_taken_in_order_of_rank(kind, counted, rank, world_size):
    """The same bits on every rank, and those of adding rank after rank."""
    given = np.random.default_rng(0).standard_normal((world_size, 100_003), dtype=np.float32)
    collective = Shared(counted)
    flat = _vector(collective, kind, given[rank])
    collective.all_reduce(flat)
    expected = given[0].copy()
    for other in given[1:]:
        expected += other
    np.testing.assert_array_equal(flat, expected)


def _vector(collective, kind, values):
    if kind == "private":
        return values.copy()
    flat = collective.memory.own(len(values), torch.from_numpy(values).dtype).numpy()
    flat[:] = values
    return flat


# ---- the fused step -------------------------------------------------------------------------------------------------


def shared_learner(counted, module, make, ownership=Sharded, placement=Resident, **options):
    return Learner(module, ownership(Shared(counted)), placement(), make, **options)


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(parts, "BLOCK_ELEMENTS", 37)


@pytest.mark.parametrize("ownership", [Sharded, Replicated, RootOwned])
@pytest.mark.parametrize("placement", [Resident, Offloaded])
@pytest.mark.parametrize("clip", [None, 0.3], ids=["", "clipped"])
def test_in_blocks_it_ends_where_plain_torch_ends(ownership, placement, clip, small_blocks, counted):
    source, module = Rows(27), convnet()
    expected = train_plainly(module, global_batches(source, 13, 2), OPTIMIZERS["adam"], clip=clip)
    learner = shared_learner(counted, module, OPTIMIZERS["adam"], ownership, placement, clip=clip)
    run(supervised(source, counted, 13, accumulate=2), learner, 2)
    assert_same_bits(counted, module)
    assert_same_weights(module, expected)


def test_the_optimizer_is_shown_a_block_at_a_time_and_has_all_its_parameters_between(small_blocks, counted):
    source, module = Rows(24), convnet()
    make = OPTIMIZERS["adam"]
    schedule = lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)  # noqa: E731
    expected = train_plainly(module, global_batches(source, 12, 2), make, schedule)
    learner = shared_learner(counted, module, make, make_schedule=schedule)
    pieces = [piece.parameter for part in learner.parts for piece in part.pieces]
    assert len(learner.parts[0].blocks) == max(1, -(-len(learner.parts[0].placed.parameters) // 37))
    run(supervised(source, counted, 12), learner, 2)
    (group,) = learner.optimizer.param_groups
    assert all(shown is piece for shown, piece in zip(group["params"], pieces, strict=True))
    assert_same_weights(module, expected)


def test_whole_parameters_where_an_optimizer_looks_at_them(small_blocks, counted):
    source, module = Rows(24), matrices()
    make = lambda named: torch.optim.Muon(named, lr=0.01)  # noqa: E731
    expected = train_plainly(module, global_batches(source, 12, 1), make)
    run(supervised(source, counted, 12), shared_learner(counted, module, make), 1)
    assert_same_bits(counted, module)
    assert_same_weights(module, expected)


def test_parameters_exist_once_per_node_and_gradients_once_per_rank(counted, comm, rank, world_size):
    module = convnet()
    learner = shared_learner(counted, module, OPTIMIZERS["adam"])
    (flat,) = learner.flats
    memory = learner.ownership.collective.memory
    assert memory.is_common(flat.parameters.numpy())
    assert len(memory.peers(flat.gradients.numpy())) == world_size
    counted.control.Barrier()
    if rank == world_size - 1:
        next(module.parameters()).data.fill_(7.0)
    counted.control.Barrier()
    assert next(module.parameters()).eq(7.0).all(), "written by one, seen by all"
    counted.control.Barrier()
    state = sum(v.numel() for found in learner.optimizer.state.values() for v in found.values() if v.ndim)
    assert comm.allreduce(state) in (0, 2 * flat.length)


def test_nothing_is_sent(counted):
    source, module = Rows(24), convnet()
    learner = shared_learner(counted, module, OPTIMIZERS["adam"])
    before = counted.sent.copy()
    run(supervised(source, counted, 12), learner, 1)
    assert counted.sent == before


# ---- gradients as bfloat16 ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clip", [None, 1e6], ids=["", "kept"])
def test_bfloat16_gradients_are_summed_in_float32(clip, counted, rank, world_size):
    """256 and 1 are numbers that bfloat16 has, their sum is not."""
    module = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(module.weight)
    make = lambda named: torch.optim.SGD(named, lr=1.0)  # noqa: E731
    learner = shared_learner(counted, module, make, gradient_dtype=torch.bfloat16, clip=clip)
    assert [flat.gradients.dtype for flat in learner.flats] == [torch.bfloat16]
    value = 256.0 if rank == 0 else 1.0

    class Slope:
        inputs, targets, expected_weight = torch.full((1, 1), value), torch.zeros(1), 1.0

    def loss_of(module, minibatch):
        return Loss(module(minibatch.inputs).sum(), 1.0 / world_size)

    step(learner, Slope(), loss_of)
    assert module.weight.item() == pytest.approx(-(256 + world_size - 1), rel=1e-5)


@pytest.mark.parametrize("placement", [Resident, Offloaded])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bfloat16_gradients_train(placement, dtype, small_blocks, counted, rank, world_size):
    module, plain = mlp().to(dtype), mlp().to(dtype)
    learner = shared_learner(counted, module, OPTIMIZERS["sgd"], Sharded, placement, gradient_dtype=torch.bfloat16)
    whole = shared_learner(counted, plain, OPTIMIZERS["sgd"], Sharded, placement)
    for index in range(4):
        batch = lopsided(rank, world_size, seed=index)
        batch.inputs = batch.inputs.to(dtype)
        for each in (learner, whole):
            step(each, batch, cross_entropy)
    assert_same_bits(counted, module)
    assert_same_weights(module, plain, rtol=0.02, atol=4e-3)
