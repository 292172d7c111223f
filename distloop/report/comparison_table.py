"""A comparison on a terminal: one table of as many columns as its width holds, the most telling ones first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TextIO

from rich.box import Box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from distloop.report.comparison import OPERATIONS, PHASES, Bandwidth, Comparison, Contender
from distloop.report.verdict import verdict
from distloop.report.words import data_size

COLOURS = {"compute": "#4c78a8", "wait": "#9d9da1", "transfer": "#f58518", "optimizer": "#54a24b"}
_RULED = Box("    \n    \n ── \n    \n ── \n ── \n    \n    \n")
_RULED_PLAIN = Box("    \n    \n -- \n    \n -- \n -- \n    \n    \n", ascii=True)
_CELLS = {"compute": "█#", "wait": "░.", "transfer": "▒=", "optimizer": "▓+"}
_NAME_CELLS = 19
_BAR_CELLS = 24


@dataclass(frozen=True)
class Column:
    """``rank``: columns with the highest are the first to be left out where the table must be narrow."""

    head: str
    width: int
    rank: int
    show: Callable[[Contender], str]


def milliseconds(seconds: float | None) -> str:
    """Three digits."""
    if seconds is None:
        return ""
    value = seconds * 1e3
    return f"{value:.0f}" if value >= 99.95 else f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"


def short_size(size_bytes: float | None) -> str:
    """Three digits and a unit, 1.26M; empty for what is not known."""
    if size_bytes is None:
        return ""
    text, unit = data_size(size_bytes).split()
    value = float(text)
    if unit == "B":
        return f"{value:.0f}"
    digits = f"{value:.0f}" if value >= 99.95 else f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"
    return digits + unit[0].upper()


def agreement(one: Contender) -> str:
    """How far off the weights are, relative to the way come: ``same`` for equal bits."""
    found = one.agreement
    if found is None:
        return ""
    if not (found.same_bits or one.approximate):
        return "differ"
    mantissa, _, exponent = f"{found.difference:.0e}".partition("e")
    return f"{mantissa}e{int(exponent)}" if found.difference else "same"


def count(values: Sequence[float] | None) -> str:
    """The largest over the ranks: whole where it is."""
    return "" if values is None else f"{max(values):,.0f}" if max(values) >= 10 else f"{max(values):.3g}"


def _of_phase(phase: str) -> Callable[[Contender], str]:
    return lambda one: "" if one.split is None else milliseconds(one.split[phase])


COLUMNS = [
    Column("p50", 6, 0, lambda one: milliseconds(one.p50)),
    Column("min", 6, 5, lambda one: milliseconds(one.least)),
    Column("vs alone", 8, 0, lambda one: f"{one.ratio_to_alone:.2f}" if one.ratio_to_alone else ""),
    Column("compute", 7, 1, _of_phase("compute")),
    Column("wait", 5, 1, _of_phase("wait")),
    Column("transfer", 8, 1, _of_phase("transfer")),
    Column("optim.", 6, 1, _of_phase("optimizer")),
    Column("model", 6, 6, lambda one: milliseconds(one.predicted_seconds)),
    Column("bound", 5, 6, lambda one: f"{one.of_bound:.2f}" if one.of_bound is not None else ""),
    Column("bytes", 5, 2, lambda one: short_size(None if one.sent_bytes is None else max(one.sent_bytes))),
    Column("msgs", 5, 6, lambda one: count(one.messages)),
    Column("memory", 6, 4, lambda one: short_size(one.memory_bytes)),
    Column("loss", 6, 5, lambda one: f"{one.loss:#.4g}" if one.loss is not None else ""),
    Column("off by", 6, 3, agreement),
]
_MEANINGS = {
    "p50": "times are ms per step, of the slowest rank",
    "vs alone": "vs alone: how fast, where training without exchange is 1",
    "model": "model: as predicted",
    "bound": "bound: of the speed that memory or wire allow",
    "bytes": "bytes: sent per step by the busiest rank",
    "memory": "memory: per rank (PSS)",
    "off by": "off by: distance to plain torch's weights over the way come",
}


def print_comparison(comparison: Comparison, stream: TextIO, columns: int, terminal: bool) -> None:
    """Headline, table, bandwidths, warnings and the verdict in ``columns`` cells; colours on a terminal only."""
    console = Console(file=stream, width=columns, force_terminal=terminal, no_color=not terminal, highlight=False)
    fancy = console.encoding.startswith("utf")
    shown = fitting(columns)

    def writable(text: str) -> str:
        return text if fancy else text.replace(" · ", ", ").encode(console.encoding, "replace").decode(console.encoding)

    console.print(Text(writable(comparison.setting.headline), "bold cyan"))
    console.print(_table(comparison, shown, columns, fancy))
    for part in bandwidth_tables(comparison, fancy):
        console.print(part)
    console.print(Text(writable(_legend(comparison, shown)), "dim"))
    if len(shown) < len(COLUMNS):
        hidden = [column.head for column in COLUMNS if column not in shown]
        console.print(Text(f"In a wider window, with --json and --report also: {', '.join(hidden)}", "dim"))
    for name, why in (comparison.left_out or {}).items():
        console.print(Text(writable(f"{name} is left out: {why}"), "dim"))
    for warning in comparison.warnings:
        console.print(Text(writable(f"! {warning}"), "yellow"))
    console.print(Text(writable(verdict(comparison)), "bold green" if comparison.best else "bold red"))


def _legend(comparison: Comparison, shown: Sequence[Column]) -> str:
    told = [_MEANINGS[column.head] for column in shown if column.head in _MEANINGS]
    if any(one.approximate for one in comparison.contenders):
        told.append("~ approximate on purpose")
    return "; ".join([*told, *(f"* {one.name}: {one.note}" for one in comparison.contenders if one.note)])


def fitting(columns: int) -> list[Column]:
    """Those that fit beside the name, in their usual order."""
    room = columns - _NAME_CELLS - 1
    chosen: list[Column] = []
    for column in sorted(COLUMNS, key=lambda column: column.rank):
        if sum(other.width + 1 for other in chosen) + column.width + 1 > room:
            break
        chosen.append(column)
    return [column for column in COLUMNS if column in chosen]


def _table(comparison: Comparison, shown: Sequence[Column], columns: int, fancy: bool) -> Table:
    table = _bare_table(fancy)
    table.add_column("strategy", width=_NAME_CELLS, no_wrap=True)
    for column in shown:
        table.add_column(column.head, justify="right", width=column.width, no_wrap=True)
    used = _NAME_CELLS + 1 + sum(column.width + 1 for column in shown)
    with_bar = columns - used > _BAR_CELLS
    if with_bar:
        table.add_column(_key(fancy), width=_BAR_CELLS, no_wrap=True)
    longest = max(one.p50 for one in comparison.contenders)
    ranked = comparison.ranked
    for index, one in enumerate(ranked):
        style = _style(one, comparison)
        cells = [Text(column.show(one), style) for column in shown]
        bar = [_bar(one, longest, fancy)] if with_bar else []
        last = one.synchronised and index + 1 < len(ranked) and not ranked[index + 1].synchronised
        table.add_row(Text(_name(one, comparison, fancy), style), *cells, *bar, end_section=last)
    return table


def _bare_table(fancy: bool) -> Table:
    return Table(
        box=_RULED if fancy else _RULED_PLAIN,
        show_edge=False,
        padding=0,
        pad_edge=False,
        header_style="bold",
        border_style="bright_black",
    )


def _name(one: Contender, comparison: Comparison, fancy: bool) -> str:
    mark = ("▶ " if fancy else "> ") if one is comparison.best else "  "
    return f"{mark}{one.name}{'~' if one.approximate else ''}{'*' if one.note else ''}"


def _style(one: Contender, comparison: Comparison) -> str:
    if one is comparison.best:
        return "bold green"
    if not one.synchronised or not one.ours:
        return "dim"
    return "" if one.trusted or one.approximate else "red"


def _key(fancy: bool) -> Text:
    """The header of the bars."""
    text = Text()
    for phase in PHASES:
        text.append(_CELLS[phase][0 if fancy else 1], COLOURS[phase]).append(f"{phase[:4]} ")
    return text


def _bar(one: Contender, longest: float, fancy: bool) -> Text:
    """A step, cut into its phases."""
    text, filled, end = Text(), 0, 0.0
    for phase in PHASES if one.split else ():
        assert one.split is not None
        end += one.split[phase] / longest * _BAR_CELLS
        cells = max(0, round(end) - filled)
        text.append(_CELLS[phase][0 if fancy else 1] * cells, COLOURS[phase])
        filled += cells
    return text


def bandwidth_tables(comparison: Comparison, fancy: bool) -> Iterator[Table | Text]:
    """Bus bandwidth of each collective by size, and time of the all-reduce; the best of a row is bold."""
    ranks = comparison.setting.ranks
    for operation in OPERATIONS:
        found = [one for one in comparison.bandwidths if one.operation == operation]
        if not found:
            continue
        factor = found[0].algbw / found[0].busbw if ranks > 1 else 1.0
        title = f"\n{operation.capitalize()} of float32: busbw in GB/s (algbw is {factor:.3g} times it), median"
        yield Text(title, "bold")
        yield _by_size(found, lambda one: f"{one.busbw / 1e9:.3g}", fancy, bound=True)
        if operation == OPERATIONS[0]:
            yield Text("\nThe same: microseconds", "bold")
            yield _by_size(found, lambda one: f"{one.p50 * 1e6:,.{1 if one.p50 < 1e-4 else 0}f}", fancy, bound=False)
    if comparison.bandwidths:
        wrong = sum(one.wrong_elements for one in comparison.bandwidths)
        yield Text(f"{wrong:,} wrong elements in all\n", "bold red" if wrong else "dim")


def _by_size(found: Sequence[Bandwidth], show: Callable[[Bandwidth], str], fancy: bool, bound: bool) -> Table:
    names = list(dict.fromkeys(one.name for one in found))
    table = _bare_table(fancy)
    for name in ["size", *names, *(["bound"] if bound else [])]:
        table.add_column(name, justify="right", no_wrap=True, min_width=8)
    for size in sorted({one.size_bytes for one in found}):
        of_size = {one.name: one for one in found if one.size_bytes == size}
        best = min(of_size.values(), key=lambda one: one.p50)
        cells = [
            Text(show(of_size[name]) if name in of_size else "", "bold green" if of_size.get(name) is best else "")
            for name in names
        ]
        limit = best.busbw / best.of_bound if best.of_bound else None
        table.add_row(binary_size(size), *cells, *([f"{limit / 1e9:.3g}" if limit else ""] if bound else []))
    return table


def binary_size(size_bytes: int) -> str:
    """Powers of 1024 as they are spoken of: 1 KiB, 256 MiB."""
    for unit, least in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size_bytes >= least:
            return f"{size_bytes / least:.3g} {unit}"
    return f"{size_bytes} B"
