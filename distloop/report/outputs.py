"""What a run shows and leaves behind: terminal, metrics and folder on rank 0, null objects on the others."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from math import isfinite
from pathlib import Path
from typing import Any, Protocol, final

from torch import Tensor

from distloop.comm import World, at_root
from distloop.errors import ConfigError
from distloop.report.metrics import Log, Logs, MetricsLog, NoLog, TensorBoardLog
from distloop.report.terminal import Progress, Reporter, open_reporter
from distloop.run_folder import RunFolder, save_weights


class Archive(ABC):
    """Where weights and summary go."""

    path: Path | None

    @abstractmethod
    def keep(self, state: Mapping[str, Tensor]) -> None:
        """The weights as they are now; those kept before are replaced."""

    @abstractmethod
    def conclude(self, summary: Mapping[str, Any]) -> None:
        """The run has ended."""


@final
class Nowhere(Archive):
    """Keeps nothing."""

    path = None

    def keep(self, state: Mapping[str, Tensor]) -> None:
        """Nothing to do."""

    def conclude(self, summary: Mapping[str, Any]) -> None:
        """Nothing to do."""


@final
class InFolder(Archive):
    """Writes model.safetensors, and summary.json at the end: where that one is, all is there."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder, self.path = folder, folder.path

    def keep(self, state: Mapping[str, Tensor]) -> None:
        """Written aside and renamed."""
        save_weights(self._folder.path, state)

    def conclude(self, summary: Mapping[str, Any]) -> None:
        """Written aside and renamed."""
        self._folder.write_json("summary.json", _finite(summary))


def _finite(value: Any) -> Any:
    """JSON has neither nan nor infinity: null stands for both."""
    if isinstance(value, Mapping):
        return {name: _finite(part) for name, part in value.items()}
    return None if isinstance(value, float) and not isfinite(value) else value


class Options(Protocol):
    """The part of a configuration that says what is shown and kept."""

    @property
    def progress(self) -> Progress:
        """See ``open_reporter``."""

    @property
    def log_every(self) -> int:
        """Steps between two rows of metrics."""

    @property
    def logger(self) -> str:
        """none or tensorboard."""


@dataclass(frozen=True)
class Outputs:
    """The three of them."""

    reporter: Reporter
    log: Log
    archive: Archive


@contextmanager
def open_outputs(
    world: World, resolved: str, metrics: Sequence[str], folder: Callable[[], RunFolder] | None, options: Options
) -> Iterator[Outputs]:
    """Open on rank 0 what ``options`` ask for; ``resolved`` becomes config.yaml. ``folder`` makes it; None: no folder.

    Collective. Raises ConfigError on all ranks for a folder that is in use or cannot be written.
    """
    made: RunFolder | None = None
    log: Log = NoLog()

    def open_here() -> None:
        nonlocal made, log
        if folder is not None:
            require_logger(options.logger)
            made = folder()
            made.write_text("config.yaml", resolved)
            log = _log(made.path, metrics, options.logger)

    try:
        at_root(world.comm.control, open_here)
        archive = Nowhere() if made is None else InFolder(made)
        with open_reporter(world.rank, options.progress, options.log_every) as reporter, closing(log):
            yield Outputs(reporter, log, archive)
    finally:
        if made is not None:
            made.close()


def require_logger(name: str) -> None:
    """Raise ConfigError, before there is a folder, for a logger that is not installed."""
    if name == "tensorboard" and find_spec("tensorboard") is None:
        raise ConfigError(
            "--logger tensorboard: the package tensorboard is not installed. pip install 'distloop[tensorboard]', or "
            "do without: metrics.jsonl and metrics.csv hold the same numbers"
        )


def _log(path: Path, metrics: Sequence[str], logger: str) -> Log:
    logs: list[Log] = [MetricsLog(path, [f"validation_{name}" for name in metrics])]
    if logger == "tensorboard":
        logs.append(TensorBoardLog(path))
    return Logs(logs)
