"""A module that is trained as a unit: its flat parameters, who owns them, where they live, and its optimizer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from distloop.comm.agree import exchange, together
from distloop.comm.mpi import MPI
from distloop.courier import Courier, Myself, SecondThread
from distloop.direct import disengage, engage
from distloop.errors import NotFiniteError
from distloop.flat import Room, plan
from distloop.landing import HOT_ELEMENTS, Landing
from distloop.local_steps import EveryStep, Known, Rhythm
from distloop.optimizers import MakeOptimizer, Shown, cuts_allowed, made
from distloop.ownership import Ownership
from distloop.parts import Block, Cutting, Joined, Part, Piece, bucket_bytes, parts_of
from distloop.placement import Placement
from distloop.replicas import Buffers, check_same_model, same_start
from distloop.timeline import NoTimeline, Timeline
from distloop.under_way import UnderWay

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

    The gradients themselves lie in the learner's flat vectors. After the step ``known`` is the loss of all ranks: the
    mean over the global batch, or what ranks that step alone knew when they last met.
    """

    total: float = 0.0
    weight: float = 0.0
    divisor: float = 1.0
    known: Known = Known()  # noqa: RUF009 (it is frozen)

    @property
    def mean_loss(self) -> float:
        """That mean."""
        return self.known.mean_loss

    def add(self, loss: Loss) -> None:
        """One minibatch more."""
        self.total += loss.total.item()
        self.weight += loss.weight
        self.divisor = loss.divisor


