"""The README keeps its word: its loop is the loop, its commands and snippets run, what it names exists.

The second command is run by .ci/run, which runs these tests by it; the first one here, with the packages of this
environment in reach, so that pip finds them installed. Other training commands run for two steps each.
"""

from __future__ import annotations

import ast
import re
import shlex
import shutil
import subprocess
import sysconfig
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from distloop.comparing.options import CompareConfig
from distloop.config import Config
from distloop.data.formats import FASHION_MNIST
from distloop.parsing import make_parser
from distloop.plan import PlanConfig
from distloop.prediction import PredictConfig
from distloop.strategies import NAMES
from tests.launching import mpirun
from tests.main_jobs import Outcome, run_all
from tests.mpi_prefixes import MPIS
from tests.processes import Job

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
NOT_RUN = {
    "apt-get install dataset-fashion-mnist": "needs root and a Debian; .ci/run does it where it can",
    "module load openmpi": "a cluster's",
    "pip install -c launch/constraints.txt .": "a cluster's: the first command without an extra",
    "srun -n 64 python -m distloop.train": "a cluster's",
}
TRAIN = "python -m distloop.train "


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def marked(name: str) -> str:
    return re.search(rf"<!-- command: {name} -->\n```sh\n(.*?)```", README, re.DOTALL)[1]


def other_lines() -> list[str]:
    """Of the shell blocks, without the two commands."""
    return [
        line for block in blocks("sh") if block not in (marked("run"), marked("test")) for line in block.splitlines()
    ]


def training_commands() -> dict[str, list[str]]:
    """The options of each, by the name of its run folder."""
    lines = [line.partition(TRAIN)[2] for line in other_lines() if TRAIN in line and line not in NOT_RUN]
    found = [shlex.split(line) for line in lines if "--print_config" not in line]
    names = [(re.findall(r"--run-dir runs/(\w+)", " ".join(given)) or [f"job-{i}"])[0] for i, given in enumerate(found)]
    return dict(zip(names, found, strict=True))


def test_the_loop_is_verbatim():
    source = (ROOT / "distloop" / "loop.py").read_text()
    function = next(node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef))
    assert function.name == "train"
    body = source.splitlines()[function.body[1].lineno - 1 : function.end_lineno]
    assert textwrap.dedent("\n".join(body)) + "\n" in blocks("python")


def test_ci_runs_exactly_the_second_command():
    extract = re.search(r"^command=\$\((awk .*)\)$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)[1]
    assert subprocess.check_output(["bash", "-c", extract], cwd=ROOT, text=True, timeout=20) == marked("test")


def test_every_other_line_of_the_shell_blocks_is_accounted_for():
    for line in other_lines():
        ours = line.startswith(("mpirun -n ", "python -m distloop."))
        assert ours or line in NOT_RUN or line.startswith("export "), line


def test_the_first_command(tmp_path):
    clone = tmp_path / "clone"
    ignored = shutil.ignore_patterns(".git", ".venv", ".mpi", "runs", "build", "*.egg-info", "*_cache", "__pycache__")
    shutil.copytree(ROOT, clone, ignore=ignored)
    mpi = MPIS["mpich"]
    if mpi.missing:
        pytest.skip(mpi.missing)
    environment = mpi.environment() | {
        "PYTHONPATH": sysconfig.get_path("purelib"),
        "MPI4PY_LIBMPI": str(mpi.prefix / "lib" / mpi.library),
    }
    job = Job(None, 1, ["bash", "-euo", "pipefail", "-c", marked("run")], tmp_path / "job", clone, environment)
    try:
        assert job.finish(200), job.stdout + job.stderr
        if "No matching distribution found for setuptools" in job.stderr:
            pytest.skip("pip cannot reach a package index")
        assert job.process.returncode == 0, job.stdout + job.stderr
        assert (clone / ".venv" / "bin" / "activate").exists()
        assert "4 ranks on 1 node" in job.stdout
        assert float(re.findall(r"accuracy +([\d.]+)", job.stdout)[-1]) >= 0.97
    finally:
        job.end()


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Outcome]]:
    """All training commands, in one launch on two ranks, for two steps."""
    folder = tmp_path_factory.mktemp("commands")
    printed = next(line for line in other_lines() if "--print_config" in line)
    given, file = printed.removeprefix(TRAIN).split(" > ")
    (folder / file).write_text(mpirun(None, "-m", "distloop.train", *given.split()).check().stdout)
    short = {name: [*options, "--steps", "2"] for name, options in training_commands().items()}
    if not FASHION_MNIST.is_dir():
        del short["fashion"]
    yield run_all(2, short, folder, timeout=120)


