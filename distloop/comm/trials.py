"""What trials on a cluster have shown, by candidate and size, and where that is kept from one run to the next."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import time
from bisect import bisect_left
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from distloop.comm.agree import exchange
from distloop.comm.mpi import MPI
from distloop.comm.world import World

FRESH_SECONDS = 30 * 86400  # machines and their neighbours change
CERTAIN_BYTES = 1 << 18  # from here on what is slow stays slow

Measured = tuple[float, float]
"""Seconds to move a vector, and of one pass over what a rank owns of it."""


@dataclass
class Trials:
    """``table[name][size_bytes]``; ``impossible``: candidates that cannot run here."""

    table: dict[str, dict[int, Measured]] = field(default_factory=dict)
    impossible: set[str] = field(default_factory=set)

    def add(self, name: str, size: int, moved: float, touched: float) -> None:
        """One result more."""
        self.table.setdefault(name, {})[size] = (moved, touched)

    def knows(self, name: str) -> bool:
        """Whether anything is known of a candidate that can run."""
        return bool(self.table.get(name)) and name not in self.impossible

    def has(self, name: str, size: int) -> bool:
        """Whether there is nothing to try."""
        return name in self.impossible or size in self.table.get(name, {})

    def hopeless(self, names: Iterable[str], size: int, factor: float) -> set[str]:
        """Those that were ``factor`` times slower than the best at a smaller size that tells."""
        slow: set[str] = set()
        known = [name for name in names if self.knows(name)]
        for smaller in {size for name in known for size in self.table[name]}:
            there = {name: sum(self.table[name][smaller]) for name in known if smaller in self.table[name]}
            if CERTAIN_BYTES <= smaller < size:
                slow |= {name for name, seconds in there.items() if seconds > factor * min(there.values())}
        return slow

    def seconds(self, name: str, size_bytes: int, passes: float, bucket_bytes: int) -> float:
        """Predicted: between two sizes by their powers, beyond the largest in a line, in buckets one by one."""
        moved = size_bytes / bucket_bytes * self._at(name, bucket_bytes, 0)
        return moved + passes * self._at(name, size_bytes, 1)

    def _at(self, name: str, size_bytes: int, which: int) -> float:
        sizes = sorted(self.table[name])
        times = [self.table[name][size][which] for size in sizes]
        above = bisect_left(sizes, size_bytes)
        if above == len(sizes):
            return times[-1] + _slope(sizes[-2:], times[-2:]) * (size_bytes - sizes[-1])
        if above == 0:
            return times[0]
        low, high = max(times[above - 1], 1e-9), max(times[above], 1e-9)
        way = math.log(size_bytes / sizes[above - 1]) / math.log(sizes[above] / sizes[above - 1])
        return low * math.pow(high / low, way)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        table = {
            name: {str(size): list(pair) for size, pair in sorted(row.items())} for name, row in self.table.items()
        }
        return {"table": table, "impossible": sorted(self.impossible)}

    @classmethod
    def from_dict(cls, told: dict[str, Any]) -> Trials:
        """Raises ValueError, TypeError, KeyError or AttributeError for what is no such thing."""
        table = {
            str(name): {int(size): _measured(pair) for size, pair in row.items()} for name, row in told["table"].items()
        }
        return cls(table, {str(name) for name in told["impossible"]})

    @classmethod
    def remembered(cls, folder: Path, cluster: dict[str, Any]) -> Trials:
        """Nothing where nothing is kept, what is kept is broken, or a month old."""
        path = folder / file_of(cluster)
        with suppress(OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            if 0 <= time.time() - path.stat().st_mtime < FRESH_SECONDS:
                told = json.loads(path.read_text())
                if told["cluster"] == cluster:
                    return cls.from_dict(told["trials"])
        return cls()

    def remember(self, folder: Path, cluster: dict[str, Any]) -> None:
        """Written aside and renamed; a home that cannot be written to is no reason to fail."""
        path = folder / file_of(cluster)
        aside = path.with_name(f"{path.name}.{os.getpid()}.part")
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            try:
                aside.write_text(json.dumps({"cluster": cluster, "trials": self.as_dict()}, indent=1))
                aside.replace(path)
            finally:
                aside.unlink(missing_ok=True)


def _slope(sizes: list[int], times: list[float]) -> float:
    """Seconds of a byte more, by the last two sizes; noise may not make it less than a third of the mean, nor more."""
    mean = times[-1] / sizes[-1]
    slope = (times[-1] - times[0]) / (sizes[-1] - sizes[0]) if len(sizes) > 1 else mean
    return min(max(slope, mean / 3), mean)


def _measured(pair: Any) -> Measured:
    moved, touched = (float(seconds) for seconds in pair)
    if not (0 <= moved < math.inf and 0 <= touched < math.inf):
        raise ValueError(pair)
    return moved, touched


def cluster_of(world: World) -> dict[str, Any]:
    """What must be the same for a trial to hold: kind of hosts, ranks on each, cores, library, distloop. Collective.

    A host counts by its name without digits, so that node017 is as good as node018.
    """
    told = exchange(world.comm.control, [world.node, re.sub(r"\d+", "#", MPI.Get_processor_name()), world.cores])
    by_node = {node: (host, cores) for node, host, cores in told}
    ranks = [sum(node == other for other, _, _ in told) for node in by_node]
    try:
        own = version("distloop")
    except PackageNotFoundError:
        own = "unknown"
    return {
        "hosts": sorted({host for host, _ in by_node.values()}),
        "cores": sorted({cores for _, cores in by_node.values()}),
        "ranks_per_node": sorted(ranks),
        "mpi": world.library,
        "thread_level": MPI.Query_thread(),
        "distloop": own,
    }


def file_of(cluster: dict[str, Any]) -> str:
    """Its name in the folder."""
    digest = hashlib.sha256(json.dumps(cluster, sort_keys=True).encode()).hexdigest()
    return f"tuning-{digest[:16]}.json"


def default_folder() -> Path:
    """``$XDG_CACHE_HOME/distloop``, or ``~/.cache/distloop``; only rank 0 looks there."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    with suppress(RuntimeError):  # no home at all
        return (Path(home) if Path(home).is_absolute() else Path.home() / ".cache") / "distloop"
    return Path("/nonexistent/distloop")
