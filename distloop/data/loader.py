"""Batches in order, fetched here or ahead by worker processes.

MPI does not survive a fork, so workers start by forkserver or spawn and never see the communicator: they do not
import the main module of a distloop verb, and what they unpickle is the source that this process sent them.
"""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Literal, cast, final

import torch
from torch.utils.data import DataLoader

from distloop.data.permutation import Positions
from distloop.data.source import Source
from distloop.errors import UserError

Method = Literal["forkserver", "spawn"]
Batch = tuple[torch.Tensor, torch.Tensor]


def batches(
    source: Source, index_batches: Iterable[Positions], workers: int = 0, method: Method = "forkserver"
) -> Iterator[Batch]:
    """``source.rows(indices)`` for each of ``index_batches``, in order; `Loader` keeps workers for several rounds."""
    with Loader(source, workers, method) as loader:
        yield from loader.batches(index_batches)


@final
class Loader:
    """Fetches batches of one source; its workers live from the first round until `close`.

    workers:  processes that fetch ahead; 0 fetches here, when a batch is asked for.
    seed:     of the workers' own random numbers, for Datasets that draw some.
    """

    def __init__(self, source: Source, workers: int = 0, method: Method = "forkserver", seed: int = 0) -> None:
        assert workers >= 0
        self._source = source
        self._order = _Order()
        self._loader = self._make_loader(workers, method, seed) if workers else None

    def batches(self, index_batches: Iterable[Positions]) -> Iterator[Batch]:
        """The rows of each index array, in order. A worker's error is raised here; a UserError as it is."""
        if self._loader is None:
            for indices in index_batches:
                yield self._source.rows(indices)
            return
        self._order.index_batches = index_batches
        with _main_hidden():
            fetched = iter(self._loader)
        for batch in fetched:
            if isinstance(batch, UserError):
                raise batch
            yield batch

    def close(self) -> None:
        """End the workers, at once even while a traceback still holds on to them; `batches` cannot follow."""
        fetching = getattr(self._loader, "_iterator", None)
        if fetching is not None:
            fetching._shutdown_workers()  # a DataLoader has no public way to end workers that persist
        self._order.index_batches = ()

    def __enter__(self) -> Loader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _make_loader(self, workers: int, method: Method, seed: int) -> DataLoader[Any]:
        if method == "forkserver":
            multiprocessing.get_context(method).set_forkserver_preload(["torch.utils.data"])
        return DataLoader(
            cast("torch.utils.data.Dataset[Any]", _Rows(self._source)),
            batch_size=None,
            sampler=self._order,
            num_workers=workers,
            collate_fn=_as_it_is,
            multiprocessing_context=method,
            persistent_workers=True,
            generator=torch.Generator().manual_seed(seed),  # torch's own would move with the number of workers
        )


class _Order:
    """The sampler of every round: a DataLoader keeps its sampler as long as its workers."""

    def __init__(self) -> None:
        self.index_batches: Iterable[Positions] = ()

    def __iter__(self) -> Iterator[Positions]:
        return iter(self.index_batches)


class _Rows:
    """The Dataset that workers get: its item is a whole batch, or the user error that came instead."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def __getitem__(self, indices: Positions) -> Batch | UserError:
        try:
            return self._source.rows(indices)
        except UserError as error:
            return error


def _as_it_is(batch: Any) -> Any:
    return batch


@contextmanager
def _main_hidden() -> Iterator[None]:
    """Keep new processes from importing a distloop verb as their main module, since that would start MPI in them."""
    main = sys.modules["__main__"]
    spec, file = main.__spec__, getattr(main, "__file__", None)
    if spec is None or spec.name.partition(".")[0] != __name__.partition(".")[0]:
        yield
        return
    main.__spec__, main.__file__ = None, None
    try:
        yield
    finally:
        main.__spec__, main.__file__ = spec, file
