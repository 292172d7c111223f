"""Modules of every kind under a learner: shared, frozen and sparse parameters, several types, buffers, two at once."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional

from distloop.comm import exchange
from distloop.errors import ModelError
from distloop.strategies import NAMES
from distloop.tasks import Loss, Minibatch
from distloop.tasks.losses import summed
from tests.lopsided import DECAY, ROWS, cross_entropy, data, lopsided, mlp, plain_cross_entropy, plain_steps
from tests.oracle import OPTIMIZERS, assert_same_bits, assert_same_weights, learner_of, step

strategies = pytest.mark.parametrize("name", NAMES)
each_ownership = pytest.mark.parametrize("name", ["ring", "zero", "parameter-server"])


def trained(name, counted, module, steps=3, make=OPTIMIZERS["sgd"]):
    """A learner that has taken so many steps on rows that the ranks share unevenly."""
    learner = learner_of(name, counted, module, make)
    for index in range(steps):
        step(learner, lopsided(counted.rank, counted.size, seed=index), cross_entropy)
    assert_same_bits(counted, module)
    return learner


class Tied(nn.Module):
    """One matrix in two layers, and once more under another name."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(4)
        self.encode, self.decode, self.head = nn.Linear(5, 4), nn.Linear(4, 5), nn.Linear(5, 3)
        self.again = self.head
        self.encode.weight = nn.Parameter(self.decode.weight.detach().T.contiguous())
        self.square = self.other_square = nn.Linear(5, 5)

    def forward(self, inputs):
        hidden = self.decode(torch.tanh(self.encode(self.square(inputs))))
        return self.again(torch.tanh(self.other_square(hidden))) + self.head(inputs)


@each_ownership
def test_parameters_shared_between_layers(name, counted):
    module = Tied()
    expected = plain_steps(module, 3, plain_cross_entropy)
    learner = trained(name, counted, module)
    assert sum(flat.length for flat in learner.flats) == sum(p.numel() for p in module.parameters())
    assert module.square.weight is module.other_square.weight
    assert_same_weights(module, expected)


@each_ownership
def test_frozen_parameters_stay(name, counted):
    module = mlp()
    module[0].weight.requires_grad_(False)
    frozen = module[0].weight.detach().clone()
    expected = plain_steps(module, 3, plain_cross_entropy, DECAY)
    trained(name, counted, module, make=DECAY)
    assert torch.equal(module[0].weight, frozen)
    assert_same_weights(module, expected)


def test_a_module_without_anything_to_train_is_refused(counted):
    with pytest.raises(ModelError, match="requires_grad"):
        learner_of("ring", counted, mlp().requires_grad_(False), OPTIMIZERS["sgd"])


