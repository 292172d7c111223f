"""The same checks here and in CI: format and lint by ruff, types by mypy --strict, shell scripts by shellcheck."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def output_of(*command: str) -> str:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)
    return "" if done.returncode == 0 else done.stdout + done.stderr


@pytest.mark.parametrize("check", [("check",), ("format", "--check")], ids=" ".join)
def test_ruff(check: tuple[str, ...]) -> None:
    assert output_of(sys.executable, "-m", "ruff", *check) == ""


def test_types() -> None:
    assert output_of(sys.executable, "-m", "mypy") == ""


def test_shell_scripts() -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed: pip install -e '.[test]'")
    scripts = [".ci/run", "tests/hosts/ssh", *(str(path) for path in (ROOT / "launch").glob("*.sh"))]
    assert output_of("shellcheck", *scripts) == ""
