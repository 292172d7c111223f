"""Batches in order, from here or from workers that are never forked from this process."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from distloop.data import ArraySource, DatasetSource, Loader, batches
from distloop.errors import DataError

SOURCE = ArraySource(np.arange(40.0).reshape(20, 2), np.arange(20) % 5)
ORDER = [np.array(rows, np.int64) for rows in ([3, 1], [], [19, 0, 7], [4], [5], [6], [2, 2])]


class Broken(Dataset[Any]):
    def __len__(self) -> int:
        return 9

    def __getitem__(self, index: int) -> tuple[float, int]:
        if index == 5:
            raise KeyError("the fifth page is missing")
        return (float("nan") if index == 7 else 1.0, os.getpid())


@pytest.mark.parametrize(("workers", "method"), [(0, "forkserver"), (2, "forkserver"), (1, "spawn")])
def test_batches_come_in_order(workers: int, method: Any) -> None:
    found = list(batches(SOURCE, iter(ORDER), workers, method))
    assert len(found) == len(ORDER)
    for (inputs, targets), rows in zip(found, ORDER, strict=True):
        expected = SOURCE.rows(rows)
        assert torch.equal(inputs, expected[0]) and torch.equal(targets, expected[1])
        assert inputs.shape == (len(rows), 2) and inputs.dtype == torch.float32 and targets.dtype == torch.int64


def test_workers_live_for_several_rounds_and_leave_torchs_random_numbers_alone() -> None:
    source = DatasetSource(Broken(), task="regression")
    torch.manual_seed(3)
    with Loader(source, workers=1) as loader:
        [(_, first)] = loader.batches(ORDER[:1])
        abandoned: Iterator[Any] = loader.batches([np.array([1], np.int64)] * 9)
        next(abandoned)
        again = list(loader.batches([np.array([2, 3], np.int64)]))
        began = time.perf_counter()
        loader.close()
    assert time.perf_counter() - began < 2
    assert len(again) == 1 and torch.equal(again[0][1], first)
    assert int(first[0]) != os.getpid()
    drawn = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(1))


@pytest.mark.parametrize("workers", [0, 1])
def test_errors_of_workers_keep_their_kind_and_cause(workers: int) -> None:
    source = DatasetSource(Broken(), task="regression")
    with pytest.raises(DataError, match=r"^Dataset Broken: the inputs of row 7 are nan"):
        list(batches(source, [np.array([0, 7], np.int64)], workers))
    with pytest.raises(KeyError, match="the fifth page is missing"):
        list(batches(source, [np.array([0, 5], np.int64)], workers))


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_workers_do_not_import_the_verb_that_started_them(tmp_path: Path, method: str) -> None:
    """A verb that is imported again would start MPI in the worker; this one does not even exist."""
    program = tmp_path / "program.py"
    program.write_text(
        "import sys\n"
        "from importlib.machinery import ModuleSpec\n"
        "import numpy as np\n"
        "from distloop.data import ArraySource, batches\n"
        "if __name__ == '__main__':\n"
        "    sys.modules['__main__'].__spec__ = ModuleSpec('distloop.no_such_verb', None)\n"
        "    source = ArraySource(np.arange(4.0), np.arange(4) % 2)\n"
        f"    [(inputs, _)] = batches(source, [np.array([3, 1])], 1, {method!r})\n"
        "    assert 'mpi4py' not in sys.modules and sys.modules['__main__'].__spec__ is not None\n"
        "    print(inputs.ravel().tolist())\n"
    )
    root = str(Path(__file__).parent.parent)
    ran = subprocess.run(
        [sys.executable, program],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"PYTHONPATH": root},
    )
    assert ran.stdout.strip() == "[3.0, 1.0]", ran.stderr