class Mixed(nn.Module):
    """float32, float64 and bfloat16, one after the other."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        self.narrow, self.wide = nn.Linear(5, 6), nn.Linear(6, 6).double()
        self.short, self.last = nn.Linear(6, 6).bfloat16(), nn.Linear(6, 3)

    def forward(self, inputs):
        hidden = torch.tanh(self.wide(self.narrow(inputs).double()))
        return self.last(torch.tanh(self.short(hidden.bfloat16())).float())


@strategies
@pytest.mark.parametrize("clip", [None, 0.1], ids=["", "clipped"])
def test_several_types_in_one_module(name, clip, counted, rank, world_size):
    module = Mixed()
    reference = copy.deepcopy(module)
    optimizer = OPTIMIZERS["sgd"](list(reference.named_parameters()))
    learner = learner_of(name, counted, module, OPTIMIZERS["sgd"], clip=clip)
    assert [flat.dtype for flat in learner.flats] == [torch.float32, torch.float64, torch.bfloat16]
    for index in range(3):
        step(learner, lopsided(rank, world_size, seed=index), cross_entropy)
        optimizer.zero_grad()
        plain_cross_entropy(reference, *data(seed=index), index).backward()
        if clip:
            nn.utils.clip_grad_norm_(reference.parameters(), clip)
        optimizer.step()
    assert_same_bits(counted, module)
    assert_same_weights(module, reference, rtol=0.01, atol=2e-3)  # bfloat16 rounds each rank's gradient


class Words(nn.Module):
    """An embedding with sparse gradients; most of its rows get none."""

    def __init__(self, sparse):
        super().__init__()
        torch.manual_seed(6)
        self.table, self.head = nn.Embedding(50, 4, sparse=sparse), nn.Linear(4, 3)

    def forward(self, inputs):
        return self.head(self.table(inputs).mean(1))


@each_ownership
def test_sparse_gradients(name, counted, rank, world_size):
    module, dense = Words(sparse=True), Words(sparse=False)
    tokens, targets = torch.randint(50, (ROWS, 6), generator=torch.Generator().manual_seed(0)), data()[1]
    optimizer = OPTIMIZERS["adam"](list(dense.named_parameters()))
    learner = learner_of(name, counted, module, OPTIMIZERS["adam"])
    mine = slice(rank, None, world_size)
    for _ in range(3):
        step(learner, Minibatch(tokens[mine], targets[mine], ROWS), cross_entropy)
        optimizer.zero_grad()
        functional.cross_entropy(dense(tokens), targets).backward()
        optimizer.step()
    assert_same_bits(counted, module)
    assert_same_weights(module, dense)


# ---- buffers --------------------------------------------------------------------------------------------------------


class Statistics(nn.Module):
    """Keeps what each rank has seen: floating, complex, integer and boolean buffers, and one that never changes."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(7)
        self.layer = nn.Linear(5, 3)
        self.register_buffer("mean", torch.zeros(5))
        self.register_buffer("phase", torch.zeros(2, dtype=torch.complex64))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("seen", torch.zeros(ROWS, dtype=torch.bool))
        self.register_buffer("fixed", torch.arange(3))

    def forward(self, inputs):
        self.mean.copy_(inputs.detach().mean(0))
        self.phase.fill_(complex(float(self.mean[0]), float(self.mean[1])))
        self.count += len(inputs)
        self.seen[len(inputs) - 1] = True
        return self.layer(inputs)


@each_ownership
def test_buffers_are_means_over_rows_or_maxima(name, counted, rank, world_size):
    module = Statistics()
    learner = learner_of(name, counted, module, OPTIMIZERS["sgd"])
    step(learner, lopsided(rank, world_size), cross_entropy)
    assert_same_bits(counted, module)
    mean = data()[0].mean(0)
    torch.testing.assert_close(module.mean, mean)
    torch.testing.assert_close(module.phase, torch.complex(mean[0], mean[1]).expand(2))
    assert int(module.count) == (ROWS if world_size == 1 else ROWS - 1)
    parts = [ROWS] if world_size == 1 else [1, ROWS - 1]
    assert module.seen.nonzero().flatten().tolist() == [part - 1 for part in parts]
    assert module.fixed.tolist() == [0, 1, 2]


@strategies
def test_batch_norm(name, counted, rank, world_size):
    """Each rank normalises by its own rows, as torch's DistributedDataParallel does; what is kept of them is equal."""
    torch.manual_seed(8)
    module = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4, momentum=1.0), nn.Linear(4, 3))
    first = copy.deepcopy(module[0])
    learner = learner_of(name, counted, module, OPTIMIZERS["sgd"])
    inputs, targets = data(4 * world_size)
    mine = slice(4 * rank, 4 * rank + 4)
    step(learner, Minibatch(inputs[mine], targets[mine], 4 * world_size), cross_entropy)
    assert_same_bits(counted, module)
    torch.testing.assert_close(module[1].running_mean, first(inputs).mean(0).detach())
    shares = first(inputs).view(world_size, 4, 4).var(1).mean(0).detach()
    torch.testing.assert_close(module[1].running_var, shares)
    assert int(module[1].num_batches_tracked) == 1


def test_buffers_that_nobody_has_changed_cost_nothing(counted, rank, world_size):
    torch.manual_seed(9)
    module = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    learner = learner_of("ring", counted, module, OPTIMIZERS["sgd"])
    sent = []
    for training in (True, False):
        module[1].train(training)
        before = counted.sent.copy()
        inputs, targets = data(2 * world_size)
        mine = slice(2 * rank, 2 * rank + 2)
        step(learner, Minibatch(inputs[mine], targets[mine], 2 * world_size), cross_entropy)
        sent.append((counted.sent - before).bytes)
    elements, p = sum(x.numel() for x in module.parameters()), world_size
    assert sum(exchange(counted.control, sent[1])) == 2 * (p - 1) * 4 * elements
    assert sum(exchange(counted.control, sent[0])) == 2 * (p - 1) * (4 * elements + 8 * 8)


