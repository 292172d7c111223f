"""``python -m distloop.compare`` as a user runs it, on little data: what it measures is not looked at."""

from __future__ import annotations

import json

import pytest

from distloop.report.comparison_json import SCHEMA
from distloop.strategies import NAMES

SMALL = ["--model", "mlp", "--model-args.hidden", "16", "--threads", "1"]
SHORT = ["--rounds", "2", "--steps", "4"]
COMPARE = ["-m", "distloop.compare", *SMALL]
HERE = [*(name for name in NAMES if name != "hierarchical"), "auto"]


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """All strategies, ddp, the bare collectives, the report and the timelines, in one run."""
    from tests.launching import mpirun

    folder = tmp_path_factory.mktemp("compare")
    done = mpirun(
        2, *COMPARE, *SHORT, "--against", "ddp", "--collectives", "--largest", "16KiB",
        "--json", "out.json", "--report", "report", "--timeline", cwd=folder, timeout=240,
    )  # fmt: skip
    return folder, done.check()


def test_all_strategies_take_the_same_steps_to_the_same_weights(everything):
    folder, _ = everything
    told = json.loads((folder / "out.json").read_text())
    assert told["schema"] == SCHEMA
    found = {one["name"]: one for one in told["contenders"]}
    assert set(found) | set(told["left_out"]) == {*NAMES, "auto", "ddp", "alone"}
    assert set(found) >= {*HERE, "ddp", "alone"}
    assert told["best"] in NAMES
    synchronised = [one for one in found.values() if one["name"] != "alone"]
    for one in synchronised:
        assert one["agreement"]["holds"], one
        assert one["agreement"]["steps"] == 5
        assert one["loss"] == pytest.approx(found["ring"]["loss"], rel=1e-3)
        assert one["ratio_to_alone"] > 0
    for one in found.values():
        assert len(one["step_seconds"]) == 2
        assert sum(one["split"].values()) == pytest.approx(one["p50_seconds"])
    assert found["ring"]["sent_bytes"] == [pytest.approx(4 * told["setting"]["parameters"], rel=1e-3)] * 2
    assert found["shared"]["sent_bytes"] == [0.0, 0.0]
    assert found["auto"]["stands_for"] in NAMES
    assert told["setting"]["steps"] == 4


def test_bare_collectives_sum_right(everything):
    told = json.loads((everything[0] / "out.json").read_text())
    kinds = {one["name"] for one in told["collectives"]}
    assert kinds >= {"star", "ring", "native", "shared", "gloo"}
    assert {one["size_bytes"] for one in told["collectives"]} == {1 << 10, 1 << 12, 1 << 14}
    operations = {name: {one["operation"] for one in told["collectives"] if one["name"] == name} for name in kinds}
    assert operations.pop("gloo") == {"all-reduce"}
    assert all(found == {"all-reduce", "reduce-scatter", "all-gather"} for found in operations.values())
    assert sum(one["wrong_elements"] for one in told["collectives"]) == 0
    assert all(one["bound_seconds"] > 0 and one["predicted_seconds"] > 0 for one in told["collectives"])
    assert {one["name"] for one in told["yardsticks"]} == {"memory of a node"}


def test_what_it_says_and_leaves(everything):
    folder, done = everything
    lines = done.stdout.splitlines()
    assert lines[0].startswith("2 ranks on 1 node, 1 thread each")
    assert any(line.startswith("Not for sure, see the warnings: Use ") for line in lines)
    assert "! 2 rounds: a median of fewer than 7 is unsure" in done.stdout
    left = {path.name for path in (folder / "report").iterdir()}
    assert left >= {"report.html", "comparison.json", "time.png", "bandwidth.png", "scaling.png"}
    assert json.loads((folder / "report" / "comparison.json").read_text())["schema"] == SCHEMA


def test_timelines_have_all_ranks_and_phases(everything):
    folder, _ = everything
    for name in (*HERE, "ddp", "alone"):
        told = json.loads((folder / "report" / f"timeline-{name}.json").read_text())
        events = [event for event in told["traceEvents"] if event["ph"] == "X"]
        assert {event["pid"] for event in events} == {0, 1}, name
        assert {event["cat"] for event in events} >= {"step", "compute", "optimizer"}, name
    shared = json.loads((folder / "report" / "timeline-ring.json").read_text())
    assert {event["cat"] for event in shared["traceEvents"] if event["ph"] == "X"} >= {"wait", "transfer"}


def test_variants_one_rank_and_json_alone(launch, tmp_path):
    done = launch(
        1, *COMPARE, "--rounds", "1", "--steps", "1", "--strategies", "ring,ring+sync2,zero+topk", "--json",
        "--progress", "off", cwd=tmp_path, timeout=120,
    ).check()  # fmt: skip
    told = json.loads(done.stdout)
    assert {one["name"]: one["approximate"] for one in told["contenders"]} == {
        "ring": False, "ring+sync2": True, "zero+topk": True, "alone": False,
    }  # fmt: skip
    assert done.stderr == ""
    assert list(tmp_path.iterdir()) == []


REFUSED = {
    "a strategy that is none": (
        ["--strategies", "ring,zer"],
        "--strategies zer: zer is no strategy",
        "did you mean zero?",
    ),
    "a variant that is none": (
        ["--strategies", "ring+top"],
        "--strategies ring+top: top is no variant",
        "did you mean topk?",
    ),
    "a rhythm without its number": (["--strategies", "ring+sync"], "sync is no variant", "syncN"),
    "no strategies": (["--strategies", ","], "expected names such as ring,zero", ""),
    "no rounds": (["--rounds", "0"], "--rounds 0: expected a whole number from 1 on", ""),
    "a link that is none": (["--link", "fast"], "--link fast: expected a speed", ""),
    "a place that cannot be": (["--report", "/proc/nowhere"], "/proc/nowhere cannot be written", ""),
    "somebody else": (["--against", "horovod"], "--against horovod: expected one of none, ddp", ""),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case, launch, tmp_path):
    arguments, *texts = REFUSED[case]
    done = launch(None, *COMPARE, *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("distloop: error: ") == 1
    for text in texts:
        assert text in done.stderr, done.stderr


def test_help_names_the_options_of_train_too(launch):
    said = launch(None, "-m", "distloop.compare", "--help").check().stdout
    for option in ("--strategies", "--against", "--collectives", "--link", "--batch-size", "--optimizer"):
        assert option in said
