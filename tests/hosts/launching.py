"""One mpirun over several hosts, each MPI in its own words."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.harness.jobs import SCALE
from tests.hosts.cluster import Hosts
from tests.launching import Finished
from tests.mpi_prefixes import MPIS
from tests.processes import Job, session_folder

SSH = str(Path(__file__).with_name("ssh"))
HOSTS = "DISTLOOP_TEST_HOSTS"

# MPICH must be told to use the network: hosts that share a kernel look like one node to UCX, which then sends nothing.
_ENVIRONMENT = {
    "mpich": {"MPIR_CVAR_CH4_NETMOD": "ofi", "FI_PROVIDER": "tcp"},
    "impi": {"I_MPI_FABRICS": "shm:ofi", "FI_PROVIDER": "tcp", "I_MPI_PIN": "0"},
    "openmpi": {
        "PRTE_MCA_plm_ssh_agent": SSH,
        "PRTE_MCA_prte_if_include": "eth0",
        "PRTE_MCA_hwloc_default_binding_policy": "none",
        "OMPI_MCA_pml": "ob1",
        "OMPI_MCA_btl": "self,sm,tcp",
        "OMPI_MCA_btl_tcp_if_include": "eth0",
    },
}


def start_on(
    hosts: Hosts,
    ranks: Sequence[int],
    *command: str,
    mpi: str,
    folder: Path,
    cwd: Path | None = None,
    env: dict[str, str] | None = None,
) -> Job:
    """``command`` under the mpirun of ``mpi``, started on the first host, ``ranks[h]`` ranks on host h.

    ``folder`` gets what it says; it must not exist.
    """
    chosen = MPIS[mpi]
    environ = chosen.environment() | _ENVIRONMENT[mpi] | {HOSTS: " ".join(map(str, hosts.pids))} | (env or {})
    environ.pop("PYTHONPATH", None)
    counts = {address: count for address, count in zip(hosts.addresses, ranks, strict=True) if count}
    line = [str(chosen.mpirun), *_LINES[mpi](counts, list(command))]
    return Job(None, sum(ranks), hosts.enter(0, *line), folder, cwd, environ)


def finish_on(
    hosts: Hosts, ranks: Sequence[int], *command: str, mpi: str = "mpich", timeout: float = 60.0, **options: Any
) -> Finished:
    """As ``start_on``, to its end; past ``timeout`` seconds it is killed, and the error says what it has said."""
    folder, began = Path(tempfile.mkdtemp(prefix="hosts-", dir=session_folder())) / "job", time.monotonic()
    job = start_on(hosts, ranks, *command, mpi=mpi, folder=folder, **options)
    try:
        if not job.finish(timeout * SCALE):
            stacks = "\n".join(f"stack of rank {rank}:\n{stack}" for rank, stack in job.stacks().items())
            raise TimeoutError(f"{' '.join(command)}: no end after {timeout} s\n{stacks}\n{job.stdout}\n{job.stderr}")
        seconds = time.monotonic() - began
        return Finished(command, job.process.returncode, job.stdout, job.stderr, seconds)
    finally:
        job.end()
        shutil.rmtree(folder.parent, ignore_errors=True)


def _mpich(counts: dict[str, int], command: list[str]) -> list[str]:
    slots = ",".join(f"{address}:{count}" for address, count in counts.items())
    return ["-iface", "eth0", "-launcher", "ssh", "-launcher-exec", SSH, "-hosts", slots, "-n", _sum(counts), *command]


def _openmpi(counts: dict[str, int], command: list[str]) -> list[str]:
    slots = ",".join(f"{address}:{count}" for address, count in counts.items())
    return ["--host", slots, "--map-by", "slot:OVERSUBSCRIBE", "-n", _sum(counts), *command]


def _intel(counts: dict[str, int], command: list[str]) -> list[str]:
    """Counts after a host's name are not understood; one set of arguments a host is."""
    sets = [["-n", str(count), "-host", address, *command, ":"] for address, count in counts.items()]
    return ["-iface", "eth0", "-bootstrap", "ssh", "-bootstrap-exec", SSH, *(word for words in sets for word in words)][
        :-1
    ]


def _sum(counts: dict[str, int]) -> str:
    return str(sum(counts.values()))


_LINES = {"mpich": _mpich, "openmpi": _openmpi, "impi": _intel}