@pytest.mark.parametrize("name", training_commands())
def test_training_commands(outcomes, name):
    if name not in outcomes:
        pytest.skip("Debian's package dataset-fashion-mnist is not installed")
    assert outcomes[name].code == 0, outcomes[name].stderr
    assert outcomes[name].summary["steps"] == 2
    assert "samples_per_second" in outcomes[name].summary


def test_a_run_leaves_the_files_that_the_table_names(outcomes):
    table = README.partition("## What a run leaves")[2].partition("\n## ")[0]
    named = set(re.findall(r"`(\w+\.\w+)`", "".join(line for line in table.splitlines() if line.startswith("| `"))))
    assert {path.name for path in outcomes["whole"].folder.iterdir()} == named


def test_prediction(outcomes):
    if "fashion" not in outcomes:
        pytest.skip("Debian's package dataset-fashion-mnist is not installed")
    (command,) = [line for line in other_lines() if "distloop.predict" in line]
    folder = outcomes["fashion"].folder.parent.parent
    mpirun(2, *command.split()[4:], cwd=folder).check()
    assert len((folder / "predictions.csv").read_text().splitlines()) == 10_001


def test_snippets_run(tmp_path):
    scripts = [block for block in blocks("python") if "import" in block]
    assert len(blocks("python")) == len(scripts) + 1  # the loop
    for number, script in enumerate(scripts):
        (tmp_path / f"snippet{number}.py").write_text(script)
    run_each = "import runpy, sys\nfor path in sys.argv[1:]: runpy.run_path(path, run_name='__main__')"
    done = mpirun(2, "-c", run_each, *sorted(tmp_path.glob("*.py")), cwd=tmp_path).check()
    assert done.stdout.count("tensor([1, 0])") == 2
    assert "\nepoch 2: 1." in done.stdout


def test_open_mpi_settings():
    exported = [pair for line in other_lines() if line.startswith("export ") for pair in line.split()[1:]]
    assert dict(pair.split("=", 1) for pair in exported) == MPIS["openmpi"].settings
    assert all(f"`{name}={value}`" in README for name, value in MPIS["impi"].settings.items())


def test_options_exist():
    known = {"--help", "--print_config"}
    for schema in (Config, PredictConfig, PlanConfig, CompareConfig):
        parser = make_parser("verb", "", schema)
        known |= {option for action in parser._actions for option in action.option_strings}
    assert set(re.findall(r"(?<![-\w])--[a-z][\w-]*", README.replace("<!--", ""))) - known == set()


def test_files_exist():
    named = re.findall(r"\]\(([^)#:]+)\)", README)
    named += re.findall(r"(?<![\w/.])((?:distloop|examples|launch|tests)/[\w./-]*\w)", README)
    assert len(named) > 5
    for path in named:
        assert (ROOT / path).exists(), path


def test_the_table_has_every_strategy():
    table = README.partition("## Strategies")[2].partition("\n## ")[0]
    assert tuple(re.findall(r"^\| `([a-z][a-z-]+)` \|", table, re.MULTILINE)) == ("auto", *NAMES)


def test_comparing_and_planning(tmp_path):
    (compared,) = [line for line in other_lines() if "distloop.compare" in line]
    short = ["--rounds", "1", "--steps", "1", "--model-args.hidden", "64"]
    done = mpirun(2, *shlex.split(compared)[4:], *short, cwd=tmp_path, timeout=120).check()
    assert all(name in done.stdout for name in ("shared", "ddp", "alone"))
    assert "<svg" in next((tmp_path / "report").glob("*.html")).read_text()
    (planned,) = [line for line in other_lines() if "distloop.plan" in line]
    assert "hierarchical" in mpirun(None, *shlex.split(planned)[1:]).check().stdout
