"""Memory that processes hold, with what they share counted once: proportional set sizes."""

from __future__ import annotations

import ctypes
import gc
from contextlib import suppress
from pathlib import Path

import numpy as np

from distloop.comm.mpi import MPI

_ROLLUP = Path("/proc/self/smaps_rollup")


def held_bytes(control: MPI.Intracomm) -> float | None:
    """Mean over the ranks; None where the kernel does not tell. Collective; costs milliseconds.

    What is free inside the process is given back first, so that differences between two calls mean something.
    """
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    control.Barrier()
    own = np.array([_proportional_set_size()])
    control.Allreduce(MPI.IN_PLACE, own)
    total = float(own[0])
    return total / control.size if np.isfinite(total) else None


def _proportional_set_size() -> float:
    """Bytes of this process: each page divided by the number of those that map it. Source: Linux proc(5)."""
    try:
        lines = _ROLLUP.read_text().splitlines()
    except OSError:
        return float("nan")
    return next((float(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), float("nan"))
