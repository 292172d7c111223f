"""Which strategy to use: ``mpirun -n 4 python -m distloop.compare`` trains the same steps under each, and tells."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from distloop.verb import run_verb

if TYPE_CHECKING:
    from distloop.comm import World

DESCRIPTION = (
    "Train the same steps under each strategy, and tell which one to use and why. Takes the options of train: compare "
    "on your own model and data."
)


def _compare(world: World, arguments: Sequence[str]) -> int:
    # Imported here, since it starts MPI, and that may fail with something to say.
    from distloop.build import Given
    from distloop.comparing.assemble import comparison_of
    from distloop.comparing.options import CompareConfig
    from distloop.comparing.outputs import Outputs
    from distloop.comparing.run import Field
    from distloop.config import parse_together
    from distloop.parsing import make_parser

    parser = make_parser("python -m distloop.compare", DESCRIPTION, CompareConfig)
    parsed = parse_together(parser, _with_dash(arguments), world.comm.control, CompareConfig)
    if parsed.config is None:
        return parsed.code
    outputs = Outputs(parsed.config, world)
    field = Field(parsed.config, world, Given(), outputs.say)
    try:
        steps = field.race()
        field.trace(outputs.timelines)
        comparison = comparison_of(
            field, steps, f"mpirun -n {world.size} python -m distloop.compare {' '.join(arguments)}"
        )
    finally:
        field.close()
    outputs.write(comparison)
    return 0


def _with_dash(arguments: Sequence[str]) -> list[str]:
    """``--json`` without a file is ``--json -``."""
    bare = [
        index
        for index, argument in enumerate(arguments)
        if argument == "--json" and (index + 1 == len(arguments) or arguments[index + 1].startswith("--"))
    ]
    return [f"{argument}=-" if index in bare else argument for index, argument in enumerate(arguments)]


def main() -> int:
    """The verb; returns the code to exit with."""
    return run_verb(_compare)


if __name__ == "__main__":
    sys.exit(main())
