"""Numbers as people type them: 1.3e9 or 1.3B parameters, 100Gbit or 12.5GB/s, 2us, 256GB."""

from __future__ import annotations

import re
from math import isfinite

from distloop.errors import ConfigError

_COUNT = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12}
_PREFIX = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_BINARY = {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40}
_SECONDS = {"": 1.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ns": 1e-9, "min": 60.0}
_NUMBER = re.compile(r"\s*([-+]?[\d.,_]*\d(?:\.|(?:[eE][-+]?\d+))?)\s*(\S*)\s*")


def count(option: str, text: str) -> int:
    """How many: 1.3e9, 1.3B (billions), 350M, 12k, 1,300,000,000. ``option`` is where it was given, for the error."""
    expected = "a number above 0, such as 1.3e9, 1.3B or 350M"
    number, unit = _split(option, text, expected)
    if unit.lower() not in _COUNT or number * _COUNT[unit.lower()] < 1:
        raise _error(option, text, expected)
    return round(number * _COUNT[unit.lower()])


def size_bytes(option: str, text: str) -> float:
    """How much memory: 256GB (powers of 1000) or 256GiB (of 1024)."""
    expected = "an amount of memory, such as 256GB or 64GiB"
    number, unit = _split(option, text, expected)
    return number * _scale(option, text, unit, expected, bits=False)


def bytes_per_second(option: str, text: str) -> float:
    """How fast: 100Gbit (a second) or 100Gb/s in bits, 12.5GB/s in bytes. A b is a bit, a B a byte."""
    expected = "a speed, such as 100Gbit or 12.5GB/s (b for bits, B for bytes)"
    number, unit = _split(option, text, expected)
    return number * _scale(option, text, re.sub(r"(/s|ps)$", "", unit), expected, bits=True)


def seconds(option: str, text: str) -> float:
    """How long: 2us, 350ms, 1.5s; a number alone is in seconds."""
    expected = "a time, such as 2us, 350ms or 1.5s"
    number, unit = _split(option, text, expected)
    if unit not in _SECONDS:
        raise _error(option, text, expected)
    return number * _SECONDS[unit]


def _scale(option: str, text: str, unit: str, expected: str, bits: bool) -> float:
    """Bytes in one of ``unit``."""
    found = re.fullmatch(r"([kKMGT]?|[KMGT]i)(B|bytes?|bits?|b)", unit)
    if not found or (found[2].startswith("b") and not found[2].startswith("byte") and not bits):
        raise _error(option, text, expected)
    prefix: float = (_PREFIX | _BINARY)[found[1]]
    return prefix if found[2][0] == "B" or found[2].startswith("byte") else prefix / 8


def _split(option: str, text: str, expected: str) -> tuple[float, str]:
    found = _NUMBER.fullmatch(text)
    try:
        number = float(found[1].replace(",", "").replace("_", "")) if found else 0.0
    except ValueError:
        number = 0.0
    if not found or not (number > 0 and isfinite(number)):
        raise _error(option, text, expected)
    return number, found[2]


def _error(option: str, text: str, expected: str) -> ConfigError:
    return ConfigError(f"{option} {text}: expected {expected}")
