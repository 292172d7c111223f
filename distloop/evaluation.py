"""Exact evaluation: each row counts once, at any number of ranks; no padding, no duplicates, no mean of means."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from torch import Tensor

from distloop.comm import together
from distloop.comm.mpi import MPI
from distloop.data import Source
from distloop.learner import Learner
from distloop.partition import Partition
from distloop.tasks import Supervised

ROWS_AT_ONCE = 256


def evaluate(
    task: Supervised, learners: Mapping[str, Learner], source: Source, control: MPI.Intracomm
) -> dict[str, float]:
    """Loss and metrics over all rows of ``source``, which the ranks divide; {} for a source without rows.

    Collective over ``control``. Sums are taken in float64, so that they hardly depend on how rows were divided.
    """
    if not len(source):
        return {}
    mine = Partition.even(len(source), control.size).slice_of(control.rank)
    with together(control):
        sums = task.measure(learners, share(source, mine))
    names = sorted(task.sums)
    totals = np.array([sums.get(name, 0.0) for name in names], dtype=np.float64)
    control.Allreduce(MPI.IN_PLACE, totals)
    return task.summary(dict(zip(names, totals.tolist(), strict=True)))


def share(source: Source, rows: slice) -> Iterator[tuple[Tensor, Tensor]]:
    """These rows of a source in their order, so many at once."""
    for start in range(rows.start, rows.stop, ROWS_AT_ONCE):
        yield source.rows(np.arange(start, min(start + ROWS_AT_ONCE, rows.stop), dtype=np.int64))
