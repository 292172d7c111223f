"""Many runs of the main job in one launch, since starting torch takes longer than a small run.

    outcomes = run_all(2, {"sgd": ["--optimizer", "SGD"], "typo": ["--epoch", "1"]}, tmp_path)
    assert outcomes["typo"].code == 2

Each is ``distloop.train.main()`` with its own arguments, run folder (named as it) and output; errors that all ranks
share do not end the launch, others need one of their own.
"""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.launching import Finished, mpirun

MARK = "--- job"
USERS_MODULE = Path(__file__).with_name("users_module.py")


@dataclass(frozen=True)
class Outcome:
    """What one run said and left."""

    code: int
    stdout: str
    stderr: str
    folder: Path

    @property
    def summary(self) -> dict[str, Any]:
        return json.loads((self.folder / "summary.json").read_text())

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]

    @property
    def table(self) -> list[dict[str, str]]:
        with (self.folder / "metrics.csv").open() as file:
            return list(csv.DictReader(file))

    def refused(self, *texts: str) -> None:
        """Assert that one message says it, that it is the only one, and that nothing was left."""
        assert self.code == 2, self.stderr
        assert self.stderr.count("distloop: error: ") == 1, self.stderr
        for text in texts:
            assert self.stderr.count(text) == 1, (text, self.stderr)
        assert "Traceback" not in self.stderr
        assert not self.folder.exists()


def run_all(
    ranks: int | None, jobs: dict[str, list[Any]], cwd: Path, run: Callable[..., Finished] = mpirun, **options: Any
) -> dict[str, Outcome]:
    """Run them in the folder ``cwd``, which has the module mymodule of users_module.py; ``run`` is as ``mpirun``."""
    (cwd / "mymodule.py").write_text(USERS_MODULE.read_text())
    lines = {name: [*map(str, given), "--run-dir", f"runs/{name}"] for name, given in jobs.items()}
    (cwd / "jobs.json").write_text(json.dumps(lines))
    done = run(ranks, "-m", "tests.main_jobs", "jobs.json", cwd=cwd, **options).check()
    outs, errs = (dict(_parts(stream)) for stream in (done.stdout, done.stderr))
    return {name: Outcome(outs[name][0], outs[name][1], errs[name][1], cwd / "runs" / name) for name in jobs}


def _parts(stream: str) -> Any:
    said: list[str] = []
    for line in stream.splitlines(keepends=True):
        if line.startswith(MARK):
            *_, name, code = line.split()
            yield name, (int(code), "".join(said))
            said = []
        else:
            said.append(line)


def _main() -> None:
    from distloop.comm import World
    from distloop.train import main

    world = World.start()
    for name, arguments in json.loads(Path(sys.argv[1]).read_text()).items():
        sys.argv[1:] = arguments
        code = main()
        sys.stdout.flush()
        sys.stderr.flush()
        world.comm.control.Barrier()
        if world.rank == 0:
            for stream in (1, 2):
                os.write(stream, f"{MARK} {name} {code}\n".encode())
        world.comm.control.Barrier()


if __name__ == "__main__":
    _main()
