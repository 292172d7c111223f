"""A comparison as JSON, for programs: all that was measured, round by round, with what follows from it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from distloop.report.comparison import Bandwidth, Comparison, Contender
from distloop.report.verdict import verdict

SCHEMA = "distloop.compare/1"


def as_json(comparison: Comparison) -> dict[str, Any]:
    """Whatever JSON can hold; what is not finite is null."""
    best = comparison.best
    told = {
        "schema": SCHEMA,
        "verdict": verdict(comparison),
        "best": best.name if best else None,
        "setting": asdict(comparison.setting) | {"steps": comparison.setting.steps},
        "contenders": [_contender(one) for one in comparison.ranked],
        "collectives": [_bandwidth(one) for one in comparison.bandwidths],
        "yardsticks": [asdict(one) for one in comparison.yardsticks],
        "scaling": asdict(comparison.scaling) if comparison.scaling else None,
        "left_out": dict(comparison.left_out or {}),
        "warnings": list(comparison.warnings),
    }
    cleaned: dict[str, Any] = _finite(told)
    return cleaned


def _contender(one: Contender) -> dict[str, Any]:
    derived = {"p50_seconds": one.p50, "min_seconds": one.least, "spread": one.spread}
    agrees = None if one.agreement is None else asdict(one.agreement) | {"holds": one.agreement.holds}
    return asdict(one) | derived | {"agreement": agrees}


def _bandwidth(one: Bandwidth) -> dict[str, Any]:
    derived = {"p50_seconds": one.p50, "min_seconds": one.least, "of_bound": one.of_bound}
    return asdict(one) | derived | {"algbw_bytes_per_second": one.algbw, "busbw_bytes_per_second": one.busbw}


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(entry) for key, entry in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_finite(entry) for entry in value]
    return value
