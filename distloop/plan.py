"""``python -m distloop.plan --parameters 1.3e9 --nodes 64``: what each strategy would cost, without running it."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from rich.console import Console

from distloop import units
from distloop.cost import MODELS, OPTIMIZERS, Prediction, Topology, Workload, predict, scaling, timing
from distloop.errors import ConfigError
from distloop.parsing import make_parser, option_of, parse
from distloop.report.predictions import Outlook, notes, outlooks_table, outlooks_text
from distloop.report.tty import find_terminal
from distloop.report.words import data_size, duration
from distloop.verb import run_alone

DESCRIPTION = "Predict memory, traffic and step time of each strategy, without running anything."
GOOD_EFFICIENCY = 0.9


@dataclass
class PlanConfig:
    """A model, a machine and a network."""

    parameters: str | None = None
    """Trainable parameters of the model: 1.3e9, 1.3B, 350M"""
    nodes: int = 1
    """Machines"""
    ranks_per_node: int = 1
    """Processes on each"""
    link: str = "10Gbit"
    """What one node's network carries one way: 100Gbit (bits), 12.5GB/s (bytes)"""
    latency: str = "5us"
    """Of one message between two nodes: about 2us on a fast fabric, 30us and more over TCP"""
    memory_per_node: str | None = None
    """What there is, to see what fits: 256GB"""
    memory_bandwidth: str = "200GB/s"
    """Of one node, all its ranks reading and writing at once"""
    optimizer: Literal["adam", "momentum", "sgd"] = "adam"
    """Its state is 8, 4 or 0 bytes a parameter"""
    gradient_dtype: Literal["float32", "bf16"] = "float32"
    """bf16: gradients travel in half the bytes, where the strategy can"""
    compute_seconds: str = "0"
    """Forward and backward of one step on one rank: 350ms; without it, only what synchronising costs is told"""
    json: bool = False
    """Print everything as JSON, scaling up to 4,096 ranks included"""

    def __post_init__(self) -> None:
        """Refuse what no machine has. Raises ConfigError."""
        if not self.parameters:
            raise ConfigError("--parameters is missing: expected the model's size, such as --parameters 1.3e9")
        for name in ("nodes", "ranks_per_node"):
            if not 1 <= getattr(self, name) <= 1_000_000:
                raise ConfigError(f"{option_of(name)} {getattr(self, name)}: expected a whole number from 1 on")
        self.workload = Workload(
            units.count("--parameters", self.parameters),
            OPTIMIZERS[self.optimizer],
            0.0 if self.compute_seconds == "0" else units.seconds("--compute-seconds", self.compute_seconds),
            gradient_bytes={"float32": 4, "bf16": 2}[self.gradient_dtype],
        )
        self.topology = Topology(
            self.nodes,
            self.ranks_per_node,
            units.bytes_per_second("--link", self.link),
            units.seconds("--latency", self.latency),
            units.bytes_per_second("--memory-bandwidth", self.memory_bandwidth),
        )
        given = self.memory_per_node
        self.memory_bytes = None if given is None else units.size_bytes("--memory-per-node", given)


