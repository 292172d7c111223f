"""The equivalence matrix: each strategy, on any number of ranks, ends where plain torch ends on the global batch."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from distloop.comm import exchange
from distloop.strategies import NAMES
from tests.oracle import (
    OPTIMIZERS,
    Rows,
    assert_same_bits,
    assert_same_weights,
    convnet,
    global_batches,
    learner_of,
    run,
    supervised,
    train_plainly,
)

BATCHES = {"even": (24, 12), "uneven": (27, 13)}  # rows and global batch; 27 leaves a last batch of one row
EPOCHS = 2

strategies = pytest.mark.parametrize("name", NAMES)
batches = pytest.mark.parametrize("batch", BATCHES)


@strategies
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@batches
def test_ends_at_the_weights_of_plain_torch(name, optimizer, batch, counted):
    length, size = BATCHES[batch]
    source, module, make = Rows(length), convnet(), OPTIMIZERS[optimizer]
    expected = train_plainly(module, global_batches(source, size, EPOCHS), make)
    progress = run(supervised(source, counted, size), learner_of(name, counted, module, make), EPOCHS)
    assert (progress.round, progress.samples) == (EPOCHS, EPOCHS * length)
    assert_same_bits(counted, module)
    assert_same_weights(module, expected)


@strategies
@batches
def test_in_float64_to_the_last_digits(name, batch, counted):
    """Nothing but the order of the sums differs: no term is lost, doubled or weighted otherwise."""
    length, size = BATCHES[batch]
    source, module = Rows(length, torch.float64), convnet(torch.float64)
    expected = train_plainly(module, global_batches(source, size, EPOCHS), OPTIMIZERS["adam"])
    run(supervised(source, counted, size), learner_of(name, counted, module, OPTIMIZERS["adam"]), EPOCHS)
    assert_same_bits(counted, module)
    assert_same_weights(module, expected, rtol=1e-9, atol=1e-11)


@strategies
def test_gradient_accumulation_changes_neither_weights_nor_traffic(name, counted):
    source, weights, traffic = Rows(27), [], []
    for accumulate in (1, 2, 3):
        module = convnet()
        learner = learner_of(name, counted, module, OPTIMIZERS["sgd"])
        before = counted.sent.copy()
        progress = run(supervised(source, counted, 13, accumulate=accumulate), learner, 1)
        assert progress.step == 3
        traffic.append(counted.sent - before)
        weights.append(module)
        assert_same_bits(counted, module)
    assert traffic[0] == traffic[1] == traffic[2]
    assert_same_weights(weights[1], weights[0])
    assert_same_weights(weights[2], weights[0])


@strategies
@pytest.mark.parametrize("clip", [0.3, 1e6], ids=["clips", "leaves"])
def test_clipping_by_the_global_norm(name, clip, counted):
    source, module = Rows(27), convnet()
    expected = train_plainly(module, global_batches(source, 13, EPOCHS), OPTIMIZERS["sgd"], clip=clip)
    learner = learner_of(name, counted, module, OPTIMIZERS["sgd"], clip=clip)
    run(supervised(source, counted, 13), learner, EPOCHS)
    assert_same_bits(counted, module)
    assert_same_weights(module, expected)
    assert len(set(exchange(counted.control, learner.norm))) == 1


@strategies
def test_the_norm_is_that_of_torch_before_clipping(name, counted):
    source, module = Rows(12), convnet()
    plain = convnet()
    inputs, targets = next(global_batches(source, 12, 1))
    nn.functional.cross_entropy(plain(inputs), targets).backward()
    norm = float(nn.utils.clip_grad_norm_(plain.parameters(), 0.1))
    learner = learner_of(name, counted, module, OPTIMIZERS["sgd"], clip=0.1)
    run(supervised(source, counted, 12), learner, 1)
    assert learner.norm == pytest.approx(norm, rel=1e-5)


@strategies
def test_what_a_step_sends_is_what_its_collective_says(name, counted, rank, world_size):
    """N bytes of gradients are reduced, and where they are owned, N bytes of parameters gathered: nothing else."""
    source, module = Rows(24), convnet()
    learner = learner_of(name, counted, module, OPTIMIZERS["adam"])
    size_bytes, steps = 4 * sum(p.numel() for p in module.parameters()), 2
    before = counted.sent.copy()
    run(supervised(source, counted, 12), learner, 1)
    sent = exchange(counted.control, (counted.sent - before).bytes)
    if name in ("star", "parameter-server"):
        expected = [(world_size - 1) * size_bytes, *[size_bytes] * (world_size - 1)]
    elif name == "native":
        expected = [size_bytes] * world_size
    elif name in ("shared", "hierarchical"):  # all ranks are on one node
        expected = [0] * world_size
    else:
        assert sum(sent) == steps * 2 * (world_size - 1) * size_bytes
        expected = [share / steps for share in sent]
        assert max(sent) - min(sent) <= steps * 8
    assert sent == [steps * share for share in expected]
