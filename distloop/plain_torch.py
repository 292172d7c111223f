"""A script of plain PyTorch, made a distributed one: its optimizer and loader are exchanged, its loop stays.

    optimizer, loader = distloop.distribute(model, optimizer, loader, strategy="zero")

``loss.backward()`` lands gradients in the learner's flat vector; ``optimizer.step()`` reduces them to their owners,
lets the script's own optimizer apply them there, and broadcasts the parameters.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sized
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler, SequentialSampler

from distloop.comm import World, agree_on, together
from distloop.data import Permutation, key_of
from distloop.errors import ConfigError
from distloop.learner import Learner
from distloop.optimizers import traffic_bytes
from distloop.partition import Partition
from distloop.strategies import Compression, settle
from distloop.strategies import strategy as strategy_named


def distribute(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loader: DataLoader[Any] | DividedLoader,
    strategy: str = "auto",
    clip: float | None = None,
    seed: int = 0,
) -> tuple[Any, Any]:
    """Make ``model`` train on all ranks; returns a ``DistributedOptimizer`` and a ``DividedLoader``.

    They take the place of ``optimizer`` and ``loader`` (and are typed so that a checker lets them).

    The loader's batch size becomes that of the global batch: each rank gets its part, in an order that ``seed`` and the
    number of the epoch decide, so that the result is that of one process. The loss must be a mean over the batch.
    A second model and optimizer (a GAN) take the loader that the first call returned: they share its batches.
    ``clip``: largest global norm of the gradient of all that ``model`` trains; ``clip_grad_norm_`` finds nothing, as
    gradients live elsewhere.
    Collective: all ranks call it, before the first step. Raises ConfigError on all ranks for what cannot be divided.
    """
    world = World.start()
    torch.set_num_threads(world.threads)
    with together(world.comm.control):
        if any(float(state.get("step", 1)) > 0 for state in optimizer.state.values()):
            raise ConfigError(
                "the optimizer has taken steps already. Expected a fresh one: call distribute before the loop"
            )
        divided = loader if isinstance(loader, DividedLoader) else DividedLoader(loader, world, seed)
        adopted = _Adopted(model, optimizer)
    agree_on(world.comm.control, divided.facts | {"strategy": strategy, "clip": clip, "seed": seed})
    if strategy == "auto":
        strategy = settle(
            world, model, Compression(), "float32", alone=False, optimizer_bytes=traffic_bytes(adopted)
        ).name
    learner = Learner(model, *strategy_named(strategy, world.comm), adopted, clip=clip, hot_elements=0)
    stepping = DistributedOptimizer(learner)
    divided.listeners.append(stepping.weigh)
    return stepping, divided


class _Adopted:
    """Makes an optimizer update what this rank owns, in the groups in which it had the parameters."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.kind = type(optimizer)
        self._optimizer = optimizer
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        if any(id(parameter) not in names for group in optimizer.param_groups for parameter in group["params"]):
            raise ConfigError(
                "the optimizer has parameters that the model has not. Expected one module that holds all "
                "that is trained: nn.ModuleList([...])"
            )
        self._names = [{names[id(parameter)] for parameter in group["params"]} for group in optimizer.param_groups]

    def __call__(self, named: list[tuple[str, Tensor]]) -> torch.optim.Optimizer:
        for group, names in zip(self._optimizer.param_groups, self._names, strict=True):
            group["params"] = [piece for name, piece in named if name in names]
        if self._optimizer.state:  # Adagrad has its state before the first step: of what it was made of
            accepted = inspect.signature(self.kind).parameters
            options = {name: value for name, value in self._optimizer.defaults.items() if name in accepted}
            fresh = self.kind([dict(group) for group in self._optimizer.param_groups], **options)
            self._optimizer.state.clear()
            self._optimizer.state.update(fresh.state)
        return self._optimizer


