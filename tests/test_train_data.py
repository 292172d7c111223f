"""The main job on every kind of data, and with a user's own model, loss, optimizer and schedule."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from distloop.data.formats import FASHION_MNIST
from tests.main_jobs import Outcome, run_all

SMALL = ["--steps", "5", "--model", "linear"]


def write_idx(folder: Path, zipped: bool) -> Path:
    folder.mkdir()
    opened = gzip.open if zipped else open
    for part, rows in (("train", 30), ("t10k", 7)):
        images, labels = np.random.randint(0, 256, (rows, 5, 5)), np.arange(rows) % 3
        for name, magic, array in (("images-idx3", 2051, images), ("labels-idx1", 2049, labels)):
            with opened(folder / f"{part}-{name}-ubyte{'.gz' * zipped}", "wb") as file:
                file.write(struct.pack(f">{array.ndim + 1}I", magic, *array.shape) + array.astype(np.uint8).tobytes())
    return folder


def write_files(folder: Path) -> None:
    write_idx(folder / "idx", zipped=False)
    write_idx(folder / "idx-gz", zipped=True)
    table = np.random.rand(30, 4)
    lines = [",".join(map(str, row)) + f",{'yes' if row[0] > 0.5 else 'no'}" for row in table.round(3)]
    (folder / "classes.csv").write_text("\n".join(["a,b,c,d,answer", *lines]))
    np.savetxt(folder / "numbers.csv", table, delimiter=",", header="a,b,c,d", comments="")
    np.savez(folder / "arrays.npz", inputs=table, targets=np.arange(30) % 3)
    np.save(folder / "inputs.npy", table)
    np.save(folder / "targets.npy", np.arange(30) % 3)
    (folder / "text.txt").write_text("to be or not to be, that is the question\n" * 20)


JOBS = {
    "idx": [*SMALL, "--data", "idx"],
    "idx-gz": [*SMALL, "--data", "idx-gz", "--model", "mlp"],
    "csv": [*SMALL, "--data", "classes.csv"],
    "numbers": [*SMALL, "--data", "numbers.csv", "--target", "b", "--loss", "torch.nn.L1Loss"],
    "npz": [*SMALL, "--data", "arrays.npz", "--model", "auto"],
    "npy": [*SMALL, "--data", "inputs.npy", "--targets", "targets.npy"],
    "text": ["--steps", "2", "--data", "text.txt", "--context", "16", "--model-args.width", "16"],
    "own": ["--steps", "6", "--data", "mymodule:Rows", "--model", "mymodule.Net", "--model-args.hidden", "5",
            "--loss", "mymodule.distance", "--loss-args.power", "1.5", "--optimizer", "mymodule.Optimizer",
            "--optimizer.lr", "0.2", "--schedule", "mymodule:schedule", "--schedule-args.step_size", "3"],
    "validated": [*SMALL, "--data", "arrays.npz", "--validation", "arrays.npz"],
}  # fmt: skip


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    folder = tmp_path_factory.mktemp("data")
    write_files(folder)
    return run_all(2, JOBS, folder)


@pytest.mark.parametrize("name", JOBS)
def test_it_runs(outcomes, name):
    outcome = outcomes[name]
    assert outcome.code == 0, outcome.stderr
    assert outcome.stderr == ""
    assert outcome.summary["steps"] == {"text": 2, "own": 6}.get(name, 5)
    assert outcome.summary["stopped"] is None


def test_idx_folders_have_their_own_test_part(outcomes):
    assert outcomes["idx"].summary["inputs"] == {"shape": [1, 5, 5], "dtype": "float32"}
    assert outcomes["idx"].summary["outputs"]["classes"] == 3
    assert set(outcomes["idx-gz"].summary["validation"]) == {"loss", "accuracy"}


def test_a_table_of_text_and_one_of_numbers(outcomes):
    assert outcomes["csv"].summary["outputs"]["class_names"] == ["no", "yes"]
    assert set(outcomes["numbers"].summary["validation"]) == {"loss", "rmse", "r2"}
    assert outcomes["npz"].summary["outputs"]["classes"] == outcomes["npy"].summary["outputs"]["classes"] == 3


def test_a_text_is_learned_byte_by_byte(outcomes):
    assert outcomes["text"].summary["inputs"] == {"shape": [16], "dtype": "int64"}
    assert set(outcomes["text"].summary["validation"]) == {"loss", "accuracy", "bits_per_token"}


def test_what_a_user_brings(outcomes):
    outcome = outcomes["own"]
    assert outcome.summary["parameters"] == (6 + 1) * 5 + (5 + 1) * 3
    assert outcome.rows[-1]["learning_rate"] == pytest.approx(0.2 * 0.1**2)  # StepLR: a tenth after every 3 steps


@pytest.mark.skipif(not FASHION_MNIST.is_dir(), reason="the package dataset-fashion-mnist is not installed")
def test_fashion_mnist(tmp_path):
    jobs = {"fashion": ["--data", "fashion-mnist", "--steps", "20", "--batch-size", "64", "--model", "linear"]}
    outcome = run_all(2, jobs, tmp_path)["fashion"]
    assert outcome.summary["outputs"]["class_names"][9] == "Ankle boot"
    assert outcome.summary["samples"] == 20 * 64
    assert outcome.summary["validation"]["accuracy"] > 0.5
