"""What ``compare`` takes besides the options of ``train``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from distloop import units
from distloop.config import Config
from distloop.errors import ConfigError

LEAST_ROUNDS = 7


@dataclass
class CompareConfig(Config):
    """A run, in several ways. ``--strategy`` is what they differ in; ``--steps`` are timed, of each."""

    strategies: str = "all"
    """Which to compare, as ring,zero,ring+bf16: names of --strategy, each with + and what differs from the other
    options: bf16, topk, powersgd, sync8 (--sync-every 8), diloco8 (the same with --outer nesterov)"""
    against: Literal["none", "ddp"] = "none"
    """ddp: torch's DistributedDataParallel over gloo takes part"""
    collectives: bool = False
    """Also time the bare collectives (all-reduce, reduce-scatter, all-gather), from 1 KiB to --largest"""
    largest: str = "256MiB"
    """The largest vector of --collectives, as far as memory goes"""
    rounds: int = 7
    """How often each has its turn; the more, the surer the median"""
    link: str | None = None
    """A network between nodes to predict scaling for, as 100Gbit (default: the one found, or 25Gbit)"""
    json: str | None = None
    """Write all that was measured as JSON to this file; - for the standard output, in place of the table"""
    report: str | None = None
    """A folder for report.html, the plots as PNG, and comparison.json; --timeline puts a trace of some steps of each
    there too, or else in timelines"""

    def __post_init__(self) -> None:
        """Refuse values that no comparison can have."""
        super().__post_init__()
        if not 1 <= self.rounds <= 10_000:
            raise ConfigError(f"--rounds {self.rounds}: expected a whole number from 1 on")
        self.largest_bytes = int(units.size_bytes("--largest", self.largest))
        self.link_bytes = None if self.link is None else units.bytes_per_second("--link", self.link)
