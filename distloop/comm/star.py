"""The naive one: everybody sends everything to rank 0, which sums and sends back. Simple, and p times the bytes."""

from __future__ import annotations

from typing import final

import numpy as np

from distloop.comm.collective import Array, Collective, Flat
from distloop.partition import Partition


@final
class Star(Collective):
    """Rank 0 is the centre.

    Cost, all-reduce of N bytes over p ranks: the centre receives and sends (p-1)N bytes, one message a peer, one after
    another: 2(p-1)(α + N/B). A peer sends N. Scratch: N at the centre. Sums go in order of rank.
    Source: the parameter server of one node; Li et al., OSDI 2014, is the grown-up form.
    """

    def all_reduce(self, flat: Flat) -> None:
        """To rank 0 and back: the centre owns everything between the two halves."""
        everything_at_centre = Partition.at_root(len(flat), self.world_size)
        self.reduce_scatter(flat, everything_at_centre)
        self.all_gather(flat, everything_at_centre)

    def reduce_scatter(self, flat: Flat, partition: Partition) -> None:
        """Gather the vectors at rank 0, sum them there, send each rank its slice."""
        vector = self.vector("reduce_scatter", flat)
        if self.rank == 0:
            self._sum_arrivals(vector)
            for owner in range(1, self.world_size):
                self._send(vector[partition.slice_of(owner)], owner)
        else:
            self._send(vector, 0)
            self._receive(vector[partition.slice_of(self.rank)], 0)

    def all_gather(self, flat: Flat, partition: Partition) -> None:
        """Gather the slices at rank 0, then send everybody the whole."""
        vector = self.vector("all_gather", flat)
        if self.rank == 0:
            for owner in range(1, self.world_size):
                self._receive(vector[partition.slice_of(owner)], owner)
            for peer in range(1, self.world_size):
                self._send(vector, peer)
        else:
            self._send(vector[partition.slice_of(self.rank)], 0)
            self._receive(vector, 0)

    def _sum_arrivals(self, vector: Array) -> None:
        arrived = np.empty_like(vector)
        for peer in range(1, self.world_size):
            self._receive(arrived, peer)
            vector += arrived

    def _send(self, piece: Array, peer: int) -> None:
        if piece.size:
            self.comm.Send(piece, peer)

    def _receive(self, piece: Array, peer: int) -> None:
        if piece.size:
            self.comm.Recv(piece, peer)
