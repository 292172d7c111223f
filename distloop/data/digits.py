"""The 1,797 handwritten digits that come with scikit-learn: the smallest real data set, here without its import."""

from __future__ import annotations

import gzip
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from distloop.data.array_source import ArraySource
from distloop.data.source import Task
from distloop.errors import DataError

NAMES = tuple("0123456789")


def open_digits(task: Task = "auto") -> ArraySource:
    """Images (1, 8, 8) of values 0 to 1 in steps of 1/16, labels 0 to 9.

    The file is read in the installed scikit-learn, found without importing it, which takes seconds.
    """
    with gzip.open(digits_path(), "rt") as lines:
        table = np.loadtxt(lines, delimiter=",", dtype=np.uint8)
    images = table[:, :64].reshape(-1, 1, 8, 8)
    return ArraySource(images, table[:, 64], task=task, class_names=NAMES, divisor=16, name="digits")


def digits_path() -> Path:
    """Where scikit-learn keeps the digits."""
    spec = find_spec("sklearn")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / "datasets" / "data" / "digits.csv.gz"
        if path.exists():
            return path
    raise DataError(
        "digits: scikit-learn, which holds them, is not installed here; install it: pip install scikit-learn"
    )