@final
class DistributedOptimizer(torch.optim.Optimizer):
    """Steps on all ranks together. Its groups are those of the optimizer it was made of, so that schedulers work."""

    def __init__(self, learner: Learner) -> None:
        super().__init__(learner.optimizer.param_groups, learner.optimizer.defaults)
        self.learner, self.state = learner, learner.optimizer.state
        self.weigh(1, learner.ownership.world_size)

    def weigh(self, rows: int, global_rows: int) -> None:
        """The next backward is about so many rows of a global batch of so many."""
        self._rows, self._global_rows = rows, global_rows
        self.learner.landing.scale = rows / global_rows

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Reduce to the owners, apply, broadcast. Collective."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        gradients = self.learner.gathered(self._rows, self._global_rows)
        for part in self.learner.reduce_to_owner(gradients):
            self.learner.apply(part)
        self.learner.broadcast()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Of what this rank owns."""
        return self.learner.optimizer.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Of the same rank, of as many, with the same strategy."""
        self.learner.optimizer.load_state_dict(state_dict)
        self.param_groups, self.state = self.learner.optimizer.param_groups, self.learner.optimizer.state

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """While it is made only. Raises ConfigError later: who owns what is settled."""
        if hasattr(self, "learner"):
            raise ConfigError("a parameter group was added after distribute. Expected all groups before it")
        super().add_param_group(param_group)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget what has landed."""
        self.learner.landing.clear()


@final
class DividedLoader:
    """This rank's part of each global batch of a DataLoader; the last one may be smaller, unless it was to be dropped.

    A rank without rows in a batch gets one of the others', which counts nothing, so that the script need not know.
    """

    def __init__(self, loader: DataLoader[Any], world: World, seed: int) -> None:
        """Raises ConfigError for a loader with a sampler of its own."""
        sampler, self.dataset = loader.sampler, loader.dataset
        self._rows = len(loader.dataset) if isinstance(loader.dataset, Sized) else 0
        shuffled = isinstance(sampler, RandomSampler) and not sampler.replacement and sampler.num_samples == self._rows
        if loader.batch_size is None or not (shuffled or isinstance(sampler, SequentialSampler)):
            raise ConfigError(
                f"a loader with {type(sampler).__name__} and batch size {loader.batch_size} cannot be divided. "
                "Expected DataLoader(dataset, batch_size=..., shuffle=...), whose rows every rank can find by itself"
            )
        self.listeners: list[Callable[[int, int], None]] = []
        self.batch_size, self._shuffled, self._drop_last = loader.batch_size, shuffled, loader.drop_last
        self._rank, self._world_size, self._seed, self._epoch = world.rank, world.size, seed, -1
        workers: dict[str, Any] = {}
        if loader.num_workers:
            same = ("persistent_workers", "prefetch_factor", "worker_init_fn", "timeout")
            workers = {"multiprocessing_context": "forkserver"} | {name: getattr(loader, name) for name in same}
        self._loader = DataLoader(
            loader.dataset,
            batch_sampler=_Batches(self),
            num_workers=loader.num_workers,
            collate_fn=loader.collate_fn,
            pin_memory=loader.pin_memory,
            **workers,
        )

    def __len__(self) -> int:
        """Global batches of an epoch."""
        whole, rest = divmod(self._rows, self.batch_size)
        return whole + (rest > 0 and not self._drop_last)

    def __iter__(self) -> Iterator[Any]:
        """One epoch; the next has another order, even if this one is left early. All ranks do the same."""
        self._epoch += 1
        for batch, (start, stop, first, end) in zip(self._loader, self._plan(), strict=True):
            for listener in self.listeners:
                listener(stop - start, end - first)
            yield batch

    @property
    def facts(self) -> dict[str, Any]:
        """What must be the same on all ranks."""
        names = {"the number of rows": "_rows", "batch_size": "batch_size", "shuffle": "_shuffled"}
        return {name: getattr(self, place) for name, place in (names | {"drop_last": "_drop_last"}).items()}

    def _plan(self) -> Iterator[tuple[int, int, int, int]]:
        """Per batch: positions [start, stop) that are this rank's, of [first, end)."""
        for batch in range(len(self)):
            first, end = batch * self.batch_size, min((batch + 1) * self.batch_size, self._rows)
            mine = Partition.even(end - first, self._world_size).slice_of(self._rank)
            yield first + mine.start, first + mine.stop, first, end

    def indices(self) -> Iterator[list[int]]:
        """The rows to fetch for each batch."""
        order = Permutation(self._rows, key_of(self._seed, self._epoch)) if self._shuffled else None
        for start, stop, first, _ in self._plan():
            positions = torch.arange(start, stop).numpy() if stop > start else torch.tensor([first]).numpy()
            yield (positions if order is None else order(positions)).tolist()


class _Batches:
    """The batch sampler that a DataLoader asks for each epoch."""

    def __init__(self, divided: DividedLoader) -> None:
        self._divided = divided

    def __iter__(self) -> Iterator[list[int]]:
        return self._divided.indices()

    def __len__(self) -> int:
        return len(self._divided)
