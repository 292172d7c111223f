"""Every example is run as its docstring says, and what it tells the reader to look at is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.launching import mpirun
from tests.main_jobs import run_all

EXAMPLES = Path(__file__).parent.parent / "examples"
SCRIPTS = sorted(EXAMPLES.rglob("*.py"))
TWO_LINES = EXAMPLES / "02_two_lines.py"


RUN_ALL = """
import runpy, sys
from distloop import World
for script in sys.argv[1:]:
    World.start().say(f"--- {script}")
    runpy.run_path(script, run_name="__main__")
"""


def outputs_of(ranks: int, *scripts: Path) -> dict[str, str]:
    """What each script says: all in one launch, since importing torch takes longer than running one."""
    done = mpirun(ranks, "-c", RUN_ALL, *scripts, timeout=120).check()
    parts = [part.partition("\n") for part in done.stdout.split("--- ")[1:]]
    return {Path(script).stem: output for script, _, output in parts}


@pytest.fixture(scope="module")
def on_four(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    divided = tmp_path_factory.mktemp("divided") / "divided.py"
    divided.write_text(in_order(TWO_LINES.read_text()))
    return outputs_of(4, divided, *EXAMPLES.glob("0*.py"))


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    plain = tmp_path_factory.mktemp("plain") / "plain.py"
    plain.write_text(without_marked_lines(in_order(TWO_LINES.read_text())))
    return outputs_of(1, plain, TWO_LINES, EXAMPLES / "04_collectives.py", EXAMPLES / "05_own_task.py")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_it_is_short_and_says_how_to_run_it(script):
    text = script.read_text()
    assert len(text.splitlines()) < 60
    assert f"mpirun -n 4 python {script.relative_to(EXAMPLES.parent)}" in text or "python -m distloop.train" in text
    assert "Look at" in text.split('"""')[1]


def test_every_example_has_a_test():
    tested = re.findall(r'"(\d\d_\w+)', Path(__file__).read_text())
    assert {path.relative_to(EXAMPLES).parts[0].removesuffix(".py") for path in SCRIPTS} == set(tested)


def test_one_call(on_four):
    output = on_four["01_one_call"]
    assert output.startswith("4 ranks on 1 node, ")
    accuracy = re.search(r"accuracy (0\.\d+) on rows that were not trained on", output)
    assert float(accuracy[1]) > 0.93
    written, predicted = (re.findall(r"\d+", line) for line in output.splitlines()[-3:-1])
    assert len(written) == len(predicted) == 12
    assert sum(a == b for a, b in zip(written, predicted, strict=True)) >= 10


def in_order(script: str) -> str:
    """Plain PyTorch shuffles by another generator."""
    assert "shuffle=True" in script
    return script.replace("shuffle=True", "shuffle=False")


def without_marked_lines(script: str) -> str:
    assert len(re.findall(r"# new$", script, re.MULTILINE)) == 2
    plain = re.sub(r"(?m)^.*# new\n", "", script).replace("distloop.World.start().say(", "print(")
    assert "distloop." not in plain.split('"""')[2]
    return plain


def curve(output: str) -> list[list[float]]:
    found = re.findall(r"epoch \d  loss ([\d.]+)  accuracy ([\d.]+)", output)
    return [[float(value) for value in values] for values in found]


def close_to(expected: list[list[float]]) -> list[object]:
    return [pytest.approx(row, rel=2e-3) for row in expected]


def test_two_lines_change_nothing_but_who_does_the_work(alone, on_four):
    """Against plain PyTorch in one process: the same script without its marked lines."""
    assert curve(on_four["divided"]) == close_to(curve(alone["plain"]))
    assert len(curve(alone["plain"])) == 5


def test_two_lines_give_the_same_curve_on_any_number_of_ranks(alone, on_four):
    assert curve(on_four["02_two_lines"]) == close_to(curve(alone["02_two_lines"]))
    assert curve(alone["02_two_lines"])[-1][1] > 0.95


def test_the_loop(on_four):
    output = on_four["03_the_loop"]
    accuracies = [float(value) for value in re.findall(r"epoch \d+  step \d+  accuracy ([\d.]+)", output)]
    assert output.endswith("good enough\n")
    assert len(accuracies) < 10
    assert max(accuracies) == accuracies[-1] >= 0.97


@pytest.mark.parametrize("ranks", [1, 4])
def test_collectives(alone, on_four, ranks):
    output = (alone if ranks == 1 else on_four)["04_collectives"]
    total = ranks * (ranks + 1) // 2
    expected = {"Star": 48_000 * (ranks - 1), "Ring": 96_000 * (ranks - 1) // ranks, "Native": 48_000}
    for name, sent in expected.items():
        assert re.search(rf"{name} +sum {total}  rank 0 sent {sent:,} bytes, as expected", output)
    assert f"halves  sum -{total} to -{total}" in output


def test_own_task(alone, on_four):
    first, second = (
        [float(error) for error in re.findall(r"error ([\d.]+) ", outputs["05_own_task"])]
        for outputs in (alone, on_four)
    )
    assert second == pytest.approx(first, rel=2e-3)
    assert len(first) == 10
    assert first[-1] < 0.09 / 3


def test_own_parts(tmp_path):
    """The file and the options of the docstring mean the same run."""
    for file in ("parts.py", "parts.yaml"):
        (tmp_path / file).write_text((EXAMPLES / "06_own_parts" / file).read_text())
    commands = re.findall(r"mpirun -n 4 python -m distloop.train (.*)", (tmp_path / "parts.py").read_text())
    assert [command.split()[0] for command in commands] == ["--config", "--model"]
    by_file, by_options = run_all(
        2, dict(zip(("file", "options"), map(str.split, commands), strict=True)), tmp_path
    ).values()
    assert by_file.code == by_options.code == 0
    assert by_file.summary["validation"]["r2"] > 0.97
    assert by_file.summary["weights_sha256"] == by_options.summary["weights_sha256"]
