"""Steps that each rank takes alone: against a plain simulation of as many models, with averages written by hand."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from distloop.comm import Ring, TopK, exchange
from distloop.errors import ConfigError, NotFiniteError
from distloop.learner import Learner
from distloop.local_steps import OUTERS, LocalSteps
from distloop.ownership import Replicated
from distloop.partition import Partition
from distloop.placement import Offloaded, Resident
from tests.compressed_cases import ring_bytes
from tests.lopsided import ROWS, cross_entropy, data, lopsided, mlp
from tests.oracle import (
    OPTIMIZERS,
    Rows,
    assert_same_bits,
    assert_same_weights,
    convnet,
    global_batches,
    learner_of,
    run,
    step,
    supervised,
    train_plainly,
)

pytestmark = [pytest.mark.mpi(timeout=60)]

PLAIN_SGD = lambda named: torch.optim.SGD(named, lr=0.05)  # noqa: E731 (as in OPTIMIZERS)
replicated = pytest.mark.parametrize("name", ["star", "ring", "native"])


class Simulation:
    """``world_size`` copies of a model in one process; ``meet`` is the paper's outer step, written out."""

    def __init__(self, module, world_size, make_optimizer):
        self.modules = [copy.deepcopy(module) for _ in range(world_size)]
        self.optimizers = [make_optimizer(list(one.named_parameters())) for one in self.modules]
        self.anchor = [parameter.detach().clone() for parameter in module.parameters()]
        self.momentum = [torch.zeros_like(parameter) for parameter in self.anchor]
        self.rows = [0] * world_size

    def step(self, inputs, targets):
        cut = Partition.even(len(inputs), len(self.modules))
        for rank, (module, optimizer) in enumerate(zip(self.modules, self.optimizers, strict=True)):
            mine = cut.slice_of(rank)
            self.rows[rank] += mine.stop - mine.start
            if mine.stop > mine.start:
                optimizer.zero_grad()
                functional.cross_entropy(module(inputs[mine]), targets[mine]).backward()
                optimizer.step()

    @torch.no_grad()
    def meet(self, rate=1.0, momentum=0.0):
        for index, anchor in enumerate(self.anchor):
            ranks = [list(module.parameters())[index] for module in self.modules]
            mean = sum(rows * one for rows, one in zip(self.rows, ranks, strict=True)) / sum(self.rows)
            gradient = anchor - mean
            self.momentum[index] = momentum * self.momentum[index] + gradient
            anchor -= rate * (gradient + momentum * self.momentum[index])
            for one in ranks:
                one.copy_(anchor)
        self.rows = [0] * len(self.modules)


def local(comm, module, make, every, outer="average", placement=None, collective=None):
    ownership = Replicated(collective or Ring(comm))
    return Learner(module, ownership, placement or Resident(), make, rhythm=LocalSteps(every, OUTERS[outer]))


@replicated
def test_meeting_at_every_step_is_data_parallelism(name, counted):
    """Of plain SGD, whose step is linear in the gradient."""
    source, module = Rows(27), convnet()
    expected = train_plainly(module, global_batches(source, 13, 2), PLAIN_SGD)
    learner = learner_of(name, counted, module, PLAIN_SGD, rhythm=LocalSteps(1))
    progress = run(supervised(source, counted, 13), learner, 2)
    assert (progress.step, progress.samples) == (6, 54)
    assert_same_bits(counted, module)
    assert_same_weights(module, expected)


