"""The pytest of one rank: runs what it is told in step with the other ranks, and writes down what happens."""

from __future__ import annotations

import array
import json
import os
import shutil
import tempfile
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import mpi4py
import pytest

from tests.harness.jobs import JOB, MpiJob

GRACE_SECONDS = 10.0  # pytest outside is faster; this is for jobs started by hand
VENDORS = {"MPICH": "mpich", "Open MPI": "openmpi", "Intel MPI": "impi"}


class RankPlugin:
    """Ranks meet before and after each test's teardown, so that no rank is in a test that another has left."""

    def __init__(self, config: pytest.Config) -> None:
        # The first module that communicates decides how MPI is initialised, as in the product.
        mpi4py.rc.initialize = False
        mpi4py.rc.finalize = True
        self.config = config
        self.told = json.loads((Path(os.environ[JOB]) / "job.json").read_text()) if JOB in os.environ else None
        self.failed = self.apart = False
        self.count = 0
        self.errors: list[str] = []
        if self.told:
            config.option.basetemp = Path(os.environ[JOB]) / f"basetemp-{os.getpid()}"

    def jobs_of(self, definition: pytest.Item) -> list[MpiJob]:
        """This one only."""
        if self.told:
            return [MpiJob(self.told["mpi"], self.told["ranks"])]
        world = self._mpi().COMM_WORLD
        return [MpiJob(VENDORS.get(self._mpi().get_vendor()[0], "mpi"), world.size)]

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        if self.told:
            found = {item.nodeid: item for item in items}
            items[:] = [found[nodeid] for nodeid in self.told["nodeids"] if nodeid in found]

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.errors.append(report.longreprtext)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.world = self._mpi().COMM_WORLD.Dup()
        self.folder = Path(os.environ[JOB]) if self.told else self._own_folder()
        self.log = (self.folder / f"rank-{self.world.rank}.jsonl").open("w")
        self._write(ready=os.getpid(), nodeids=[item.nodeid for item in session.items], errors=self.errors)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, Any, Any]:
        self.failed = self.apart = False
        self.count += 1
        self._write(start=item.nodeid)
        result = yield
        self.wait_for_all_ranks()
        self._write(end=item.nodeid)
        return result

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_teardown(self) -> None:
        self.wait_for_all_ranks()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.failed = self.failed or report.failed
        data = self.config.hook.pytest_report_to_serializable(config=self.config, report=report)
        self._write(nodeid=report.nodeid, report=data)

    @pytest.hookimpl(optionalhook=True, tryfirst=True)
    def pytest_timeout_set_timer(self) -> bool:
        return True  # the pytest outside measures time: a signal handler does not run inside a blocked MPI call

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.told and session.exitstatus == pytest.ExitCode.TESTS_FAILED:
            session.exitstatus = pytest.ExitCode.OK  # the verdicts are in the log; other codes mean that the job broke
        if hasattr(self, "log"):
            self.log.close()
        if not self.told and hasattr(self, "world") and self.world.rank == 0:
            shutil.rmtree(self.folder, ignore_errors=True)

    def wait_for_all_ranks(self) -> None:
        """Sleeps while it waits, for the sake of the ranks that still compute. A failed rank does not wait for ever."""
        failed, any_failed = array.array("i", [self.failed]), array.array("i", [0])
        request = self.world.Iallreduce(failed, any_failed, self._mpi().MAX)
        deadline = time.monotonic() + GRACE_SECONDS
        while not request.Test():
            if self.failed and time.monotonic() > deadline:
                self.world.Abort(1)
            time.sleep(0.0005)
        self.apart = self.apart or bool(any_failed[0])

    @pytest.fixture
    def comm(self) -> Iterator[Any]:
        """A duplicate of the job's world, for this test alone."""
        comm = self.world.Dup()
        yield comm
        if not self.apart:  # after a failure messages may be on their way in it
            comm.Free()

    @pytest.fixture
    def rank(self) -> int:
        """This rank's position in the world."""
        return self.world.rank

    @pytest.fixture
    def world_size(self) -> int:
        """How many ranks the job has."""
        return self.world.size

    @pytest.fixture
    def tmp_path(self) -> Iterator[Path]:
        """A folder, the same on all ranks, removed afterwards."""
        path = self.folder / f"test-{self.count}"
        path.mkdir(exist_ok=True)
        yield path
        if self.world.rank == 0:
            shutil.rmtree(path, ignore_errors=True)

    def _own_folder(self) -> Path:
        made = tempfile.mkdtemp(prefix="distloop-mpi-") if self.world.rank == 0 else None
        return Path(self.world.bcast(made))

    def _write(self, **event: Any) -> None:
        self.log.write(json.dumps(event) + "\n")
        self.log.flush()

    @staticmethod
    def _mpi() -> Any:
        from mpi4py import MPI

        if not MPI.Is_initialized():
            MPI.Init()
        return MPI
