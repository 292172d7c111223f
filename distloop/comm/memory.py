"""Where the vectors lie that a collective moves: in this rank's own memory, or where the ranks of its node see them.

What ranks share is anonymous memory (memfd) that each of them maps, not an MPI window: it lives exactly as long as
somebody views it, so that a tensor kept too long cannot point to nowhere; it is not bounded by /dev/shm, of which a
container has 64 MB; and nothing stays behind, however a job ends.
"""

from __future__ import annotations

import mmap
import os
import weakref
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, final

import numpy as np
import torch

from distloop.comm.agree import exchange, together
from distloop.comm.mpi import MPI
from distloop.errors import ConfigError

Array = np.ndarray[Any, np.dtype[Any]]
_PAGE_BYTES = mmap.PAGESIZE


class Memory(ABC):
    """Gives a collective's users the memory that it moves fastest. All zero; allocating is collective."""

    @abstractmethod
    def own(self, length: int, dtype: torch.dtype) -> torch.Tensor:
        """A vector (length,) for what this rank has to say, such as its gradients."""

    @abstractmethod
    def common(self, length: int, dtype: torch.dtype) -> torch.Tensor:
        """A vector (length,) for what is the same on all ranks, such as parameters: one per node, if it can be."""

    @abstractmethod
    def peers(self, vector: Array) -> list[Array] | None:
        """What each rank of the node has in the place of ``vector``, in order of local rank; None if out of sight."""

    @abstractmethod
    def is_common(self, vector: Array) -> bool:
        """Whether ``vector`` is one and the same for all ranks of the node."""


@final
class PrivateMemory(Memory):
    """Each process for itself."""

    def own(self, length: int, dtype: torch.dtype) -> torch.Tensor:
        """Ordinary memory."""
        return torch.zeros(length, dtype=dtype)

    def common(self, length: int, dtype: torch.dtype) -> torch.Tensor:
        """Ordinary memory: each rank has its own copy."""
        return torch.zeros(length, dtype=dtype)

    def peers(self, vector: Array) -> list[Array] | None:
        """Nobody sees it."""
        return None

    def is_common(self, vector: Array) -> bool:
        """Never."""
        return False


class _Segment:
    """One rank's part of a mapping, found by its address; forgotten when nothing views it any more."""

    def __init__(self, mine: Array, everybody: Sequence[Array], common: bool) -> None:
        self.start, self.nbytes, self.common = address_of(mine), mine.nbytes, common
        self._everybody = [weakref.ref(mine) if part is mine else part for part in everybody]
        self._views: dict[tuple[int, int, np.dtype[Any]], list[Array]] = {}

    def holds(self, address: int, nbytes: int) -> bool:
        return self.start <= address and address + nbytes <= self.start + self.nbytes

    def peers(self, vector: Array) -> list[Array]:
        offset = address_of(vector) - self.start
        parts = [part() if isinstance(part, weakref.ref) else part for part in self._everybody]
        return [part[offset : offset + vector.nbytes].view(vector.dtype) for part in parts if part is not None]


@final
class NodeMemory(Memory):
    """Memory that all ranks of a node map. Its owner touches a page first, so it lies near that rank's core."""

    def __init__(self, local: MPI.Comm) -> None:
        """``local``: the ranks of this node; used for a few bytes at each allocation."""
        self.local = local
        self._segments: dict[int, _Segment] = {}

    def own(self, length: int, dtype: torch.dtype) -> torch.Tensor:
        """One mapping with a segment for each rank."""
        nbytes = length * dtype.itemsize
        stride = -(-max(nbytes, 1) // _PAGE_BYTES) * _PAGE_BYTES
        mapped = self._map(stride * self.local.size)
        parts = [np.frombuffer(mapped, np.uint8, nbytes, rank * stride) for rank in range(self.local.size)]
        return self._known(parts[self.local.rank], parts, common=False).view(dtype)

    def common(self, length: int, dtype: torch.dtype) -> torch.Tensor:
        """One mapping, which is everybody's."""
        whole = np.frombuffer(self._map(max(length * dtype.itemsize, 1)), np.uint8, length * dtype.itemsize)
        return self._known(whole, [whole] * self.local.size, common=True).view(dtype)

    def peers(self, vector: Array) -> list[Array] | None:
        """Views, also of a part of what was allocated."""
        segment = self._segment_of(vector)
        return None if segment is None else segment.peers(vector)

    def is_common(self, vector: Array) -> bool:
        """Whether ``common`` gave it."""
        segment = self._segment_of(vector)
        return segment is not None and segment.common

    def _segment_of(self, vector: Array) -> _Segment | None:
        address = address_of(vector)
        return next((part for part in self._segments.values() if part.holds(address, vector.nbytes)), None)

    def _known(self, mine: Array, parts: list[Array], common: bool) -> torch.Tensor:
        key = id(mine)
        self._segments[key] = _Segment(mine, parts, common)
        weakref.finalize(mine, self._segments.pop, key, None)
        return torch.from_numpy(mine)

    def _map(self, nbytes: int) -> mmap.mmap:
        """The leader makes it, the others open it through /proc while the leader waits; no name is left."""
        made, problem = -1, None
        if self.local.rank == 0:
            try:
                made = os.memfd_create("distloop", os.MFD_CLOEXEC)
                os.ftruncate(made, nbytes)
            except OSError as error:
                problem = f"shared memory of {nbytes:,} bytes cannot be had ({error.strerror})"
        process, descriptor, problem = exchange(self.local, [os.getpid(), made, problem])[0]
        if problem:
            raise ConfigError(f"{problem}. Expected enough memory: take --strategy zero").on_all_ranks()
        try:
            with together(self.local):
                mapped = _opened(f"/proc/{process}/fd/{descriptor}", nbytes)
        finally:
            if made >= 0:
                os.close(made)
        return mapped


def _opened(path: str, nbytes: int) -> mmap.mmap:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            if os.fstat(descriptor).st_size != nbytes:
                raise OSError(0, "it has another size")
            mapped = mmap.mmap(descriptor, nbytes)
        finally:
            os.close(descriptor)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"the memory that ranks of a node share cannot be opened through {path} ({error}). Expected ranks that see "
            "each other's processes: start them in one container or PID namespace, or take --strategy zero or ring"
        ) from error
    with suppress(OSError):
        mapped.madvise(mmap.MADV_HUGEPAGE)  # where the kernel has huge pages for shared memory
    return mapped


def address_of(vector: Array) -> int:
    """Where it begins."""
    address: int = vector.__array_interface__["data"][0]
    return address


__all__ = ["Memory", "NodeMemory", "PrivateMemory", "address_of"]
