"""The configuration: typed fields, each a key of a configuration file and an option of the command line."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar, get_type_hints

import torch
import yaml
from jsonargparse import ArgumentParser, Namespace
from torch.optim import Optimizer

from distloop.comm import at_root, together
from distloop.comm.mpi import MPI
from distloop.errors import ConfigError
from distloop.parsing import explained, make_parser, parse
from distloop.strategies import NAMES

# jsonargparse shows and checks this type; what torch's optimizers take includes named tensors.
MakeOptimizer = Callable[[Iterable[torch.Tensor]], Optimizer]
Strategy = Literal[
    "auto", "shared", "hierarchical", "zero", "ring", "native", "star", "parameter-server", "zero-offload"
]


def _adam() -> dict[str, Any]:
    return {"class_path": "torch.optim.Adam", "init_args": {"lr": 3e-3}}


@dataclass
class Config:
    """What a run is. The resolved values are saved with it as config.yaml, which --config takes again."""

    task: Literal["auto", "classification", "regression", "language"] = "auto"
    """What is learned; auto decides by the targets: whole numbers are classes, bytes of a text the next byte"""
    data: str = "digits"
    """A built-in name (digits, fashion-mnist), a path (folder of IDX files, .csv, .npz with inputs and targets,
    .npy, .txt), or an import path to a torch Dataset"""
    validation: str | None = None
    """Data to validate on, given like --data; by default the test part that comes with the data, or --holdout"""
    holdout: float = 0.2
    """Fraction of the rows that is held out for validation where the data has no test part"""
    target: str | None = None
    """Column of a table that is to be predicted (default: the last)"""
    targets: str | None = None
    """File of targets that belongs to the inputs in a .npy file"""
    classes: int | None = None
    """Number of classes, if the data does not tell (default: counted)"""
    context: int = 128
    """Bytes of a text that the model sees at once"""
    model: str = "auto"
    """auto, linear, mlp, cnn, gpt, or an import path to an nn.Module, or to a class or function that makes one"""
    model_args: dict[str, Any] = field(default_factory=dict)
    """Arguments of the model, such as --model-args.hidden 256"""
    loss: str | None = None
    """Import path to a loss: a class such as torch.nn.L1Loss, or a function of (outputs, targets)"""
    loss_args: dict[str, Any] = field(default_factory=dict)
    """Arguments of the loss's class, such as --loss-args.label_smoothing 0.1"""
    optimizer: MakeOptimizer = field(default_factory=_adam)  # type: ignore[assignment]
    """Any torch.optim class by name, or any other by import path; its arguments follow it: --optimizer SGD
    --optimizer.lr 0.1 --optimizer.momentum 0.9 (default: Adam, lr 0.003; fused where torch has it, unless
    --optimizer.fused false); --optimizer.help SGD shows them all"""
    schedule: str = "cosine"
    """Learning rate over the steps: cosine or linear (down to 0 at the end), constant, or an import path to a torch
    LRScheduler"""
    schedule_args: dict[str, Any] = field(default_factory=dict)
    """Arguments of a scheduler given by import path, such as --schedule-args.step_size 100"""
    warmup_steps: int = 0
    """Steps over which the learning rate first rises to its full height"""
    epochs: int | None = None
    """Passes over the data (default: 10, unless --steps says when to stop)"""
    steps: int | None = None
    """Stop after this many optimizer steps, even in mid-epoch; with --epochs, after whichever comes first"""
    batch_size: int | Literal["all"] = 32
    """Rows of a step over all ranks: 1 (stochastic), 32 (mini-batch), all (batch gradient descent)"""
    accumulate: int = 1
    """Cut each rank's rows of a step into this many minibatches, one after another, to save memory; the result and
    the traffic stay the same"""
    clip: float | None = None
    """Largest global norm of the gradient, over all parameters and ranks"""
    precision: Literal["float32", "bf16"] = "float32"
    """bf16: forward and backward under torch.autocast; parameters stay as they are"""
    seed: int = 0
    """Of initial weights and of the order of rows"""
    strategy: Strategy = "auto"
    """How gradients travel, who owns what, and where; auto: the quickest here, tried for less than a second and then
    remembered"""
    gradient_dtype: Literal["float32", "bf16"] = "float32"
    """bf16: gradients take half the room, on the wire or in the memory that ranks share; they are summed in float32"""
    compress: Literal["none", "topk", "powersgd"] = "none"
    """Send less of each gradient, and what was left out later: topk, its largest elements, or powersgd, an
    approximation of low rank; learns otherwise than without, and pays on slow networks"""
    compress_args: dict[str, Any] = field(default_factory=dict)
    """--compress-args.fraction 0.01 of the elements (topk), or --compress-args.rank 4 of the matrices (powersgd)"""
    sync_every: int = 1
    """Each rank takes this many steps alone, on its own rows, before the ranks average what they have learned (local
    SGD); learns otherwise than meeting at every step, and --clip looks at a rank's own norm; for ring, native, star"""
    outer: Literal["average", "nesterov"] = "average"
    """What ranks do when they meet: average, or nesterov, which takes the mean of their ways as the gradient of an
    optimizer of its own (DiLoCo)"""
    outer_args: dict[str, Any] = field(default_factory=dict)
    """--outer-args.lr (default 0.7) and --outer-args.momentum (default 0.9) of nesterov"""
    device: str = "auto"
    """cpu, cuda (one per rank of a node, in turn), any other of torch, or auto: cuda where there is one"""
    threads: int | None = None
    """Torch's threads per rank (default: the node's cores divided by its ranks)"""
    workers: int = 0
    """Processes per rank that read data ahead"""
    run_dir: str | None = None
    """Folder for what the run leaves; new or empty (default: runs/DATE-TIME)"""
    progress: Literal["auto", "bar", "plain", "off"] = "auto"
    """What is shown while training: a bar on a terminal, lines elsewhere"""
    log_every: int = 0
    """Write a row of metrics every so many steps, besides one per epoch"""
    timeline: bool = False
    """Write a trace of all ranks as timeline.json into the run's folder: compute, wait, transfer and optimizer, by
    bucket, for https://ui.perfetto.dev"""
    logger: Literal["none", "tensorboard"] = "none"
    """Where metrics go besides metrics.jsonl and metrics.csv"""

    @property
    def talks_less(self) -> list[str]:
        """In which ways this is another training than plain data parallelism, in words."""
        compressed = [] if self.compress == "none" else [self.compress]
        alone = (
            [] if (self.sync_every, self.outer) == (1, "average") else [f"{self.outer} every {self.sync_every} steps"]
        )
        return compressed + alone

    def __post_init__(self) -> None:
        """Refuse values that no run can have."""
        least = {"epochs": 1, "steps": 1, "batch_size": 1, "accumulate": 1, "threads": 1, "context": 1, "classes": 1}
        least |= {"sync_every": 1}
        for name, bound in (least | {"workers": 0, "warmup_steps": 0, "log_every": 0}).items():
            value = getattr(self, name)
            if not (value is None or isinstance(value, int) or (name, value) == ("batch_size", "all")):
                raise ConfigError(f"{name}={value}: expected a whole number")
            if isinstance(value, int) and value < bound:
                raise ConfigError(f"--{name.replace('_', '-')} {value}: expected at least {bound}")
        if self.clip is not None and not self.clip > 0:
            raise ConfigError(f"--clip {self.clip}: expected a norm greater than 0")
        if self.compress != "none" and self.gradient_dtype != "float32":
            raise ConfigError(
                f"--compress {self.compress} with --gradient-dtype {self.gradient_dtype}: what is left of a compressed "
                "gradient is sent in float32. Expected one of the two"
            )
        if not 0 <= self.holdout < 1:
            raise ConfigError(f"--holdout {self.holdout}: expected a fraction from 0 to below 1")


