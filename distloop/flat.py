"""A module's parameters as one contiguous vector per data type; the module's own tensors become views of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

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


class Flat:
    """The trainable parameters of one data type.

    ``parameters`` (P,) in that type and ``gradients`` (P,) in float32 (float64 for float64), on the module's device.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device, named: list[tuple[str, nn.Parameter]]) -> None:
        """Moves the values into the vector and makes each parameter a view of it."""
        self.dtype = dtype
        self.slots = list(_slots(named))
        self.length = self.slots[-1].stop
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


def flatten(module: nn.Module) -> list[Flat]:
    """One ``Flat`` for each data type among the module's trainable parameters, in order of first occurrence.

    A parameter that several layers share occurs once. Raises ModelError for what cannot be trained so.
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
    by_dtype: dict[torch.dtype, list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in trainable:
        if parameter.dtype not in _GRADIENT_DTYPE:
            raise ModelError(
                f"parameter {name} is {parameter.dtype}. Expected float32, float64, bfloat16 or float16: a complex one "
                "can be held as real and imaginary parts (torch.view_as_complex)"
            )
        by_dtype.setdefault(parameter.dtype, []).append((name, parameter))
    (device,) = devices
    return [Flat(dtype, device, named) for dtype, named in by_dtype.items()]
