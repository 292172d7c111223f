"""A comparison as one page: everything is inside it, nothing is fetched, and it reads on a phone and in the dark."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from distloop.report.comparison import Bandwidth, Comparison, Contender
from distloop.report.comparison_table import COLUMNS, agreement, binary_size
from distloop.report.plots import NARROW, WIDE, drawing, draws
from distloop.report.verdict import verdict

_CSS = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #5b6470; --line: #c9ccd1; --back: #ffffff;
  --card: #f5f6f8; --good: #1a7f37; --bad: #b42318; --warn: #8a5a00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8eb; --soft: #9aa4af; --line: #3d444d; --back: #14171b;
  --card: #1d2126; --good: #4ac26b; --bad: #ff7b72; --warn: #e3b341; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 3rem; max-width: 66rem; background: var(--back); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; margin: 0 0 .25rem; line-height: 1.25; }
h2 { font-size: 1.1rem; margin: 2.25rem 0 .5rem; }
p { margin: .5rem 0; }
.setting, .note, footer { color: var(--soft); font-size: .875rem; }
.verdict { background: var(--card); border-left: 4px solid var(--good); border-radius: 4px; padding: .75rem 1rem;
  margin: 1rem 0; font-size: 1.05rem; }
.verdict.none { border-color: var(--bad); }
.warning { border-left: 4px solid var(--warn); background: var(--card); border-radius: 4px; padding: .5rem 1rem;
  font-size: .9rem; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 6px; }
table { border-collapse: collapse; width: 100%; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .5rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
tr:last-child td, tr:last-child th { border-bottom: 0; }
th { font-weight: 600; }
th:first-child { text-align: left; position: sticky; left: 0; background: var(--back); }
thead th { color: var(--soft); font-weight: 500; }
tr.best th, tr.best td { color: var(--good); font-weight: 600; }
tr.alone th, tr.alone td { color: var(--soft); }
tr.wrong th, tr.wrong td { color: var(--bad); }
svg { display: block; width: 100%; height: auto; }
figure { margin: 0; }
.narrow { display: none; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; font-size: .875rem; }
dt { color: var(--soft); } dd { margin: 0; }
code { font-size: .85em; }
@media (max-width: 640px) { .wide { display: none; } .narrow { display: block; } body { padding-top: 1rem; }
  h1 { font-size: 1.25rem; } }
@media print { .narrow { display: none; } }
"""
_MEANING = {
    "p50": "milliseconds of a step: the slowest rank's mean over a round, and of that the median over the rounds",
    "min": "the best round",
    "vs alone": "the same step in training without any exchange, over this one: above 1 is faster than alone",
    "compute": "forward, loss, backward and Python; with wait, transfer and optim. it makes up the step",
    "wait": "until the last rank has come to the same point",
    "transfer": "bytes on their way; what is hidden behind compute does not count",
    "optim.": "the optimizer, and what is fused with it",
    "model": "milliseconds that the cost model predicts",
    "bound": "the least time that memory or wire leave for all but compute, over the time taken",
    "bytes": "sent per step by the rank that sends most",
    "msgs": "messages of that rank per step",
    "memory": "what a rank holds for it between two steps: growth of the proportional set size",
    "loss": "mean training loss over the last steps, the same rows for all",
    "off by": "distance of the weights from plain torch's on the global batch, over the way come since the start",
}
_PLOTS = {
    "time": ("Time of a step", "The dashed line is the same step in training alone, without any exchange."),
    "bandwidth": ("Bandwidth of all-reduce", "Median. The dashed line is the bound that memory or wire set."),
    "scaling": (
        "Predicted scaling",
        "By the cost model, with the compute measured here. The dashed line is the step alone.",
    ),
}


def page(comparison: Comparison) -> str:
    """The whole document."""
    best = comparison.best
    heading = f"Use {best.name}" if best else "No strategy can be recommended"
    body = "\n".join(
        [
            f"<header><h1>{escape(heading)}</h1>",
            f'<p class="setting">{escape(comparison.setting.headline)}</p></header>',
            f'<p class="verdict{"" if best else " none"}">{escape(verdict(comparison))}</p>',
            *(f'<p class="warning">{escape(warning)}</p>' for warning in comparison.warnings),
            *_figures(comparison),
            "<h2>All numbers</h2>",
            _contenders(comparison),
            *(f'<p class="note">{escape(text)}</p>' for text in _notes(comparison)),
            *_bandwidths(comparison.bandwidths),
            "<h2>What the columns mean</h2>",
            _meanings(),
            _footer(comparison),
        ]
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<link rel="icon" href="data:,">\n'
        f"<title>distloop compare: {escape(heading)}</title>\n<style>{_CSS}</style>\n</head>\n<body>\n{body}\n"
        "</body>\n</html>\n"
    )


