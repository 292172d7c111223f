"""Names of contenders as people type them: a strategy, and what differs from the other options of the run."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from typing import Any

from distloop.config import Config
from distloop.errors import ConfigError
from distloop.strategies import NAMES

AUTO = "auto"
_VARIANTS: dict[str, Callable[[int], dict[str, Any]]] = {
    "bf16": lambda number: {"gradient_dtype": "bf16"},
    "topk": lambda number: {"compress": "topk"},
    "powersgd": lambda number: {"compress": "powersgd"},
    "sync": lambda number: {"sync_every": number},
    "diloco": lambda number: {"sync_every": number, "outer": "nesterov"},
}
_NUMBERED = ("sync", "diloco")
_HARMLESS = {"gradient_dtype": ("float32", None), "compress": ("none", None), "sync_every": (1, None)}


@dataclass(frozen=True)
class Spec:
    """One contender: its name as typed, and the configuration that it means."""

    name: str
    config: Config

    @property
    def approximate(self) -> bool:
        """Whether it is another training on purpose."""
        values = {name: getattr(self.config, name, None) for name in _HARMLESS}
        return any(value not in _HARMLESS[name] for name, value in values.items())

    @property
    def sync_every(self) -> int:
        """Steps between two exchanges."""
        return getattr(self.config, "sync_every", 1) or 1


def specs_of(text: str, config: Config) -> list[Spec]:
    """The contenders that ``text`` names, once each. Raises ConfigError for one that is none."""
    if text == "all":
        return [_spec(name, config) for name in (*NAMES, AUTO)]
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise ConfigError(f"--strategies {text!r}: expected names such as ring,zero")
    return [_spec(name, config) for name in dict.fromkeys(names)]


def _spec(name: str, config: Config) -> Spec:
    strategy, *variants = name.split("+")
    if strategy not in (*NAMES, AUTO):
        raise ConfigError(f"--strategies {name}: {_expected(strategy, (*NAMES, AUTO), 'strategy')}")
    changes: dict[str, Any] = {"strategy": strategy}
    for variant in variants:
        changes |= _changes(name, variant, config)
    return Spec(name, replace(config, **changes))


def _changes(name: str, variant: str, config: Config) -> dict[str, Any]:
    known = {entry.name for entry in fields(config)}
    offered = [kind for kind, make in _VARIANTS.items() if set(make(2)) <= known]
    kind, number = re.fullmatch(r"(.*?)(\d*)", variant).groups()  # type: ignore[union-attr]
    if variant in offered and variant not in _NUMBERED:
        return _VARIANTS[variant](0)
    if kind in offered and kind in _NUMBERED and number and int(number) >= 1:
        return _VARIANTS[kind](int(number))
    told = [f"{kind}N" if kind in _NUMBERED else kind for kind in offered]
    raise ConfigError(f"--strategies {name}: {_expected(variant, told, 'variant')}")


def _expected(given: str, known: Sequence[str], what: str) -> str:
    close = get_close_matches(given, known, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    return f"{given or 'nothing'} is no {what}. Expected one of {', '.join(known) or 'none'}{hint}"
