"""The MPI library's own collectives: the best choice for small vectors, and the yardstick for all others."""

from __future__ import annotations

import math
from typing import final

import numpy as np

from distloop.comm.collective import Collective, Flat
from distloop.comm.mpi import MPI
from distloop.partition import Partition


@final
class Native(Collective):
    """MPI_Allreduce, MPI_Reduce_scatter and MPI_Allgatherv.

    Cost: the library chooses the algorithm by size; the traffic counted is what it is handed: N bytes, one message a
    call. Scratch: a slice for the reduce-scatter, and whatever the library takes.
    Source: MPI standard 4.1, chapter 6; Thakur, Rabenseifner and Gropp, IJHPCA 2005.
    """

    def __init__(self, comm: MPI.Intracomm) -> None:
        """Everything is handed over."""
        super().__init__(comm, handed_bytes=math.inf)

    def all_reduce(self, flat: Flat) -> None:
        """MPI_Allreduce, in place."""
        vector = self.vector("all_reduce", flat)
        if vector.size:
            self.comm.Allreduce(MPI.IN_PLACE, vector)

    def reduce_scatter(self, flat: Flat, partition: Partition) -> None:
        """MPI_Reduce_scatter; the sum is copied into its place, which the standard has no way to name."""
        vector = self.vector("reduce_scatter", flat)
        if vector.size:
            owned = vector[partition.slice_of(self.rank)]
            total = np.empty_like(owned)
            self.comm.Reduce_scatter(vector, total, list(partition.counts))
            owned[:] = total

    def all_gather(self, flat: Flat, partition: Partition) -> None:
        """MPI_Allgatherv. The slice is copied first: sending from the receiving memory is not allowed."""
        vector = self.vector("all_gather", flat)
        if vector.size:
            owned = vector[partition.slice_of(self.rank)].copy()
            self.comm.Allgatherv(owned, [vector, list(partition.counts)])
