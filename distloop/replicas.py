"""What keeps the ranks' modules alike: the same structure and start, and buffers that end each step equal."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from distloop.comm.agree import exchange
from distloop.comm.collective import Collective
from distloop.comm.mpi import MPI
from distloop.errors import ModelError


def _signature(module: nn.Module) -> list[str]:
    parameters = [f"parameter {n} {tuple(p.shape)} {p.dtype} {p.requires_grad}" for n, p in module.named_parameters()]
    return parameters + [f"buffer {name} {tuple(b.shape)} {b.dtype}" for name, b in module.named_buffers()]


def check_same_model(control: MPI.Intracomm, module: nn.Module) -> None:
    """Raise ModelError on all ranks if the modules differ in names, shapes, types or what is frozen."""
    mine = _signature(module)
    digests = exchange(control, hashlib.sha256("\n".join(mine).encode()).hexdigest())
    if len(set(digests)) == 1:
        return
    everyone = exchange(control, mine)
    other = next(rank for rank, digest in enumerate(digests) if digest != digests[0])
    error = ModelError(
        f"rank {other} has another model than rank 0: {_difference(everyone[0], everyone[other], other)}. Expected the "
        "same model on all ranks: build it from the configuration alone, not from the rank, the host or the data shard"
    )
    raise error.on_all_ranks()


def _difference(first: Sequence[str], second: Sequence[str], other: int) -> str:
    for a, b in zip(first, second, strict=False):
        if a != b:
            return f"rank 0 has {a}, rank {other} has {b}"
    return f"rank 0 has {len(first)} parameters and buffers, rank {other} has {len(second)}"


def same_start(collective: Collective, module: nn.Module) -> None:
    """Give every rank rank 0's parameters and buffers, frozen ones included."""
    for tensor in [*module.parameters(), *module.buffers()]:
        host = tensor.detach().cpu().contiguous().reshape(-1)
        collective.broadcast(host.view(torch.uint8) if host.numel() else host.to(torch.uint8))
        tensor.detach().copy_(host.view(tensor.shape))


class Buffers:
    """Keeps a module's buffers (batch-norm statistics) equal on all ranks.

    After every step floating-point ones are the mean over the ranks, weighted as the loss is (by rows), integer and
    boolean ones the maximum; if no rank has changed any, nothing is sent.
    """

    def __init__(self, module: nn.Module, collective: Collective) -> None:
        self._places = [(owner, name) for owner in module.modules() for name in owner._buffers]
        self._collective, self._control = collective, collective.comm.control
        self._weight, self._pending = 0.0, False
        self._keep()

    def _tensors(self) -> list[Tensor]:
        found = [owner._buffers[name] for owner, name in self._places]
        return [tensor for tensor in found if tensor is not None]

    def _versions(self) -> list[tuple[int, int]]:
        return [(id(tensor), tensor._version) for tensor in self._tensors()]

    @property
    def changed(self) -> bool:
        """Whether this rank's forward has changed any since the last step."""
        return bool(self._places) and self._versions() != self._seen

    def agree(self, weight: float, anywhere: bool) -> None:
        """``weight``: of the global batch. ``anywhere``: some rank has changed some."""
        self._weight, self._pending = weight, anywhere

    def average(self, weight: float) -> None:
        """Make them equal. ``weight``: of this rank's rows."""
        if not self._pending:
            return
        tensors = [torch.view_as_real(tensor) if tensor.is_complex() else tensor for tensor in self._tensors()]
        self._mean([tensor for tensor in tensors if tensor.is_floating_point()], weight)
        self._maximum([tensor for tensor in tensors if not tensor.is_floating_point()])
        self._keep()

    def restore(self) -> None:
        """Undo what the forward of a step did that is not taken."""
        if self.changed:
            for tensor, kept in zip(self._tensors(), self._kept, strict=True):
                tensor.detach().copy_(kept)
        self._pending = False
        self._keep()

    def _keep(self) -> None:
        self._kept = [tensor.detach().clone() for tensor in self._tensors()]
        self._seen = self._versions()

    def _mean(self, tensors: list[Tensor], weight: float) -> None:
        if not tensors:
            return
        share = weight / self._weight if self._weight else 1 / self._collective.world_size
        packed = torch.cat([tensor.detach().reshape(-1).to("cpu", torch.float64) for tensor in tensors])
        packed = packed * share if share else torch.zeros_like(packed)
        self._collective.all_reduce(packed)
        _unpack(packed, tensors)

    def _maximum(self, tensors: list[Tensor]) -> None:
        if not tensors:
            return
        packed = torch.cat([tensor.detach().reshape(-1).to("cpu", torch.int64) for tensor in tensors])
        self._control.Allreduce(MPI.IN_PLACE, packed.numpy(), MPI.MAX)
        _unpack(packed, tensors)


def _unpack(packed: Tensor, tensors: list[Tensor]) -> None:
    for tensor, values in zip(tensors, torch.split(packed, [tensor.numel() for tensor in tensors]), strict=True):
        tensor.detach().copy_(values.view(tensor.shape))
