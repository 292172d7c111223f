"""Makes an item of each test for each MPI and rank count, and has them run by jobs under mpirun."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import psutil
import pytest

from tests.harness.jobs import Group, MpiJob, Options
from tests.harness.rank import RankPlugin
from tests.mpi_prefixes import MPIS
from tests.processes import end_session

PARAMETER = "mpi_job"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--mpi", help=f"MPIs to test with, of {','.join(MPIS)}; default: all, skipping what is missing")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "mpi(ranks=(1, 2, 3, 4), min_size=1, mpi=all, timeout=60): run under mpirun")
    inside = config.getoption("--with-mpi") or config.getoption("--only-mpi")
    config.pluginmanager.register(RankPlugin(config) if inside else OuterPlugin(config), "distloop-mpi")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    plugin = metafunc.config.pluginmanager.get_plugin("distloop-mpi")
    if metafunc.definition.get_closest_marker("mpi"):
        if PARAMETER not in metafunc.fixturenames:
            metafunc.fixturenames.append(PARAMETER)
        metafunc.parametrize(PARAMETER, plugin.jobs_of(metafunc.definition), ids=str)
    elif "mpi_name" in metafunc.fixturenames:
        metafunc.parametrize("mpi_name", [_with_skip(name) for name in plugin.names])


def _with_skip(name: str) -> Any:
    missing = MPIS[name].missing
    return pytest.param(name, marks=[pytest.mark.skip(reason=missing)] if missing else [])


def key_of(item: pytest.Item) -> MpiJob | None:
    """Which job runs it; None for an ordinary test."""
    callspec = getattr(item, "callspec", None)
    return callspec.params.get(PARAMETER) if callspec else None


class OuterPlugin:
    """The pytest that somebody started."""

    def __init__(self, config: pytest.Config) -> None:
        self.groups: dict[MpiJob, Group] = {}
        self.survivors: list[str] = []
        asked = config.getoption("--mpi")
        self.names = asked.split(",") if asked else list(MPIS)
        for name in asked.split(",") if asked else []:
            if name not in MPIS or MPIS[name].missing:
                reason = MPIS[name].missing if name in MPIS else f"there are {', '.join(MPIS)}"
                raise pytest.UsageError(f"--mpi {name}: {reason}")

    def jobs_of(self, definition: pytest.Item) -> list[MpiJob]:
        """One item each."""
        options = Options.of(definition)
        return [MpiJob(name, ranks) for name in self.names if name in options.mpi for ranks in options.ranks]

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Ordinary tests first, being quick; then those of one job side by side."""
        items.sort(key=lambda item: _order(key_of(item)))

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        keys = dict.fromkeys(key for item in session.items if (key := key_of(item)))
        self.groups = {
            key: Group(key, [item for item in session.items if key_of(item) == key], session.config) for key in keys
        }

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> bool | None:
        key = key_of(item)
        if key is None:
            return None
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        for report in self._reports(key, item):
            item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True

    @pytest.hookimpl(optionalhook=True, tryfirst=True)
    def pytest_timeout_set_timer(self, item: pytest.Item) -> bool | None:
        return True if key_of(item) else None  # the job's own limits apply

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        for group in self.groups.values():
            group.end()
        end_session()
        self.survivors = _end_children()
        if self.survivors and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for survivor in self.survivors:
            terminalreporter.write_line(f"ERROR: a process survived the tests: {survivor}", red=True)

    def _reports(self, key: MpiJob, item: pytest.Item) -> Sequence[pytest.TestReport]:
        missing = MPIS[key.mpi].missing
        return [_skipped(item, missing)] if missing else self.groups[key].reports(item)


def _order(key: MpiJob | None) -> tuple[int, int, int]:
    return (0, 0, 0) if key is None else (1, list(MPIS).index(key.mpi), key.ranks)


def _skipped(item: pytest.Item, reason: str) -> pytest.TestReport:
    where = (__file__, 1, f"Skipped: {reason}")  # the same for all, so that pytest folds them into one line
    return pytest.TestReport(item.nodeid, item.location, {}, "skipped", where, "setup")


def _end_children() -> list[str]:
    """What tests have left running, killed; Python's own helper processes end with it."""
    survivors = []
    for child in psutil.Process().children(recursive=True):
        try:
            command = " ".join(child.cmdline())
            if child.status() != psutil.STATUS_ZOMBIE and "multiprocessing" not in command:
                survivors.append(f"{child.pid} {command or child.name()}")
                child.kill()
        except psutil.NoSuchProcess:
            continue
    return survivors
