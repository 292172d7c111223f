"""A module that is trained as a unit: its flat parameters, who owns them, where they live, and its optimizer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from distloop.comm.agree import exchange, together
from distloop.comm.mpi import MPI
from distloop.errors import NotFiniteError
from distloop.flat import Flat, flatten
from distloop.landing import Landing
from distloop.optimizers import MakeOptimizer, cuts_allowed, made
from distloop.ownership import Ownership
from distloop.partition import Partition
from distloop.placement import Placed, Placement
from distloop.replicas import Buffers, check_same_model, same_start

if TYPE_CHECKING:
    from distloop.tasks.task import Loss


class Schedule(Protocol):
    """What torch's learning-rate schedulers offer, as far as a learner needs it."""

    def step(self) -> None:
        """After each optimizer step."""


class ConstantRate:
    """The learning rate stays as it is."""

    def step(self) -> None:
        """Nothing to do."""


@dataclass
class Gradients:
    """What one step has gathered on this rank: ``total`` and ``weight`` are sums over its rows.

    The gradients themselves lie in the learner's flat vectors. After the reduction ``mean_loss`` is the mean over the
    global batch.
    """

    total: float = 0.0
    weight: float = 0.0
    divisor: float = 1.0
    mean_loss: float = math.nan

    def add(self, loss: Loss) -> None:
        """One minibatch more."""
        self.total += loss.total.item()
        self.weight += loss.weight
        self.divisor = loss.divisor


@dataclass(frozen=True)
class Piece:
    """What this rank owns of one parameter: a whole one keeps its shape, a cut one only its number of dimensions.

    So a rule such as "weight decay for matrices only", which looks at that number, holds for both.
    """

    name: str
    parameter: Tensor
    gradient: Tensor
    index: int


@dataclass(eq=False)
class Part:
    """One flat vector with what this rank owns of it."""

    placed: Placed
    partition: Partition | None
    pieces: list[Piece]