assert get_type_hints(Config)["strategy"].__args__ == ("auto", *NAMES)


Schema = TypeVar("Schema")


@dataclass(frozen=True)
class Parsed(Generic[Schema]):
    """What the command line came to: a configuration, also as text; or none, and a code to exit with at once."""

    config: Schema | None
    resolved: str
    code: int


def parse_together(
    parser: ArgumentParser, arguments: Sequence[str], control: MPI.Intracomm, schema: type[Schema]
) -> Parsed[Schema]:
    """Rank 0 parses and prints, the others take its resolved text. Collective.

    Raises ConfigError on all ranks for what cannot be parsed, or values that no run can have.
    """
    resolved, code = at_root(control, lambda: _parse(parser, arguments, schema))
    if not resolved:
        return Parsed(None, resolved, code)
    with together(control):
        return Parsed(_instantiate(parser, resolved, schema), resolved, code)


def _parse(parser: ArgumentParser, arguments: Sequence[str], schema: type[Any]) -> tuple[str, int]:
    namespace, code = parse(parser, arguments, schema)
    if namespace is None:
        return "", code
    _fuse(namespace)
    resolved: str = parser.dump(namespace, skip_unset=False)
    return resolved, 0


def _instantiate(parser: ArgumentParser, resolved: str, schema: type[Schema]) -> Schema:
    try:
        made = parser.instantiate(parser.parse_string(resolved))
    except Exception as error:
        raise ConfigError(explained(error, schema)) from error
    return schema(**{name: made[name] for name in get_type_hints(schema)})


def read_config(path: Path) -> Config:
    """The configuration that a run has saved. Raises ConfigError where it is none."""
    try:
        resolved = path.read_text()
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read ({error.strerror}). Expected a run's folder, with its config.yaml"
        ) from error
    return _instantiate(make_parser("distloop", "", Config), resolved, Config)


def _fuse(namespace: Namespace) -> None:
    """Fused optimizers, one pass over memory, wherever torch has them and nobody said otherwise."""
    arguments = namespace.optimizer.get("init_args") if "optimizer" in namespace else None
    if arguments is not None and "fused" in arguments and arguments.fused is None and not arguments.get("foreach"):
        arguments.fused = True


def as_yaml(config: Config, told: dict[str, Any]) -> str:
    """For configurations made in Python; ``told`` says what stands for objects that have no name."""
    plain = {entry.name: getattr(config, entry.name) for entry in fields(config)}
    plain |= {"optimizer": _named_optimizer(config.optimizer)} | told
    text: str = yaml.safe_dump(plain, sort_keys=False)
    return text


def _named_optimizer(make: Any) -> Any:
    """As a configuration file has it, for a class with arguments; anything else by its own words."""
    if not isinstance(make, partial) or not isinstance(make.func, type):
        return repr(make)
    return {"class_path": f"{make.func.__module__}.{make.func.__qualname__}", "init_args": dict(make.keywords)}
