"""Ranks as threads: a communicator that behaves as mpi4py's does at its worst, and finds deadlocks at once.

    def ring(comm):
        flat = np.arange(5, dtype=np.float32) * comm.rank
        Ring(comm).all_reduce(flat)
        return flat

    results = run_ranks(3, ring)            # what each rank returned, in order

Worse than MPI on a good day, as MPI may be: a Send waits for its Recv whatever its size, an Isend ends in Wait only
when matched, a receive buffer changes in Wait only, a send buffer that changes before its Wait is an error, collectives
wait for all members, and a message that nobody receives fails the test.
"""

# ruff: noqa: N802 (the names are mpi4py's)

from __future__ import annotations

import copy
import functools
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from distloop.comm.counted import Traffic
from distloop.comm.mpi import MPI
from tests.rendezvous import DeadlockError, Post, Rendezvous, Stopped, TruncationError

__all__ = ["DeadlockError", "Request", "ThreadComm", "TruncationError", "run_ranks"]

_OPERATIONS = [(MPI.SUM, np.add), (MPI.PROD, np.multiply), (MPI.MAX, np.maximum), (MPI.MIN, np.minimum)]


def run_ranks(world_size: int, function: Callable[[ThreadComm], Any], timeout: float = 20) -> list[Any]:
    """Run ``function(comm)`` on each rank, a thread each; what they returned, or the first exception raised again."""
    meeting = Rendezvous(world_size)
    results: list[Any] = [None] * world_size
    starts = threading.Barrier(world_size)
    targets = [
        threading.Thread(target=_run, args=(meeting, starts, rank, function, results), daemon=True, name=f"rank {rank}")
        for rank in range(world_size)
    ]
    for thread in targets:
        thread.start()
    _join(targets, meeting, timeout)
    if meeting.failure is not None:
        raise meeting.failure
    if meeting.unfinished():
        raise AssertionError("sent or expected, but never matched: " + "; ".join(meeting.unfinished()))
    return results


def _run(meeting: Rendezvous, starts: threading.Barrier, rank: int, function: Any, results: list[Any]) -> None:
    meeting.begin(rank)
    starts.wait()
    try:
        results[rank] = function(ThreadComm(meeting, rank, range(meeting.world_size), "world"))
    except Stopped:
        pass
    except BaseException as error:
        error.add_note(f"on rank {rank} of {meeting.world_size}")
        meeting.fail(error)
    finally:
        meeting.end(rank)


