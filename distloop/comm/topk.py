"""Of a gradient only the largest elements: a hundredth of the bytes or less, where few elements say most of it."""

from __future__ import annotations

import math
from typing import final

import numpy as np
import torch
from torch import Tensor

from distloop.comm.collective import Collective
from distloop.comm.compressed import LEAST_ELEMENTS, Compressed, Sum
from distloop.comm.layouts import Tensors
from distloop.comm.memory import Array
from distloop.errors import ConfigError
from distloop.partition import Partition

SAMPLE_ELEMENTS = 1 << 16


@final
class TopK(Compressed):
    """Each rank sends the k = fraction * n elements of gradient plus residual that are largest by magnitude.

    Pairs of index and value (4 + 4 bytes) of all ranks are gathered by the wrapped collective, and every rank adds them
    up in order of rank. Cost: 8k(p-1) bytes received per rank, against 2(p-1)/p * 4n of a ring: it pays if k/n < 1/p.
    Compute: about five passes over the vector.
    Source: Stich, Cordonnier and Jaggi, NeurIPS 2018, arXiv 1809.07599; Lin et al., Deep Gradient Compression, ICLR
    2018, arXiv 1712.01887, of which momentum correction and warm-up are not here.
    """

    def __init__(self, collective: Collective, fraction: float = 0.01, least_elements: int = LEAST_ELEMENTS) -> None:
        """``fraction`` of the elements travels, at least one. Raises ConfigError unless it is in (0, 1]."""
        if not 0 < fraction <= 1:
            raise ConfigError(f"topk with fraction {fraction}: expected more than 0 and at most 1, such as 0.01")
        super().__init__(collective, least_elements)
        self.fraction = fraction

    def sum_of(self, vector: Array, tensors: Tensors) -> Sum:
        """Over the vector as a whole: whichever tensor its largest elements are in."""
        return _LargestOf(self.collective, vector, math.ceil(self.fraction * vector.size))


@final
class _LargestOf(Sum):
    """``pairs`` (p, 2, k): a row of indices and one of values for each rank, both as int32, since MPI only moves them.

    A vector longer than an int32 can count would need longer indices.
    """

    def __init__(self, collective: Collective, vector: Array, count: int) -> None:
        world_size = collective.world_size
        self.collective, self.count = collective, count
        self.total, self.residual = torch.from_numpy(vector), torch.zeros(vector.size)
        self.wire = collective.memory.own(world_size * 2 * count, torch.int32)
        self.partition = Partition.even(self.wire.numel(), world_size)
        pairs = self.wire.view(world_size, 2, count)
        self.pairs = [(of_rank[0], of_rank[1].view(torch.float32)) for of_rank in pairs]
        self.indices, self.values = self.pairs[collective.rank]

    def all_reduce(self) -> None:
        self.residual.add_(self.total)
        magnitudes = torch.abs(self.residual, out=self.total)
        if math.isfinite(float(magnitudes.max())):
            self._take(largest(magnitudes, self.count))
        else:
            self._give_up()
        self.collective.all_gather(self.wire, self.partition)
        self.total.zero_()
        for indices, values in self.pairs:
            self.total.index_add_(0, indices, values)

    def state(self) -> dict[str, Tensor]:
        return {"residual": self.residual}

    def _take(self, chosen: Tensor) -> None:
        self.indices.copy_(chosen)
        torch.index_select(self.residual, 0, self.indices, out=self.values)
        self.residual.index_fill_(0, chosen, 0)

    def _give_up(self) -> None:
        """Tell everybody, by elements that are not a number."""
        torch.arange(self.count, out=self.indices)
        self.values.fill_(math.nan)
        self.residual.zero_()


def largest(magnitudes: Tensor, count: int) -> Tensor:
    """Indices (count,) int64, ascending, of the largest elements; among equal ones, any.

    A sample gives a bound that a few more than ``count`` should exceed; where they do, only these are looked at closer.
    """
    length = magnitudes.numel()
    sample = magnitudes[:: max(1, length // SAMPLE_ELEMENTS)]
    expected = min(sample.numel(), math.ceil(sample.numel() * count / length * 1.25) + 16)
    bound = torch.topk(sample, expected, sorted=False).values.min()
    candidates = np.flatnonzero((magnitudes >= bound).numpy())
    if candidates.size < count:
        candidates = np.arange(length)
    among = magnitudes.numpy()[candidates]
    keep = np.zeros(candidates.size, dtype=bool)
    keep[np.argpartition(among, candidates.size - count)[candidates.size - count :]] = True
    return torch.from_numpy(candidates[keep])
