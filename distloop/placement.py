"""Where the optimizer works: beside the model, or in host memory with a master copy of the parameters.

MPI moves host memory only (the wheels know no accelerator), so each vector has a *mirror* there: on the CPU the vector
itself, on an accelerator a pinned buffer, and every copy between the two is written out here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import final

import torch
from torch import Tensor

from distloop.comm.memory import Array, PrivateMemory
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
    """A host buffer, pinned where the device is a CUDA one and nobody else looks at it: copies from pageable memory
    are staged twice."""

    def __init__(self, vector: Tensor, host: Tensor) -> None:
        self.device, self.host = vector, host

    def pull(self, part: slice) -> None:
        """Blocks until the bytes are there: MPI reads them next."""
        self.host[part].copy_(self.device[part])

    def push(self, part: slice) -> None:
        """Ordered before the device's next work on the vector."""
        self.device[part].copy_(self.host[part], non_blocking=True)


class Carried:
    """One flat vector with its mirrors, from which all its parts are moved. Making it is collective."""

    def __init__(self, flat: Flat) -> None:
        self.flat = flat
        room, pin = flat.room, isinstance(flat.room.memory, PrivateMemory)
        self.parameters = _mirror(flat.parameters, lambda: room.parameters(flat.length, flat.dtype), pin)
        self.gradients = _mirror(flat.gradients, lambda: room.gradients(flat.length, flat.dtype), pin)


def _mirror(vector: Tensor, make: Callable[[], Tensor], pin: bool) -> Mirror:
    """The right one for where the vector lies; ``pin``: what the device copies from, if it is a CUDA one."""
    if vector.device.type == "cpu":
        return SameMemory(vector)
    host = make()
    return Staged(vector, host.pin_memory() if pin and vector.device.type == "cuda" else host)


class Placed(ABC):
    """What a rank owns of a part of a flat vector. ``parameters`` (owned,) is what the optimizer updates.

    ``gradients`` (owned,) is where the reduced gradients are found when ``take`` has been called.
    Order of calls in a step: ``pull_gradients``, (reduce), ``take``, (optimizer), then ``give``, (gather), ``spread``;
    or ``keep`` instead of the last three, where every rank owns everything.
    """

    parameters: Tensor
    gradients: Tensor

    def __init__(self, carried: Carried, reach: slice, owned: slice) -> None:
        """``reach``: of the part, and ``owned``: of what this rank owns of it; both in the whole flat vector."""
        self.flat, self.carried, self.reach, self.owned = carried.flat, carried, reach, owned
        self.wire_gradients = carried.gradients.array[reach]
        self.wire_parameters = carried.parameters.array[reach]

    @final
    def pull_gradients(self) -> None:
        """This rank's gradients, to where they can be reduced."""
        self.carried.gradients.pull(self.reach)

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
        self.carried.parameters.push(self.reach)


class Placement(ABC):
    """Makes a ``Placed`` for each part of a flat vector."""

    on_host: bool
    """Whether the optimizer takes gradients in host memory, wherever the model lives."""

    @abstractmethod
    def place(self, carried: Carried, reach: slice, owned: slice) -> Placed:
        """Put optimizer and parameters where they belong."""


@final
class Resident(Placement):
    """The optimizer works where the model lives. "Not offloaded" is this object, never a flag."""

    on_host = False

    def place(self, carried: Carried, reach: slice, owned: slice) -> Placed:
        """No copy of the parameters is made."""
        return _ResidentPlaced(carried, reach, owned)


@final
class Offloaded(Placement):
    """Optimizer state and a float32 master copy of what is owned live in host memory; the device holds only the model.

    Cost per step: N bytes device to host (gradients), N bytes host to device (parameters).
    Source: Ren et al., ZeRO-Offload, arXiv 2101.06840.
    """

    on_host = True

    def place(self, carried: Carried, reach: slice, owned: slice) -> Placed:
        """Makes the master copy."""
        return _OffloadedPlaced(carried, reach, owned)


@final
class _ResidentPlaced(Placed):
    def __init__(self, carried: Carried, reach: slice, owned: slice) -> None:
        super().__init__(carried, reach, owned)
        self.parameters = self.flat.parameters[owned]
        reduced = self.flat.gradients[owned]
        self.gradients = reduced if reduced.dtype == self.flat.dtype else torch.empty_like(self.parameters)
        self._reduced = reduced

    def take(self) -> None:
        self.carried.gradients.push(self.owned)
        if self.gradients is not self._reduced:
            self.gradients.copy_(self._reduced)

    def give(self) -> None:
        self.carried.parameters.pull(self.owned)

    def keep(self) -> None:
        pass


@final
class _OffloadedPlaced(Placed):
    def __init__(self, carried: Carried, reach: slice, owned: slice) -> None:
        super().__init__(carried, reach, owned)
        reduced = carried.gradients.host[owned]
        wide = torch.float64 if reduced.dtype == torch.float64 else torch.float32
        self.gradients = reduced if reduced.dtype == wide else torch.empty_like(reduced, dtype=wide)
        self.parameters = self.flat.parameters[owned].to("cpu", wide, copy=True)
        self._reduced = reduced

    def take(self) -> None:
        if self.gradients is not self._reduced:
            self.gradients.copy_(self._reduced)

    def give(self) -> None:
        self.carried.parameters.host[self.owned].copy_(self.parameters)

    def keep(self) -> None:
        self.give()
        self.spread()
