"""Training on an accelerator (a stand-in for one): the weights of the CPU, and no byte across the bus but those due."""

from __future__ import annotations

import itertools

import pytest
import torch

from distloop.comm import Ring, Shared
from distloop.learner import Learner
from distloop.ownership import Replicated, Sharded
from distloop.placement import Offloaded, Resident
from distloop.tasks import Loss
from tests.oracle import (
    OPTIMIZERS,
    Rows,
    assert_same_bits,
    assert_same_weights,
    convnet,
    global_batches,
    run,
    supervised,
    train_plainly,
)
from tests.stand_in_device import copies, stand_in

COMBINATIONS = list(itertools.product([Replicated, Sharded], [Resident, Offloaded]))
LENGTH, BATCH, EPOCHS = 24, 12, 2
DEVICE = stand_in()  # here, because autograd counts the devices at the first backward of a process
STEPS = EPOCHS * LENGTH // BATCH

combinations = pytest.mark.parametrize(
    ("ownership", "placement"), COMBINATIONS, ids=[f"{o.__name__}-{p.__name__}" for o, p in COMBINATIONS]
)
pytestmark = [pytest.mark.mpi(timeout=90)]


def on_device(counted, ownership, placement, optimizer="adam", clip=None):
    module = convnet().to(DEVICE)
    learner = Learner(module, ownership(Ring(counted)), placement(), OPTIMIZERS[optimizer], clip=clip)
    return module, learner


def elements(learner):
    """Those of the whole model, and those that this rank owns."""
    (part,) = learner.parts
    return part.placed.flat.length, part.placed.parameters.numel()


@combinations
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_ends_at_the_weights_of_the_cpu(ownership, placement, optimizer, counted):
    source = Rows(LENGTH)
    expected = train_plainly(convnet(), global_batches(source, BATCH, EPOCHS), OPTIMIZERS[optimizer])
    module, learner = on_device(counted, ownership, placement, optimizer)
    run(supervised(source, counted, BATCH, device=DEVICE), learner, EPOCHS)
    assert {p.device for p in module.parameters()} == {DEVICE}
    assert_same_bits(counted, module)
    assert_same_weights(module, expected)


@combinations
def test_clipping_and_a_last_batch_of_one_row(ownership, placement, counted):
    source = Rows(27)
    expected = train_plainly(convnet(), global_batches(source, 13, 1), OPTIMIZERS["sgd"], clip=0.3)
    module, learner = on_device(counted, ownership, placement, "sgd", clip=0.3)
    run(supervised(source, counted, 13, device=DEVICE), learner, 1)
    assert_same_bits(counted, module)
    assert_same_weights(module, expected)


@combinations
def test_every_byte_between_host_and_device(ownership, placement, counted, world_size):
    """To the host: all gradients, loss and weight as one number each, and owned parameters that the device has updated.

    To the device: all parameters where others updated some, or the host did; the reduced gradients of what is owned
    where the device updates; and this rank's rows, of 36 numbers and one class each.
    """
    _, learner = on_device(counted, ownership, placement)
    task = supervised(Rows(LENGTH), counted, BATCH, device=DEVICE)
    whole, owned = elements(learner)
    copies.reset()
    run(task, learner, EPOCHS)
    rows = EPOCHS * sum(len(minibatch.inputs) for minibatch in task.extract(task.collect({}, _Start())))
    gathers = ownership is Sharded
    resident = placement is Resident
    to_host = 4 * whole + (4 + 8) + 4 * owned * (gathers and resident)
    to_device = 4 * whole * (gathers or not resident) + 4 * owned * resident
    assert copies.device_to_host_bytes == STEPS * to_host
    assert copies.host_to_device_bytes == STEPS * to_device + rows * (36 * 4 + 8)
    assert copies.device_to_host == STEPS * (3 + (gathers and resident and owned > 0))


class _Start:
    round = position = 0


def test_zero_offload_copies_n_bytes_each_way(counted, world_size):
    """The figures of ZeRO-Offload: gradients down, parameters up, whatever the number of ranks."""
    module, learner = on_device(counted, Sharded, Offloaded)
    size_bytes = sum(p.numel() * p.element_size() for p in module.parameters())
    copies.reset()
    gradients = learner.gradients(_Zero.loss(module))
    loss_bytes = copies.device_to_host_bytes
    for part in learner.reduce_to_owner(gradients):
        learner.apply(part)
    learner.broadcast()
    assert loss_bytes == 4
    assert copies.device_to_host_bytes - loss_bytes == size_bytes
    assert copies.host_to_device_bytes == size_bytes
    assert (copies.device_to_host, copies.host_to_device) == (2, 1)


class _Zero:
    """A loss that needs nothing from the host."""

    @staticmethod
    def loss(module):
        return Loss(module(torch.ones(2, 1, 6, 6, device=DEVICE)).square().sum(), 2.0)


@combinations
def test_where_the_optimizer_keeps_its_state(ownership, placement, counted, comm, world_size):
    _, learner = on_device(counted, ownership, placement)
    run(supervised(Rows(LENGTH), counted, BATCH, device=DEVICE), learner, 1)
    state = [value for found in learner.optimizer.state.values() for value in found.values() if value.ndim]
    vectors = [*state, *(piece.parameter for part in learner.parts for piece in part.pieces)]
    assert {tensor.device.type for tensor in vectors} <= {"cpu" if placement is Offloaded else DEVICE.type}
    whole, owned = elements(learner)
    assert sum(tensor.numel() for tensor in state) == 2 * owned
    assert owned == whole if ownership is Replicated else abs(owned - whole / world_size) < 1
    if ownership is Sharded:
        assert comm.allreduce(owned) == whole


def test_the_master_copy_is_of_what_is_owned_and_not_the_modules_own(counted):
    _, learner = on_device(counted, Sharded, Offloaded)
    (part,) = learner.parts
    master, flat = part.placed.parameters, part.placed.flat
    torch.testing.assert_close(master, flat.parameters.cpu()[part.placed.owned], rtol=0, atol=0)
    before = flat.parameters.cpu()
    master.add_(1)
    assert torch.equal(flat.parameters.cpu(), before)
    learner.broadcast()
    assert torch.equal(flat.parameters.cpu(), before + 1)


@combinations
def test_bfloat16_gradients_in_shared_memory(ownership, placement, counted):
    """Where the device wants the sums back they stay float32; a half type must never be summed as whole numbers."""
    source, plain = Rows(LENGTH), convnet()
    expected = train_plainly(plain, global_batches(source, BATCH, 1), OPTIMIZERS["sgd"])
    module = convnet().to(DEVICE)
    options = {"gradient_dtype": torch.bfloat16}
    learner = Learner(module, ownership(Shared(counted)), placement(), OPTIMIZERS["sgd"], **options)
    run(supervised(source, counted, BATCH, device=DEVICE), learner, 1)
    assert_same_bits(counted, module)
    assert_same_weights(module, expected, rtol=0.02, atol=4e-3)
