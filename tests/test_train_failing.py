"""What goes wrong in mid-training: the whole job ends, soon, with one account of it, and leaves nothing behind."""

from __future__ import annotations

import json
import re
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from distloop.run_folder import load_weights
from tests.main_jobs import USERS_MODULE
from tests.processes import SESSION, members, session_folder

DIVERGING = ["--model", "mlp", "--optimizer", "SGD", "--optimizer.lr", "1e30"]
EVENTFUL = ["-m", "distloop.train", "--model", "mymodule.AtThirdStep", "--run-dir", "run"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mymodule.py").write_text(USERS_MODULE.read_text())
    return tmp_path


def test_a_loss_that_is_not_finite_leaves_the_last_good_weights(launch, folder):
    done = launch(2, "-m", "distloop.train", *DIVERGING, "--run-dir", "run", cwd=folder)
    assert done.returncode == 1
    (step,) = re.findall(r"distloop: error: the loss is not finite at step (\d+) \(rank 0: \w+, rank 1", done.stderr)
    assert done.stderr.count("distloop: error") == 1
    summary = json.loads((folder / "run" / "summary.json").read_text())
    assert summary["steps"] == int(step) - 1
    assert "not finite at step" in summary["stopped"]
    for weight in load_weights(folder / "run" / "model.safetensors").values():
        assert torch.isfinite(weight).all()


def test_an_exception_on_one_rank_ends_the_job_with_its_traceback(launch, folder, mpi_name):
    done = launch(2, *EVENTFUL, mpi=mpi_name, cwd=folder, env={"EVENT": "raise"})
    assert done.returncode in (1, 255)  # MPI_Abort(1), as Intel MPI's launcher has it
    assert done.stderr.count("RuntimeError: the model broke") == 1
    assert "distloop: rank 1 of 2 on " in done.stderr
    assert "in forward" in done.stderr
    _ended_soon_and_wholly(done)


@pytest.mark.parametrize(("event", "code", "text"), [
    ("exit", 1, "rank 1 of 2 on .*sys.exit was called"),
    ("interrupt", 130, "rank 1 of 2 on .*interrupted"),
    ("kill", None, ""),
])  # fmt: skip
def test_however_one_rank_ends_the_others_end_too(launch, folder, event, code, text):
    done = launch(2, *EVENTFUL, cwd=folder, env={"EVENT": event})
    assert done.returncode == code or (code is None and done.returncode != 0)
    assert re.search(text, done.stderr)
    _ended_soon_and_wholly(done)


def _ended_soon_and_wholly(done):
    """All ranks' processes are gone: ``launch`` waits for the launcher alone."""
    (when,) = re.findall(r"event at ([\d.]+)", done.stdout)
    word = f"{SESSION}={session_folder()}"
    while time.time() < float(when) + 5 and any("distloop.train" in process.cmdline() for process in members(word)):
        time.sleep(0.05)
    assert time.time() < float(when) + 5
    assert "Traceback" not in done.stderr or done.stderr.count("Traceback (most recent call last)") == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_mpirun_ends_the_job(launch, folder, number):
    running = launch.start(2, *EVENTFUL, cwd=folder, env={"EVENT": "sleep"})
    running.wait_for("event at")
    running.job.process.send_signal(number)
    done = running.finish(10)
    assert done.returncode != 0
    assert not [
        process for process in members(f"{SESSION}={session_folder()}") if "distloop.train" in process.cmdline()
    ]


def test_a_number_that_is_missing_in_a_mapped_file(launch, folder, mpi_name):
    """Found by one rank, when it reads that row."""
    rows = np.random.rand(400, 3).astype(np.float32)
    rows[123, 1] = np.nan
    np.save(folder / "inputs.npy", rows)
    np.save(folder / "targets.npy", (np.arange(400) % 3))
    data = ["--data", "inputs.npy", "--targets", "targets.npy", "--model", "linear", "--batch-size", "4"]
    done = launch(2, "-m", "distloop.train", *data, mpi=mpi_name, cwd=folder)
    assert done.returncode in (
        (2, 255) if mpi_name == "impi" else (2,)
    )  # Intel's launcher keeps no aborted rank's code
    assert done.stderr.count("error: ") == 1
    assert "row 123, column 1 are nan" in done.stderr
    assert "Traceback" not in done.stderr
