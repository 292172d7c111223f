"""How ranks agree on facts and failures: JSON over MPI, so that nothing from a peer is ever unpickled."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from distloop import errors
from distloop.comm.mpi import MPI
from distloop.errors import DistloopError


def exchange(comm: MPI.Comm, value: Any) -> list[Any]:
    """What each rank has to say, in order of rank, on every rank. ``value`` is whatever JSON can hold."""
    said = np.frombuffer(json.dumps(value).encode(), dtype=np.uint8)
    lengths = np.empty(comm.size, dtype=np.int64)
    comm.Allgather(np.array([said.size], dtype=np.int64), lengths)
    heard = np.empty(int(lengths.sum()), dtype=np.uint8)
    comm.Allgatherv(said, [heard, lengths.tolist(), MPI.BYTE])
    return [json.loads(part.tobytes()) for part in np.split(heard, np.cumsum(lengths)[:-1])]


def agree(comm: MPI.Comm, problem: DistloopError | None) -> None:
    """Raise on every rank if any rank has a problem, so that none waits for the others for ever.

    The error raised is of the kind that the lowest such rank has, and says which ranks have which problem.
    """
    said = None if problem is None else [type(problem).__name__, str(problem)]
    answers = exchange(comm, said)
    if not any(answers):
        return
    kind = next(answer[0] for answer in answers if answer)
    raise _agreed(kind, _summary(answers)) from problem


def _agreed(kind: str, text: str) -> DistloopError:
    error: DistloopError = getattr(errors, kind, DistloopError)(text)
    return error.on_all_ranks()


def _summary(answers: list[Any]) -> str:
    ranks_of: dict[str, list[int]] = {}
    for rank, answer in enumerate(answers):
        if answer:
            ranks_of.setdefault(answer[1], []).append(rank)
    if len(ranks_of) == 1 and len(next(iter(ranks_of.values()))) == len(answers):
        return next(iter(ranks_of))
    return "; ".join(f"{_ranks(ranks)}: {text}" for text, ranks in ranks_of.items())


def _ranks(ranks: list[int]) -> str:
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"


@contextmanager
def together(comm: MPI.Comm) -> Iterator[None]:
    """What fails inside on some ranks, with an error of distloop's own, fails on all of them.

    Nothing inside may communicate; what communicates raises on all ranks by itself.
    """
    problem: DistloopError | None = None
    try:
        yield
    except DistloopError as error:
        if error.everywhere:
            raise
        problem = error
    agree(comm, problem)


def at_root(comm: MPI.Intracomm, compute: Callable[[], Any]) -> Any:
    """What ``compute`` gives on rank 0, on every rank; it must be something that JSON can hold, and not communicate.

    Raises on every rank what distloop error it raises there.
    """
    value, problem = None, None
    if comm.rank == 0:
        try:
            value = compute()
        except DistloopError as error:
            problem = [type(error).__name__, str(error)]
    value, problem = exchange(comm, [value, problem])[0]
    if problem:
        raise _agreed(*problem)
    return value


def agree_on(comm: MPI.Intracomm, facts: dict[str, Any]) -> None:
    """Raise ConfigError on all ranks unless they all give the same value for each of ``facts``."""
    said = exchange(comm, facts)
    for rank, other in enumerate(said):
        for name, value in said[0].items():
            if other[name] != value:
                raise _agreed(
                    "ConfigError",
                    f"{name} differs between ranks: rank 0 has {value}, rank {rank} has {other[name]}. Expected the "
                    "same on all ranks: each is given all of the data, and distloop divides the rows",
                )