def _join(threads: list[threading.Thread], meeting: Rendezvous, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    if any(thread.is_alive() for thread in threads) and meeting.failure is None:
        meeting.fail(TimeoutError(f"not done after {timeout} s\n{meeting.picture()}"))
        for thread in threads:
            thread.join(0.2)


class Request:
    """What Isend and Irecv return."""

    def __init__(self, comm: ThreadComm, post: Post | None, view: np.ndarray, receives: bool) -> None:
        self._comm, self._post, self._view, self._receives = comm, post, view, receives

    def Wait(self, status: None = None) -> bool:
        """Until matched; a receive buffer changes here."""
        post, self._post = self._post, None
        if post is None:
            return True
        self._comm.meeting.wait(self._comm.world_rank, post)
        if self._receives:
            arrived = np.frombuffer(post.payload, np.uint8)
            self._view[: arrived.size] = arrived
        elif self._view.tobytes() != post.payload:
            raise AssertionError(f"the buffer of {post.what} changed before its Wait")
        return True

    def Test(self, status: None = None) -> bool:
        """Wait, if that would not take time."""
        return (self._post is None or self._post.done) and self.Wait()


class ThreadComm:
    """The part of ``MPI.Intracomm`` that algorithms use; ``sent`` and ``control`` are those of a CountedComm."""

    def __init__(self, meeting: Rendezvous, world_rank: int, members: Sequence[int], name: str) -> None:
        self.meeting, self.world_rank, self.name = meeting, world_rank, name
        self.members = list(members)
        self.rank, self.size = self.members.index(world_rank), len(self.members)
        self.sent = Traffic()
        self._calls = 0
        self._control: ThreadComm | None = None

    @property
    def control(self) -> ThreadComm:
        """A duplicate for small agreed facts, which counts for itself."""
        if self._control is None:
            self._control = ThreadComm(self.meeting, self.world_rank, self.members, f"{self.name}/control")
        return self._control

    def Get_rank(self) -> int:
        return self.rank

    def Get_size(self) -> int:
        return self.size

    def Isend(self, buf: Any, dest: int, tag: int = 0) -> Request:
        view = _bytes_of(buf)
        self.sent.count(view.size)
        what = f"Send from {self.rank} to {dest} (tag {tag}, {view.size} bytes, {self.name})"
        post = self.meeting.post_send(self._channel(self.rank, dest, tag), what, view.tobytes())
        return Request(self, post, view, receives=False)

    def Irecv(self, buf: Any, source: int, tag: int = 0) -> Request:
        view = _bytes_of(buf, written=True)
        what = f"Recv on {self.rank} from {source} (tag {tag}, up to {view.size} bytes, {self.name})"
        post = self.meeting.post_receive(self._channel(source, self.rank, tag), what, view.size)
        return Request(self, post, view, receives=True)

    def Send(self, buf: Any, dest: int, tag: int = 0) -> None:
        self.Isend(buf, dest, tag).Wait()

    def Recv(self, buf: Any, source: int, tag: int = 0, status: None = None) -> None:
        self.Irecv(buf, source, tag).Wait()

    def Sendrecv(
        self, sendbuf: Any, dest: int, sendtag: int = 0, recvbuf: Any = None, source: int = -1, recvtag: int = 0
    ) -> None:
        requests = self.Irecv(recvbuf, source, recvtag), self.Isend(sendbuf, dest, sendtag)
        for request in requests:
            request.Wait()

    def Barrier(self) -> None:
        self._gather("Barrier", None)

    def Bcast(self, buf: Any, root: int = 0) -> None:
        view = _bytes_of(buf, written=self.rank != root)
        said = self._gather(f"Bcast from {root}", view.tobytes())[root]
        if len(said) > view.size:
            raise TruncationError(f"rank {self.rank}, Bcast into {view.size} bytes: {len(said)} bytes arrived")
        if self.rank != root:
            view[: len(said)] = np.frombuffer(said, np.uint8)

    def Allreduce(self, sendbuf: Any, recvbuf: Any, op: MPI.Op = MPI.SUM) -> None:
        self._reduced(sendbuf, recvbuf, "Allreduce", op, lambda total: total)

    def all_reducing(self, vector: np.ndarray) -> Callable[[], None]:
        """As a CountedComm offers it."""
        return functools.partial(self.Allreduce, MPI.IN_PLACE, vector)

    def Reduce_scatter(self, sendbuf: Any, recvbuf: Any, recvcounts: Any = None, op: MPI.Op = MPI.SUM) -> None:
        counts = self._gather("sizes", _array_of(recvbuf).size) if recvcounts is None else list(recvcounts)
        start = sum(counts[: self.rank])
        own = slice(start, start + counts[self.rank])
        self._reduced(sendbuf, recvbuf, f"Reduce_scatter of {counts}", op, lambda total: total[own])

    def Allgather(self, sendbuf: Any, recvbuf: Any) -> None:
        share = _array_of(recvbuf).size // self.size
        self.Allgatherv(sendbuf, [_array_of(recvbuf), [share] * self.size])

    def Allgatherv(self, sendbuf: Any, recvbuf: Any) -> None:
        target, counts, starts = _sections_of(recvbuf)
        own = slice(starts[self.rank], starts[self.rank] + counts[self.rank])
        given = target[own] if sendbuf is MPI.IN_PLACE else _array_of(sendbuf)
        self.sent.count(given.nbytes)
        for count, start, part in zip(counts, starts, self._gather("Allgatherv", given.copy()), strict=True):
            if part.size != count:
                raise AssertionError(f"Allgatherv: {part.size} elements given where {count} are expected")
            target[start : start + count] = part

    def allgather(self, value: Any) -> list[Any]:
        return self._gather("allgather", copy.deepcopy(value))

    def bcast(self, value: Any, root: int = 0) -> Any:
        return self._gather(f"bcast from {root}", copy.deepcopy(value))[root]

    def Split(self, color: int = 0, key: int = 0) -> ThreadComm:
        asked = self._gather("Split", (color, key, self.rank))
        ranks = [rank for other, _, rank in sorted(asked) if other == color]
        return self._with([self.members[rank] for rank in ranks], f"split {color}")

    def Split_type(self, split_type: int, key: int = 0) -> ThreadComm:
        return self.Split(0, key)  # threads share memory

    def Dup(self) -> ThreadComm:
        self._gather("Dup", None)
        return self._with(self.members, "dup")

    def Free(self) -> None:
        self._gather("Free", None)

    def Abort(self, errorcode: int = 0) -> None:
        raise AssertionError(f"rank {self.rank} called Abort({errorcode})")

    def _with(self, members: Sequence[int], how: str) -> ThreadComm:
        return ThreadComm(self.meeting, self.world_rank, members, f"{self.name}/{how} {self._calls}")

    def _channel(self, source: int, dest: int, tag: int) -> tuple[Any, ...]:
        if not (0 <= source < self.size and 0 <= dest < self.size):
            raise AssertionError(f"no such rank: from {source} to {dest} among {self.size}")
        return self.name, tuple(self.members), source, dest, tag

    def _gather(self, call: str, value: Any) -> list[Any]:
        self._calls += 1
        key = (self.name, tuple(self.members), self._calls)
        return self.meeting.gather(key, self.world_rank, self.rank, self.size, f"{call} on {self.name}", value)

    def _reduced(self, sendbuf: Any, recvbuf: Any, call: str, op: MPI.Op, pick: Callable[[Any], Any]) -> None:
        target = _array_of(recvbuf)
        given = target if sendbuf is MPI.IN_PLACE else _array_of(sendbuf)
        self.sent.count(given.nbytes)
        parts = self._gather(call, given.copy())
        if len({(part.size, part.dtype) for part in parts}) > 1:
            raise AssertionError(f"{call}: ranks give different vectors: {[(p.size, str(p.dtype)) for p in parts]}")
        add = next(function for known, function in _OPERATIONS if known == op)
        result = pick(functools.reduce(add, parts))
        target[: result.size] = result


def _array_of(buf: Any) -> np.ndarray:
    """The elements that ``buf`` names, as a flat view: an array, or [array, count or type, ...]."""
    data, *rest = buf if isinstance(buf, list | tuple) else [buf]
    array = np.asarray(data)
    if not array.flags.c_contiguous:
        raise ValueError("the buffer is not contiguous")
    flat = array.reshape(-1)
    kind = next((item for item in rest if isinstance(item, MPI.Datatype)), None)
    if kind is not None and kind.Get_size() != flat.itemsize:
        flat = flat.view(np.dtype(f"V{kind.Get_size()}"))
    count = next((item for item in rest if isinstance(item, int | np.integer)), flat.size)
    if count > flat.size:
        raise ValueError(f"{count} elements of a buffer of {flat.size}")
    return flat[:count]


def _bytes_of(buf: Any, written: bool = False) -> np.ndarray:
    view = _array_of(buf).view(np.uint8)
    if written and not view.flags.writeable:
        raise ValueError("the buffer is read-only")
    return view


def _sections_of(buf: Any) -> tuple[np.ndarray, list[int], list[int]]:
    """Of [array, counts], [array, counts, displacements] or [array, (counts, displacements)], with a type or not."""
    data, *rest = buf
    lists = [item for item in rest if not isinstance(item, MPI.Datatype)]
    if len(lists) == 1 and len(lists[0]) == 2 and not np.isscalar(lists[0][0]):
        lists = list(lists[0])
    counts = [int(count) for count in lists[0]]
    starts = lists[1] if len(lists) > 1 else np.cumsum([0, *counts[:-1]])
    return (
        _array_of([data, *(item for item in rest if isinstance(item, MPI.Datatype))]),
        counts,
        [int(s) for s in starts],
    )
