"""Strategies: collective, ownership and placement under one name that can be typed, and what makes them talk less."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from distloop.comm import Collective, CountedComm, Native, PowerSGD, Ring, Shared, Star, TopK, together
from distloop.errors import ConfigError
from distloop.local_steps import OUTERS, EveryStep, LocalSteps, Rhythm
from distloop.ownership import Ownership, Replicated, RootOwned, Sharded
from distloop.placement import Offloaded, Placement, Resident

_STRATEGIES: dict[str, tuple[Callable[[CountedComm], Collective], type[Ownership], type[Placement]]] = {
    "star": (Star, Replicated, Resident),
    "ring": (Ring, Replicated, Resident),
    "native": (Native, Replicated, Resident),
    "shared": (Shared, Sharded, Resident),
    "parameter-server": (Star, RootOwned, Resident),
    "zero": (Ring, Sharded, Resident),
    "zero-offload": (Ring, Sharded, Offloaded),
}
NAMES = tuple(_STRATEGIES)
_COMPRESSIONS: dict[str, Callable[..., Collective]] = {"none": lambda it: it, "topk": TopK, "powersgd": PowerSGD}
COMPRESSIONS = tuple(_COMPRESSIONS)


@dataclass(frozen=True)
class Compression:
    """Which one, and its arguments."""

    name: str = "none"
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def of(self, collective: Collective) -> Collective:
        """Wrapped in it. Raises ConfigError for what cannot be."""
        if self.name not in _COMPRESSIONS:
            raise ConfigError(f"compress={self.name}: expected one of {', '.join(COMPRESSIONS)}")
        if self.name != "none" and collective.reads:
            raise ConfigError(
                f"--compress {self.name}: where ranks read each other's gradients in place, no bytes move that could "
                "be fewer. Expected a strategy that sends them, such as --strategy ring or zero"
            )
        wrapped: Collective = _called(_COMPRESSIONS[self.name], collective, "compress", self.name, self.arguments)
        return wrapped


def rhythm(sync_every: int, outer: str, arguments: Mapping[str, Any]) -> Rhythm:
    """When ranks meet: at every step, unless something else is asked for. Raises ConfigError for what cannot be."""
    if outer not in OUTERS:
        raise ConfigError(f"outer={outer}: expected one of {', '.join(OUTERS)}")
    _called(OUTERS[outer], [torch.zeros(1)], "outer", outer, arguments)
    if (sync_every, outer) == (1, "average"):
        return EveryStep()
    return LocalSteps(sync_every, partial(OUTERS[outer], **arguments))


def _called(function: Callable[..., Any], given: Any, option: str, name: str, arguments: Mapping[str, Any]) -> Any:
    """With arguments that a user has typed."""
    try:
        return function(given, **arguments)
    except (TypeError, ValueError) as error:
        _, *known = inspect.signature(function).parameters
        told = f"one of {', '.join(known)}, with a number" if known else "none"
        raise ConfigError(
            f"--{option} {name} with {dict(arguments)}: {error}. Expected as arguments: {told}"
        ) from error


def strategy(name: str, comm: CountedComm, compression: Compression | None = None) -> tuple[Ownership, Placement]:
    """Who updates what (and how the bytes move), and where. Collective.

    Raises ConfigError for a name that is none, or a compression that does not go with it.
    """
    if name not in _STRATEGIES:
        raise ConfigError(f"strategy={name}: expected one of {', '.join(NAMES)}")
    collective, ownership, placement = _STRATEGIES[name]
    plain = collective(comm)
    with together(comm.control):
        moved = (compression or Compression()).of(plain)
    return ownership(moved), placement()