@each_ownership
def test_buffers_are_equal_even_if_no_row_counts(name, counted, rank, world_size):
    module = Statistics()
    learner = learner_of(name, counted, module, OPTIMIZERS["sgd"])
    inputs, _ = data(2 * world_size)
    ignored = torch.full((2,), 1)
    minibatch = Minibatch(inputs[2 * rank : 2 * rank + 2], ignored, 2 * world_size)
    step(learner, minibatch, partial(cross_entropy, loss_function=nn.CrossEntropyLoss(ignore_index=1)))
    assert_same_bits(counted, module)
    torch.testing.assert_close(module.mean, inputs.mean(0))


# ---- several learners -----------------------------------------------------------------------------------------------


@each_ownership
def test_the_gradients_of_one_learner_do_not_land_in_the_other(name, counted, rank, world_size):
    """As in a GAN: what the generator learns flows through the discriminator, and must leave nothing there."""
    torch.manual_seed(10)
    maker, judge = nn.Linear(5, 4), nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    plain_maker, plain_judge = copy.deepcopy(maker), copy.deepcopy(judge)
    learners = [learner_of(name, counted, module, DECAY) for module in (maker, judge)]
    optimizers = [DECAY(list(module.named_parameters())) for module in (plain_maker, plain_judge)]
    loss = summed(nn.CrossEntropyLoss())
    for index in range(4):
        minibatch = lopsided(rank, world_size, seed=index)
        turn = index % 2
        own = learners[turn]
        total = loss(judge(maker(minibatch.inputs)), minibatch.targets) if len(minibatch.inputs) else None
        step(own, minibatch, lambda _, b, total=total: total or Loss(torch.zeros(()), 0.0))
        inputs, targets = data(seed=index)
        for optimizer in optimizers:
            optimizer.zero_grad()
        functional.cross_entropy(plain_judge(plain_maker(inputs)), targets).backward()
        optimizers[turn].step()
    for module, plain in ((maker, plain_maker), (judge, plain_judge)):
        assert all(parameter.grad is None for parameter in module.parameters())
        assert_same_bits(counted, module)
        assert_same_weights(module, plain)


@each_ownership
def test_a_reentrant_checkpoint_behind_frozen_layers(name, counted, rank, world_size):
    """Told what it is about, autograd would never enter it."""
    torch.manual_seed(11)
    frozen, body = nn.Linear(5, 5).requires_grad_(False), nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))
    module = nn.ModuleList([frozen, body])
    plain = copy.deepcopy(body)
    learner = learner_of(name, counted, module, DECAY)

    def loss_of(it, minibatch):
        hidden = frozen(minibatch.inputs).requires_grad_()
        outputs = torch.utils.checkpoint.checkpoint(it[1], hidden, use_reentrant=True)
        return summed(nn.CrossEntropyLoss())(outputs, minibatch.targets)

    inputs, targets = data(4 * world_size)
    mine = slice(4 * rank, 4 * rank + 4)
    step(learner, Minibatch(inputs[mine], targets[mine], 4 * world_size), loss_of)
    optimizer = DECAY(list(plain.named_parameters()))
    functional.cross_entropy(plain(frozen(inputs)), targets).backward()
    optimizer.step()
    assert_same_weights(body, plain)


def test_a_reentrant_checkpoint_beside_another_learner_is_refused(counted):
    body, other = mlp(), mlp()
    learners = [learner_of("ring", counted, module, DECAY) for module in (body, other)]
    hidden = torch.ones(2, 5).requires_grad_()
    loss = torch.utils.checkpoint.checkpoint(body, hidden, use_reentrant=True).sum()
    with pytest.raises(ModelError, match="use_reentrant=False"):
        learners[0].gradients(Loss(loss, 2.0))


def test_weights_that_forward_itself_changes_are_refused(counted):
    with pytest.raises(ModelError, match=r"max_norm=1\.0, by which forward itself changes the weights"):
        learner_of("ring", counted, nn.Embedding(5, 3, max_norm=1.0), OPTIMIZERS["sgd"])


