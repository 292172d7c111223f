"""``python -m distloop.predict RUN --data ...``: predict with a trained run, rows divided over the ranks."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from distloop.verb import run_verb

if TYPE_CHECKING:
    from distloop.comm import World

DESCRIPTION = "Predict with a trained run. Rows are divided over the ranks and written in their order."


def _predict(world: World, arguments: Sequence[str]) -> int:
    # Imported here, since it starts MPI, and that may fail with something to say.
    from distloop.config import parse_together
    from distloop.parsing import make_parser
    from distloop.prediction import PredictConfig, predict_rows

    parser = make_parser("python -m distloop.predict", DESCRIPTION, PredictConfig)
    parsed = parse_together(parser, arguments, world.comm.control, PredictConfig)
    if parsed.config is None:
        return parsed.code
    world.say(predict_rows(parsed.config, world))
    return 0


def main() -> int:
    """The verb; returns the code to exit with."""
    return run_verb(_predict)


if __name__ == "__main__":
    sys.exit(main())
