"""One sentence: which strategy to use, by how much it is better, and why."""

from __future__ import annotations

from collections.abc import Mapping

from distloop.report.comparison import FEW_ROUNDS, NOISE, UNSTEADY, Comparison, Contender
from distloop.report.words import data_size, duration

_REASONS = {
    "compute": "computes for {} less a step",
    "exchange": "waits and moves data for {} less a step",
    "optimizer": "spends {} less a step in the optimizer",
}


def verdict(comparison: Comparison) -> str:
    """Such as ``Use shared: 1.9 times as fast as ring, ..., because it moves data for 3.1 ms less a step.``"""
    best = comparison.best
    if best is None:
        return "No strategy can be recommended: none gave the weights that plain torch gives (see the table)."
    others = [one for one in comparison.ranked if one.trusted and one is not best and not one.stands_for]
    shaky = comparison.setting.rounds < FEW_ROUNDS or best.spread > UNSTEADY
    return ("Not for sure, see the warnings: " if shaky else "") + " ".join(_sentences(comparison, best, others))


def _sentences(comparison: Comparison, best: Contender, others: list[Contender]) -> list[str]:
    told = []
    slower = [one for one in others if one.slower_than(best)]
    level = [one for one in others if one not in slower]
    if slower:
        faster = _listed([f"{_times(one.p50 / best.p50)} as fast as {one.name}" for one in _chosen(slower)])
        told.append(f"Use {best.name}: {faster}{_because(best, slower)}.")
    elif others:
        told.append(f"Use {best.name}, though nothing else here is clearly slower.")
    else:
        told.append(f"Only {best.name} was compared.")
    if slower and level:
        told.append(f"No clear difference to {_listed([one.name for one in level])}.")
    told += [_against_alone(best)] if best.ratio_to_alone else []
    told += [_chooser(one, best) for one in comparison.ranked if one.stands_for and one is not best]
    told += [_temptation(one, best) for one in comparison.ranked if one.approximate and best.slower_than(one)]
    return told


def _chosen(slower: list[Contender]) -> list[Contender]:
    """The next best, and those that people know."""
    return [one for one in slower if one is slower[0] or one.name in ("ring", "zero") or not one.ours][:4]


def _because(best: Contender, slower: list[Contender]) -> str:
    """What the split of the next best shows; of nothing that was not measured."""
    other = next((one for one in slower if one.split), None)
    reasons = []
    if other is not None and best.split is not None:
        saved = {part: seconds - _parts(best.split)[part] for part, seconds in _parts(other.split or {}).items()}
        large = max(saved, key=lambda part: saved[part] * (part != "compute" or 0.25))  # it is much the same for all
        if saved[large] > 0:
            reasons.append(_REASONS[large].format(duration(saved[large])) + f" than {other.name}")
    if best.sent_bytes is not None and not max(best.sent_bytes) and any(_sends(one) for one in slower):
        reasons.append("sends nothing: ranks read each other's memory")
    return f", because it {' and '.join(reasons)}" if reasons else ""


def _times(ratio: float) -> str:
    return f"{ratio:.2f} times" if ratio < 1.2 else f"{ratio:.1f} times" if ratio < 9.95 else f"{ratio:,.0f} times"


def _parts(split: Mapping[str, float]) -> dict[str, float]:
    """What one strategy waits for, another one calls transfer: both are the price of the exchange."""
    exchange = split["wait"] + split["transfer"]
    return {"compute": split["compute"], "exchange": exchange, "optimizer": split["optimizer"]}


def _sends(one: Contender) -> bool:
    return one.sent_bytes is not None and max(one.sent_bytes) > 0


def _against_alone(best: Contender) -> str:
    ratio = best.ratio_to_alone
    assert ratio is not None
    if ratio >= 1 + NOISE:
        return f"A synchronised step is {ratio:.2f} times as fast as the same step in training alone."
    if ratio > 1 - NOISE:
        return "A synchronised step takes as long as the same step in training alone."
    return f"Of a step's time, {1 - ratio:.0%} is the price of synchronising."


def _chooser(one: Contender, best: Contender) -> str:
    if one.stands_for == best.name or not one.slower_than(best):
        return f"{one.name} chooses {one.stands_for} here, rightly."
    return f"{one.name} chooses {one.stands_for} here, which takes {one.p50 / best.p50 - 1:.0%} longer."


def _temptation(one: Contender, best: Contender) -> str:
    loss = ""
    if one.loss is not None and best.loss is not None:
        loss = f", at a loss of {one.loss:.4f} instead of {best.loss:.4f}"
    sent = ""
    if one.sent_bytes and best.sent_bytes and max(best.sent_bytes):
        sent = f", {data_size(max(one.sent_bytes))} instead of {data_size(max(best.sent_bytes))} sent"
    return f"{one.name} is {_times(best.p50 / one.p50)} as fast still{loss}{sent}: another training."


def _listed(words: list[str]) -> str:
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]
