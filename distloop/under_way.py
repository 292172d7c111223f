"""Which buckets of a step have been sent, where they are sent while backward goes on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from distloop.courier import Ticket
from distloop.errors import ModelError
from distloop.parts import Part


class UnderWay:
    """What of a step is on its way, where buckets are sent while backward goes on."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts = parts
        self.tickets: list[Ticket] = []
        self.gathers: list[Ticket] = []
        self._part_of = {index: part for part in parts for index in part.indices}
        self._arrived: set[int] = set()
        self._left = [len(part.indices) for part in parts]
        self._next, self._armed = 0, False

    def begin(self, armed: bool) -> None:
        """A backward begins, the step's last if ``armed``: only its gradients complete a bucket."""
        self._armed = armed
        if armed:
            self._arrived.clear()
            self._left = [len(part.indices) for part in self.parts]
            self._next = 0

    def complete(self, index: int) -> Iterator[Part]:
        """The buckets that are complete with this gradient, in order."""
        if not self._armed:
            return
        part = self._part_of[index]
        if index in self._arrived:
            raise ModelError(
                "a parameter got two gradients in one backward, as re-entrant checkpointing makes it, after its bucket "
                "had been sent. Expected one: use torch.utils.checkpoint with use_reentrant=False"
            )
        self._arrived.add(index)
        self._left[part.number] -= 1
        while self._next < len(self.parts) and not self._left[self._next]:
            yield self.parts[self._next]
            self._next += 1

    def rest(self) -> Iterator[Part]:
        """After backward: those that lack a gradient, which counts as zero."""
        if self._armed:
            self._armed = False
            yield from self.parts[self._next :]

    def arrive(self) -> None:
        """Wait for everything that was sent."""
        for tickets in (self.tickets, self.gathers):
            for ticket in tickets:
                ticket.wait()
            tickets.clear()
