"""Gradients in fewer bytes than they have: their sum is approximate, and what is left out is kept and sent later."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import final

import numpy as np
from torch import Tensor

from distloop.comm.agree import together
from distloop.comm.collective import Collective, Flat
from distloop.comm.layouts import Tensors
from distloop.comm.memory import Array, address_of
from distloop.errors import ShapeError
from distloop.partition import Partition

LEAST_ELEMENTS = 1024


class Sum(ABC):
    """How one vector is summed: buffers and views are made once, and with them what is remembered between calls."""

    @abstractmethod
    def all_reduce(self) -> None:
        """About the sum of the vector over the ranks, on every rank, with the same bits on each."""

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """What is remembered: views, to be read or written."""


class Compressed(Collective):
    """Wraps ``collective``: float32 gradients are summed approximately, all else exactly by what is wrapped.

    Gradients are what ``layouts`` was told of; short vectors, other types, parameters and every all-gather are exact,
    so that replicas stay equal. The same bits come out on every rank as long as ranks compute alike (one kind of
    processor, one number of threads), as replicated optimizers ask too; sharded ownership asks for nothing.

    *Error feedback*: what a call leaves out stays in a residual, and the next call on that vector adds it, so nothing
    is lost, only late. Scratch: N bytes for it. The residual of a step that is then not taken (a norm that is not
    finite) has already given away what was sent, which is lost with that step.
    A gradient that is not finite stays so for all ranks, and the residual starts again from zero.
    Source: Seide et al., Interspeech 2014; Karimireddy et al., ICML 2019, arXiv 1901.09847.
    """

    def __init__(self, collective: Collective, least_elements: int = LEAST_ELEMENTS) -> None:
        """Vectors of fewer than ``least_elements`` are exact: their latency costs more than their bytes."""
        super().__init__(collective.comm, collective.memory, overlaps=collective.overlaps)
        self.collective, self.layouts, self.least_elements = collective, collective.layouts, least_elements
        self._sums: dict[tuple[int, int], Sum] = {}

    @abstractmethod
    def sum_of(self, vector: Array, tensors: Tensors) -> Sum:
        """How to sum this vector of gradients, which holds those tensors."""

    @final
    def all_reduce(self, flat: Flat) -> None:
        """About the sum, of gradients; else what is wrapped does it."""
        found = self._sum(self.vector("all_reduce", flat))
        if found is None:
            self.collective.all_reduce(flat)
        else:
            found.all_reduce()

    @final
    def reduce_scatter(self, flat: Flat, partition: Partition) -> None:
        """Of gradients the whole sum, on every rank: there is no cheaper half of it."""
        found = self._sum(self.vector("reduce_scatter", flat))
        if found is None:
            self.collective.reduce_scatter(flat, partition)
        else:
            found.all_reduce()

    @final
    def all_gather(self, flat: Flat, partition: Partition) -> None:
        """Exact."""
        self.collective.all_gather(flat, partition)

    @final
    def state(self) -> dict[str, Array]:
        """What this rank remembers: the vectors by number, in the order in which ``layouts`` was told of them."""
        return {
            f"{number}.{name}": part.numpy()
            for number, found in enumerate(map(self._sum, self.layouts.vectors()))
            if found is not None
            for name, part in found.state().items()
        }

    @final
    def load(self, state: Mapping[str, Array]) -> None:
        """Go on from what ``state`` gave. Collective. Raises ShapeError on all ranks if it is of other vectors."""
        own = self.state()
        with together(self.comm.control):
            if {name: part.shape for name, part in own.items()} != {name: part.shape for name, part in state.items()}:
                raise ShapeError(
                    f"the state of a compression has the parts {_told(state)}. Expected {_told(own)}: the same model, "
                    "compression and strategy as when it was saved"
                )
        for name, part in own.items():
            np.copyto(part, state[name])

    def _sum(self, vector: Array) -> Sum | None:
        """None for what must be exact."""
        if vector.dtype != np.float32 or vector.size < self.least_elements:
            return None
        tensors = self.layouts.of(vector)
        if tensors is None:
            return None
        place = (address_of(vector), vector.size)
        if place not in self._sums:
            self._sums[place] = self.sum_of(vector, tensors)
        return self._sums[place]


def _told(state: Mapping[str, Array]) -> str:
    return ", ".join(f"{name} {part.shape}" for name, part in state.items()) or "nothing"