def _figures(comparison: Comparison) -> Iterator[str]:
    for name in draws(comparison):
        title, caption = _PLOTS[name]
        yield f"<section><h2>{title}</h2><figure>"
        yield f'<div class="wide">{drawing(comparison, name, WIDE)}</div>'
        yield f'<div class="narrow">{drawing(comparison, name, NARROW)}</div>'
        yield f'<figcaption class="note">{caption}</figcaption></figure></section>'


def _contenders(comparison: Comparison) -> str:
    head = "".join(f"<th>{escape(column.head)}</th>" for column in COLUMNS)
    rows = "".join(_contender(one, comparison) for one in comparison.ranked)
    return _scrolling(f"<tr><th>strategy</th>{head}</tr>", rows)


def _scrolling(head: str, rows: str) -> str:
    """A table that scrolls inside its frame where it is too wide for the page."""
    table = f"<table><thead>{head}</thead><tbody>{rows}</tbody></table>"
    return f'<div class="scroll" tabindex="0">{table}</div>'


def _contender(one: Contender, comparison: Comparison) -> str:
    kind = "best" if one is comparison.best else "alone" if not one.synchronised else ""
    if agreement(one) == "differ" or (one.agreement and not one.agreement.holds and not one.approximate):
        kind = "wrong"
    cells = "".join(f"<td>{escape(column.show(one))}</td>" for column in COLUMNS)
    name = escape(one.name) + (" ~" if one.approximate else "") + ("*" if one.note else "")
    return f'<tr class="{kind}"><th scope="row">{name}</th>{cells}</tr>'


def _notes(comparison: Comparison) -> Iterator[str]:
    if any(one.approximate for one in comparison.contenders):
        yield "~ approximate on purpose: another training than plain torch's."
    yield from (f"* {one.name}: {one.note}." for one in comparison.contenders if one.note)
    yield from (f"{name} is left out: {why}." for name, why in (comparison.left_out or {}).items())
    for one in comparison.yardsticks:
        yield f"Yardstick: {one.name} at {one.bytes_per_second / 1e9:.3g} GB/s, ± {one.spread:.0%} between rounds."


def _bandwidths(found: Sequence[Bandwidth]) -> Iterator[str]:
    if not found:
        return
    yield "<h2>Collectives by size</h2>"
    names = (
        "collective",
        "operation",
        "size",
        "p50 µs",
        "min µs",
        "algbw GB/s",
        "busbw GB/s",
        "of bound",
        "model µs",
        "wrong",
    )
    head = "".join(f"<th>{name}</th>" for name in names)
    rows = "".join(_bandwidth(one) for one in found)
    yield _scrolling(f"<tr>{head}</tr>", rows)


def _bandwidth(one: Bandwidth) -> str:
    cells = [
        one.operation,
        binary_size(one.size_bytes),
        f"{one.p50 * 1e6:,.1f}",
        f"{one.least * 1e6:,.1f}",
        f"{one.algbw / 1e9:.3g}",
        f"{one.busbw / 1e9:.3g}",
        f"{one.of_bound:.2f}" if one.of_bound else "",
        f"{one.predicted_seconds * 1e6:,.1f}" if one.predicted_seconds else "",
        str(one.wrong_elements),
    ]
    kind = ' class="wrong"' if one.wrong_elements else ""
    return f'<tr{kind}><th scope="row">{escape(one.name)}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'


def _meanings() -> str:
    return "<dl>" + "".join(f"<dt>{name}</dt><dd>{escape(text)}</dd>" for name, text in _MEANING.items()) + "</dl>"


def _footer(comparison: Comparison) -> str:
    setting = comparison.setting
    told = ", ".join(f"{name} {version}" for name, version in setting.versions.items())
    return (
        f"<footer><p><code>{escape(setting.command)}</code></p><p>{escape(setting.date)} · {escape(told)}</p></footer>"
    )
