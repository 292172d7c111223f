"""What a run shows and leaves behind: terminal, metrics and folder on rank 0, null objects on the others."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from torch import Tensor

from distloop.build import Job
from distloop.comm import together
from distloop.report import Log, Logs, MetricsLog, NoLog, Reporter, TensorBoardLog, open_reporter
from distloop.run_folder import RunFolder, save_weights


class Archive(ABC):
    """Where weights and summary go."""

    path: Path | None

    @abstractmethod
    def save(self, state: Mapping[str, Tensor], summary: Mapping[str, Any]) -> None:
        """Keep both."""


@final
class Nowhere(Archive):
    """Keeps nothing."""

    path = None

    def save(self, state: Mapping[str, Tensor], summary: Mapping[str, Any]) -> None:
        """Nothing to do."""


@final
class InFolder(Archive):
    """Writes model.safetensors, then summary.json: where that one is, all is there."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder, self.path = folder, folder.path

    def save(self, state: Mapping[str, Tensor], summary: Mapping[str, Any]) -> None:
        """Both written aside and renamed."""
        save_weights(self._folder.path, state)
        self._folder.write_json("summary.json", summary)


@dataclass(frozen=True)
class Outputs:
    """The three of them."""

    reporter: Reporter
    log: Log
    archive: Archive


@contextmanager
def open_outputs(job: Job, resolved: str, keep: bool = True) -> Iterator[Outputs]:
    """Open on rank 0 what ``job.config`` asks for; ``resolved`` becomes config.yaml. ``keep``: in a folder.

    Collective. Raises ConfigError on all ranks for a folder that is in use or cannot be written.
    """
    config, here = job.config, job.world.rank == 0
    folder: RunFolder | None = None
    log: Log = NoLog()
    with together(job.world.comm.control):
        if here and keep:
            folder = RunFolder.create(config.run_dir)
            folder.write_text("config.yaml", resolved)
            log = _log(folder.path, job)
    archive = Nowhere() if folder is None else InFolder(folder)
    with open_reporter(job.world.rank, config.progress, config.log_every) as reporter, closing(log):
        yield Outputs(reporter, log, archive)
    if folder is not None:
        folder.close()


def _log(path: Path, job: Job) -> Log:
    logs: list[Log] = [MetricsLog(path, [f"validation_{name}" for name in job.task.goal.metrics])]
    if job.config.logger == "tensorboard":
        logs.append(TensorBoardLog(path))
    return Logs(logs)
