"""A plain script with its optimizer and loader exchanged ends where it ended before, at any number of ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler

from distloop.comm import exchange
from distloop.data import Permutation, key_of
from distloop.errors import ConfigError
from distloop.plain_torch import distribute
from distloop.run_folder import weights_sha256
from distloop.strategies import NAMES

ROWS = 31  # the last batch of 10 has one row: at 2 ranks and more, somebody has none
Make = Callable[[nn.Module], torch.optim.Optimizer]


def grouped_adamw(model: nn.Module) -> torch.optim.Optimizer:
    biases = [p for name, p in model.named_parameters() if name.endswith("bias")]
    weights = [p for name, p in model.named_parameters() if not name.endswith("bias")]
    groups: list[dict[str, Any]] = [{"params": weights, "weight_decay": 0.1}, {"params": biases, "lr": 0.03}]
    return torch.optim.AdamW(groups, lr=0.01)


def momentum(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def rows() -> TensorDataset:
    generator = torch.Generator().manual_seed(3)
    return TensorDataset(torch.randn(ROWS, 6, generator=generator), torch.randint(0, 3, (ROWS,), generator=generator))


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def script(make: Make, change: Callable[..., Any] | None, accumulate: int = 1, epochs: int = 3) -> nn.Module:
    """What a user has: with ``change``, the one line more."""
    model = network()
    optimizer: Any = make(model)
    loader: Iterable[Any] = DataLoader(rows(), batch_size=10)
    if change is not None:
        optimizer, loader = change(model, optimizer, loader)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=4, gamma=0.5)
    for _ in range(epochs):
        optimizer.zero_grad()
        for number, (inputs, targets) in enumerate(loader, 1):
            loss = nn.functional.cross_entropy(model(inputs), targets) / accumulate
            loss.backward()
            if number % accumulate == 0:
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
    return model


def vector(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().reshape(-1) for parameter in model.parameters()])


@pytest.mark.parametrize("make", [grouped_adamw, momentum])
@pytest.mark.parametrize("strategy", NAMES)
def test_it_ends_where_one_process_does(comm: Any, strategy: str, make: Make) -> None:
    alone = script(make, None)
    together = script(make, lambda *given: distribute(*given, strategy=strategy))
    torch.testing.assert_close(vector(together), vector(alone), rtol=1e-5, atol=2e-6)
    assert len(set(exchange(comm, weights_sha256(together.named_parameters())))) == 1


@pytest.mark.parametrize("strategy", ["ring", "zero"])
def test_several_backwards_before_a_step_add_up(comm: Any, strategy: str) -> None:
    alone = script(momentum, None, accumulate=2)
    together = script(momentum, lambda *given: distribute(*given, strategy=strategy), accumulate=2)
    torch.testing.assert_close(vector(together), vector(alone), rtol=1e-5, atol=2e-6)


def test_zero_grad_forgets_a_backward(comm: Any) -> None:
    model = network()
    optimizer, loader = distribute(model, momentum(model), DataLoader(rows(), batch_size=10))
    inputs, targets = next(iter(loader))
    before = vector(model).clone()
    (1e6 * nn.functional.cross_entropy(model(inputs), targets)).backward()
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(inputs), targets).backward()
    optimizer.step()
    assert 0 < (vector(model) - before).abs().max() < 1


def test_the_norm_that_is_clipped_is_the_global_one(comm: Any) -> None:
    model = network()
    optimizer, loader = distribute(model, torch.optim.SGD(model.parameters(), lr=1.0), loader_of(), "zero", clip=0.01)
    inputs, targets = next(iter(loader))
    before = vector(model).clone()
    nn.functional.cross_entropy(model(inputs), targets).backward()
    optimizer.step()
    assert float((vector(model) - before).norm()) == pytest.approx(0.01, rel=1e-3)


def loader_of(**options: Any) -> DataLoader[Any]:
    return DataLoader(rows(), batch_size=10, **options)


@pytest.mark.parametrize("drop_last", [False, True])
def test_ranks_share_each_global_batch_of_one_shuffle(comm: Any, rank: int, world_size: int, drop_last: bool) -> None:
    numbered = TensorDataset(torch.arange(ROWS))
    model = network()
    loader = DataLoader(numbered, batch_size=10, shuffle=True, drop_last=drop_last)
    optimizer, divided = distribute(model, momentum(model), loader, seed=5)
    assert len(divided) == (3 if drop_last else 4)
    for epoch in range(2):
        order = Permutation(ROWS, key_of(5, epoch))(torch.arange(ROWS).numpy()).tolist()
        seen = []
        for (batch,) in divided:
            mine = batch.tolist() if optimizer.learner.landing.scale else []
            seen += [row for part in exchange(comm, mine) for row in part]
        assert seen == (order[:30] if drop_last else order)


def test_what_cannot_be_divided_is_refused_on_all_ranks(comm: Any) -> None:
    model = network()
    sampler = WeightedRandomSampler([1.0] * ROWS, ROWS)
    with pytest.raises(ConfigError, match="WeightedRandomSampler"):
        distribute(model, momentum(model), loader_of(sampler=sampler))
    used = momentum(model)
    nn.functional.mse_loss(model(torch.zeros(1, 6)), torch.ones(1, 3)).backward()
    used.step()
    with pytest.raises(ConfigError, match="has taken steps already"):
        distribute(model, used, loader_of())
