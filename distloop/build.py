"""From a configuration to what the loop takes: data, task, learner. What fails on one rank fails on all."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import torch
from torch import nn

from distloop.comm import World, agree_on, exchange, together
from distloop.comm.tuning import Choice
from distloop.config import Config, Strategy
from distloop.data import Data, Loader, Source, key_of, open_data
from distloop.errors import ConfigError, DataError
from distloop.imports import is_import_path, made_by, named
from distloop.learner import Learner
from distloop.models import build_model
from distloop.optimizers import made, traffic_bytes
from distloop.partition import Partition
from distloop.schedules import build_schedule
from distloop.strategies import Compression, rhythm, settle, strategy
from distloop.tasks import Shard, Supervised, goal_of

DEFAULT_EPOCHS = 10


@dataclass(frozen=True)
class Given:
    """What a caller in Python hands over as objects instead of names."""

    training: Any = None
    validation: Any = None
    module: nn.Module | None = None
    loss: Any = None


@dataclass
class Job:
    """All that a run trains with."""

    world: World
    config: Config
    data: Data
    task: Supervised
    learner: Learner
    loader: Loader
    device: torch.device
    threads: int
    choice: Choice | None
    """What auto has come to, if it was asked for."""

    @property
    def total_steps(self) -> int:
        """Optimizer steps that the run will take, if nothing stops it."""
        return total_steps(self.config, self.task)

    @property
    def rounds(self) -> int:
        """Epochs that the run will begin."""
        return -(-self.total_steps // self.task.steps_per_round)

    def describe(self) -> str:
        """The start line."""
        world, taken = self.world, self.config.strategy if self.choice is None else self.choice.describe()
        taken = ", ".join([taken, *self.config.talks_less])
        return " · ".join([world.describe(self.threads), world.library, taken, str(self.device)])


@dataclass(frozen=True)
class Ingredients:
    """All that a run needs besides a learner, which moves ``module`` into memory of its own."""

    data: Data
    task: Supervised
    module: nn.Module
    schedule: Any
    loader: Loader
    device: torch.device
    threads: int


def build(config: Config, world: World, given: Given) -> Job:
    """Collective. Raises a UserError on all ranks if anything given is wrong on any."""
    found = prepare(config, world, given)
    config, choice = settled(config, world, found.module)
    learner = make_learner(config, world, found, found.module)
    torch.manual_seed(key_of(config.seed, world.rank, world.size) % 2**63)  # each rank drops out other units
    return Job(world, config, found.data, found.task, learner, found.loader, found.device, found.threads, choice)


def settled(config: Config, world: World, module: nn.Module) -> tuple[Config, Choice | None]:
    """With a strategy that can be made, where ``auto`` was asked for: then also how it was chosen. Collective."""
    if config.strategy != "auto":
        return config, None
    alone = config.sync_every > 1 or config.outer != "average"
    with together(world.comm.control):
        optimizer_bytes = traffic_bytes(config.optimizer)
    compression = Compression(config.compress, config.compress_args)
    choice = settle(world, module, compression, config.gradient_dtype, alone, optimizer_bytes)
    return replace(config, strategy=cast(Strategy, choice.name)), choice


def make_learner(config: Config, world: World, found: Ingredients, module: nn.Module) -> Learner:
    """Of ``module``, by the strategy of ``config``. Collective."""
    config, _ = settled(config, world, module)
    with together(world.comm.control):
        meeting = rhythm(config.sync_every, config.outer, config.outer_args)
    compression = Compression(config.compress, config.compress_args)
    ownership, placement = strategy(config.strategy, world.comm, compression, config.gradient_dtype)
    waiting = torch.bfloat16 if config.gradient_dtype == "bf16" else None
    return Learner(
        module,
        ownership,
        placement,
        config.optimizer,
        found.schedule,
        config.clip,
        gradient_dtype=waiting,
        rhythm=meeting,
    )


def prepare(config: Config, world: World, given: Given) -> Ingredients:
    """What comes before the learner. Collective. Raises a UserError on all ranks if anything given is wrong on any."""
    control = world.comm.control
    threads = config.threads or world.threads
    torch.set_num_threads(threads)
    with together(control):
        device = pick_device(config.device, world.local_rank)
        data = _open(config, given)
    agree_on(control, _facts(config, data))
    data = _count_classes(data, config, world)
    with together(control):
        torch.manual_seed(config.seed)
        module = given.module or build_model(config.model, data.train.spec, config.model_args)
        module = module.to(device)
        loader = Loader(data.train, config.workers, seed=key_of(config.seed, world.rank))
        task = make_task(config, given, data, Shard(world.rank, world.size), device, loader)
        task.check(module)
        schedule = _schedule(config, task)
    return Ingredients(data, task, module, schedule, loader, device, threads)


def _facts(config: Config, data: Data) -> dict[str, Any]:
    """What would make ranks part ways, or wait for each other for ever, if it differed."""
    learning = ("batch_size", "seed", "epochs", "steps", "accumulate", "strategy", "clip", "precision")
    talking = ("gradient_dtype", "compress", "compress_args", "sync_every", "outer", "outer_args")
    return {
        "the number of rows to train on": len(data.train),
        "the number of rows to validate on": len(data.validation),
        "the kind of data": repr(data.train.spec),
    } | {name: getattr(config, name) for name in (*learning, *talking)}


def total_steps(config: Config, task: Supervised) -> int:
    """What --epochs or --steps ask for; the lesser of both, where both are given."""
    asked = [] if config.steps is None else [config.steps]
    if config.epochs is not None or not asked:
        asked.append((DEFAULT_EPOCHS if config.epochs is None else config.epochs) * task.steps_per_round)
    return min(asked)


def _open(config: Config, given: Given) -> Data:
    data = open_data(
        config.data if given.training is None else given.training,
        validation=config.validation if given.validation is None else given.validation,
        holdout=config.holdout,
        target=config.target,
        targets=config.targets,
        context=config.context,
        task=config.task,
    )
    if not len(data.train):
        raise DataError(f"data={config.data} leaves no rows to train on. Expected at least one: see --holdout")
    return data


def _count_classes(data: Data, config: Config, world: World) -> Data:
    """Settle the number of classes: as given, as known, or the largest label + 1, which ranks look for in shares."""
    spec = data.train.spec
    control = world.comm.control
    with together(control):
        if spec.target not in ("class", "tokens"):
            if config.classes is not None:
                raise ConfigError(f"--classes {config.classes}: the targets of this data are numbers, without classes")
            return data
        if config.classes is not None:
            data = data.with_classes(config.classes)
        if data.train.spec.classes is not None:
            return data
        whole = {
            id(getattr(source, "source", source)): source for source in (data.validation, data.train) if len(source)
        }
        ranges = [_range(source, world) for source in whole.values()]
    highest = max(high for answer in exchange(control, ranges) for _, high in answer)
    with together(control):
        return data.with_classes(highest + 1)


def _range(source: Source, world: World) -> tuple[int, int]:
    mine = Partition.even(len(source), world.size).slice_of(world.rank)
    return source.target_range(mine.start, mine.stop)


def pick_device(name: str, local_rank: int) -> torch.device:
    """The device that ``name`` means on this rank. Raises ConfigError for one that cannot be used."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", local_rank % max(1, torch.cuda.device_count()))
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"--device {name} cannot be used: {reason}. Expected cpu, or a device of this machine"
        ) from error
    return device


