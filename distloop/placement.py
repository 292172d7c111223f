"""Where the optimizer works: beside the model, or in host memory with a master copy of the parameters.

MPI moves host memory only (the wheels know no accelerator), so each vector has a *mirror* there: on the CPU the vector
itself, on an accelerator a pinned buffer, and every copy between the two is written out here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import final

import torch
from torch import Tensor

from distloop.comm.collective import Array
from distloop.flat import Flat


class Mirror(ABC):
    """A device vector's image in host memory, ``host`` (P,); ``array`` is the same memory for MPI."""

    host: Tensor

    @abstractmethod
    def pull(self, part: slice) -> None:
        """Device to host."""

    @abstractmethod
    def push(self, part: slice) -> None:
        """Host to device."""

    @property
    def array(self) -> Array:
        """The host memory as an array; half types as 16-bit integers, which MPI can move though not sum."""
        half = self.host.dtype in (torch.bfloat16, torch.float16)
        return (self.host.view(torch.int16) if half else self.host).numpy()


@final
class SameMemory(Mirror):
    """The vector is in host memory already: nothing to copy."""

    def __init__(self, vector: Tensor) -> None:
        self.host = vector

    def pull(self, part: slice) -> None:
        """Nothing to do."""

    def push(self, part: slice) -> None:
        """Nothing to do."""


@final
class Staged(Mirror):
    """A host buffer, pinned where the device is a CUDA one, because copies from pageable memory are staged twice."""

    def __init__(self, vector: Tensor) -> None:
        self.device = vector
        self.host = torch.empty(vector.shape, dtype=vector.dtype, pin_memory=vector.device.type == "cuda")

    def pull(self, part: slice) -> None:
        """Blocks until the bytes are there: MPI reads them next."""
        self.host[part].copy_(self.device[part])

    def push(self, part: slice) -> None:
        """Ordered before the device's next work on the vector."""
        self.device[part].copy_(self.host[part], non_blocking=True)


def mirror(vector: Tensor) -> Mirror:
    """The right one for where the vector lies."""
    return SameMemory(vector) if vector.device.type == "cpu" else Staged(vector)


class Placed(ABC):
    """One flat vector with its mirrors. ``parameters`` (owned,) is what the optimizer updates, by ``gradients``.

    Order of calls in a step: ``pull_gradients``, (reduce), ``take``, (optimizer), then ``give``, (gather), ``spread``;
    or ``keep`` instead of the last three, where every rank owns everything.
    """

    parameters: Tensor
    gradients: Tensor

    def __init__(self, flat: Flat, owned: slice) -> None:
        self.flat, self.owned = flat, owned
        self.whole = slice(0, flat.length)
        self.wire_parameters, self.wire_gradients = mirror(flat.parameters), mirror(flat.gradients)

    @final
    def pull_gradients(self) -> None:
        """This rank's gradients, to where MPI can reduce them."""
        self.wire_gradients.pull(self.whole)

    @abstractmethod
    def take(self) -> None:
        """The reduced gradients of what is owned, to where the optimizer wants them."""

    @abstractmethod
    def give(self) -> None:
        """The updated parameters of what is owned, to where MPI can gather them."""

    @abstractmethod
    def keep(self) -> None:
        """The updated parameters, to the module, where there is nobody to gather from."""

    @final
    def spread(self) -> None:
        """All parameters, from where MPI gathered them to the module."""
        self.wire_parameters.push(self.whole)


class Placement(ABC):
    """Makes a ``Placed`` for each flat vector."""

    @abstractmethod
    def place(self, flat: Flat, owned: slice) -> Placed:
        """Put optimizer and parameters where they belong."""


@final
class Resident(Placement):
    """The optimizer works where the model lives. "Not offloaded" is this object, never a flag."""

    def place(self, flat: Flat, owned: slice) -> Placed:
        """No copy of the parameters is made."""
        return _ResidentPlaced(flat, owned)


@final
class Offloaded(Placement):
    """Optimizer state and a float32 master copy of what is owned live in host memory; the device holds only the model.

    Cost per step: N bytes device to host (gradients), N bytes host to device (parameters).
    Source: Ren et al., ZeRO-Offload, arXiv 2101.06840.
    """

    def place(self, flat: Flat, owned: slice) -> Placed:
        """Makes the master copy."""
        return _OffloadedPlaced(flat, owned)


@final
class _ResidentPlaced(Placed):
    def __init__(self, flat: Flat, owned: slice) -> None:
        super().__init__(flat, owned)
        self.parameters = flat.parameters[owned]
        reduced = flat.gradients[owned]
        self.gradients = reduced if reduced.dtype == flat.dtype else torch.empty_like(self.parameters)
        self._reduced = reduced

    def take(self) -> None:
        self.wire_gradients.push(self.owned)
        if self.gradients is not self._reduced:
            self.gradients.copy_(self._reduced)

    def give(self) -> None:
        self.wire_parameters.pull(self.owned)

    def keep(self) -> None:
        pass


@final
class _OffloadedPlaced(Placed):
    def __init__(self, flat: Flat, owned: slice) -> None:
        super().__init__(flat, owned)
        self.gradients = self.wire_gradients.host[owned]
        self.parameters = flat.parameters[owned].to("cpu", self.gradients.dtype, copy=True)

    def take(self) -> None:
        pass

    def give(self) -> None:
        self.wire_parameters.host[self.owned].copy_(self.parameters)

    def keep(self) -> None:
        self.give()
        self.spread()
