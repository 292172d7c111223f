"""What talking less costs in loss: the same epochs with all bytes and with fewer, side by side.

    python -m tests.benchmarks.talking_less                      # the digits, three seeds, 2 and 4 ranks
    python -m tests.benchmarks.talking_less --data fashion-mnist --epochs 2 --seeds 1 --batch-size 128
    python -m tests.benchmarks.talking_less --link 100mbit --ranks 2 --seeds 1    # each rank a host; needs root

Each row is the mean over the seeds, and in brackets the range. Bytes are those that the busiest rank sends in
training, counted by the transport. What time they save is a matter of the link: see the last column with --link.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

from distloop.config import Config
from tests.hosts import Hosts, finish_on
from tests.launching import Finished, mpirun
from tests.main_jobs import Outcome, run_all

VARIANTS: dict[str, list[str]] = {
    "plain": [],
    "bf16": ["--gradient-dtype", "bf16"],
    "topk 1 %": ["--compress", "topk", "--compress-args.fraction", "0.01"],
    "topk 10 %": ["--compress", "topk", "--compress-args.fraction", "0.1"],
    "powersgd 1": ["--compress", "powersgd", "--compress-args.rank", "1"],
    "powersgd 4": ["--compress", "powersgd", "--compress-args.rank", "4"],
    "sync-every 8": ["--sync-every", "8"],
    "DiLoCo 8": ["--sync-every", "8", "--outer", "nesterov"],
}


def variants() -> dict[str, list[str]]:
    """Those for which there is an option."""
    known = {f"--{field.name.replace('_', '-')}" for field in fields(Config)}
    return {name: given for name, given in VARIANTS.items() if not given or given[0] in known}


def launched(ranks: int | None, *arguments: str, link: str, **options: Any) -> Finished:
    """Each rank on a host of its own, at such a link."""
    assert ranks is not None
    with Hosts(ranks, link) as hosts:
        return finish_on(hosts, [1] * ranks, sys.executable, *arguments, **options)


def run(given: argparse.Namespace, ranks: int, folder: Path) -> dict[str, list[Outcome]]:
    """All variants and seeds, in one launch."""
    common = ["--data", given.data, "--epochs", given.epochs, "--batch-size", given.batch_size, "--model", given.model]
    common += ["--strategy", "ring", "--progress", "off"]
    jobs = {
        f"{name.replace(' ', '-').replace('%', 'percent')}-{seed}": [*common, "--seed", seed, *options]
        for name, options in variants().items()
        for seed in range(given.seeds)
    }
    folder.mkdir()
    start = partial(launched, link=given.link) if given.link else mpirun
    outcomes = list(run_all(ranks, jobs, folder, run=start, timeout=3600).values())
    for outcome in outcomes:
        assert outcome.code == 0, outcome.stderr
    return {name: outcomes[given.seeds * turn :][: given.seeds] for turn, name in enumerate(variants())}


def spread(values: Sequence[float], digits: int) -> str:
    """Mean and range."""
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def row(name: str, found: list[Outcome], plain_bytes: int) -> str:
    """One line of the table."""
    summaries = [outcome.summary for outcome in found]
    sent = max(summaries[0]["sent_bytes_per_rank"])
    cells = (
        name,
        spread([one["train_loss"] for one in summaries], 4),
        spread([one["validation"]["loss"] for one in summaries], 4),
        spread([100 * one["validation"]["accuracy"] for one in summaries], 2),
        f"{sent / 1e6:.2f}",
        f"{plain_bytes / sent:.1f}",
        spread([1e3 * one["samples"] / one["samples_per_second"] / one["steps"] for one in summaries], 2),
    )
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--model", default="auto")
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--link", help="such as 100mbit: each rank on a host of its own, in a network namespace")
    given = parser.parse_args()
    if given.link and (reason := Hosts.missing()):
        sys.exit(reason)
    where = f", hosts on links of {given.link}" if given.link else ""
    with tempfile.TemporaryDirectory() as folder:
        for ranks in given.ranks:
            found = run(given, ranks, Path(folder) / str(ranks))
            steps = found["plain"][0].summary["steps"]
            print(f"\n{given.data}, {ranks} ranks, {given.epochs} epochs, {steps} steps, {given.seeds} seeds{where}\n")
            print("| | training loss | validation loss | accuracy % | MB sent per rank | fewer bytes | ms a step |")
            print("|---|---|---|---|---|---|---|")
            plain = max(found["plain"][0].summary["sent_bytes_per_rank"])
            for name, outcomes in found.items():
                print(row(name, outcomes, plain), flush=True)


if __name__ == "__main__":
    main()
