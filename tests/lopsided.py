"""Rows that the ranks share as unevenly as can be, and plain torch on all of them."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn import functional

from distloop.tasks import Loss, Minibatch
from distloop.tasks.losses import summed
from tests.oracle import OPTIMIZERS

ROWS = 8
DECAY = lambda named: torch.optim.SGD(named, lr=0.1, momentum=0.9, weight_decay=0.1)  # noqa: E731 (as in OPTIMIZERS)


def data(rows=ROWS, seed=0):
    """Inputs (rows, 5) and targets (rows,) of three classes, the same on every rank."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 5, generator=generator), torch.randint(3, (rows,), generator=generator)


def lopsided(rank, world_size, rows=ROWS, seed=0):
    """One row on rank 0, the others on the last rank, none between."""
    inputs, targets = data(rows, seed)
    mine = slice(0, rows) if world_size == 1 else slice(0, 1) if rank == 0 else slice(1, rows)
    keep = mine if rank in (0, world_size - 1) else slice(0, 0)
    return Minibatch(inputs[keep], targets[keep], rows)


def cross_entropy(module, minibatch, loss_function=None):
    """A sum and its weight, or nothing where there are no rows."""
    if not len(minibatch.inputs):
        return Loss(torch.zeros(()), 0.0)
    return summed(loss_function or nn.CrossEntropyLoss())(module(minibatch.inputs), minibatch.targets)


def mlp():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))


def plain_steps(module, steps, loss_of, make=OPTIMIZERS["sgd"]):
    """The oracle: ``loss_of(module, inputs, targets, index)`` on the whole batch of each step."""
    module = copy.deepcopy(module)
    optimizer = make(list(module.named_parameters()))
    for index in range(steps):
        optimizer.zero_grad()
        loss_of(module, *data(seed=index), index).backward()
        optimizer.step()
    return module


def plain_cross_entropy(module, inputs, targets, index):
    return functional.cross_entropy(module(inputs), targets)
