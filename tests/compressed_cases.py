"""What the compressed sums are tested with, on threads and under mpirun alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from distloop.comm import Collective, Native, Ring, Star
from distloop.partition import Partition

WRAPPED: dict[str, Callable[[Any], Collective]] = {"ring": Ring, "star": Star, "native": Native}
SHAPES = ((40, 30), (30,), (8, 3, 5, 5), (7,), (2, 2), (), (50, 20))


def length_of(shapes: Sequence[tuple[int, ...]]) -> int:
    return sum(int(np.prod(shape)) for shape in shapes)


def tell(collective: Collective, vector: np.ndarray, shapes: Sequence[tuple[int, ...]] = SHAPES) -> np.ndarray:
    """``vector`` holds gradients of these shapes, one after another."""
    ends = np.cumsum([0, *(int(np.prod(shape)) for shape in shapes)])
    assert ends[-1] == vector.size
    collective.layouts.tell(vector, [(slice(a, b), s) for a, b, s in zip(ends, ends[1:], shapes, strict=False)])
    return vector


def gradients(collective: Collective, shapes: Sequence[tuple[int, ...]] = SHAPES) -> np.ndarray:
    """A vector for them."""
    return tell(collective, np.zeros(length_of(shapes), np.float32), shapes)


def normal(world_size: int, length: int, seed: int = 0) -> np.ndarray:
    """A row for each rank."""
    return np.random.default_rng(seed).standard_normal((world_size, length), dtype=np.float32)


def ring_bytes(length: int, rank: int, world_size: int) -> int:
    """What a rank of a ring sends to sum ``length`` float32: all chunks but its own, then all but its neighbour's."""
    counts = Partition.even(length, world_size).counts
    return 4 * (2 * length - counts[rank] - counts[(rank + 1) % world_size])


def low_rank_lengths(shapes: Sequence[tuple[int, ...]], rank: int) -> tuple[int, int]:
    """Elements of the two messages of PowerSGD, by its formula."""
    first = second = 0
    for shape in shapes:
        n, size = (shape or (1,))[0], int(np.prod(shape))
        if len(shape) > 1 and rank * (n + size // n) < size:
            first, second = first + rank * n, second + rank * (size // n)
        else:
            first += size
    return first, second
