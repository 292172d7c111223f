"""Gradients land in the flat vector: large ones while they are hot, as soon as autograd has each one, which is then
freed; small ones all at once after backward, because a hook in Python costs more than their copy."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from distloop.comm.mpi import MPI
from distloop.errors import ModelError
from distloop.flat import Flat

HOT_ELEMENTS = 1 << 16  # from here on: 256 KiB of float32, half of a usual second-level cache

_LANDINGS: weakref.WeakSet[Landing] = weakref.WeakSet()


class Landing:
    """Where gradients land. ``used[i]`` says, once agreed, whether any rank has a gradient for parameter i."""

    def __init__(self, flats: Sequence[Flat], hot_elements: int, landed: Callable[[int], None] | None = None) -> None:
        """Parameters are numbered through, over all flat vectors; those of at least ``hot_elements`` have hooks.

        ``landed``: told by each hook of the number of its parameter.
        """
        places = [(flat, slot) for flat in flats for slot in flat.slots]
        self.parameters: list[nn.Parameter] = [slot.parameter for _, slot in places]
        self._views = [flat.gradients[slot.start : slot.stop].view(slot.shape) for flat, slot in places]
        self._everything = bytes([1] * len(places))
        self._landed = bytearray(len(places))
        self._tell = landed
        self.open = hot_elements == 0 and landed is None  # to products: always, or while the learner itself is at it
        self.used = self._everything
        self.scale = 1.0  # of what lands: a rank's share of the global batch, where a loss is a mean over its own rows
        hot = [index for index, parameter in enumerate(self.parameters) if parameter.numel() >= hot_elements]
        self._cold = sorted(set(range(len(places))) - set(hot))
        self._cold_views = [self._views[index] for index in self._cold]
        self._cold_parameters = [self.parameters[index] for index in self._cold]
        _LANDINGS.add(self)
        self._looked = False
        self._handles: list[Any] = [
            self.parameters[index].register_post_accumulate_grad_hook(self._hook(index))  # type: ignore[no-untyped-call]
            for index in hot
        ]

    def _hook(self, index: int) -> Callable[[Tensor], None]:
        view, landed, tell = self._views[index], self._landed, self._tell

        def land(parameter: Tensor) -> None:
            gradient = parameter.grad
            if gradient is not None:  # else it has landed as a product, or there is none
                dense = gradient.to_dense() if gradient.is_sparse else gradient
                if self.scale != 1.0:
                    dense = dense.to(torch.promote_types(view.dtype, torch.float32)) * self.scale
                view.add_(dense) if landed[index] else view.copy_(dense)
                landed[index] = 1
                parameter.grad = None
            if tell is not None:
                tell(index)

        return land

    def sweep(self) -> None:
        """Land what has no hook: one call for all of them, if all are there and are the first of their step."""
        gradients = [parameter.grad for parameter in self._cold_parameters]
        first = not any(map(self._landed.__getitem__, self._cold))
        if first and all(gradient is not None and not gradient.is_sparse for gradient in gradients):
            if gradients:
                torch._foreach_copy_(self._cold_views, gradients)  # type: ignore[arg-type]
                for index in self._cold:
                    self._landed[index] = 1
        else:
            for index, view, gradient in zip(self._cold, self._cold_views, gradients, strict=True):
                if gradient is not None:
                    dense = gradient.to_dense() if gradient.is_sparse else gradient
                    view.add_(dense) if self._landed[index] else view.copy_(dense)
                    self._landed[index] = 1
        for parameter in self._cold_parameters:
            parameter.grad = None

    def dtype_of(self, index: int) -> torch.dtype:
        """In which the gradient of a parameter lands."""
        return self._views[index].dtype

    def land_product(self, index: int, rows: Tensor, inputs: Tensor) -> bool:
        """Compute a weight's gradient, rows (R, out) times inputs (..., in), where it lands; False if it must not be.

        It must not where the gradient is to be differentiated itself, or backward is not about this learner.
        """
        if not self.open or torch.is_grad_enabled():
            return False
        beta = 1 if self._landed[index] else 0
        view = self._views[index]
        flat = inputs.reshape(-1, inputs.shape[-1])
        torch.addmm(view, rows.t(), flat, beta=beta, alpha=self.scale, out=view)
        self._landed[index] = 1
        return True

    def inputs(self, loss: Tensor) -> list[nn.Parameter] | None:
        """What backward shall be about: these parameters, where another learner has some that it would reach as well.

        With nobody else, everything. Told what it is about, autograd leaves re-entrant checkpoints out, in silence: so
        a ModelError is raised for one of these beside other learners.
        """
        if len(_LANDINGS) == 1:
            return None
        if not self._looked:
            self._looked = True
            if _is_reentrant(loss):
                gc.collect()  # of learners that nobody uses any more
                if len(_LANDINGS) == 1:
                    self._looked = False
                    return None
                raise ModelError(
                    "the model has a re-entrant checkpoint, which backward for one of several learners would leave "
                    "out. Expected torch.utils.checkpoint with use_reentrant=False"
                )
        return [parameter for parameter in self.parameters if parameter.requires_grad]

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Backward is about this learner's loss."""
        before, self.open = self.open, True
        try:
            yield
        finally:
            self.open = before

    @property
    def missing(self) -> bool:
        """Whether some parameter has no gradient on this rank."""
        return 0 in self._landed

    def has_landed(self, indices: range) -> bool:
        """Whether all of these parameters have one."""
        return 0 not in self._landed[indices.start : indices.stop]

    def clear_missing(self, indices: range) -> None:
        """What of these did not land here counts as zero."""
        for index in indices:
            if not self._landed[index]:
                self._views[index].zero_()

    def agree(self, control: MPI.Intracomm, anywhere: bool) -> None:
        """Settle ``used``. ``anywhere``: some rank is missing some."""
        self.used = self._everything
        if not anywhere:
            return
        used = np.frombuffer(bytes(self._landed), dtype=np.uint8).copy()
        control.Allreduce(MPI.IN_PLACE, used, MPI.MAX)
        self.used = used.tobytes()

    def clear(self) -> None:
        """The next gradient of each parameter is the first of a new step."""
        self._landed[:] = bytes(len(self._landed))

    def remove(self) -> None:
        """Take the hooks away."""
        _LANDINGS.discard(self)
        for handle in self._handles:
            handle.remove()


def _is_reentrant(loss: Tensor) -> bool:
    """Whether a re-entrant checkpoint lies in its graph."""
    seen: set[Any] = set()
    ahead = [loss.grad_fn]
    while ahead:
        node = ahead.pop()
        if node is not None and node not in seen:
            if node.name() == "CheckpointFunctionBackward":
                return True
            seen.add(node)
            ahead += [following for following, _ in node.next_functions]
    return False
