"""Inputs without targets, for prediction: the same files, less the target."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from distloop.data.array_source import ArraySource
from distloop.data.arrays import map_npy
from distloop.data.tables import table_inputs


def open_inputs(path: Path, input_shape: tuple[int, ...]) -> ArraySource | None:
    """Rows of ``input_shape`` in a .npy file or table that holds nothing else; None if the file is not of that kind.

    The targets of such rows are zeros that take no memory.
    """
    inputs: Any = None
    if path.suffix == ".npy":
        mapped = map_npy(path)
        inputs = mapped if mapped.shape[1:] == input_shape else None
    elif path.suffix in (".csv", ".tsv"):
        inputs = table_inputs(path, math.prod(input_shape))
    if inputs is None:
        return None
    nothing = np.broadcast_to(np.int64(0), (len(inputs),))
    return ArraySource(inputs, nothing, task="classification", classes=1, name=str(path))
