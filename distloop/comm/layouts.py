"""Which vectors hold gradients, and of what shapes: nothing else may be summed approximately."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from distloop.comm.memory import Array, address_of

Tensors = list[tuple[slice, tuple[int, ...]]]


class Layouts:
    """Known by address and length, so that every view of the same memory is the same vector."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, int, np.dtype[Any]], tuple[Array, Tensors]] = {}

    def tell(self, vector: Array, tensors: Iterable[tuple[slice, Sequence[int]]]) -> None:
        """``vector`` (P,) holds gradients from now on, a tensor of that shape in each of those slices.

        It is kept alive, so that no other vector can come to lie in its place.
        """
        self._known[_place(vector)] = (vector, [(where, tuple(shape)) for where, shape in tensors])

    def of(self, vector: Array) -> Tensors | None:
        """What was told of this memory; None for a vector of anything else."""
        found = self._known.get(_place(vector))
        return None if found is None else found[1]

    def vectors(self) -> list[Array]:
        """All of them, in the order in which they were told: the same on every rank and in every run."""
        return [vector for vector, _ in self._known.values()]


def _place(vector: Array) -> tuple[int, int, np.dtype[Any]]:
    return address_of(vector), vector.size, vector.dtype
