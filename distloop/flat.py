"""A module's parameters as one contiguous vector per data type; the module's own tensors become views of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import nn

from distloop.comm.memory import Memory, PrivateMemory
from distloop.errors import ModelError

# MPI cannot sum half types, and sums of many of them would lose what they add: their gradients travel in float32.
_GRADIENT_DTYPE = {
    torch.float64: torch.float64,
    torch.float32: torch.float32,
    torch.bfloat16: torch.float32,
    torch.float16: torch.float32,
}


@dataclass(frozen=True)
class Slot:
    """Where one parameter lies in its flat vector: elements ``[start, stop)``."""

    name: str
    parameter: nn.Parameter
    start: int
    stop: int

    @property
    def shape(self) -> torch.Size:
        """The parameter's own shape."""
        return self.parameter.shape


@dataclass(frozen=True)
class Room:
    """Where the vectors of a module in host memory lie: in ``memory``, one for all ranks of a node if ``common``."""

    memory: Memory = field(default_factory=PrivateMemory)
    common: bool = False
    gradient_dtype: torch.dtype | None = None
    """In which gradients of float32 and shorter types wait for their sum; None: float32."""

    def parameters(self, length: int, dtype: torch.dtype) -> torch.Tensor:
        """Zeros, (length,). Collective."""
        return self.memory.common(length, dtype) if self.common else torch.zeros(length, dtype=dtype)

    def gradients(self, length: int, dtype: torch.dtype) -> torch.Tensor:
        """Zeros, (length,), for gradients of parameters of ``dtype``. Collective."""
        return self.memory.own(length, self.dtype_of(dtype))

    def dtype_of(self, dtype: torch.dtype) -> torch.dtype:
        """Of the gradients of parameters of ``dtype``."""
        wide = _GRADIENT_DTYPE[dtype]
        return self.gradient_dtype if self.gradient_dtype is not None and wide == torch.float32 else wide


class Flat:
    """The trainable parameters of one data type.

    ``parameters`` (P,) in that type and ``gradients`` (P,) in float32 (float64 for float64), on the module's device.
    """

    def __init__(
        self, dtype: torch.dtype, device: torch.device, named: list[tuple[str, nn.Parameter]], room: Room
    ) -> None:
        """Moves the values into the vector and makes each parameter a view of it. Collective, through ``room``."""
        self.dtype, self.room = dtype, room
        self.slots = list(_slots(named))
        self.length = self.slots[-1].stop
        if device.type == "cpu":
            self.parameters = room.parameters(self.length, dtype)
            self.gradients = room.gradients(self.length, dtype)
        else:
            self.parameters = torch.empty(self.length, dtype=dtype, device=device)
            self.gradients = torch.zeros(self.length, dtype=_GRADIENT_DTYPE[dtype], device=device)
        for slot in self.slots:
            view = self.parameters[slot.start : slot.stop].view(slot.shape)
            view.copy_(slot.parameter.detach())
            slot.parameter.data = view
            slot.parameter.grad = None  # one from before would be added to the first that lands

    @property
    def boundaries(self) -> list[int]:
        """Where the vector may be cut without cutting a parameter."""
        return [0, *(slot.stop for slot in self.slots)]

    def buckets(self, least_bytes: int) -> list[slice]:
        """The vector cut between parameters, from its end on, as backward comes to it: each of at least so many bytes.

        What is left over at the beginning may be smaller.
        """
        cuts = [self.length]
        for edge in reversed(self.boundaries):
            if (cuts[-1] - edge) * self.gradients.element_size() >= least_bytes:
                cuts.append(edge)
        if cuts[-1] > 0:
            cuts.append(0)
        return [slice(start, stop) for stop, start in pairwise(cuts)]

    def indices_in(self, bucket: slice) -> range:
        """Which parameters lie in a bucket; one without elements at an edge lies in the bucket before."""
        inside = [
            index
            for index, slot in enumerate(self.slots)
            if bucket.start <= slot.start
            and slot.stop <= bucket.stop
            and (slot.stop > bucket.start or bucket.start == 0)
        ]
        return range(inside[0], inside[-1] + 1)

    def slots_in(self, bucket: slice) -> list[Slot]:
        """Those parameters."""
        inside = self.indices_in(bucket)
        return self.slots[inside.start : inside.stop]

    def release(self) -> None:
        """Give each parameter memory of its own again."""
        for slot in self.slots:
            slot.parameter.data = slot.parameter.detach().clone()


def _slots(named: list[tuple[str, nn.Parameter]]) -> Iterator[Slot]:
    start = 0
    for name, parameter in named:
        stop = start + parameter.numel()
        yield Slot(name, parameter, start, stop)
        start = stop


@dataclass(frozen=True)
class Plan:
    """What will be flattened: the trainable parameters by data type, in order of first occurrence."""

    device: torch.device
    by_dtype: dict[torch.dtype, list[tuple[str, nn.Parameter]]]

    def flatten(self, room: Room) -> list[Flat]:
        """One ``Flat`` for each data type. Collective, through ``room``."""
        return [Flat(dtype, self.device, named, room) for dtype, named in self.by_dtype.items()]


def plan(module: nn.Module) -> Plan:
    """Look at the module; a parameter that several layers share occurs once.

    Raises ModelError for what cannot be trained so.
    """
    trainable = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
    if not trainable:
        raise ModelError(
            f"{type(module).__name__} has no parameter with requires_grad. Expected at least one to train: "
            "unfreeze one, or use the model for prediction only"
        )
    devices = {parameter.device for _, parameter in trainable}
    if len(devices) > 1:
        raise ModelError(
            f"the parameters are on {sorted(map(str, devices))}. Expected one device per rank: model.to(...)"
        )
    for name, part in module.named_modules():
        if getattr(part, "max_norm", None) is not None and isinstance(part, nn.Embedding | nn.EmbeddingBag):
            raise ModelError(
                f"{name or 'the module'} has max_norm={part.max_norm}, by which forward itself changes the weights, on "
                "each rank others. Expected weights that only the optimizer changes: leave max_norm out, and clip"
            )
    by_dtype: dict[torch.dtype, list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in trainable:
        if parameter.dtype not in _GRADIENT_DTYPE:
            raise ModelError(
                f"parameter {name} is {parameter.dtype}. Expected float32, float64, bfloat16 or float16: a complex one "
                "can be held as real and imaginary parts (torch.view_as_complex)"
            )
        by_dtype.setdefault(parameter.dtype, []).append((name, parameter))
    (device,) = devices
    return Plan(device, by_dtype)
