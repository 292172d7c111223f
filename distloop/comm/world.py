"""Who and where we are: ranks, nodes, cores; and the one place that ends the job when a rank fails."""

from __future__ import annotations

import os
import sys
import time
import traceback
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from distloop.comm.agree import exchange
from distloop.comm.counted import CountedComm
from distloop.comm.mpi import MPI, check_initialised, check_launcher, launcher_of, library_name
from distloop.errors import UserError


@dataclass(frozen=True)
class World:
    """All ranks of the job. ``cores`` are those that the ranks of this node may use together."""

    comm: CountedComm
    node: int
    nodes: int
    local_rank: int
    local_size: int
    cores: int
    threads: int
    library: str

    @classmethod
    @cache
    def start(cls) -> World:
        """The world of this process, made at the first call (collective: every rank calls it).

        From then on an unhandled exception on one rank ends the whole job with that rank's traceback.
        """
        check_initialised()
        launcher, launched = launcher_of(os.environ)
        check_launcher(launcher, launched, MPI.get_vendor()[0], MPI.COMM_WORLD.size)
        comm = CountedComm(MPI.COMM_WORLD)
        if comm.size > 1:
            sys.excepthook = lambda kind, error, trace: end_job(comm, error)
        local = comm.control.Split_type(MPI.COMM_TYPE_SHARED, comm.rank)
        leaders = exchange(comm.control, exchange(local, comm.rank)[0])
        masks = exchange(local, sorted(os.sched_getaffinity(0)))
        cores = len(set().union(*masks))
        distinct = sorted(set(leaders))
        return cls(
            comm=comm,
            node=distinct.index(leaders[comm.rank]),
            nodes=len(distinct),
            local_rank=local.rank,
            local_size=local.size,
            cores=cores,
            threads=max(1, min(len(masks[local.rank]), cores // local.size)),
            library=library_name(),
        )

    @property
    def rank(self) -> int:
        """This process's position, 0 to size - 1."""
        return self.comm.rank

    @property
    def size(self) -> int:
        """The number of ranks."""
        return self.comm.size

    def say(self, text: str) -> None:
        """One line to the standard output, from rank 0."""
        if self.rank == 0:
            sys.stdout.write(f"{text}\n")
            sys.stdout.flush()

    def write_in_order(self, path: Path, header: str, text: str) -> None:
        """A file of ``header`` and every rank's ``text``, in order of rank: rank 0 writes what it receives.

        Collective. Written aside and renamed; no shared file system is needed.
        """
        if self.rank:
            data = np.frombuffer(text.encode(), dtype=np.uint8)
            self.comm.control.Send(np.array([data.size], dtype=np.int64), 0)
            self.comm.control.Send(data, 0)
        else:
            aside = path.with_name(path.name + ".part")
            with aside.open("wb") as file:
                file.write((header + text).encode())
                for rank in range(1, self.size):
                    length = np.empty(1, dtype=np.int64)
                    self.comm.control.Recv(length, rank)
                    data = np.empty(int(length[0]), dtype=np.uint8)
                    self.comm.control.Recv(data, rank)
                    file.write(data.tobytes())
                file.flush()
                os.fsync(file.fileno())
            aside.replace(path)
        self.comm.control.Barrier()

    def say_once(self, text: str) -> None:
        """One line to the standard error, from rank 0; nobody goes on before it is out. Collective."""
        if self.rank == 0:
            sys.stdout.flush()
            os.write(2, f"{text}\n".encode())
        self.comm.control.Barrier()

    def describe(self, threads: int) -> str:
        """Such as ``4 ranks on 1 node, 1 thread each, 2 cores (oversubscribed)``; cores are those of this node."""
        crowded = " (oversubscribed)" if self.local_size * threads > self.cores else ""
        parts = (
            _count(self.size, "rank") + " on " + _count(self.nodes, "node"),
            _count(threads, "thread") + " each",
        )
        return ", ".join((*parts, _count(self.cores, "core") + crowded))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def end_job(comm: MPI.Intracomm, error: BaseException) -> None:
    """Say what happened on this rank, then end every rank: no other way stops those that wait in MPI.

    Where all ranks fail alike, the lowest one speaks: it is given a quarter of a second before the next one.
    """
    time.sleep(min(comm.rank, 6) / 4)
    text, code = _last_words(error)
    sys.stdout.flush()
    os.write(2, f"\ndistloop: rank {comm.rank} of {comm.size} on {MPI.Get_processor_name()}: {text}\n".encode())
    comm.Abort(code)


def _last_words(error: BaseException) -> tuple[str, int]:
    """What to say of an error, and the code to exit with, which is never 0."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", 130
    if isinstance(error, UserError):
        return f"error: {error}", 2
    if isinstance(error, SystemExit):
        code = error.code if isinstance(error.code, int) else 1
        said = f" ({error.code})" if isinstance(error.code, str) else ""
        return f"sys.exit was called while the other ranks go on{said}", code % 256 or 1
    return "".join(traceback.format_exception(error)).rstrip(), 1