def make_task(
    config: Config, given: Given, data: Data, shard: Shard, device: torch.device, loader: Loader
) -> Supervised:
    """The task on one rank's share of the rows."""
    batch_size = len(data.train) if config.batch_size == "all" else config.batch_size
    return Supervised(
        data.train,
        shard,
        goal_of(data.train.spec),
        batch_size,
        seed=config.seed,
        accumulate=config.accumulate,
        loss_function=_on(device, given.loss or _loss(config)),
        device=device,
        bf16=config.precision == "bf16",
        loader=loader,
    )


def _on(device: torch.device, loss: Any) -> Any:
    """A loss with tensors of its own (class weights), where the outputs are."""
    return loss.to(device) if isinstance(loss, nn.Module) else loss


def _loss(config: Config) -> Any:
    if config.loss is None:
        if config.loss_args:
            raise ConfigError(f"--loss-args {config.loss_args} have no loss. Expected --loss with an import path too")
        return None
    if not is_import_path(config.loss):
        raise ConfigError(f"loss={config.loss}: expected an import path such as torch.nn.L1Loss or my_module:my_loss")
    found = named(config.loss, "loss")
    if isinstance(found, type):
        return made_by(config.loss, "loss", **config.loss_args)
    return partial(found, **config.loss_args) if config.loss_args else found


def _schedule(config: Config, task: Supervised) -> Any:
    """What makes the schedule, tried on an optimizer of nothing: a wrong one is refused before anything runs."""
    steps = total_steps(config, task)
    make = partial(build_schedule, config.schedule, config.schedule_args, config.warmup_steps, steps)
    make(made(config.optimizer, [("sample", torch.zeros(2, 2))]))
    return make
