"""When the ranks meet: at every step, or only every so many, each stepping alone in between. 1/k of the bytes.

This is local SGD, and with an optimizer on top of it DiLoCo. The ranks learn something else than plain data
parallelism would (what it costs in loss: ``python -m tests.benchmarks.talking_less``), and what they learn depends on
their number.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor, nn

from distloop.comm import CountedComm, Native
from distloop.comm.agree import exchange
from distloop.comm.collective import Collective
from distloop.comm.counted import kept
from distloop.comm.memory import Array
from distloop.comm.mpi import MPI
from distloop.errors import ConfigError, NotFiniteError
from distloop.ownership import Ownership, Replicated
from distloop.parts import Part
from distloop.replicas import Buffers
from distloop.timeline import Timeline

MakeOuter = Callable[[list[Tensor]], torch.optim.Optimizer]


def average(anchors: list[Tensor]) -> torch.optim.Optimizer:
    """All ranks go where their mean is: local SGD."""
    return torch.optim.SGD(anchors, lr=1.0)


def nesterov(anchors: list[Tensor], lr: float = 0.7, momentum: float = 0.9) -> torch.optim.Optimizer:
    """The mean way that ranks have gone is a gradient to an optimizer of its own: DiLoCo, with the paper's values."""
    return torch.optim.SGD(anchors, lr=lr, momentum=momentum, nesterov=True)


OUTERS: dict[str, Callable[..., torch.optim.Optimizer]] = {"average": average, "nesterov": nesterov}


@dataclass(frozen=True)
class Known:
    """A mean loss over all ranks, and the weight (rows, tokens) that it is the mean of: 0 if nothing new is known."""

    mean_loss: float = math.nan
    weight: float = 0.0


class Meetings(ABC):
    """Of a learner's ranks, besides what they do at every step."""

    @abstractmethod
    def refuse(self, error: NotFiniteError) -> None:
        """A step cannot be taken: raise, if all ranks know; else keep it until they meet."""

    @abstractmethod
    def after_step(self, total: float, weight: float, step: Known, timeline: Timeline) -> Known:
        """A step is done: ``total`` and ``weight`` are this rank's, ``step`` what its ranks know of it."""

    @abstractmethod
    def meet(self, timeline: Timeline) -> Known:
        """Equal replicas, now. Raises on all ranks what a rank has kept."""


class Rhythm(ABC):
    """When the ranks meet."""

    @abstractmethod
    def of_step(self, ownership: Ownership) -> Ownership:
        """With whom a single step is shared. Collective."""

    @abstractmethod
    def meetings(self, ownership: Ownership, module: nn.Module, parts: Sequence[Part]) -> Meetings:
        """``ownership``: of all ranks; ``parts``: of a learner that has that of ``of_step``."""


@final
class EveryStep(Rhythm):
    """All ranks take every step together."""

    def of_step(self, ownership: Ownership) -> Ownership:
        """With all."""
        return ownership

    def meetings(self, ownership: Ownership, module: nn.Module, parts: Sequence[Part]) -> Meetings:
        """None are needed."""
        return _AlwaysTogether()


@final
class _AlwaysTogether(Meetings):
    def refuse(self, error: NotFiniteError) -> None:
        raise error

    def after_step(self, total: float, weight: float, step: Known, timeline: Timeline) -> Known:
        return step

    def meet(self, timeline: Timeline) -> Known:
        return Known()


@final
@dataclass(frozen=True)
class LocalSteps(Rhythm):
    """Each rank takes ``every`` steps alone, on its own rows, with its own optimizer; then the ranks meet.

    Then each sends how far it has gone, weighted by its rows: w_r / W * (anchor - parameters), where the anchor is what
    all had after the last meeting. The sum is the gradient of ``make_outer``'s optimizer on the anchor, whose step all
    ranks take alike. Buffers are averaged. The optimizer's state stays each rank's own; so does the norm that clipping
    looks at.
    Cost: nothing at all between meetings, an all-reduce at each: 2(p-1)/p N / k bytes a step; N bytes for the anchor.
    Source: Stich, Local SGD, ICLR 2019, arXiv 1805.09767; Douillard et al., DiLoCo, arXiv 2311.08105.
    """

    every: int
    make_outer: MakeOuter = average

    def of_step(self, ownership: Ownership) -> Ownership:
        """A world of one. Raises ConfigError on all ranks if no rank has all that it needs to step alone."""
        if ownership.divides:
            error = ConfigError(
                f"{type(ownership).__name__} ownership gives each rank a part of the parameters to update, so that "
                "none can take a step alone. Expected a replicated strategy with --sync-every: ring, native or star"
            )
            raise error.on_all_ranks()
        comm = ownership.collective.comm
        alone = kept(comm, "alone", lambda: CountedComm(comm.control.Split(comm.control.rank)))
        return Replicated(Native(alone))

    def meetings(self, ownership: Ownership, module: nn.Module, parts: Sequence[Part]) -> Meetings:
        """Begins at what the parameters are now, which must be the same on all ranks."""
        return NowAndThen(ownership.collective, module, parts, self)


