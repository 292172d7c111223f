"""The main job: ``mpirun -n 4 python -m distloop.train`` trains a model on data, with any strategy; see --help."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING

from distloop.verb import run_verb

if TYPE_CHECKING:
    from distloop.comm import World

DESCRIPTION = "Train a model on data, on as many ranks as mpirun starts. Every option has a default."


def _train(world: World, arguments: Sequence[str]) -> int:
    # Imported here, since it starts MPI, and that may fail with something to say.
    from distloop.build import Given, build
    from distloop.config import Config, parse_together
    from distloop.job import Run
    from distloop.parsing import make_parser
    from distloop.report.outputs import open_outputs
    from distloop.run_folder import RunFolder

    parser = make_parser("python -m distloop.train", DESCRIPTION, Config)
    parsed = parse_together(parser, arguments, world.comm.control, Config)
    if parsed.config is None:
        return parsed.code
    config = parsed.config
    job = build(config, world, Given())
    make_folder = partial(RunFolder.create, config.run_dir)
    with (
        closing(job.loader),
        open_outputs(world, parsed.resolved, job.task.goal.metrics, make_folder, config) as outputs,
    ):
        Run(job, outputs).train()
    return 0


def main() -> int:
    """The verb; returns the code to exit with."""
    return run_verb(_train)


if __name__ == "__main__":
    sys.exit(main())