@pytest.mark.parametrize("outer", OUTERS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_outer_step_is_that_of_the_paper(optimizer, outer, counted, world_size):
    """A last batch of one row included, which all but one rank sit out; and a meeting that is called for."""
    source, module, every = Rows(27), convnet(), 2
    simulation = Simulation(module, world_size, OPTIMIZERS[optimizer])
    settings = {"average": (1.0, 0.0), "nesterov": (0.7, 0.9)}[outer]
    for number, batch in enumerate(global_batches(source, 13, 3), 1):
        simulation.step(*batch)
        if number % every == 0:
            simulation.meet(*settings)
    simulation.meet(*settings)
    learner = local(counted, module, OPTIMIZERS[optimizer], every, outer)
    run(supervised(source, counted, 13), learner, 3)
    learner.meet()
    assert_same_bits(counted, module)
    assert_same_weights(module, simulation.modules[0])


def test_a_step_needs_nobody(counted, comm, rank, world_size):
    """The ranks take turns: each steps while the others wait elsewhere. Nothing is sent, not even uncounted."""
    learner = local(counted, mlp(), OPTIMIZERS["adam"], every=4)
    before = counted.sent.copy()
    for turn in range(world_size):
        if turn == rank:
            for index in range(3):
                step(learner, lopsided(rank, world_size, seed=index), cross_entropy)
        comm.Barrier()
    assert counted.sent == before
    step(learner, lopsided(rank, world_size, seed=3), cross_entropy)
    assert_same_bits(counted, learner.module)


@pytest.mark.parametrize("every", [1, 2, 5])
def test_bytes_are_those_of_a_ring_over_the_number_of_steps(every, counted, rank, world_size):
    module, steps = mlp(), 10
    elements = sum(parameter.numel() for parameter in module.parameters())
    learner = local(counted, module, OPTIMIZERS["adam"], every)
    before = counted.sent.copy()
    for index in range(steps):
        step(learner, lopsided(rank, world_size, seed=index), cross_entropy)
    learner.meet()
    sent = counted.sent - before
    assert sent.bytes == steps // every * ring_bytes(elements, rank, world_size)


def test_a_meeting_that_has_been_is_not_held_again(counted, rank, world_size):
    learner = local(counted, mlp(), OPTIMIZERS["sgd"], 2, "nesterov")
    for index in range(2):
        step(learner, lopsided(rank, world_size, seed=index), cross_entropy)
    weights = copy.deepcopy(learner.module)
    before = counted.sent.copy()
    assert learner.meet().weight == 0
    assert counted.sent == before
    assert_same_weights(learner.module, weights, 0, 0)


def test_the_loss_is_known_when_the_ranks_meet(counted, rank, world_size):
    module = mlp()
    wanted = functional.cross_entropy(module(data()[0]), data()[1]).item()
    learner = local(counted, module, lambda named: torch.optim.SGD(named, lr=0.0), 2)
    known = []
    for _ in range(3):
        gradients = learner.gradients(cross_entropy(module, lopsided(rank, world_size)) / ROWS)
        for block in learner.reduce_to_owner(gradients):
            learner.apply(block)
        learner.broadcast()
        known.append(gradients.known)
    known.append(learner.meet())
    assert [one.weight for one in known] == [0, 2 * ROWS, 0, ROWS]
    assert math.isnan(known[0].mean_loss)
    assert [one.mean_loss for one in known[1:]] == pytest.approx([wanted] * 3, rel=1e-5)


@pytest.mark.parametrize("clip", [None, 1.0])
def test_a_loss_that_is_not_finite_is_told_when_the_ranks_meet(clip, counted, rank, world_size):
    module, last = mlp(), world_size - 1
    learner = Learner(
        module, Replicated(Ring(counted)), Resident(), OPTIMIZERS["adam"], clip=clip, rhythm=LocalSteps(3)
    )
    for index in range(3):
        step(learner, lopsided(rank, world_size, seed=index), cross_entropy)
    before = copy.deepcopy(module)
    minibatch = lopsided(rank, world_size, seed=3)
    if rank == last:
        minibatch.inputs[0, 0] = math.nan
    step(learner, minibatch, cross_entropy)
    step(learner, lopsided(rank, world_size, seed=4), cross_entropy)
    with pytest.raises(NotFiniteError) as raised:
        step(learner, lopsided(rank, world_size, seed=5), cross_entropy)
    assert raised.value.everywhere
    assert f"rank {last}: the loss is not finite at step 4. The weights are those" in str(raised.value)
    assert "last meeting, 3 steps ago" in str(raised.value)
    assert len(set(exchange(counted.control, str(raised.value)))) == 1
    assert_same_weights(module, before, 0, 0)
    for index in range(3):
        step(learner, lopsided(rank, world_size, seed=index), cross_entropy)
    assert_same_bits(counted, module)


def test_buffers_are_averaged_when_the_ranks_meet(counted, rank, world_size):
    torch.manual_seed(1)
    module = nn.Sequential(nn.BatchNorm1d(5, momentum=0.5), nn.Linear(5, 3))
    learner = local(counted, module, OPTIMIZERS["sgd"], 2)
    generator = torch.Generator().manual_seed(rank)
    for _ in range(2):
        inputs, targets = torch.randn(4, 5, generator=generator) + rank, torch.zeros(4, dtype=torch.int64)
        minibatch = type(lopsided(rank, world_size))(inputs, targets, 4 * world_size)
        own = exchange(counted.control, module[0].running_mean.tolist())
        step(learner, minibatch, cross_entropy)
    assert_same_bits(counted, module)
    if world_size > 1:
        assert len({tuple(one) for one in own}) > 1, "each had its own before"
    assert module[0].num_batches_tracked == 2


@pytest.mark.parametrize("outer", OUTERS)
def test_offloaded_parameters_meet_alike(outer, counted):
    source, modules = Rows(27), [convnet(), convnet()]
    for module, placement in zip(modules, (Resident(), Offloaded()), strict=True):
        learner = local(counted, module, OPTIMIZERS["adam"], 2, outer, placement)
        run(supervised(source, counted, 13), learner, 2)
        learner.meet()
        assert_same_bits(counted, module)
    assert_same_weights(modules[0], modules[1])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types(dtype, counted):
    source, module = Rows(27, dtype), convnet(dtype)
    learner = local(counted, module, OPTIMIZERS["sgd"], 2, "nesterov")
    run(supervised(source, counted, 13), learner, 2)
    learner.meet()
    assert_same_bits(counted, module)


def test_compressed_meetings(counted):
    """What travels is a gradient to the outer optimizer, and may be compressed as one; of all of it nothing is lost."""
    source, modules = Rows(27), [convnet(), convnet()]
    for module, collective in zip(modules, (Ring(counted), TopK(Ring(counted), 1.0, least_elements=1)), strict=True):
        learner = local(counted, module, OPTIMIZERS["adam"], 2, collective=collective)
        run(supervised(source, counted, 13), learner, 2)
        learner.meet()
        assert_same_bits(counted, module)
        assert isinstance(collective, Ring) or list(collective.state()) == ["0.residual"]
    assert_same_weights(modules[0], modules[1])


def test_it_goes_on_from_its_state(counted):
    source, straight, first = Rows(27), convnet(), convnet()
    learner = local(counted, straight, PLAIN_SGD, 2, "nesterov")
    run(supervised(source, counted, 13), learner, 2)
    learner.meet()
    run(supervised(source, counted, 13), learner, 2)
    learner.meet()
    before = local(counted, first, PLAIN_SGD, 2, "nesterov")
    run(supervised(source, counted, 13), before, 2)
    before.meet()
    saved = {name: part.copy() for name, part in before.meetings.state().items()}
    before.release()
    after = local(counted, first, PLAIN_SGD, 2, "nesterov")
    after.meetings.load(saved)
    run(supervised(source, counted, 13), after, 2)
    after.meet()
    assert_same_weights(first, straight, 0, 0)


@pytest.mark.parametrize("name", ["zero", "zero-offload", "parameter-server"])
def test_ranks_that_own_a_part_cannot_step_alone(name, counted):
    with pytest.raises(ConfigError, match="a replicated strategy") as raised:
        learner_of(name, counted, mlp(), OPTIMIZERS["sgd"], rhythm=LocalSteps(2))
    assert raised.value.everywhere
