"""Who carries a bucket to its owner: the training thread itself, or a second thread while backward goes on.

The second thread calls *blocking* collectives: inside MPI they release Python's lock, and no MPI is known to make
progress on a non-blocking one that nobody waits for. It pays where a network is in the way; on one node it would only
take the core from the computing.
"""

from __future__ import annotations

import queue
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cache
from typing import final

Job = Callable[[], None]


class Ticket:
    """A job that was given away. ``wait`` raises what the job has raised."""

    def __init__(self) -> None:
        self._done = threading.Event()
        self._error: BaseException | None = None

    def run(self, job: Job) -> None:
        """Do it; nothing is raised here."""
        try:
            job()
        except BaseException as error:
            self._error = error
        finally:
            self._done.set()

    def wait(self) -> None:
        """Until it is done."""
        self._done.wait()
        if self._error is not None:
            raise self._error


class Done(Ticket):
    """Nothing to wait for."""

    def wait(self) -> None:
        """At once."""


class Courier(ABC):
    """Does jobs in the order in which they were given: the same on all ranks, as they communicate."""

    early: bool
    """Whether giving a job as early as possible gains anything."""

    @abstractmethod
    def give(self, job: Job) -> Ticket:
        """Have it done."""


@final
class Myself(Courier):
    """The calling thread, at once."""

    early = False

    def __init__(self) -> None:
        self._done = Done()

    def give(self, job: Job) -> Ticket:
        """Raises what the job raises."""
        job()
        return self._done


@final
class SecondThread(Courier):
    """One thread for all learners of the process, which ends with it: so jobs never meet in MPI, and keep their order.

    It is not waited for at the end, since a rank that fails must not wait for what never comes.
    """

    early = True

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[tuple[Ticket, Job]] = queue.SimpleQueue()
        threading.Thread(target=self._work, name="communication", daemon=True).start()

    @classmethod
    @cache
    def of_process(cls) -> SecondThread:
        """The one."""
        return cls()

    def give(self, job: Job) -> Ticket:
        """Returns at once."""
        ticket = Ticket()
        self._jobs.put((ticket, job))
        return ticket

    def _work(self) -> None:
        while True:
            ticket, job = self._jobs.get()
            ticket.run(job)


__all__ = ["Courier", "Job", "Myself", "SecondThread", "Ticket"]