class Learner:
    """Trains ``module``, which is moved into flat vectors and made equal on all ranks (rank 0's values win).

    Collective: every rank makes it, with a module of the same structure, and calls its methods in the same order.
    Use: ``gradients`` once a minibatch; then ``reduce_to_owner``, ``apply`` for each part, and ``broadcast``.
    Raises ModelError, on all ranks, if the modules' parameters or buffers differ in name, shape or type.
    """

    def __init__(
        self,
        module: nn.Module,
        ownership: Ownership,
        placement: Placement,
        make_optimizer: MakeOptimizer,
        make_schedule: Callable[[torch.optim.Optimizer], Schedule] = lambda optimizer: ConstantRate(),
        clip: float | None = None,
    ) -> None:
        """``make_optimizer`` gets named tensors, as torch's optimizers take them: ``lambda named: Adam(named)``.

        ``clip``: the largest global norm that a gradient may have, over all parameters and ranks; ``norm`` is then the
        last one, before clipping.
        """
        self.module, self.ownership, self.clip = module, ownership, clip
        self.control = ownership.collective.comm.control
        check_same_model(self.control, module)
        same_start(ownership.collective, module)
        with together(self.control):
            anywhere = cuts_allowed(make_optimizer)
            self.flats = flatten(module)
        self.landing = Landing(self.flats)
        self.parts = list(_parts(self.flats, ownership, placement, anywhere))
        pieces = [(piece.name, piece.parameter) for part in self.parts for piece in part.pieces]
        with together(self.control):
            self.optimizer = made(make_optimizer, pieces)
        self.schedule = make_schedule(self.optimizer)
        self.buffers = Buffers(module, ownership.collective)
        self.steps, self.norm = 0, math.nan
        self._pending = Gradients()
        self._attached: tuple[Part | None, bytes] = (None, b"")

    def gradients(self, loss: Loss) -> Gradients:
        """Backward: add this minibatch's gradients to the step's.

        A rank without rows passes a loss without a graph, and takes part all the same.
        """
        if loss.total.requires_grad:
            torch.autograd.backward(loss.total / loss.divisor, inputs=self.landing.parameters)
        self._pending.add(loss)
        return self._pending

    def gathered(self, weight: float, divisor: float) -> Gradients:
        """The step's gradients where somebody else called backward, with the loss's scale in ``landing.scale``."""
        self._pending.weight, self._pending.divisor = weight, divisor
        return self._pending

    def reduce_to_owner(self, gradients: Gradients) -> Iterator[Part]:
        """Sum over the ranks and divide by the weight of the global batch; yields what ``apply`` takes.

        A parameter that got no gradient on any rank is left out of the step, as in torch.
        Raises NotFiniteError on all ranks, before anything is changed, if the loss is not finite on any, or
        the norm of the gradient, where it is looked at.
        """
        scale = self._agree_on_step(gradients)
        for part in self.parts:
            part.placed.pull_gradients()
            self.ownership.reduce(part.placed.wire_gradients.array, part.partition)
            part.placed.take()
            if self.clip is None:
                yield self._scaled(part, scale)
        if self.clip is not None:
            self.norm = self._norm() * scale
            if not math.isfinite(self.norm):
                raise self._not_finite("the gradient's norm", "")
            factor = min(1.0, self.clip / (self.norm + 1e-6))
            yield from [self._scaled(part, scale * factor) for part in self.parts]

    def apply(self, part: Part) -> None:
        """The optimizer's step on what this rank owns of ``part``."""
        self._attach(part)
        self.optimizer.step()

    def broadcast(self) -> None:
        """Fresh parameters and equal buffers on every rank; the step is done."""
        for part in self.parts:
            if part.partition is None:
                part.placed.keep()
            else:
                part.placed.give()
                self.ownership.gather(part.placed.wire_parameters.array, part.partition)
                part.placed.spread()
        self.buffers.average(self._pending.weight)
        self.schedule.step()
        self._forget()
        self.steps += 1

    def release(self) -> None:
        """Give the module back: parameters in memory of their own, no hooks."""
        self.landing.remove()
        for flat in self.flats:
            flat.release()

    def _forget(self) -> None:
        """The next gradients are the first of a new step."""
        self.landing.clear()
        self._pending = Gradients()

    def _agree_on_step(self, gradients: Gradients) -> float:
        """What every rank must know before it changes anything: weight, loss, and who lacks which gradient.

        Returns the factor that makes the sum of the gradients their mean over the global batch.
        """
        facts = np.array(
            [gradients.weight, gradients.total, self.landing.missing, self.buffers.changed], dtype=np.float64
        )
        self.control.Allreduce(MPI.IN_PLACE, facts)
        weight, total, missing, changed = facts.tolist()
        if not math.isfinite(total):
            totals = exchange(self.control, repr(gradients.total))
            bad = [f"rank {rank}: {text}" for rank, text in enumerate(totals) if not math.isfinite(float(text))]
            raise self._not_finite("the loss", f" ({', '.join(bad) or 'the sum over the ranks'})")
        self.landing.agree(self.control, anywhere=missing > 0)
        self.buffers.agree(weight, anywhere=changed > 0)
        gradients.mean_loss = total / weight if weight else math.nan
        return gradients.divisor / weight if weight else 0.0

    def _not_finite(self, what: str, where: str) -> NotFiniteError:
        """Forget the step, what its forward did to the buffers included; the error to raise, on all ranks."""
        self._forget()
        self.buffers.restore()
        error = NotFiniteError(
            f"{what} is not finite at step {self.steps + 1}{where}. The weights are those before that step: "
            "lower the learning rate, clip the gradient, or look at the data"
        )
        return error.on_all_ranks()

    def _norm(self) -> float:
        """Of the summed gradient over all parameters and, where each rank owns a part, over all ranks."""
        squares = np.array([sum(_square(part.placed.gradients) for part in self.parts)], dtype=np.float64)
        if self.parts[0].partition is not None:
            self.control.Allreduce(MPI.IN_PLACE, squares)
        return math.sqrt(float(squares[0]))

    def _scaled(self, part: Part, factor: float) -> Part:
        if factor != 1.0:
            part.placed.gradients.mul_(factor)
        return part

    def _attach(self, part: Part) -> None:
        """Show the optimizer the gradients of this part alone, and none for parameters that nobody has used."""
        used = self.landing.used
        if self._attached == (part, used):
            return
        for other in self.parts:
            for piece in other.pieces:
                piece.parameter.grad = piece.gradient if other is part and used[piece.index] else None
        self._attached = (part, used)


def _square(vector: Tensor) -> float:
    return (
        float(torch.linalg.vector_norm(vector, dtype=torch.float64 if vector.device.type == "cpu" else torch.float32))
        ** 2
    )


def _parts(flats: Sequence[Flat], ownership: Ownership, placement: Placement, anywhere: bool) -> Iterator[Part]:
    index = 0
    for flat in flats:
        cuts: Sequence[int] = range(flat.length + 1) if anywhere else flat.boundaries
        partition = ownership.partition(cuts)
        owned = ownership.owned(partition, flat.length)
        placed = placement.place(flat, owned)
        yield Part(placed, partition, list(_pieces(flat, placed, index)))
        index += len(flat.slots)


def _pieces(flat: Flat, placed: Placed, first: int) -> Iterator[Piece]:
    origin = placed.owned.start
    for index, slot in enumerate(flat.slots, first):
        start, stop = max(slot.start, origin), min(slot.stop, placed.owned.stop)
        if start >= stop:
            continue
        here = slice(start - origin, stop - origin)
        whole = stop - start == slot.stop - slot.start
        shape = slot.shape if whole else torch.Size([1] * (len(slot.shape) - 1) + [stop - start])
        yield Piece(slot.name, placed.parameters[here].view(shape), placed.gradients[here].view(shape), index)


__all__ = ["ConstantRate", "Gradients", "Learner", "MakeOptimizer", "Part", "Piece", "Schedule"]
