"""Everything in this folder runs under mpirun: see tests/harness/__init__.py."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest


@pytest.hookimpl(wrapper=True)
def pytest_pycollect_makemodule() -> Generator[None, pytest.Module, pytest.Module]:
    module = yield
    module.add_marker(pytest.mark.mpi, append=False)
    return module


@pytest.fixture
def counted(comm: Any) -> Any:
    """The test's communicator, counting what it sends."""
    from distloop.comm import CountedComm  # in the ranks only: it starts MPI

    return CountedComm(comm)
