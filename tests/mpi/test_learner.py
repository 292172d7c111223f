"""What a learner must get right that is not the average case: rows and gradients that only some ranks have, or none."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from distloop.errors import NotFiniteError
from distloop.strategies import NAMES
from distloop.tasks import Minibatch
from distloop.tasks.losses import summed
from tests.lopsided import DECAY, ROWS, cross_entropy, data, lopsided, mlp, plain_cross_entropy, plain_steps
from tests.oracle import (
    OPTIMIZERS,
    Rows,
    assert_same_bits,
    assert_same_weights,
    convnet,
    learner_of,
    run,
    step,
    supervised,
)

strategies = pytest.mark.parametrize("name", NAMES)
each_ownership = pytest.mark.parametrize("name", ["ring", "zero", "parameter-server"])
# ---- rows that are divided unevenly ---------------------------------------------------------------------------------


@strategies
def test_one_row_here_and_seven_there_count_as_eight(name, counted, rank, world_size):
    module = mlp()
    expected = plain_steps(module, 3, plain_cross_entropy)
    learner = learner_of(name, counted, module, OPTIMIZERS["sgd"])
    for index in range(3):
        step(learner, lopsided(rank, world_size, seed=index), cross_entropy)
    assert_same_bits(counted, module)
    assert_same_weights(module, expected)


@each_ownership
def test_fewer_rows_than_ranks(name, counted):
    source, module = Rows(5), convnet()
    learner = learner_of(name, counted, module, OPTIMIZERS["adam"])
    progress = run(supervised(source, counted, 2), learner, 1)
    assert (progress.step, progress.samples) == (3, 5)
    assert_same_bits(counted, module)
    assert math.isfinite(progress.loss)


@each_ownership
def test_the_loss_is_the_mean_over_the_global_batch(name, counted, rank, world_size):
    module = mlp()
    wanted = plain_cross_entropy(module, *data(), 0).item()
    learner = learner_of(name, counted, module, OPTIMIZERS["sgd"])
    gradients = learner.gradients(cross_entropy(module, lopsided(rank, world_size)) / ROWS)
    for part in learner.reduce_to_owner(gradients):
        learner.apply(part)
    assert gradients.mean_loss == pytest.approx(wanted, rel=1e-5)
    learner.broadcast()


WEIGHTED = {
    "class weights": lambda: nn.CrossEntropyLoss(weight=torch.tensor([0.2, 1.0, 3.0])),
    "ignore_index": lambda: nn.CrossEntropyLoss(ignore_index=1),
    "both, smoothed": lambda: nn.CrossEntropyLoss(torch.tensor([0.2, 1.0, 3.0]), ignore_index=1, label_smoothing=0.1),
}


@each_ownership
@pytest.mark.parametrize("loss", WEIGHTED)
def test_a_loss_that_does_not_count_rows_alike(name, loss, counted, rank, world_size):
    """torch divides by the weight of what counts, which is known only when all ranks have said theirs."""
    module, loss_function = mlp(), WEIGHTED[loss]()
    expected = plain_steps(module, 3, lambda m, inputs, targets, _: loss_function(m(inputs), targets))
    learner = learner_of(name, counted, module, OPTIMIZERS["sgd"])
    for index in range(3):
        step(learner, lopsided(rank, world_size, seed=index), lambda m, b: cross_entropy(m, b, loss_function))
    assert_same_bits(counted, module)
    assert_same_weights(module, expected)


# ---- gradients that only some have ----------------------------------------------------------------------------------


class Branches(nn.Module):
    """``choice`` says which of two layers is used; a third never is."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(2)
        self.first, self.second, self.never = (nn.Linear(5, 3) for _ in range(3))
        self.choice = "first"

    def forward(self, inputs):
        return getattr(self, self.choice)(inputs)


@strategies
def test_parameters_without_a_gradient_on_any_rank_are_left_alone(name, counted, rank, world_size):
    """Neither decay nor momentum moves them in a step that does not use them, as in torch."""
    module, choices = Branches(), ["first", "second", "first", "second", "second"]

    def loss_of(module, inputs, targets, index):
        module.choice = choices[index]
        return plain_cross_entropy(module, inputs, targets, index)

    expected = plain_steps(module, len(choices), loss_of, DECAY)
    learner, untouched = learner_of(name, counted, module, DECAY), module.never.weight.detach().clone()
    for index, module.choice in enumerate(choices):
        step(learner, lopsided(rank, world_size, seed=index), cross_entropy)
    assert torch.equal(module.never.weight, untouched)
    assert_same_bits(counted, module)
    assert_same_weights(module, expected)


@strategies
def test_parameters_with_a_gradient_on_some_ranks_only(name, counted, rank, world_size):
    """Even rows go one way and odd ones another, so that with few rows a rank has gone one way only."""
    module = Branches()

    def both(module, inputs, numbers):
        outputs = torch.empty(len(inputs), 3)
        for choice, chosen in (("first", numbers % 2 == 0), ("second", numbers % 2 == 1)):
            if chosen.any():
                outputs[chosen] = getattr(module, choice)(inputs[chosen])
        return outputs

    def loss_of(module, inputs, targets, index):
        return functional.cross_entropy(both(module, inputs, torch.arange(len(inputs))), targets)

    expected = plain_steps(module, 3, loss_of, DECAY)
    learner = learner_of(name, counted, module, DECAY)
    loss = summed(nn.CrossEntropyLoss())
    mine = torch.arange(ROWS)[torch.arange(ROWS) % world_size == rank]
    for index in range(3):
        inputs, targets = data(seed=index)
        minibatch = Minibatch(inputs[mine], targets[mine], ROWS)
        step(learner, minibatch, lambda m, b: loss(both(m, b.inputs, mine), b.targets))
    assert_same_bits(counted, module)
    assert_same_weights(module, expected)


@strategies
def test_a_step_of_which_no_rank_has_any_row_changes_nothing(name, counted):
    module = mlp()
    learner = learner_of(name, counted, module, DECAY)
    before = copy.deepcopy(module)
    step(learner, Minibatch(torch.empty(0, 5), torch.empty(0, dtype=torch.int64), 1), cross_entropy)
    assert_same_weights(module, before, rtol=0, atol=0)


def test_a_gradient_from_before_is_not_added(counted, rank, world_size):
    module = mlp()
    expected = plain_steps(module, 1, plain_cross_entropy)
    module[0].weight.grad = torch.ones(7, 5)
    step(learner_of("ring", counted, module, OPTIMIZERS["sgd"]), lopsided(rank, world_size), cross_entropy)
    assert_same_weights(module, expected)


@strategies
def test_a_loss_that_is_not_finite_stops_all_ranks_before_anything_changes(name, counted, rank, world_size):
    """And leaves nothing behind: who goes on goes on as if that minibatch had never been."""
    module = mlp()
    expected = plain_steps(module, 2, plain_cross_entropy, OPTIMIZERS["adam"])
    learner = learner_of(name, counted, module, OPTIMIZERS["adam"])
    step(learner, lopsided(rank, world_size), cross_entropy)
    before, last = copy.deepcopy(module), world_size - 1
    minibatch = lopsided(rank, world_size)
    if rank == last:
        minibatch.inputs[0, 0] = math.nan
    with pytest.raises(NotFiniteError, match=rf"at step 2 \(rank {last}: nan\)") as raised:
        step(learner, minibatch, cross_entropy)
    assert raised.value.everywhere
    assert_same_weights(module, before, rtol=0, atol=0)
    step(learner, lopsided(rank, world_size, seed=1), cross_entropy)
    assert_same_bits(counted, module)
    assert_same_weights(module, expected)
