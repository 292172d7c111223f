"""Strategies: collective, ownership and placement under one name that can be typed, and what makes them talk less."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

from distloop.comm import (
    Bf16,
    Collective,
    CountedComm,
    Hierarchical,
    Native,
    Plain,
    PowerSGD,
    Ring,
    Shared,
    Star,
    TopK,
    Wire,
    World,
    together,
)
from distloop.comm.tuning import Choice, choose
from distloop.errors import ConfigError
from distloop.local_steps import OUTERS, EveryStep, LocalSteps, Rhythm
from distloop.ownership import Ownership, Replicated, RootOwned, Sharded
from distloop.parts import bucket_bytes
from distloop.placement import Offloaded, Placement, Resident
from distloop.replicas import check_same_model


@dataclass(frozen=True)
class _Strategy:
    """``wired``: whether its collective takes a wire, on which gradients may travel as bfloat16."""

    collective: Callable[..., Collective]
    ownership: type[Ownership]
    placement: type[Placement]
    wired: bool = False
    tried: bool = True

    def candidate(self, comm: CountedComm, **options: Any) -> Ownership:
        """As ``auto`` tries it."""
        return self.ownership(self.collective(comm, **options))


# In the order in which ``auto`` prefers them where they are as quick: what needs less memory comes first.
_STRATEGIES = {
    "shared": _Strategy(Shared, Sharded, Resident),
    "hierarchical": _Strategy(Hierarchical, Sharded, Resident, wired=True),
    "zero": _Strategy(Ring, Sharded, Resident, wired=True),
    "ring": _Strategy(Ring, Replicated, Resident, wired=True),
    "native": _Strategy(Native, Replicated, Resident),
    "star": _Strategy(Star, Replicated, Resident, tried=False),
    "parameter-server": _Strategy(Star, RootOwned, Resident, tried=False),
    "zero-offload": _Strategy(Ring, Sharded, Offloaded, wired=True, tried=False),
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


def strategy(
    name: str, comm: CountedComm, compression: Compression | None = None, gradient_dtype: str = "float32"
) -> tuple[Ownership, Placement]:
    """Who updates what (and how the bytes move), and where; ``auto`` must have been settled before. Collective.

    ``gradient_dtype``: bf16 halves what gradients weigh on the wire; they are summed in float32.
    Raises ConfigError for a name that is none, a compression or a type that does not go with it.
    """
    if name not in _STRATEGIES:
        raise ConfigError(f"strategy={name}: expected one of {', '.join(NAMES)}, auto")
    found = _STRATEGIES[name]
    with together(comm.control):
        wire = _wire(name, found, gradient_dtype)
    plain = found.collective(comm, **wire)
    with together(comm.control):
        moved = (compression or Compression()).of(plain)
    return found.ownership(moved), found.placement()


def _wire(name: str, found: _Strategy, gradient_dtype: str) -> dict[str, Wire]:
    """The wire, as an argument of a collective that has one."""
    if gradient_dtype == "bf16" and not found.wired and found.collective is not Shared:
        able = [other for other, it in _STRATEGIES.items() if it.wired or it.collective is Shared]
        raise ConfigError(
            f"--gradient-dtype bf16 with --strategy {name}: MPI cannot sum bfloat16. Expected one of {', '.join(able)}"
        )
    return {"wire": Bf16() if gradient_dtype == "bf16" else Plain()} if found.wired else {}


def settle(
    world: World, module: nn.Module, compression: Compression, gradient_dtype: str, alone: bool, optimizer_bytes: int
) -> Choice:
    """What ``auto`` is here, for this model. Collective.

    On one node there is nothing to try: ranks that read each other's memory send nothing, and share out the
    optimizer's work. Between nodes it depends on network, library and size: the quickest of what was tried is taken.
    ``alone``: ranks step alone for a while, which only a rank that owns everything can.
    """
    check_same_model(world.comm.control, module)
    compressed = compression.name != "none"
    wire: dict[str, Any] = {"wire": Bf16()} if gradient_dtype == "bf16" else {}
    candidates = {
        name: partial(it.candidate, **(wire if it.wired else {}))
        for name, it in _STRATEGIES.items()
        if it.tried
        and not (alone and it.ownership is not Replicated)
        and not (compressed and it.collective in (Shared, Hierarchical))
        and not (gradient_dtype == "bf16" and it.collective is Native)
    }
    if world.nodes == 1 and "shared" in candidates:
        candidates = {"shared": candidates["shared"]}
    size_bytes = sum(4 * parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
    facts = {"gradient_dtype": gradient_dtype}
    return choose(world, size_bytes, optimizer_bytes, candidates, bucket_bytes(size_bytes), facts)
