"""A plain script with its optimizer and loader exchanged ends where it ended before, at any number of ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
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


def test_a_batch_of_ones_own_counts_as_an_equal_share(comm: Any) -> None:
    """Before the loader has given any batch: every rank's mean weighs the same."""
    alone, shared = network(), network()
    plain = momentum(alone)
    inputs, targets = rows()[:6]
    nn.functional.cross_entropy(alone(inputs), targets).backward()
    plain.step()
    optimizer, _ = distribute(shared, momentum(shared), loader_of())
    nn.functional.cross_entropy(shared(inputs), targets).backward()
    optimizer.step()
    torch.testing.assert_close(vector(shared), vector(alone), rtol=1e-5, atol=1e-6)


def test_an_epoch_left_early_is_followed_by_another_order(comm: Any) -> None:
    model = network()
    loader = DataLoader(TensorDataset(torch.arange(ROWS)), batch_size=10, shuffle=True)
    _, divided = distribute(model, momentum(model), loader)
    seen = [exchange(comm, next(iter(divided))[0].tolist()) for _ in range(2)]
    assert seen[0] != seen[1]
    assert len(divided.dataset) == ROWS and divided.batch_size == 10


def test_parameters_outside_the_model_are_refused(comm: Any) -> None:
    model, head = network(), nn.Linear(3, 1)
    optimizer = torch.optim.SGD([*model.parameters(), *head.parameters()], lr=0.1)
    with pytest.raises(ConfigError, match="parameters that the model has not"):
        distribute(model, optimizer, loader_of())


@pytest.mark.mpi(min_size=2)
def test_ranks_with_other_data_are_told_so(comm: Any, rank: int) -> None:
    model = network()
    mine = DataLoader(TensorDataset(torch.arange(ROWS + rank)), batch_size=10)
    with pytest.raises(ConfigError, match=f"number of rows differs between ranks: rank 0 has {ROWS}, rank 1 has"):
        distribute(model, momentum(model), mine)


@pytest.mark.parametrize("strategy", ["ring", "zero"])
def test_state_is_saved_and_loaded_in_place(comm: Any, strategy: str) -> None:
    model = network()
    optimizer, loader = distribute(model, momentum(model), loader_of(), strategy)
    inputs, targets = next(iter(loader))
    nn.functional.cross_entropy(model(inputs), targets).backward()
    optimizer.step()
    state = optimizer.state_dict()
    state["param_groups"][0]["lr"] = 0.0
    optimizer.load_state_dict(state)
    before = vector(model).clone()
    nn.functional.cross_entropy(model(inputs), targets).backward()
    optimizer.step()
    assert torch.equal(vector(model), before)
    with pytest.raises(ConfigError, match="added after distribute"):
        optimizer.add_param_group({"params": [torch.zeros(1)]})


def test_adagrad_has_state_before_its_first_step(comm: Any) -> None:
    def adagrad(model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.Adagrad(model.parameters(), lr=0.1, initial_accumulator_value=0.5)

    alone = script(adagrad, None)
    together = script(adagrad, lambda *given: distribute(*given, strategy="zero"))
    torch.testing.assert_close(vector(together), vector(alone), rtol=1e-5, atol=2e-6)


def test_two_models_share_one_loader(comm: Any) -> None:
    def train(change: Callable[..., Any] | None) -> Tensor:
        encoder, head = network(), nn.Linear(3, 3)
        with torch.no_grad():
            head.weight.copy_(torch.eye(3))
            head.bias.zero_()
        first, second, loader = momentum(encoder), momentum(head), loader_of()
        if change is not None:
            first, loader = change(encoder, first, loader)
            second, loader = change(head, second, loader)
        for inputs, targets in loader:
            first.zero_grad()
            second.zero_grad()
            nn.functional.cross_entropy(head(encoder(inputs)), targets).backward()
            first.step()
            second.step()
        return torch.cat([vector(encoder), vector(head)])

    torch.testing.assert_close(train(distribute), train(None), rtol=1e-5, atol=2e-6)


def test_a_dataset_without_length_is_refused(comm: Any) -> None:
    class Stream(torch.utils.data.IterableDataset[Tensor]):
        def __iter__(self) -> Iterator[Tensor]:
            return iter([])

    model = network()
    with pytest.raises(ConfigError, match="cannot be divided"):
        distribute(model, momentum(model), DataLoader(Stream(), batch_size=2))
