"""How bytes move: what every collective algorithm offers.

A ring all-reduce *is* a reduce-scatter followed by an all-gather, and ZeRO puts the optimizer between the two halves;
so the halves are the interface. All work in place on one contiguous vector of host memory.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import final

import torch

from distloop.comm.agree import exchange
from distloop.comm.counted import counted
from distloop.comm.layouts import Layouts
from distloop.comm.memory import Array, Memory, PrivateMemory
from distloop.comm.mpi import MPI
from distloop.errors import ShapeError
from distloop.partition import Partition

Flat = Array | torch.Tensor


class Collective(ABC):
    """One algorithm over the ranks of ``comm``. Every method is collective: all ranks call it, in the same order."""

    memory: Memory
    """Where vectors should lie that are to be moved fast; others are taken too."""
    overlaps: bool
    """Whether a network is in the way, so that moving vectors while the rank computes hides time."""
    handed_bytes: float
    """Vectors up to here are summed by the library's own all-reduce, as quick and simpler."""
    reads: bool
    """Whether every rank can read in the memory of every other: then a sum can be taken where it is used."""
    layouts: Layouts
    """Which vectors hold gradients; a collective that wraps another shares its."""

    def __init__(
        self,
        comm: MPI.Intracomm,
        memory: Memory | None = None,
        *,
        overlaps: bool = False,
        reads: bool = False,
        handed_bytes: float = 0,
    ) -> None:
        """``comm`` is used as it is if it counts its traffic, else duplicated into one that does (collective)."""
        self.comm = counted(comm)
        self.rank, self.world_size = comm.rank, comm.size
        self.memory, self.overlaps, self.reads = memory or PrivateMemory(), overlaps, reads
        self.handed_bytes = handed_bytes
        self.layouts = Layouts()
        self._agreed: set[tuple[str, int, str]] = set()

    @abstractmethod
    def all_reduce(self, flat: Flat) -> None:
        """Sum ``flat`` (P,) over the ranks, on every rank, with the same bits on each."""

    @abstractmethod
    def reduce_scatter(self, flat: Flat, partition: Partition) -> None:
        """Sum ``flat`` (P,) over the ranks; leave rank r holding slice r of the sum. The rest of it is scratch."""

    @abstractmethod
    def all_gather(self, flat: Flat, partition: Partition) -> None:
        """Give every rank the slices that the others hold, slice r from rank r."""

    @final
    def broadcast(self, flat: Flat, root: int = 0) -> None:
        """Give every rank what ``root`` holds: an all-gather where the root holds everything."""
        self.all_gather(flat, Partition.at_root(len(flat), self.world_size, root))

    @final
    def reducing(self, vector: Array, partition: Partition | None) -> Callable[[], None]:
        """``all_reduce``, or ``reduce_scatter`` where there is a partition, of the same memory, step after step.

        What can be looked up is looked up here; a vector short enough is handed to the library. Collective.
        """
        self.vector("all_reduce" if partition is None else "reduce_scatter", vector)
        if partition is not None:
            return partial(self.reduce_scatter, vector, partition)
        if 0 < vector.nbytes <= self.handed_bytes:
            return self.comm.all_reducing(vector)
        return partial(self.all_reduce, vector)

    @final
    def gathering(self, vector: Array, partition: Partition) -> Callable[[], None]:
        """``all_gather`` of the same memory, step after step: what can be looked up is looked up here. Collective.

        Where all ranks have the vector in common, there is nothing to gather, only to wait for.
        """
        self.vector("all_gather", vector)
        if self.reads and self.memory.is_common(vector):
            return self.comm.control.Barrier
        return partial(self.all_gather, vector, partition)

    @final
    def readable(self, vector: Array) -> list[Array] | None:
        """What every rank has in the place of ``vector``, in order of rank, where this rank can read it."""
        return self.memory.peers(vector) if self.reads else None

    @final
    def vector(self, what: str, flat: Flat) -> Array:
        """``flat`` as an array over the same memory, once ranks agree that they hold the same.

        Asked the first time that a rank sees a length and type, so that a training step pays nothing. Raises
        ShapeError on all ranks where they differ then; a later confusion of two lengths known to all is not noticed.
        """
        array = as_array(flat)
        signature = (what, array.size, array.dtype.name)
        if signature not in self._agreed:
            self._agree_on(signature)
        return array

    def _agree_on(self, signature: tuple[str, int, str]) -> None:
        answers = exchange(self.comm.control, signature)
        if any(answer != list(signature) for answer in answers):
            each = "; ".join(f"rank {rank}: {name} of {size} {kind}" for rank, (name, size, kind) in enumerate(answers))
            error = ShapeError(f"ranks disagree about a collective call ({each}). Expected the same call on all ranks")
            raise error.on_all_ranks()
        self._agreed.add(signature)


def as_array(flat: Flat) -> Array:
    """An array over the memory of ``flat``: 1-D, contiguous, in host memory. Raises ShapeError if it cannot be."""
    if isinstance(flat, torch.Tensor):
        if flat.device.type != "cpu" or flat.dtype == torch.bfloat16:
            raise ShapeError(
                f"a collective was given a {flat.dtype} tensor on {flat.device}. Expected host memory and a type that "
                "MPI can sum: copy it to the CPU, and use float32 for bfloat16"
            )
        flat = flat.detach().numpy()
    if flat.ndim != 1 or not flat.flags.c_contiguous:
        raise ShapeError(
            f"a collective was given an array of shape {flat.shape}, strides {flat.strides}. Expected one contiguous "
            "dimension: pass tensor.view(-1)"
        )
    return flat


__all__ = ["Array", "Collective", "Flat", "as_array"]
