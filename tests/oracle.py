"""What training should give: plain torch in one process on the global batch; and the same through distloop's loop."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from distloop import loop
from distloop.comm import CountedComm, exchange
from distloop.data import Permutation, Spec, key_of
from distloop.learner import Learner
from distloop.loop import Progress
from distloop.run_folder import weights_sha256
from distloop.strategies import strategy
from distloop.tasks import Loss, Minibatch, Shard, Supervised, goal_of

Optimizers = dict[str, Callable[[Any], torch.optim.Optimizer]]
OPTIMIZERS: Optimizers = {
    "sgd": lambda named: torch.optim.SGD(named, lr=0.05, momentum=0.9),
    "rmsprop": lambda named: torch.optim.RMSprop(named, lr=0.002),
    "adam": lambda named: torch.optim.Adam(named, lr=0.01),
}


class Rows:
    """A source of random images in three classes that can be told apart; ``rows`` as in distloop.data."""

    def __init__(self, length: int, dtype: torch.dtype = torch.float32) -> None:
        generator = torch.Generator().manual_seed(length)
        self.targets = torch.randint(3, (length,), generator=generator)
        self.inputs = torch.randn(length, 1, 6, 6, generator=generator).to(dtype)
        self.inputs[range(length), 0, self.targets] += 1
        self.spec = Spec((1, 6, 6), dtype, "class", 3)

    def __len__(self) -> int:
        return len(self.targets)

    def rows(self, indices: np.ndarray) -> tuple[Tensor, Tensor]:
        chosen = torch.from_numpy(indices)
        return self.inputs[chosen], self.targets[chosen]


def convnet(dtype: torch.dtype = torch.float32) -> nn.Module:
    """The same on every call: 443 parameters, so no number of ranks divides them."""
    torch.manual_seed(3)
    features = [nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
    return nn.Sequential(*features, nn.Linear(16, 20), nn.Tanh(), nn.Linear(20, 3)).to(dtype)


def matrices() -> nn.Module:
    """Two matrices and nothing else, as Muon wants it."""
    torch.manual_seed(3)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 8, bias=False), nn.Tanh(), nn.Linear(8, 3, bias=False))


def global_batches(source: Rows, batch_size: int, epochs: int, seed: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """The rows of each step, in the order that seed and epoch decide."""
    for epoch in range(epochs):
        order = Permutation(len(source), key_of(seed, epoch))
        for first in range(0, len(source), batch_size):
            yield source.rows(order(np.arange(first, min(first + batch_size, len(source)), dtype=np.int64)))


def train_plainly(
    module: nn.Module,
    batches: Iterator[tuple[Tensor, Tensor]],
    make_optimizer: Callable[[Any], torch.optim.Optimizer],
    make_schedule: Callable[[torch.optim.Optimizer], Any] = lambda optimizer: None,
    clip: float | None = None,
    loss_function: Callable[[Tensor, Tensor], Tensor] = nn.functional.cross_entropy,
) -> nn.Module:
    """The loop of any torch tutorial, on a copy of ``module``."""
    module = copy.deepcopy(module)
    optimizer = make_optimizer(list(module.named_parameters()))
    schedule = make_schedule(optimizer)
    for inputs, targets in batches:
        optimizer.zero_grad()
        loss_function(module(inputs), targets).backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(module.parameters(), clip)
        optimizer.step()
        if schedule is not None:
            schedule.step()
    return module


def learner_of(name: str, comm: CountedComm, module: nn.Module, make_optimizer: Any, **options: Any) -> Learner:
    """One with the strategy ``name``."""
    return Learner(module, *strategy(name, comm), make_optimizer, **options)


def supervised(source: Rows, comm: CountedComm, batch_size: int, **options: Any) -> Supervised:
    """This rank's share of it."""
    return Supervised(source, Shard(comm.rank, comm.size), goal_of(source.spec), batch_size, **options)


def run(task: Supervised, learner: Learner, epochs: int) -> Progress:
    """Through the universal loop."""
    progress = Progress()
    for _ in loop.train(task, {"model": learner}, epochs, progress):
        pass
    return progress


def step(learner: Learner, minibatch: Minibatch, loss_of: Callable[[nn.Module, Minibatch], Loss]) -> None:
    """One step on a minibatch made by hand, as the loop takes it."""
    gradients = learner.gradients(loss_of(learner.module, minibatch) / minibatch.expected_weight)
    for part in learner.reduce_to_owner(gradients):
        learner.apply(part)
    learner.broadcast()


def assert_same_bits(comm: CountedComm, module: nn.Module) -> None:
    """Parameters and buffers are equal on all ranks, bit for bit."""
    everything = weights_sha256([*module.named_parameters(), *module.named_buffers()])
    digests = exchange(comm.control, everything)
    assert len(set(digests)) == 1, f"replicas differ: {digests}"


def assert_same_weights(found: nn.Module, expected: nn.Module, rtol: float = 1e-4, atol: float = 2e-6) -> None:
    """Parameters and buffers are equal but for the rounding of sums in another order."""
    wanted: Mapping[str, Tensor] = expected.state_dict()
    for name, value in found.state_dict().items():
        where = f"{name}: {{}}".format
        torch.testing.assert_close(value.cpu(), wanted[name], rtol=rtol, atol=atol, msg=where)
