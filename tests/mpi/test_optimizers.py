"""Optimizers beyond the matrix: decay, whole matrices, schedules, half precision; torch's own under each ownership."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torch import nn

from distloop.comm import exchange
from distloop.errors import ConfigError
from distloop.schedules import build_schedule
from distloop.strategies import NAMES
from distloop.tasks import Loss, Minibatch
from tests.lopsided import ROWS, cross_entropy, data, mlp
from tests.oracle import (
    OPTIMIZERS,
    Rows,
    assert_same_bits,
    assert_same_weights,
    convnet,
    global_batches,
    learner_of,
    matrices,
    run,
    step,
    supervised,
    train_plainly,
)

BATCH, STEPS = 13, 3  # of 27 rows
FUSED = {
    "adam fused": lambda named: torch.optim.Adam(named, lr=0.01, fused=True),
    "adam foreach": lambda named: torch.optim.Adam(named, lr=0.01, foreach=True),
    "sgd nesterov": lambda named: torch.optim.SGD(named, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adagrad": lambda named: torch.optim.Adagrad(named, lr=0.05),
    "nadam": lambda named: torch.optim.NAdam(named, lr=0.01),
}

strategies = pytest.mark.parametrize("name", NAMES)
cut_or_whole = pytest.mark.parametrize("name", ["ring", "zero", "zero-offload", "parameter-server"])


def trained(name, counted, make, build=convnet, **options):
    """The module after an epoch, and its learner."""
    module = build()
    learner = learner_of(name, counted, module, make, **options)
    run(supervised(Rows(27), counted, BATCH), learner, 1)
    assert_same_bits(counted, module)
    return module, learner


def plain(make, build=convnet, **options):
    return train_plainly(build(), global_batches(Rows(27), BATCH, 1), make, **options)


@strategies
def test_adamw_with_weight_decay(name, counted):
    make = partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1)
    assert_same_weights(trained(name, counted, make)[0], plain(make))


@cut_or_whole
def test_weight_decay_for_matrices_only(name, counted):
    """The usual rule looks at the number of dimensions, which a parameter cut between two ranks must keep."""

    def make(named):
        named = list(named)
        groups = [{"params": [p for _, p in named if p.ndim > 1], "weight_decay": 0.5}]
        groups += [{"params": [p for _, p in named if p.ndim <= 1], "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, lr=0.01)

    assert_same_weights(trained(name, counted, make)[0], plain(make))


@pytest.mark.parametrize("optimizer", FUSED)
def test_torchs_own_elementwise_optimizers_under_zero(optimizer, counted):
    assert_same_weights(trained("zero", counted, FUSED[optimizer])[0], plain(FUSED[optimizer]))


@cut_or_whole
def test_adafactor_owns_whole_parameters(name, counted):
    """It keeps means of rows and columns, so a matrix must not be cut."""
    make = partial(torch.optim.Adafactor, lr=0.02)
    module, learner = trained(name, counted, make)
    shapes = {key: value.shape for key, value in module.named_parameters()}
    assert all(piece.parameter.shape == shapes[piece.name] for part in learner.parts for piece in part.pieces)
    assert_same_weights(module, plain(make))


@cut_or_whole
def test_muon_owns_whole_matrices(name, counted):
    """With more ranks than matrices, some own none."""
    make = partial(torch.optim.Muon, lr=0.02)
    found, expected = trained(name, counted, make, matrices)[0], plain(make, matrices)
    assert_same_weights(found, expected, rtol=0.05, atol=1e-4)  # it orthogonalises in bfloat16


def test_an_optimizer_that_refuses_a_parameter_is_an_error_on_all_ranks(counted):
    """Muon takes matrices only; under zero, not every rank owns something else."""
    with pytest.raises(ConfigError, match="Muon"):
        learner_of("zero", counted, convnet(), partial(torch.optim.Muon, lr=0.02))


@strategies
def test_cosine_with_warmup(name, counted):
    schedule = partial(build_schedule, "cosine", {}, 2, STEPS)
    module, learner = trained(name, counted, OPTIMIZERS["sgd"], make_schedule=schedule)
    assert_same_weights(module, plain(OPTIMIZERS["sgd"], make_schedule=schedule))
    rates = exchange(counted.control, learner.optimizer.param_groups[0]["lr"])
    assert len(set(rates)) == 1 and rates[0] < 0.05


def vector(module):
    return torch.cat([parameter.detach().float().flatten() for parameter in module.parameters()])


@strategies
def test_bfloat16_parameters(name, counted):
    """Gradients are summed in float32. Offloaded, a float32 master copy takes the steps, and bfloat16 is its image."""

    def halves(dtype=torch.bfloat16):
        return convnet().to(torch.bfloat16).to(dtype)

    class Narrow(Rows):
        def __init__(self, dtype):
            super().__init__(27, torch.bfloat16)
            self.inputs = self.inputs.to(dtype)

    make, module = OPTIMIZERS["sgd"], halves()
    learner = learner_of(name, counted, module, make)
    run(supervised(Narrow(torch.bfloat16), counted, BATCH), learner, 1)
    expected = train_plainly(halves(torch.float32), global_batches(Narrow(torch.float32), BATCH, 1), make)
    assert_same_bits(counted, module)
    assert {p.dtype for p in module.parameters()} == {torch.bfloat16}
    masters = {piece.parameter.dtype for part in learner.parts for piece in part.pieces}
    assert masters <= {torch.float32 if name == "zero-offload" else torch.bfloat16}
    start, end, found = map(vector, (halves(), expected, module))
    moved = nn.functional.cosine_similarity(found - start, end - start, dim=0)
    assert moved > 0.99
    torch.testing.assert_close(found, end, rtol=0.02, atol=0.01)


def test_the_master_copy_keeps_steps_too_small_for_bfloat16(counted):
    """1 + 2^-10 is 1 in bfloat16: without a master copy nothing would ever move."""
    module = nn.Linear(4, 1, bias=False).to(torch.bfloat16)
    with torch.no_grad():
        module.weight.fill_(1.0)
    learner = learner_of("zero-offload", counted, module, partial(torch.optim.SGD, lr=2.0**-10))
    for _ in range(16):
        total = module(torch.ones(1, 4, dtype=torch.bfloat16)).sum()
        gradients = learner.gradients(Loss(total, 1.0, float(counted.size)))
        for part in learner.reduce_to_owner(gradients):
            learner.apply(part)
        learner.broadcast()
    assert module.weight.flatten().tolist() == [1 - 2.0**-6] * 4


class Counting(torch.optim.SGD):
    """Counts its steps in a group, as some adaptive optimizers do, and is known to nobody."""

    def step(self, closure=None):
        for group in self.param_groups:
            group["count"] = group.get("count", 0) + 1
        return super().step(closure)


@pytest.mark.parametrize("clip", [None, 1e6], ids=["", "clipped"])
def test_an_optimizer_that_is_not_elementwise_steps_once(clip, counted):
    module = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3).double())
    learner = learner_of("shared", counted, module, lambda named: Counting(named, lr=0.1), clip=clip)
    before = copy.deepcopy(module.state_dict())
    loss = module[1](module[0](torch.ones(2, 3)).double()).square().sum()
    for block in learner.reduce_to_owner(learner.gradients(Loss(loss, 2.0))):
        learner.apply(block)
    learner.broadcast()
    assert [group["count"] for group in learner.optimizer.param_groups] == [1]
    assert all(not torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert_same_bits(counted, module)


def test_a_zero_grad_of_the_optimizers_own_does_not_stop_it(counted):
    module = mlp()
    learner = learner_of("shared", counted, module, lambda named: torch.optim.SGD(named, lr=0.1))
    for index in range(3):
        before = module[0].weight.detach().clone()
        counted.control.Barrier()
        learner.optimizer.zero_grad()
        step(learner, Minibatch(*data(seed=index), ROWS), cross_entropy)
        assert not torch.equal(module[0].weight, before)
