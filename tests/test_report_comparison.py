"""A comparison as table, verdict, JSON, page and plots; the page is looked at by a browser."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest

from distloop.report.comparison import Agreement, Comparison
from distloop.report.comparison_json import SCHEMA, as_json
from distloop.report.comparison_table import COLUMNS, fitting, milliseconds, print_comparison, short_size
from distloop.report.page import page
from distloop.report.plots import pictures
from distloop.report.verdict import verdict
from tests.browser import look
from tests.comparisons import COMPARISON, CONTENDERS, contender

BARE = replace(COMPARISON, bandwidths=(), yardsticks=(), scaling=None, warnings=(), left_out=None)


def of(*contenders) -> Comparison:
    return replace(BARE, contenders=contenders)


def named(name: str):
    return next(one for one in CONTENDERS if one.name == name)


def table(comparison: Comparison, columns: int, encoding: str = "utf-8") -> str:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding)
    print_comparison(comparison, stream, columns, terminal=False)
    stream.flush()
    return raw.getvalue().decode(encoding)


# ---- the verdict ----------------------------------------------------------------------------------------------------


def test_the_verdict_says_which_how_much_and_why():
    assert verdict(COMPARISON) == (
        "Use shared: 1.7 times as fast as zero, 1.8 times as fast as ddp and 2.0 times as fast as ring, because it "
        "waits and moves data for 10.7 ms less a step than zero and sends nothing: ranks read each other's memory. A "
        "synchronised step is 1.06 times as fast as the same step in training alone. ring+topk is 1.07 times as fast "
        "still, at a loss of 0.4733 instead of 0.4512: another training."
    )


def test_what_gives_other_weights_is_not_recommended():
    wrong = Agreement(5, 0.4, 0.1, 1e-3, same_bits=True)
    apart = Agreement(5, 1e-7, 1e-7, 1e-3, same_bits=False)
    fast = contender("star", 1.0, None, 5.0, agreement=wrong)
    faster = contender("native", 0.5, None, 5.0, agreement=apart)
    assert of(fast, faster, named("ring")).best is named("ring")
    assert verdict(of(fast, faster)).startswith("No strategy can be recommended")


def test_ddp_is_compared_with_and_never_recommended():
    quick = contender("ddp", 1.0, None, 0, ours=False)
    assert of(quick, named("ring")).best is named("ring")


def test_of_two_that_are_as_fast_the_one_that_holds_less():
    lean = contender("zero", 31.9, (11.2, 0.6, 12.1, 7.9), 23.3e6, memory_bytes=50e6)
    found = of(named("ring"), lean, named("alone"))
    assert found.best is lean
    assert verdict(found).startswith("Use zero, though nothing else here is clearly slower.")


def test_a_difference_that_half_of_the_rounds_deny_is_none():
    ring = named("ring")
    wavering = [seconds * factor for seconds, factor in zip(ring.step_seconds, [2, 0.9] * 4, strict=False)]
    other = replace(ring, name="star", step_seconds=wavering, memory_bytes=200e6)
    assert "No clear difference to star." in verdict(of(ring, other, named("star"), named("alone")))


@pytest.mark.parametrize(
    ("milliseconds", "chosen", "words"),
    [(16.3, "shared", "chooses shared here, rightly."), (31.8, "ring", "chooses ring here, which takes 96% longer.")],
)
def test_what_auto_chooses(milliseconds, chosen, words):
    auto = contender("auto", milliseconds, None, 0, stands_for=chosen)
    found = of(auto, named("shared"), named("ring"), named("alone"))
    assert found.best is named("shared")
    assert f"auto {words}" in verdict(found)


def test_what_is_unsure_says_so():
    few = replace(COMPARISON, setting=replace(COMPARISON.setting, rounds=3))
    assert verdict(few).startswith("Not for sure, see the warnings: Use shared")


def test_only_one():
    assert verdict(of(named("ring"))).startswith("Only ring was compared.")


def test_the_price_of_synchronising():
    assert "Of a step's time, 46% is the price of synchronising." in verdict(of(named("ring"), named("star")))


# ---- the table ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [80, 100, 120, 160])
def test_the_table_keeps_to_its_width(columns):
    said = table(COMPARISON, columns)
    assert max(map(len, said.splitlines())) <= columns
    for name in ("▶ shared", "ring+topk~", "star", "alone", "vs alone", "transfer"):
        assert name in said
    assert "…" not in said


def test_a_window_of_120_columns_holds_all_of_them():
    assert fitting(120) == COLUMNS
    assert [column.head for column in fitting(80)] == [
        "p50", "vs alone", "compute", "wait", "transfer", "optim.", "bytes", "off by",
    ]  # fmt: skip
    assert "also: min, model, bound, msgs, memory, loss" in " ".join(table(COMPARISON, 80).split())


def test_the_quickest_comes_first_and_training_alone_last():
    lines = table(BARE, 120).splitlines()
    first, last = (index for index, line in enumerate(lines) if line.startswith("──"))
    assert [line[2:].split()[0] for line in lines[first + 1 : last]] == [
        "ring+topk~", "shared", "zero", "ddp", "ring", "star",
    ]  # fmt: skip
    assert lines[last + 1].split()[0] == "alone"


def test_a_terminal_without_unicode():
    said = table(COMPARISON, 160, "ascii")
    assert "> shared" in said
    assert "?" not in said


def test_bandwidths_by_size_with_the_bound():
    said = table(COMPARISON, 120)
    line = next(line for line in said.splitlines() if line.strip().startswith("256 MiB"))
    assert line.split() == ["256", "MiB", "14", "3.1", "4.2", "18"]
    assert "0 wrong elements in all" in said


def test_numbers_in_three_digits():
    assert [milliseconds(seconds) for seconds in (1.6e-2, 0.1234, 0.00123, None)] == ["16.0", "123", "1.23", ""]
    assert [short_size(size) for size in (0, 512, 1_260_000, 23.3e6, 234e9)] == ["0", "512", "1.26M", "23.3M", "234G"]


# ---- JSON -----------------------------------------------------------------------------------------------------------


def test_json_holds_everything():
    told = json.loads(json.dumps(as_json(COMPARISON), allow_nan=False))
    assert told["schema"] == SCHEMA
    assert set(told) == {
        "schema", "verdict", "best", "setting", "contenders", "collectives", "yardsticks", "scaling", "left_out",
        "warnings",
    }  # fmt: skip
    shared = next(one for one in told["contenders"] if one["name"] == "shared")
    assert told["best"] == "shared"
    assert shared["p50_seconds"] == pytest.approx(0.0162)
    assert len(shared["step_seconds"]) == 7
    assert shared["agreement"]["holds"] is True
    assert set(shared["split"]) == {"compute", "wait", "transfer", "optimizer"}
    assert told["setting"]["steps"] == 140
    assert told["collectives"][0].keys() >= {"algbw_bytes_per_second", "busbw_bytes_per_second", "of_bound"}


def test_what_is_not_finite_is_null():
    diverged = replace(named("ring"), loss=float("nan"))
    assert as_json(of(diverged))["contenders"][0]["loss"] is None


def test_busbw_is_that_of_nccl_tests():
    one = replace(COMPARISON.bandwidths[0], ranks=4, size_bytes=1000, seconds=[1e-3])
    assert one.algbw == pytest.approx(1e6)
    assert one.busbw == pytest.approx(1.5e6)
    assert replace(one, operation="all-gather").busbw == pytest.approx(0.75e6)


# ---- the page and the plots -----------------------------------------------------------------------------------------


def test_plots_as_pictures():
    found = pictures(COMPARISON)
    assert set(found) == {"time", "bandwidth", "scaling"}
    assert all(data.startswith(b"\x89PNG") and len(data) > 5000 for data in found.values())
    assert set(pictures(BARE)) == {"time"}


def test_the_page_needs_nothing_from_elsewhere():
    text = page(COMPARISON)
    assert text == page(COMPARISON)
    links = text.replace("http://www.w3.org/2000/svg", "").replace("http://www.w3.org/1999/xlink", "")
    for sign in ("http:", "https:", "//", "<script", "<img", "@import", "url(h"):
        assert sign not in links.replace("<!--", "").replace("data:,", ""), sign
    assert text.count("<svg ") == 6


def test_names_are_escaped():
    odd = replace(named("ring"), name="<b>&")
    assert "<b>&" not in page(of(odd))
    assert "&lt;b&gt;&amp;" in page(of(odd))


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(page(COMPARISON))
    return path


@pytest.mark.parametrize("width", [390, 768, 1280])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_browser_shows_it(written, width, dark):
    seen = look(written, width, dark)
    assert seen.width == width
    assert seen.console == []
    assert seen.fetched == []
    assert seen.overflow <= 0
    assert len(seen.svgs) == 3
    assert all(0.8 * min(width, 1056) <= wide <= width and high > 150 for wide, high in seen.svgs)
    assert seen.smallest_text >= 9
    assert (seen.background == "rgb(255, 255, 255)") is not dark
