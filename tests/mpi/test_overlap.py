"""Buckets that a second thread sends while backward goes on: the same weights, whatever arrives when."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional

from distloop import learner as learners
from distloop.comm import Hierarchical, Ring
from distloop.courier import SecondThread
from distloop.errors import ModelError, NotFiniteError
from distloop.learner import Learner
from distloop.ownership import Replicated, Sharded
from distloop.placement import Offloaded, Resident
from distloop.tasks import Loss
from tests.lopsided import cross_entropy, data, lopsided, plain_steps
from tests.oracle import (
    OPTIMIZERS,
    Rows,
    assert_same_bits,
    assert_same_weights,
    convnet,
    global_batches,
    run,
    step,
    supervised,
    train_plainly,
)

COLLECTIVES = {"ring": Ring, "nodes of 2": partial(Hierarchical, node_size=2)}
collectives = pytest.mark.parametrize("name", COLLECTIVES)
ownerships = pytest.mark.parametrize("ownership", [Replicated, Sharded])
pytestmark = [pytest.mark.mpi(timeout=90)]


@pytest.fixture(autouse=True)
def _small_buckets(monkeypatch):
    monkeypatch.setattr(learners, "bucket_bytes", lambda total_bytes: 300)


def overlapping(name, counted, module, make, ownership=Replicated, placement=Resident, **options):
    """As if a network were in the way."""
    collective = COLLECTIVES[name](counted)
    collective.overlaps = True
    made = Learner(module, ownership(collective), placement(), make, **options)
    assert isinstance(made.courier, SecondThread)
    return made


@collectives
@ownerships
@pytest.mark.parametrize("placement", [Resident, Offloaded])
@pytest.mark.parametrize("clip", [None, 0.3], ids=["", "clipped"])
def test_ends_where_plain_torch_ends(name, ownership, placement, clip, counted):
    source, module = Rows(27), convnet()
    expected = train_plainly(module, global_batches(source, 13, 2), OPTIMIZERS["adam"], clip=clip)
    learner = overlapping(name, counted, module, OPTIMIZERS["adam"], ownership, placement, clip=clip)
    assert len(learner.parts) == 3
    run(supervised(source, counted, 13, accumulate=2), learner, 2)
    assert_same_bits(counted, module)
    assert_same_weights(module, expected)
    learner.release()


@collectives
def test_a_bucket_leaves_before_backward_has_ended(name, counted):
    """The first layer's backward waits until the last bucket has been reduced."""
    module = nn.Sequential(nn.Linear(5, 40), nn.Linear(40, 40), nn.Linear(40, 3))
    learner = overlapping(name, counted, module, OPTIMIZERS["sgd"])
    order = []

    class Watching(torch.autograd.Function):
        @staticmethod
        def forward(ctx, inputs):
            return inputs.clone()

        @staticmethod
        def backward(ctx, gradient):
            learner._under_way.tickets[0].wait()
            order.append(len(learner._under_way.tickets))
            return gradient

    loss = module[2](module[1](Watching.apply(module[0](torch.ones(2, 5))))).square().sum()
    gradients = learner.gradients(Loss(loss, 2.0))
    for block in learner.reduce_to_owner(gradients):
        learner.apply(block)
    learner.broadcast()
    assert order[0] >= 1
    assert_same_bits(counted, module)


class Sometimes(nn.Module):
    """A layer that only rank 0 uses, and one that nobody does."""

    def __init__(self, used: bool) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.layers = nn.ModuleList(nn.Linear(5, 5) for _ in range(6))
        self.head, self.used = nn.Linear(5, 3), used

    def forward(self, inputs):
        for number, layer in enumerate(self.layers):
            if number != 3 and (number != 4 or self.used):
                inputs = torch.tanh(layer(inputs))
        return self.head(inputs)


@collectives
@ownerships
def test_gradients_that_only_some_ranks_have(name, ownership, counted, rank, world_size):
    module = Sometimes(used=rank == 0)
    unused = module.layers[3].weight.detach().clone()
    learner = overlapping(name, counted, module, OPTIMIZERS["adam"], ownership)
    reference = Sometimes(used=True)
    optimizer = OPTIMIZERS["adam"](list(reference.named_parameters()))
    for index in range(3):
        step(learner, lopsided(rank, world_size, seed=index), cross_entropy)
        optimizer.zero_grad()
        inputs, targets = data(seed=index)
        mine = slice(0, len(inputs) if world_size == 1 else 1)
        total = functional.cross_entropy(reference(inputs[mine]), targets[mine], reduction="sum")
        if world_size > 1:
            reference.used = False
            total = total + functional.cross_entropy(reference(inputs[1:]), targets[1:], reduction="sum")
            reference.used = True
        (total / len(inputs)).backward()
        optimizer.step()
    assert_same_bits(counted, module)
    assert_same_weights(module, reference)
    assert torch.equal(module.layers[3].weight, unused)


class Tied(nn.Module):
    """Three uses of one weight, one of them by a function."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first, self.second, self.head = nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 3)
        self.second.weight = self.first.weight

    def forward(self, inputs):
        return self.head(functional.linear(self.second(torch.tanh(self.first(inputs))), self.first.weight))


@collectives
def test_a_shared_weight_waits_for_all_its_gradients(name, counted, rank, world_size):
    module = Tied()
    loss = lambda m, inputs, targets, _: functional.cross_entropy(m(inputs), targets)  # noqa: E731
    expected = plain_steps(module, 3, loss)
    learner = overlapping(name, counted, module, OPTIMIZERS["sgd"])
    for index in range(3):
        step(learner, lopsided(rank, world_size, seed=index), cross_entropy)
    assert_same_bits(counted, module)
    assert_same_weights(module, expected)


@collectives
def test_a_loss_that_is_not_finite_changes_nothing_and_training_goes_on(name, counted, rank, world_size):
    module, plain = convnet(), convnet()
    learner = overlapping(name, counted, module, OPTIMIZERS["sgd"])
    inputs = torch.ones(2, 1, 6, 6)
    bad = Loss(module(inputs * (float("nan") if rank == world_size - 1 else 1.0)).sum(), 2.0)
    gradients = learner.gradients(bad)
    with pytest.raises(NotFiniteError, match=f"rank {world_size - 1}: nan"):
        list(learner.reduce_to_owner(gradients))
    assert_same_weights(module, plain, rtol=0, atol=0)
    source = Rows(24)
    expected = train_plainly(plain, global_batches(source, 12, 1), OPTIMIZERS["sgd"])
    run(supervised(source, counted, 12), learner, 1)
    assert_same_weights(module, expected)


@pytest.mark.mpi(ranks=(1,))
def test_a_second_gradient_after_the_bucket_has_left_is_an_error(counted):
    module = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 3))
    learner = overlapping("ring", counted, module, OPTIMIZERS["sgd"])
    learner._under_way.begin(armed=True)
    list(learner._under_way.complete(3))
    with pytest.raises(ModelError, match="use_reentrant=False"):
        list(learner._under_way.complete(3))


@collectives
def test_an_exception_in_the_second_thread_is_raised_by_the_first(name, counted):
    learner = overlapping(name, counted, convnet(), OPTIMIZERS["sgd"])
    ticket = learner.courier.give(lambda: {}["nowhere"])
    with pytest.raises(KeyError, match="nowhere"):
        ticket.wait()
    learner.release()
