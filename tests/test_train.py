"""The main job as a person meets it: what it learns, says and leaves, with and without mpirun."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re

import pytest
from safetensors.torch import load_file

from distloop.config import Config
from distloop.partition import Partition
from tests.main_jobs import Outcome

KEYS = {
    "strategy", "world_size", "steps", "samples", "train_loss", "validation", "seconds", "samples_per_second",
    "sent_bytes_per_rank", "weights_sha256", "mpi", "versions",
}  # fmt: skip


def ring_bytes(rank: int, world_size: int, elements: int) -> int:
    """A reduce-scatter and an all-gather: all chunks but one each, float32."""
    chunks = Partition.even(elements, world_size)
    sizes = [chunks.slice_of(r).stop - chunks.slice_of(r).start for r in range(world_size)]
    return 4 * (2 * elements - sizes[rank] - sizes[(rank + 1) % world_size])


def sha256_of(folder):
    digest = hashlib.sha256()
    for _, weight in sorted(load_file(folder / "model.safetensors").items()):
        digest.update(weight.numpy().tobytes())
    return digest.hexdigest()


def test_without_arguments_on_four_ranks(launch, tmp_path):
    done = launch(4, "-m", "distloop.train", cwd=tmp_path).check()
    (folder,) = (tmp_path / "runs").iterdir()
    outcome = Outcome(done.returncode, done.stdout, done.stderr, folder)
    _says_once(outcome, len(os.sched_getaffinity(0)))
    _leaves_a_record(outcome)
    assert outcome.summary["validation"]["accuracy"] >= 0.97
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.yaml", "metrics.csv", "metrics.jsonl", "model.safetensors", "summary.json",
    ]  # fmt: skip


def _says_once(outcome, cores):
    threads = max(1, cores // 4)
    crowded = " (oversubscribed)" if cores < 4 else ""
    first, *lines = outcome.stdout.splitlines()
    assert first.startswith(f"4 ranks on 1 node, {threads} thread{'s' * (threads > 1)} each, {cores} cores{crowded} · ")
    assert first.endswith(" · auto → shared · cpu")
    assert outcome.stderr == ""
    assert "\x1b" not in outcome.stdout
    assert len([line for line in lines if line.startswith("epoch ")]) == 10
    for label in (
        "validation loss  ",
        "validation accuracy",
        "parameters",
        "samples/s  ",
        "per rank and step",
        "messages",
    ):
        assert len(re.findall(rf"^(learned|fast|sent)? *{label}", outcome.stdout, re.MULTILINE)) == 1, label
    assert lines[-1].startswith("saved")
    assert lines[-1].endswith(f"runs/{outcome.folder.name}")


def _leaves_a_record(outcome):
    summary = outcome.summary
    assert set(summary) >= KEYS
    assert (summary["strategy"], summary["world_size"], summary["steps"], summary["samples"]) == (
        "shared",
        4,
        450,
        14380,
    )
    assert summary["auto"]["chosen"] == "shared"
    assert summary["sent_bytes_per_rank"] == [0] * 4
    assert summary["weights_sha256"] == sha256_of(outcome.folder)
    assert set(summary["versions"]) >= {"python", "torch", "numpy", "mpi4py", "distloop"}
    assert 0 < summary["seconds"] < 60
    assert [row["epoch"] for row in outcome.rows] == list(range(1, 11))
    assert len(outcome.table) == 10
    assert float(outcome.table[-1]["train_loss"]) == outcome.rows[-1]["train_loss"] == summary["train_loss"]
    assert outcome.rows[-1]["validation_accuracy"] == summary["validation"]["accuracy"]


def test_the_same_program_without_mpirun_and_by_its_saved_configuration(launch, tmp_path):
    options = ["--steps", "5", "--model", "mlp", "--optimizer", "RMSprop", "--optimizer.lr", "3e-4", "--run-dir"]
    first = launch(None, "-m", "distloop.train", *options, "a", cwd=tmp_path).check()
    assert "1 rank on 1 node, " in first.stdout
    again = launch(None, "-m", "distloop.train", "--config", "a/config.yaml", "--run-dir", "b", cwd=tmp_path).check()
    summaries = [json.loads((tmp_path / name / "summary.json").read_text()) for name in "ab"]
    assert summaries[0]["weights_sha256"] == summaries[1]["weights_sha256"]
    assert summaries[0]["sent_bytes_per_rank"] == [0]
    with (tmp_path / "b" / "metrics.csv").open() as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["5"]
    assert "lr: 0.0003" in (tmp_path / "a" / "config.yaml").read_text()
    assert again.stderr == ""


@pytest.mark.parametrize("option", ["--help", "--print_config"])
def test_help_and_configuration_are_printed_once(launch, tmp_path, option):
    done = launch(2, "-m", "distloop.train", "--epochs", "3", option, cwd=tmp_path).check()
    names = [name.replace("_", "-") if option == "--help" else f"{name}" for name in Config.__dataclass_fields__]
    for name in names:
        found = re.findall(rf"^  --{name}\b" if option == "--help" else rf"^{name}:", done.stdout, re.MULTILINE)
        assert len(found) >= 1, name
    assert done.stderr == ""
    assert len(re.findall(r"^(usage:|task:)", done.stdout, re.MULTILINE)) == 1
    assert not (tmp_path / "runs").exists()


def test_every_mpi_trains_alike(launch, tmp_path, mpi_name):
    options = ["--steps", "5", "--model", "linear", "--strategy", "ring", "--run-dir", "run"]
    done = launch(2, "-m", "distloop.train", *options, mpi=mpi_name, cwd=tmp_path).check()
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["sent_bytes_per_rank"] == [5 * ring_bytes(rank, 2, 650) for rank in range(2)]
    assert summary["weights_sha256"] == sha256_of(tmp_path / "run")
    assert done.stdout.count("2 ranks on 1 node, ") == 1
    assert done.stdout.count("all ranks") == 1


def test_workers_read_ahead(launch, tmp_path):
    options = ["--steps", "5", "--model", "linear", "--workers", "2", "--run-dir", "run"]
    launch(2, "-m", "distloop.train", *options, cwd=tmp_path).check()
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["steps"] == 5