@dataclass(frozen=True)
class Plan:
    """The answer: strategies from best to worst, those that do not fit last."""

    config: PlanConfig
    outlooks: list[Outlook]

    @classmethod
    def of(cls, config: PlanConfig) -> Plan:
        """Predict every strategy that can run there."""
        predictions = [predict(name, config.workload, config.topology) for name in MODELS]
        outlooks = [_outlook(found, config) for found in predictions if found is not None]
        outlooks.sort(key=lambda one: (one.fits is False, one.prediction.timing.step, one.prediction.node_memory.total))
        return cls(config, outlooks)

    def headline(self) -> str:
        """What was asked."""
        workload, machine = self.config.workload, self.config.topology
        parts = [
            f"{workload.parameters:,} parameters ({data_size(workload.bytes)} as float32)",
            self.config.optimizer,
            "" if self.config.gradient_dtype == "float32" else "gradients as bf16",
            f"{_many(machine.nodes, 'node')} of {_many(machine.ranks_per_node, 'rank')}",
        ]
        if machine.nodes > 1:
            parts.append(f"{self.config.link} a node, {self.config.latency}")
        parts.append(f"{data_size(machine.memory_bytes_per_second)}/s of memory")
        if workload.compute_seconds:
            parts.append(f"{duration(workload.compute_seconds)} of compute")
        return " · ".join(filter(None, parts))

    def advice(self) -> str:
        """Which one to take, and why; or what to change where none fits."""
        if self.outlooks[0].fits is False:
            return self._nothing_fits()
        if self.config.topology.ranks == 1:
            return "One rank has nobody to synchronise with: every strategy does the same there."
        best, *others = self.outlooks
        found, config = best.prediction, self.config
        without = "" if config.workload.compute_seconds else " besides its compute"
        parts = [f"Take {found.strategy}: {duration(found.timing.step)} a step{without}"]
        if slower := next((one for one in others if one.fits is not False), None):
            ratio = slower.prediction.timing.step / found.timing.step if found.timing.step else 1.0
            parts.append(f"{ratio:.1f} times as fast as {slower.prediction.strategy}, the next" if ratio > 1.05 else "")
        if config.memory_bytes is not None:
            parts.append(f"{data_size(found.node_memory.total)} of {data_size(config.memory_bytes)} on a node")
        return f"{', '.join(filter(None, parts))}. {self._limit(best)}".strip()

    def _limit(self, best: Outlook) -> str:
        """Where its time goes, and what it would take to keep the speed of lonely ranks."""
        found, config = best.prediction, self.config
        cure = {
            "the link": "; --gradient-dtype bf16 halves the gradients on it" * (config.workload.gradient_bytes > 2),
            "memory bandwidth": "; fewer ranks of more threads each move less",
            "latency": "; larger batches or --sync-every make steps fewer",
        }.get(found.limit, "")
        text = f"Its communication is limited by {found.limit}{cure}."
        if found.timing.efficiency >= GOOD_EFFICIENCY:
            return text
        needed = compute_for(GOOD_EFFICIENCY, found.strategy, config.workload, config.topology)
        return (
            f"{text} Steps that compute for {duration(needed)} or more keep {GOOD_EFFICIENCY:.0%} of the speed of "
            "ranks that do not synchronise."
        )

    def _nothing_fits(self) -> str:
        config = self.config
        least = min(self.outlooks, key=lambda one: one.prediction.node_memory.total).prediction
        text = (
            f"Nothing fits {data_size(config.memory_bytes or 0)} on a node: the least is {least.strategy} with "
            f"{data_size(least.node_memory.total)}."
        )
        for ranks in range(config.topology.ranks_per_node - 1, 0, -1):
            fewer = replace(config.topology, ranks_per_node=ranks)
            memory = MODELS[least.strategy].memory(config.workload, fewer)[1]
            if memory.total <= (config.memory_bytes or 0):
                return f"{text} With --ranks-per-node {ranks} and more threads in each it would fit."
        return f"{text} Parameters and gradients of one rank are too much for a node: a smaller model is needed."

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        config = self.config
        strategies = [outlook.prediction.as_dict() | {"fits": outlook.fits} for outlook in self.outlooks]
        return {
            "parameters": config.workload.parameters,
            "workload": asdict(config.workload),
            "topology": asdict(config.topology),
            "memory_per_node_bytes": config.memory_bytes,
            "strategies": strategies,
            "advice": self.advice(),
            "efficiency_by_ranks": {name: scaling(name, config.workload, config.topology) for name in MODELS},
        }


def compute_for(efficiency: float, strategy: str, workload: Workload, topology: Topology) -> float:
    """Seconds of compute a step from which on ``strategy`` keeps that efficiency, which grows with them."""
    low, high = 0.0, 1e-6
    while timing(strategy, replace(workload, compute_seconds=high), topology).efficiency < efficiency:
        low, high = high, 2 * high
    for _ in range(30):
        middle = (low + high) / 2
        enough = timing(strategy, replace(workload, compute_seconds=middle), topology).efficiency >= efficiency
        low, high = (low, middle) if enough else (middle, high)
    return high


def _outlook(found: Prediction, config: PlanConfig) -> Outlook:
    if config.memory_bytes is None:
        return Outlook(found)
    room = config.memory_bytes / found.node_memory.total
    return Outlook(found, room >= 1, room * config.workload.parameters)


def _many(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"


def _plan(arguments: Sequence[str]) -> int:
    namespace, code = parse(make_parser("python -m distloop.plan", DESCRIPTION, PlanConfig), arguments, PlanConfig)
    if namespace is None:
        return code
    plan = Plan.of(PlanConfig(**{name: namespace[name] for name in PlanConfig.__dataclass_fields__}))
    if plan.config.json:
        print(json.dumps(plan.as_dict(), indent=2))
        return 0
    terminal = find_terminal(sys.stdout)
    if terminal is None:
        text = outlooks_text(plan.outlooks)
        print("\n".join([plan.headline(), "", text, *notes(plan.outlooks), "", plan.advice()]))
        return 0
    console = Console(width=terminal.columns(), highlight=False)
    console.print(plan.headline(), style="bold cyan")
    console.print(outlooks_table(plan.outlooks, console))
    console.print("\n".join(notes(plan.outlooks)), style="bright_black")
    console.print(f"\n{plan.advice()}")
    return 0


def main() -> int:
    """The verb; returns the code to exit with."""
    return run_alone(_plan)


if __name__ == "__main__":
    sys.exit(main())
