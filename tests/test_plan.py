"""``python -m distloop.plan``: what people type, what they read, and that nothing is started for it."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from dataclasses import replace

import pytest
from rich.console import Console

from distloop import units
from distloop.cost import timing
from distloop.errors import ConfigError
from distloop.plan import Plan, PlanConfig, compute_for
from distloop.report.predictions import outlooks_table, outlooks_text

ISSUED = ("--parameters", "1.3e9", "--nodes", "64", "--ranks-per-node", "32", "--link", "100Gbit")


def planned(**given):
    return Plan.of(PlanConfig(**{"parameters": "1.3e9", "nodes": 64, "ranks_per_node": 32, "link": "100Gbit"} | given))


@pytest.mark.parametrize(
    ("unit", "text", "value"),
    [
        (units.count, "1.3e9", 1_300_000_000),
        (units.count, "1.3B", 1_300_000_000),
        (units.count, "1,300,000", 1_300_000),
        (units.count, "350M", 350_000_000),
        (units.count, "12 k", 12_000),
        (units.count, "7", 7),
        (units.bytes_per_second, "100Gbit", 12.5e9),
        (units.bytes_per_second, "100Gbit/s", 12.5e9),
        (units.bytes_per_second, "100Gbps", 12.5e9),
        (units.bytes_per_second, "100Gb", 12.5e9),
        (units.bytes_per_second, "12.5GB/s", 12.5e9),
        (units.bytes_per_second, "1Mbit", 125e3),
        (units.seconds, "2us", 2e-6),
        (units.seconds, "2 µs", 2e-6),
        (units.seconds, "350ms", 0.35),
        (units.seconds, "1.5", 1.5),
        (units.size_bytes, "256GB", 256e9),
        (units.size_bytes, "64GiB", 64 * 2**30),
    ],
)
def test_units(unit, text, value):
    assert unit("--option", text) == pytest.approx(value)


@pytest.mark.parametrize(
    ("unit", "text"),
    [
        *((units.count, text) for text in ("0", "-3", "1e999", "nan", "", "B", "1.3X", "0.2", "1.3.2", "1e9e9")),
        *((units.bytes_per_second, text) for text in ("100", "0Gbit", "100Gbyt", "2us", "-1Gbit", "inf")),
        *((units.seconds, text) for text in ("2h", "us", "-1s", "0")),
        *((units.size_bytes, text) for text in ("256", "12Gbit", "256GB/s", "0GB")),
    ],
)
def test_units_that_are_none(unit, text):
    with pytest.raises(ConfigError, match=r"--option .*: expected .* such as"):
        unit("--option", text)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "--parameters is missing"),
        (("--parameters", "many"), "--parameters many: expected a number above 0"),
        (("--parameters", "1e6", "--link", "100"), "--link 100: expected a speed, such as 100Gbit or 12.5GB/s"),
        (("--parameters", "1e6", "--nodes", "0"), "--nodes 0: expected a whole number from 1"),
        (("--parameters", "1e6", "--nodes", "two"), "--nodes two: expected a whole number"),
        (("--parameters", "1e6", "--optimizer", "lion"), "--optimizer lion: expected one of adam, momentum, sgd"),
        (("--parameters", "1e6", "--memory-per-node", "much"), "--memory-per-node much: expected an amount of memory"),
        (("--parameter", "1e6"), "--parameter is no option; did you mean --parameters?"),
    ],
)
def test_mistakes_are_said_once_and_exit_with_2(launch, arguments, said):
    done = launch(None, "-m", "distloop.plan", *arguments)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith(f"distloop: error: {said}") and done.stderr.count("distloop: error") == 1


def test_the_answer_in_a_log(launch):
    done = launch(None, "-m", "distloop.plan", *ISSUED, "--memory_per_node=256GB").check()
    lines = done.stdout.splitlines()
    assert lines[0].startswith("1,300,000,000 parameters (5.20 GB as float32) · adam · 64 nodes of 32 ranks")
    assert lines[2].split()[:2] == ["strategy", "step"]
    assert lines[3].split()[0] == "hierarchical"
    assert "shared " not in done.stdout, "one node only"
    assert lines[-1].startswith("Take hierarchical: ")
    assert "171.76 GB of 256.00 GB on a node" in lines[-1]
    assert "\x1b" not in done.stdout


def test_one_answer_however_it_is_started(launch):
    alone = launch(None, "-m", "distloop.plan", "--parameters", "1e6").check()
    assert launch(3, "-m", "distloop.plan", "--parameters", "1e6").check().stdout == alone.stdout


def test_neither_mpi_nor_torch_is_loaded():
    code = "import sys, distloop.plan; print(sorted({'torch', 'mpi4py', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_json(launch):
    done = launch(None, "-m", "distloop.plan", *ISSUED, "--compute-seconds", "2", "--json").check()
    plan = json.loads(done.stdout)
    best = plan["strategies"][0]
    assert best["strategy"] == "hierarchical" and best["fits"] is None
    assert best["sent"] == {"rank_bytes": 319922064, "messages": 25074, "node_bytes": 10237500000, "by_library": False}
    assert best["node_memory_bytes"]["total"] == (32 + 1 + 2 / 64) * 5.2e9
    assert plan["topology"]["link_bytes_per_second"] == 12.5e9
    assert plan["efficiency_by_ranks"]["ring"]["4096"] > 0
    assert plan["advice"].startswith("Take hierarchical")


def test_a_configuration_file(launch, tmp_path):
    (tmp_path / "plan.yaml").write_text("parameters: 1B\nnodes: 2\nlatency: 2us\n")
    done = launch(None, "-m", "distloop.plan", "--config", "plan.yaml", "--nodes", "4", cwd=tmp_path).check()
    assert "1,000,000,000 parameters" in done.stdout and "4 nodes of 1 rank · 10Gbit a node, 2us" in done.stdout


@pytest.mark.parametrize("width", [60, 80, 100, 120, 160, 200])
def test_a_table_is_never_cut_off(width):
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    outlooks = planned(memory_per_node="256GB", compute_seconds="800ms").outlooks
    console.print(outlooks_table(outlooks, console))
    text = console.file.getvalue()
    assert "…" not in text and max(map(len, text.splitlines())) <= width
    for outlook in outlooks:
        assert outlook.prediction.strategy in text
    if width == 200:
        assert set(text.split()) >= {"optimizer", "leaves", "messages", "fits"}


def test_the_log_has_every_column():
    text = outlooks_text(planned(memory_per_node="256GB", compute_seconds="800ms").outlooks)
    for title in ("communication", "not hidden", "efficiency", "fits up to", "memory per rank", "leaves a node"):
        assert title in text.splitlines()[0]
    assert len({line.rstrip()[-2:] for line in text.splitlines()[1:]}) == 2, "GB and TB: columns end together"


def test_what_does_not_fit_comes_last():
    outlooks = planned(memory_per_node="340GB").outlooks
    assert [outlook.fits for outlook in outlooks] == [True] * 3 + [False] * 4
    for outlook in outlooks:
        assert outlook.fits == (outlook.most_parameters >= 1.3e9)


def test_nothing_fits():
    text = planned(memory_per_node="100GB").advice()
    assert text.startswith("Nothing fits 100.00 GB on a node: the least is hierarchical with 171.76 GB.")
    assert "With --ranks-per-node 18" in text
    assert PlanConfig(parameters="1.3e9", nodes=64, ranks_per_node=18).workload.bytes * (18 + 1 + 2 / 64) < 100e9
    assert "a smaller model is needed" in planned(memory_per_node="10GB").advice()


def test_advice_names_the_limit():
    slow = planned(nodes=4, ranks_per_node=1, link="1Gbit", compute_seconds="1s").advice()
    assert "limited by the link; --gradient-dtype bf16 halves" in slow and "keep 90% of the speed" in slow
    many = planned(parameters="1000", nodes=4096, ranks_per_node=1, latency="1ms", compute_seconds="1ms").advice()
    assert "limited by latency" in many
    assert "bf16" not in planned(nodes=4, ranks_per_node=1, link="1Gbit", gradient_dtype="bf16").advice()
    assert planned(nodes=1, ranks_per_node=1).advice().startswith("One rank has nobody")
    assert planned(nodes=1, ranks_per_node=8).advice().startswith("Take shared")


def test_compute_for_keeps_the_efficiency():
    config = planned(nodes=4, ranks_per_node=1, link="1Gbit").config
    needed = compute_for(0.9, "ring", config.workload, config.topology)
    for factor, good in ((0.99, False), (1.01, True)):
        workload = replace(config.workload, compute_seconds=factor * needed)
        assert (timing("ring", workload, config.topology).efficiency >= 0.9) is good
