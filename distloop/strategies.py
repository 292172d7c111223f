"""Strategies: combinations of collective, ownership and placement that have a name to type."""

from __future__ import annotations

from collections.abc import Callable

from distloop.comm import Collective, CountedComm, Native, Ring, Shared, Star
from distloop.errors import ConfigError
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


def strategy(name: str, comm: CountedComm) -> tuple[Ownership, Placement]:
    """Who updates what (and how the bytes move), and where. Raises ConfigError for a name that is none."""
    if name not in _STRATEGIES:
        raise ConfigError(f"strategy={name}: expected one of {', '.join(NAMES)}")
    collective, ownership, placement = _STRATEGIES[name]
    return ownership(collective(comm)), placement()
