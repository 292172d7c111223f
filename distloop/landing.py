"""Gradients land in the flat vector while they are hot: as soon as autograd has each one, which is then freed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from distloop.comm.mpi import MPI
from distloop.flat import Flat


class Landing:
    """Hooks on every parameter. ``used[i]`` says, once agreed, whether any rank has a gradient for parameter i."""

    def __init__(self, flats: Sequence[Flat]) -> None:
        """Parameters are numbered through, over all flat vectors."""
        places = [(flat, slot) for flat in flats for slot in flat.slots]
        self.parameters: list[nn.Parameter] = [slot.parameter for _, slot in places]
        self._views = [flat.gradients[slot.start : slot.stop].view(slot.shape) for flat, slot in places]
        self._everything = bytes([1] * len(places))
        self._landed = bytearray(len(places))
        self.used = self._everything
        self.scale = 1.0  # of what lands: a rank's share of the global batch, where a loss is a mean over its own rows
        self._handles: list[Any] = [
            parameter.register_post_accumulate_grad_hook(self._hook(index))  # type: ignore[no-untyped-call]
            for index, parameter in enumerate(self.parameters)
        ]

    def _hook(self, index: int) -> Callable[[Tensor], None]:
        view, landed = self._views[index], self._landed

        def land(parameter: Tensor) -> None:
            gradient = parameter.grad
            assert gradient is not None
            dense = gradient.to_dense() if gradient.is_sparse else gradient
            if self.scale != 1.0:
                dense = dense.to(view.dtype) * self.scale
            view.add_(dense) if landed[index] else view.copy_(dense)
            landed[index] = 1
            parameter.grad = None

        return land

    @property
    def missing(self) -> bool:
        """Whether some parameter has no gradient on this rank."""
        return 0 in self._landed

    def agree(self, control: MPI.Intracomm, anywhere: bool) -> None:
        """Settle ``used``; what did not land here counts as zero. ``anywhere``: some rank is missing some."""
        self.used = self._everything
        if not anywhere:
            return
        for index in [i for i, landed in enumerate(self._landed) if not landed]:
            self._views[index].zero_()
        used = np.frombuffer(bytes(self._landed), dtype=np.uint8).copy()
        control.Allreduce(MPI.IN_PLACE, used, MPI.MAX)
        self.used = used.tobytes()

    def clear(self) -> None:
        """The next gradient of each parameter is the first of a new step."""
        self._landed[:] = bytes(len(self._landed))

    def remove(self) -> None:
        """Take the hooks away."""
        for handle in self._handles:
            handle.remove()