def test_freezing_a_layer_on_the_way(counted):
    module = mlp()
    learner = learner_of("shared", counted, module, OPTIMIZERS["sgd"])
    step(learner, Minibatch(*data(), ROWS), cross_entropy)
    module[0].requires_grad_(False)
    kept = module[0].weight.detach().clone()
    step(learner, Minibatch(*data(), ROWS), cross_entropy)
    assert torch.equal(module[0].weight, kept)


def test_a_learner_more_costs_no_communicator(counted):
    for _ in range(3):
        for name in ("shared", "hierarchical", "zero"):
            learner_of(name, counted, mlp(), OPTIMIZERS["sgd"])
    assert len(vars(counted)["parts"]) <= 3


# ---- the start and the end ------------------------------------------------------------------------------------------

DIFFERENT = {
    "shape": (lambda last: nn.Linear(5, 4 if last else 3), r"parameter weight \(3, 5\).*parameter weight \(4, 5\)"),
    "frozen": (lambda last: nn.Linear(5, 3).requires_grad_(not last), r"weight .* True, .* weight .* False"),
    "type": (
        lambda last: nn.Linear(5, 3, dtype=torch.float64 if last else None),
        "weight .*float32.* weight .*float64",
    ),
    "buffer": (
        lambda last: nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3, track_running_stats=not last)),
        "rank 0 has 7 parameters and buffers, rank . has 4",
    ),
}


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("case", DIFFERENT)
def test_a_model_that_differs_between_ranks_is_an_error_on_all(case, counted, rank, world_size):
    make, difference = DIFFERENT[case]
    last = world_size - 1
    with pytest.raises(ModelError, match=f"rank {last} has another model than rank 0: .*{difference}") as raised:
        learner_of("ring", counted, make(rank == last), OPTIMIZERS["sgd"])
    assert raised.value.everywhere
    assert len(set(exchange(counted.control, str(raised.value)))) == 1


@each_ownership
def test_all_ranks_start_with_what_rank_0_has(name, counted, rank):
    torch.manual_seed(rank)
    module = nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3))
    module[0].bias.requires_grad_(False)
    module[1].running_mean += rank
    torch.manual_seed(0)
    expected = nn.Linear(5, 3)
    learner_of(name, counted, module, OPTIMIZERS["sgd"])
    assert_same_bits(counted, module)
    assert torch.equal(module[0].weight, expected.weight) and torch.equal(module[0].bias, expected.bias)
    assert module[1].running_mean.tolist() == [0.0] * 3


@strategies
def test_where_the_optimizer_keeps_its_state(name, counted, comm, rank, world_size):
    """Under ZeRO each rank has its part of it, under a parameter server rank 0 has all."""
    module = mlp()
    learner = trained(name, counted, module, make=OPTIMIZERS["adam"])
    whole = sum(parameter.numel() for parameter in module.parameters())
    state = learner.optimizer.state.values()
    moments = sum(value.numel() for found in state for value in found.values() if value.ndim)
    if name in ("shared", "hierarchical", "zero", "zero-offload"):
        assert abs(moments - 2 * whole / world_size) <= 2
        assert comm.allreduce(moments) == 2 * whole
    elif name == "parameter-server":
        assert moments == (2 * whole if rank == 0 else 0)
    else:
        assert moments == 2 * whole


@strategies
def test_release_gives_the_module_back(name, counted):
    module = mlp()
    learner = trained(name, counted, module)
    values = copy.deepcopy(module.state_dict())
    learner.release()
    counted.control.Barrier()  # on one node the vector is the same memory for all ranks
    for flat in learner.flats:
        flat.parameters.fill_(7.0)
    assert all(torch.equal(value, values[key]) for key, value in module.state_dict().items())
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    inputs, targets = data()
    functional.cross_entropy(module(inputs), targets).backward()
    assert all(parameter.grad is not None for parameter in module.parameters())
    optimizer.step()
    assert not torch.equal(module[0].weight, values["0.weight"])


def test_every_strategy_is_tested():
    replicated, divided = {"star", "ring", "native"}, {"shared", "hierarchical", "zero", "zero-offload"}
    assert set(NAMES) == replicated | divided | {"parameter-server"}