@final
class NowAndThen(Meetings):
    """Where the ranks stand: the anchors, and what each has seen since they met."""

    def __init__(self, collective: Collective, module: nn.Module, parts: Sequence[Part], rhythm: LocalSteps) -> None:
        self.collective, self.control, self.every = collective, collective.comm.control, rhythm.every
        self.ways = [_Way(part) for part in parts]
        for way in self.ways:
            collective.layouts.tell(way.wire, way.tensors)
        self.outer = rhythm.make_outer([way.anchor for way in self.ways])
        self.buffers = Buffers(module, collective)
        self.known = Known()
        self.since, self.total, self.weight, self.problem = 0, 0.0, 0.0, ""

    def refuse(self, error: NotFiniteError) -> None:
        """Kept: the first one since the ranks met."""
        self.problem = self.problem or str(error).partition(" (")[0].partition(". ")[0]

    def after_step(self, total: float, weight: float, step: Known, timeline: Timeline) -> Known:
        """Between meetings nothing new is known of the loss."""
        self.since += 1
        self.total, self.weight = self.total + total, self.weight + weight
        return self.meet(timeline) if self.since == self.every else Known(self.known.mean_loss)

    def meet(self, timeline: Timeline) -> Known:
        """Average, and take the outer step; at most once after a step."""
        if not self.since:
            return Known()
        facts = np.array([self.weight, self.total, bool(self.problem), self.buffers.changed], dtype=np.float64)
        with timeline.span("wait"):
            self.control.Allreduce(MPI.IN_PLACE, facts)
        weight, total, problems, changed = facts.tolist()
        if problems:
            raise self._failed()
        self.buffers.agree(weight, anywhere=changed > 0)
        if weight:
            self._average(self.weight / weight, timeline)
        self.buffers.average(self.weight)
        self.known = Known(total / weight, weight) if weight else Known()
        self._forget()
        return self.known

    def state(self) -> dict[str, Array]:
        """The outer optimizer's momentum, the same on all ranks; between meetings there is more, which is not here."""
        found = ((number, self.outer.state.get(way.anchor, {})) for number, way in enumerate(self.ways))
        return {
            f"{number}.{name}": value.numpy()
            for number, state in found
            for name, value in state.items()
            if isinstance(value, Tensor)
        }

    def load(self, state: Mapping[str, Array]) -> None:
        """Go on from what ``state`` gave; the anchors are what the parameters are now."""
        for number, way in enumerate(self.ways):
            way.settle()
            mine = {key.partition(".")[2]: value for key, value in state.items() if key.startswith(f"{number}.")}
            self.outer.state[way.anchor] = {name: torch.from_numpy(np.array(value)) for name, value in mine.items()}

    def _average(self, share: float, timeline: Timeline) -> None:
        for way in self.ways:
            way.measure(share)
            with timeline.span("transfer", way.part.number):
                self.collective.all_reduce(way.wire)
        with timeline.span("optimizer"):
            self.outer.step()
            for way in self.ways:
                way.follow()

    def _failed(self) -> NotFiniteError:
        """All go back to where they last met; the error to raise, on all ranks."""
        problems = exchange(self.control, self.problem)
        told = "; ".join(f"rank {rank}: {text}" for rank, text in enumerate(problems) if text)
        for way in self.ways:
            way.follow()
        self.buffers.restore()
        error = NotFiniteError(
            f"{told}. The weights are those of the ranks' last meeting, {self.since} steps ago: lower the learning "
            "rate, clip the gradient, or look at the data"
        )
        self._forget()
        return error.on_all_ranks()

    def _forget(self) -> None:
        self.since, self.total, self.weight, self.problem = 0, 0.0, 0.0, ""


@final
class _Way:
    """Of one part, how far this rank has gone from the ``anchor`` (P,), in host memory and the type of its gradients.

    ``wire`` (P,) is the gradients' own memory, which is free between steps.
    """

    def __init__(self, part: Part) -> None:
        self.part, placed = part, part.placed
        self.wire = placed.wire_gradients
        self.gone = torch.from_numpy(self.wire)
        self.anchor = torch.empty_like(self.gone)
        self.anchor.grad = self.gone
        first = placed.reach.start
        slots = placed.flat.slots_in(placed.reach)
        self.tensors = [(slice(slot.start - first, slot.stop - first), slot.shape) for slot in slots]
        self.settle()

    def settle(self) -> None:
        """The anchor is where this rank is."""
        self.anchor.copy_(self.part.placed.parameters)

    def measure(self, share: float) -> None:
        """``share``: of this rank's rows in all ranks'."""
        self.gone.copy_(self.part.placed.parameters)
        torch.sub(self.anchor, self.gone, out=self.gone).mul_(share)

    def follow(self) -> None:
        """This rank is where the anchor is."""
        self.part.placed.parameters.copy_(self.anchor)
        self.part.placed.keep()


__all__ = ["OUTERS", "EveryStep", "Known", "LocalSteps", "MakeOuter", "Meetings", "Rhythm", "average", "nesterov"]
