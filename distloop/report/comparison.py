"""What a comparison has found: plain numbers, from which table, page, plots and JSON are made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

ALONE = "alone"
OPERATIONS = ("all-reduce", "reduce-scatter", "all-gather")
PHASES = ("compute", "wait", "transfer", "optimizer")
NOISE = 0.03  # what is closer than that is the same
FEW_ROUNDS, UNSTEADY = 7, 0.15  # rounds, and a spread between them, that leave a median unsure
MEMORY_NOISE_BYTES = 16e6  # in which sizes of processes differ for no reason


def count_of(steps: int) -> str:
    """With its noun."""
    return f"{steps} step{'s' * (steps != 1)}"


@dataclass(frozen=True)
class Setting:
    """What was compared, and where. ``steps`` are those that were timed, ``rounds`` times ``steps_per_round``."""

    world: str
    library: str
    ranks: int
    nodes: int
    threads: int
    cores: int
    model: str
    parameters: int
    optimizer: str
    batch_size: int
    rounds: int
    steps_per_round: int
    versions: Mapping[str, str]
    date: str
    command: str

    @property
    def steps(self) -> int:
        """That were timed."""
        return self.rounds * self.steps_per_round

    @property
    def headline(self) -> str:
        """One line."""
        training = f"{self.model}, {self.parameters:,} parameters, {self.optimizer}, batch {self.batch_size}"
        return " · ".join(
            [self.world, self.library, training, f"{self.rounds} rounds of {count_of(self.steps_per_round)}"]
        )


@dataclass(frozen=True)
class Agreement:
    """How the weights compare with plain torch's on the global batch, after the same first ``steps`` steps.

    ``difference`` is the distance between the two over the way that the reference has come since the start.
    """

    steps: int
    difference: float
    largest: float
    tolerance: float
    same_bits: bool

    @property
    def holds(self) -> bool:
        """Whether it is the same training, but for the order of sums."""
        return self.same_bits and self.difference <= self.tolerance


@dataclass(frozen=True, eq=False)
class Contender:
    """One way of training, measured. Times of a step: one for each round, of the slowest rank, a mean over its steps.

    ``split``: seconds of a step by phase, a mean over the ranks; ``sent_bytes`` and ``messages``: of a step, by rank.
    ``approximate``: it does not mean to be the same training (compressed gradients, steps without exchange).
    ``hidden_seconds``: of transfers that went on while the rank computed.
    ``stands_for``: the strategy that it has chosen, where it chooses one.
    """

    name: str
    step_seconds: Sequence[float]
    split: Mapping[str, float] | None = None
    sent_bytes: Sequence[float] | None = None
    messages: Sequence[float] | None = None
    memory_bytes: float | None = None
    loss: float | None = None
    agreement: Agreement | None = None
    approximate: bool = False
    ours: bool = True
    ratio_to_alone: float | None = None
    predicted_seconds: float | None = None
    of_bound: float | None = None
    hidden_seconds: float | None = None
    stands_for: str | None = None
    note: str = ""

    @property
    def p50(self) -> float:
        """Median over the rounds."""
        return median(self.step_seconds)

    @property
    def least(self) -> float:
        """The best round."""
        return min(self.step_seconds)

    @property
    def spread(self) -> float:
        """Half of the rounds lie this far apart, as a fraction of the median."""
        ordered = sorted(self.step_seconds)
        quarter = len(ordered) // 4
        return (ordered[-1 - quarter] - ordered[quarter]) / self.p50 if self.p50 else 0.0

    def slower_than(self, other: Contender) -> bool:
        """Clearly: in three of four rounds, which both had together."""
        pairs = list(zip(self.step_seconds, other.step_seconds, strict=True))
        lost = [mine > theirs * (1 + NOISE) for mine, theirs in pairs]
        return 4 * sum(lost) >= 3 * len(lost)

    @property
    def synchronised(self) -> bool:
        """All but training alone."""
        return self.name != ALONE

    @property
    def trusted(self) -> bool:
        """Whether it can be recommended without a word: it is, or is not known not to be, the same training."""
        return self.synchronised and not self.approximate and (self.agreement is None or self.agreement.holds)


@dataclass(frozen=True)
class Bandwidth:
    """One collective at one size. ``algbw`` and ``busbw`` as nccl-tests defines them, bytes per second."""

    name: str
    size_bytes: int
    ranks: int
    seconds: Sequence[float]
    wrong_elements: int
    bound_seconds: float | None = None
    predicted_seconds: float | None = None
    operation: str = OPERATIONS[0]

    @property
    def p50(self) -> float:
        """Median over the rounds, of the slowest rank."""
        return median(self.seconds)

    @property
    def least(self) -> float:
        """The best round."""
        return min(self.seconds)

    @property
    def algbw(self) -> float:
        """Bytes of the vector over the time."""
        return self.size_bytes / self.p50

    @property
    def busbw(self) -> float:
        """What a bus would carry, so that numbers of ranks compare: algbw times (p-1)/p, 2(p-1)/p for an all-reduce."""
        return self.algbw * (2 if self.operation == OPERATIONS[0] else 1) * (self.ranks - 1) / self.ranks

    @property
    def of_bound(self) -> float | None:
        """The time that the bound leaves, over the time taken."""
        return self.bound_seconds / self.p50 if self.bound_seconds else None


@dataclass(frozen=True)
class Yardstick:
    """What memory or wire can do, measured in the same rounds."""

    name: str
    bytes_per_second: float
    spread: float


@dataclass(frozen=True)
class Scaling:
    """Predicted seconds of a step of one strategy, by number of ranks; ``ideal`` is the step without exchange."""

    link: str
    seconds: Mapping[str, Mapping[int, float]]
    alone_seconds: float


@dataclass(frozen=True)
class Comparison:
    """All of it."""

    setting: Setting
    contenders: Sequence[Contender]
    bandwidths: Sequence[Bandwidth] = ()
    yardsticks: Sequence[Yardstick] = ()
    scaling: Scaling | None = None
    warnings: Sequence[str] = ()
    left_out: Mapping[str, str] | None = None

    @property
    def ranked(self) -> list[Contender]:
        """The quickest first, training alone at the end."""
        return sorted(self.contenders, key=lambda one: (not one.synchronised, one.p50))

    @property
    def alone(self) -> Contender | None:
        """Training without exchange."""
        return next((one for one in self.contenders if not one.synchronised), None)

    @property
    def best(self) -> Contender | None:
        """The quickest that is the same training; of those that are as quick as it, the one that holds the least."""
        candidates = [one for one in self.ranked if one.trusted and one.ours]
        candidates = [one for one in candidates if one.stands_for is None] or candidates
        if not candidates:
            return None
        level = [one for one in candidates if not one.slower_than(candidates[0])]
        coarse = max(MEMORY_NOISE_BYTES, 0.1 * max(one.memory_bytes or 0 for one in level))
        return min(level, key=lambda one: (round((one.memory_bytes or 0) / coarse), one.p50))
