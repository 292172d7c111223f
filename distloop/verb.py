"""What every ``python -m distloop.VERB`` has in common: one rank parses for all, and errors are said once."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from distloop.errors import ConfigError, DistloopError, UserError

if TYPE_CHECKING:
    from distloop.comm import World


def run_verb(body: Callable[[World, Sequence[str]], int]) -> int:
    """Start MPI, run ``body(world, arguments)`` on all ranks, and return the code to exit with: 2 for a user's mistake.

    An error that all ranks share is printed by rank 0; one that a rank has alone ends the whole job.
    """
    try:
        from distloop.comm import World
        from distloop.comm.world import end_job

        world = World.start()
    except ConfigError as error:
        return _launch_failed(error)
    try:
        return body(world, sys.argv[1:])
    except DistloopError as error:
        if not (error.everywhere or world.size == 1):
            raise
        world.say_once(f"distloop: error: {error}")
        return 2 if isinstance(error, UserError) else 1
    except (KeyboardInterrupt, SystemExit) as stop:  # of which Python itself would end this rank alone
        if world.size > 1:
            end_job(world.comm, stop)
        if isinstance(stop, SystemExit):
            raise
        world.say_once("\ndistloop: interrupted")
        return 130


def run_alone(body: Callable[[Sequence[str]], int]) -> int:
    """Run a verb that needs no MPI; where a launcher starts it several times, the first process does all."""
    if not _first_of_launch():
        return 0
    try:
        return body(sys.argv[1:])
    except DistloopError as error:
        os.write(2, f"distloop: error: {error}\n".encode())
        return 2 if isinstance(error, UserError) else 1


def _launch_failed(error: ConfigError) -> int:
    """Without MPI the launcher's variables tell who may speak; the others wait, as the first to end ends all."""
    if _first_of_launch():
        os.write(2, f"distloop: error: {error}\n".encode())
    else:
        time.sleep(5)
    return 2


def _first_of_launch() -> bool:
    names = ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID")
    return next((os.environ[name] for name in names if name in os.environ), "0") == "0"