class Learner:
    """Trains ``module``, which is moved into flat vectors and made equal on all ranks (rank 0's values win).

    Collective: every rank makes it, with a module of the same structure, and calls its methods in the same order.
    Use: ``gradients`` once a minibatch; then ``reduce_to_owner``, ``apply`` for each of its blocks, and ``broadcast``.
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
        *,
        gradient_dtype: torch.dtype | None = None,
        hot_elements: int = HOT_ELEMENTS,
        timeline: Timeline | None = None,
        rhythm: Rhythm | None = None,
    ) -> None:
        """``make_optimizer`` gets named tensors, as torch's optimizers take them: ``lambda named: Adam(named)``.

        ``clip``: the largest global norm that a gradient may have, over all parameters and ranks; ``norm`` is then the
        last one, before clipping. ``gradient_dtype``: in which gradients wait where ranks read each other's memory.
        ``hot_elements``: 0 where somebody else calls backward, so that every gradient lands at once. ``rhythm``: when
        the ranks meet, by default at every step.
        """
        self.module, self.clip, self.timeline = module, clip, timeline or NoTimeline()
        everybody, all_ranks, rhythm = ownership, ownership.collective.comm.control, rhythm or EveryStep()
        check_same_model(all_ranks, module)
        same_start(everybody.collective, module)
        self.ownership = ownership = rhythm.of_step(everybody)
        collective = ownership.collective
        self.control = collective.comm.control
        with together(all_ranks):
            anywhere = cuts_allowed(make_optimizer)
            planned = plan(module)
        # Sums of bfloat16 are taken where they are read, in host memory; elsewhere they are moved, and stay float32.
        read = collective.reads and ownership.divides and (planned.device.type == "cpu" or placement.on_host)
        room = Room(collective.memory, ownership.divides, gradient_dtype if read else None)
        self.flats = planned.flatten(room)
        early = collective.overlaps and hot_elements > 0
        total_bytes = sum(flat.gradients.nbytes for flat in self.flats)
        # One that is not known to be elementwise may count its steps in a group: then all is one step.
        self._at_once = clip is not None or not anywhere
        cutting = Cutting(anywhere, keeps=self._at_once, bucket_bytes=bucket_bytes(total_bytes) if early else None)
        self.parts = parts_of(self.flats, ownership, placement, cutting)
        self.landing = Landing(self.flats, *((0, self._landed) if early else (hot_elements, None)))
        self._direct = list(engage(module, self.landing))
        pieces = [(piece.name, piece.parameter) for part in self.parts for piece in part.pieces]
        with together(all_ranks):
            self.optimizer = made(make_optimizer, pieces)
        self.schedule = make_schedule(self.optimizer)
        blocks = [block for part in self.parts for block in part.blocks]
        self._whole = None if anywhere else Joined(blocks)
        self._shown = Shown(self.optimizer, blocks if self._whole is None else [self._whole])
        self.buffers = Buffers(module, collective)
        self.meetings = rhythm.meetings(everybody, module, self.parts)
        self.steps, self.norm = 0, math.nan
        self.courier: Courier = SecondThread.of_process() if early else Myself()
        self._under_way = UnderWay(self.parts)
        self._pending = Gradients()
        self._facts = np.zeros(4)
        self._seeds: dict[tuple[float, torch.dtype, torch.device], Tensor] = {}

    def gradients(self, loss: Loss, more: bool = False) -> Gradients:
        """Backward: add this minibatch's gradients to the step's; ``more`` minibatches of the same step follow.

        A rank without rows passes a loss without a graph, and takes part all the same.
        """
        self._under_way.begin(armed=self.courier.early and not more)
        if loss.total.requires_grad:
            with self.landing.opened():
                torch.autograd.backward(loss.total, self._seed(loss), inputs=self.landing.inputs(loss.total))
            self.landing.sweep()
        for part in self._under_way.rest():
            self._send(part)
        self._pending.add(loss)
        return self._pending

    def gathered(self, weight: float, divisor: float) -> Gradients:
        """The step's gradients where somebody else called backward, with the loss's scale in ``landing.scale``."""
        self._pending.weight, self._pending.divisor = weight, divisor
        return self._pending

    def reduce_to_owner(self, gradients: Gradients) -> Iterator[Block]:
        """Sum over the ranks and divide by the weight of the global batch; yields what ``apply`` takes.

        A parameter that got no gradient on any rank is left out of the step, as in torch.
        Raises NotFiniteError on all ranks, before anything is changed, if the loss is not finite on any, or
        the norm of the gradient, where it is looked at. A rank that steps alone leaves such a step out instead, and
        says so when the ranks meet.
        """
        try:
            yield from self._reduced(gradients)
        except NotFiniteError as error:
            self.meetings.refuse(error)

    def _reduced(self, gradients: Gradients) -> Iterator[Block]:
        if not self.courier.early:
            for part in self.parts:
                self._prepare(part)
        scale = self._agree_on_step(gradients)
        if self._at_once:
            self._reduce_all()
        if self.clip is not None:
            scale *= self._clipping(scale, self.clip)
        if self._whole is not None:
            yield self._scaled(self._whole, scale)
        for part in self.parts:
            if not self._at_once:
                self._reduce(part)
            for block in part.blocks if self._whole is None else ():
                if not self._at_once:
                    with self.timeline.span("optimizer", part.number):
                        block.ready()
                yield self._scaled(block, scale)
            if self.courier.early:
                self._under_way.gathers.append(self.courier.give(partial(self._gather, part)))
        self._shown.everything()

    def _scaled(self, block: Block, factor: float) -> Block:
        if factor != 1.0:
            block.scale(factor)
        return block

    def apply(self, block: Block) -> None:
        """The optimizer's step on what this rank owns of ``block``."""
        with self.timeline.span("optimizer"):
            self._shown.only(block, self.landing.used)
            self.optimizer.step()

    def broadcast(self) -> None:
        """Fresh parameters and equal buffers on every rank; the step is done."""
        if self.courier.early:
            with self.timeline.span("wait"):
                self._under_way.arrive()
        else:
            for part in self.parts:
                self._gather(part)
        pending = self._pending
        self.buffers.average(pending.weight)
        self.schedule.step()
        self._forget()
        self.steps += 1
        pending.known = self.meetings.after_step(pending.total, pending.weight, pending.known, self.timeline)

    def meet(self) -> Known:
        """Equal replicas: before they are looked at, where ranks step alone for a while. Collective.

        Returns the mean loss since they last met, if that is news. Raises NotFiniteError on all ranks.
        """
        return self.meetings.meet(self.timeline)

    def release(self) -> None:
        """Give the module back: parameters in memory of their own, no hooks."""
        self.landing.remove()
        for layer in self._direct:
            disengage(layer)
        for flat in self.flats:
            flat.release()

    def _landed(self, index: int) -> None:
        """A gradient is there: send all buckets that are complete, in their order, which is the same on all ranks."""
        for part in self._under_way.complete(index):
            self._send(part)

    def _send(self, part: Part) -> None:
        self._prepare(part)
        self._under_way.tickets.append(self.courier.give(partial(self._transfer, part)))

    def _prepare(self, part: Part) -> None:
        self.landing.clear_missing(part.indices)
        part.placed.pull_gradients()

    def _transfer(self, part: Part) -> None:
        with self.timeline.span("transfer", part.number):
            part.reduce()

    def _gather(self, part: Part) -> None:
        with self.timeline.span("transfer", part.number):
            part.gather()

    def _reduce(self, part: Part) -> None:
        """Now, unless it is under way: then it has arrived before the ranks agreed on the step."""
        if not self.courier.early:
            self._transfer(part)

    def _reduce_all(self) -> None:
        for part in self.parts:
            self._reduce(part)
            for block in part.blocks:
                block.ready()

    def _seed(self, loss: Loss) -> Tensor:
        """What backward begins with: one over the divisor."""
        key = (loss.divisor, loss.total.dtype, loss.total.device)
        if key not in self._seeds:
            if len(self._seeds) > 16:
                self._seeds.clear()
            self._seeds[key] = torch.full((), 1 / loss.divisor, dtype=key[1], device=key[2])
        return self._seeds[key]

    def _forget(self) -> None:
        """The next gradients are the first of a new step."""
        self.landing.clear()
        self._pending = Gradients()

    def _agree_on_step(self, gradients: Gradients) -> float:
        """What every rank must know before it changes anything: weight, loss, and who lacks which gradient.

        Returns the factor that makes the sum of the gradients their mean over the global batch.
        """
        with self.timeline.span("wait"):
            facts = self._facts
            facts[:] = gradients.weight, gradients.total, self.landing.missing, self.buffers.changed
            self.courier.give(lambda: self.control.Allreduce(MPI.IN_PLACE, facts)).wait()
            self._under_way.arrive()
        weight, total, missing, changed = facts.tolist()
        if not math.isfinite(total):
            totals = exchange(self.control, repr(gradients.total))
            bad = [f"rank {rank}: {text}" for rank, text in enumerate(totals) if not math.isfinite(float(text))]
            raise self._not_finite("the loss", f" ({', '.join(bad) or 'the sum over the ranks'})")
        self.landing.agree(self.control, anywhere=missing > 0)
        self.buffers.agree(weight, anywhere=changed > 0)
        gradients.known = Known(total / weight, weight) if weight else Known()
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

    def _clipping(self, scale: float, clip: float) -> float:
        """The factor by which the gradient is too long for ``clip``: its norm is over all parameters and, where each
        rank owns a part, over all ranks."""
        blocks = [block for part in self.parts for block in part.blocks]
        squares = np.array([sum(_square(block.gradients) for block in blocks)], dtype=np.float64)
        if self.ownership.divides:
            self.control.Allreduce(MPI.IN_PLACE, squares)
        self.norm = math.sqrt(float(squares[0])) * scale
        if not math.isfinite(self.norm):
            raise self._not_finite("the gradient's norm", "")
        return min(1.0, clip / (self.norm + 1e-6))


def _square(vector: Tensor) -> float:
    return (
        float(torch.linalg.vector_norm(vector, dtype=torch.float64 if vector.device.type == "cpu" else torch.float32))
        ** 2
    )


__all__ = ["Block", "ConstantRate", "Gradients", "Learner", "MakeOptimizer", "Part", "Piece", "Schedule"]
