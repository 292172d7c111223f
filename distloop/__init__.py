"""distloop: distributed data-parallel training for PyTorch over MPI, from wheels alone.

Three levels: ``train`` (one call) and ``distribute`` (a script of plain PyTorch, made a distributed one); the loop and
its families (``loop``, ``Learner``, ownership, placement, tasks); the collectives (``Star``, ``Ring``, ``Native``).
Names are imported when they are first used: what communicates starts MPI, which a data-loader worker must not.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distloop.api import Trained, train
    from distloop.comm import Collective, Native, Ring, Star, World
    from distloop.config import Config
    from distloop.errors import ConfigError, DataError, DistloopError, ModelError, NotFiniteError, ShapeError, UserError
    from distloop.learner import Learner
    from distloop.loop import Progress
    from distloop.ownership import Replicated, RootOwned, Sharded
    from distloop.partition import Partition
    from distloop.placement import Offloaded, Resident
    from distloop.plain_torch import distribute
    from distloop.strategies import strategy
    from distloop.tasks import Loss, Minibatch, Shard, Supervised, Task

_HOMES = {
    "distloop.api": ("Trained", "train"),
    "distloop.comm": ("Collective", "Native", "Ring", "Star", "World"),
    "distloop.config": ("Config",),
    "distloop.plain_torch": ("distribute",),
    "distloop.errors": (
        "ConfigError",
        "DataError",
        "DistloopError",
        "ModelError",
        "NotFiniteError",
        "ShapeError",
        "UserError",
    ),
    "distloop.learner": ("Learner",),
    "distloop.loop": ("Progress",),
    "distloop.ownership": ("Replicated", "RootOwned", "Sharded"),
    "distloop.partition": ("Partition",),
    "distloop.placement": ("Offloaded", "Resident"),
    "distloop.strategies": ("strategy",),
    "distloop.tasks": ("Loss", "Minibatch", "Shard", "Supervised", "Task"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Collective",
    "Config",
    "ConfigError",
    "DataError",
    "DistloopError",
    "Learner",
    "Loss",
    "Minibatch",
    "ModelError",
    "Native",
    "NotFiniteError",
    "Offloaded",
    "Partition",
    "Progress",
    "Replicated",
    "Resident",
    "Ring",
    "RootOwned",
    "ShapeError",
    "Shard",
    "Sharded",
    "Star",
    "Supervised",
    "Task",
    "Trained",
    "UserError",
    "World",
    "distribute",
    "strategy",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'distloop' has no attribute {name!r}")
    value = getattr(import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
