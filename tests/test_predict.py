"""Prediction with a trained run: every row once, in order, the same at any number of ranks."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distloop.data import open_data
from tests.launching import Launcher

TRAIN = ("-m", "distloop.train", "--epochs", "5", "--model", "linear", "--progress", "off")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("predict") / "run"
    Launcher()(None, *TRAIN, "--run-dir", str(folder)).check()
    return folder


def table(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_rows_are_in_order_at_any_number_of_ranks(launch: Any, run: Path, tmp_path: Path) -> None:
    for ranks in (None, 3):
        output = tmp_path / f"{ranks}.csv"
        done = launch(ranks, "-m", "distloop.predict", str(run), "--data", "digits", "--output", str(output)).check()
        assert done.stdout.count("1,797 rows predicted") == 1
    alone, divided = table(tmp_path / "None.csv"), table(tmp_path / "3.csv")
    assert [row["row"] for row in divided] == [str(number) for number in range(1797)]
    assert [row["class"] for row in divided] == [row["class"] for row in alone]
    whole = open_data("digits", holdout=0.0).train
    _, labels = whole.rows(np.arange(1797))
    right = np.mean([int(row["class"]) == int(label) for row, label in zip(divided, labels, strict=True)])
    assert right > 0.8


def test_inputs_need_no_targets_and_nothing_is_overwritten(launch: Any, run: Path, tmp_path: Path) -> None:
    inputs, _ = open_data("digits", holdout=0.0).train.rows(np.arange(5))
    np.save(tmp_path / "five.npy", inputs.numpy())
    np.savetxt(tmp_path / "flat.csv", inputs.flatten(1).numpy(), delimiter=",")
    output = tmp_path / "five.csv"
    command = ("-m", "distloop.predict", str(run), "--output", str(output), "--data")
    launch(2, *command, str(tmp_path / "five.npy")).check()
    first = output.read_text()
    assert first.splitlines()[0] == "row,class,probability" and len(first.splitlines()) == 6
    again = launch(2, *command, str(tmp_path / "five.npy"))
    assert again.returncode == 2 and again.stderr.count("nothing is overwritten") == 1
    assert output.read_text() == first


def test_a_folder_that_holds_no_run_is_refused_once(launch: Any, tmp_path: Path) -> None:
    done = launch(2, "-m", "distloop.predict", str(tmp_path), "--data", "digits")
    assert done.returncode == 2
    assert done.stderr.count("Expected the folder of a run that has ended") == 1
