"""A text file as bytes: rows are windows of it, and each byte is to be guessed from those before."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from distloop.data.array_source import ArraySource
from distloop.data.mapped import MappedArray
from distloop.errors import ConfigError, DataError

BYTES = 256


def open_text(path: Path, context: int) -> ArraySource:
    """Row i: bytes [i T, i T + T) as inputs, the same window one byte further as targets; T is ``context``."""
    if context < 1:
        raise ConfigError(f"context is {context}; expected the number of bytes in a row, 1 or more")
    given = path.stat().st_size
    windows = (given - 1) // context
    if windows < 2:
        raise DataError(
            f"{path} has {given} bytes; expected at least {2 * context + 1}, for two rows of "
            f"{context} bytes: give a longer text or a shorter context"
        )
    inputs = MappedArray(path, np.uint8, (windows, context), offset=0)
    targets = MappedArray(path, np.uint8, (windows, context), offset=1)
    return ArraySource(inputs, targets, task="language", classes=BYTES, name=str(path))
