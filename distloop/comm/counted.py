"""A communicator that counts what it sends: a subclass of mpi4py's, so that algorithms call mpi4py's own methods."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Literal, Self

from distloop.comm.mpi import MPI

LOOKS = 50
NAP_SECONDS = 5e-5
LONGEST_NAP_SECONDS = 1e-3  # a look takes 5 µs of a core that computes; in this time a socket's buffer is not emptied


@dataclass
class Traffic:
    """What one rank has sent."""

    bytes: int = 0
    messages: int = 0

    def __sub__(self, earlier: Traffic) -> Traffic:
        return Traffic(self.bytes - earlier.bytes, self.messages - earlier.messages)

    def copy(self) -> Traffic:
        """As it is now."""
        return Traffic(self.bytes, self.messages)

    def count(self, sent_bytes: int) -> None:
        """One message more."""
        self.bytes += sent_bytes
        self.messages += 1


class PatientRequest(MPI.Request):
    """A request that waits without taking a core for long: ranks may be more than cores, or compute in a thread."""

    def __new__(cls, request: MPI.Request) -> Self:
        """``request`` is used up."""
        return super().__new__(cls, request)

    def Wait(self, status: MPI.Status | None = None) -> Literal[True]:  # noqa: N802
        """Look often at first: on a fast network, and within a node, it takes no longer. Then look now and then."""
        for _ in range(LOOKS):
            if self.Test(status):
                return True
        nap = NAP_SECONDS
        while not self.Test(status):
            time.sleep(nap)
            nap = min(1.5 * nap, LONGEST_NAP_SECONDS)
        return True


class CountedComm(MPI.Intracomm):
    """A duplicate of ``comm`` with ``sent``, what this rank handed to point-to-point calls and library collectives.

    A library collective counts as one message of what this rank contributes, since the library decides what it sends.
    ``control`` is a second duplicate, uncounted, for the few bytes by which ranks agree.
    """

    sent: Traffic
    control: MPI.Intracomm

    def __new__(cls, comm: MPI.Comm) -> Self:
        """Collective over ``comm``: makes two duplicates of it."""
        self = super().__new__(cls, comm.Dup())
        self.sent = Traffic()
        self.control = MPI.Intracomm(comm.Dup())
        return self

    def Send(self, buf: Any, dest: int, tag: int = 0) -> None:  # noqa: N802
        """Count, then send."""
        self.sent.count(buf.nbytes)
        super().Send(buf, dest, tag)

    def Isend(self, buf: Any, dest: int, tag: int = 0) -> MPI.Request:  # noqa: N802
        """Count, then send."""
        self.sent.count(buf.nbytes)
        return PatientRequest(super().Isend(buf, dest, tag))

    def Irecv(self, buf: Any, source: int = MPI.ANY_SOURCE, tag: int = MPI.ANY_TAG) -> MPI.Request:  # noqa: N802
        """Receive."""
        return PatientRequest(super().Irecv(buf, source, tag))

    def Barrier(self) -> None:  # noqa: N802
        """Wait with the same patience."""
        PatientRequest(self.Ibarrier()).Wait()

    def Allreduce(self, sendbuf: Any, recvbuf: Any, op: MPI.Op = MPI.SUM) -> None:  # noqa: N802
        """Count the vector that this rank contributes."""
        self.sent.count(recvbuf.nbytes)
        super().Allreduce(sendbuf, recvbuf, op)

    def all_reducing(self, vector: Any) -> Callable[[], None]:
        """``Allreduce`` in place of the same memory, again and again: without looking up what it is."""
        call, sent, nbytes = super().Allreduce, self.sent, vector.nbytes
        described = [vector, vector.size, MPI.Datatype.fromcode(vector.dtype.char)]

        def reduce() -> None:
            sent.count(nbytes)
            call(MPI.IN_PLACE, described)

        return reduce

    def Reduce_scatter(  # noqa: N802
        self, sendbuf: Any, recvbuf: Any, recvcounts: Any = None, op: MPI.Op = MPI.SUM
    ) -> None:
        """Count the vector that this rank contributes."""
        self.sent.count(sendbuf.nbytes)
        super().Reduce_scatter(sendbuf, recvbuf, recvcounts, op)

    def Allgatherv(self, sendbuf: Any, recvbuf: Any) -> None:  # noqa: N802
        """Count the slice that this rank contributes."""
        self.sent.count(sendbuf.nbytes)
        super().Allgatherv(sendbuf, recvbuf)


def kept(comm: Any, key: Hashable, make: Callable[[], Any]) -> Any:
    """A communicator that is made of the counted ``comm`` once, for all that need the same one. Collective.

    A library has some 2,000 of them (MPICH), and none is freed before its last user, whom nobody knows.
    """
    made: dict[Hashable, Any] = comm.__dict__.setdefault("parts", {})
    if key not in made:
        made[key] = make()
    return made[key]


def free(comm: CountedComm) -> None:
    """``comm`` and all that was made of it. Collective."""
    for part in [*comm.__dict__.pop("parts", {}).values(), comm]:
        if isinstance(part, CountedComm):
            part.control.Free()
        part.Free()


def counted(comm: MPI.Comm) -> CountedComm:
    """``comm`` itself if it counts already, else a counting duplicate of it."""
    return comm if hasattr(comm, "sent") else CountedComm(comm)  # type: ignore[return-value]
