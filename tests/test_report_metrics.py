import csv
import json
import sys
from math import inf, nan
from pathlib import Path

import numpy as np
import pytest
import torch

from distloop.errors import ConfigError
from distloop.report.metrics import COLUMNS, Logs, MetricsLog, NoLog, Row, TensorBoardLog


def rows_of_jsonl(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def rows_of_csv(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_rows_are_on_disk_as_soon_as_they_are_written(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, ["accuracy"])
    log.write("step", {"epoch": 1, "step": 1, "train_loss": 2.5})
    log.write("epoch", {"epoch": 1, "step": 2, "validation_loss": 0.5, "accuracy": 0.75})
    assert rows_of_jsonl(tmp_path) == [
        {"kind": "step", "epoch": 1, "step": 1, "train_loss": 2.5},
        {"kind": "epoch", "epoch": 1, "step": 2, "validation_loss": 0.5, "accuracy": 0.75},
    ]
    first, second = rows_of_csv(tmp_path)
    assert list(first) == ["kind", *COLUMNS, "accuracy"]
    assert (first["train_loss"], first["accuracy"], second["accuracy"]) == ("2.5", "", "0.75")
    log.close()


def test_numbers_of_numpy_and_torch(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    row: Row = {"step": np.int64(3), "train_loss": torch.tensor(0.5), "seconds": np.float32(1.5)}
    log.write("step", row)
    log.close()
    assert rows_of_jsonl(tmp_path) == [{"kind": "step", "step": 3, "train_loss": 0.5, "seconds": 1.5}]


def test_what_is_not_finite(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    log.write("step", {"step": 1, "train_loss": nan, "gradient_norm": inf, "validation_loss": None})
    log.close()
    (line,) = rows_of_jsonl(tmp_path)
    assert (line["train_loss"], line["gradient_norm"], line["validation_loss"]) == (None, None, None)
    (cells,) = rows_of_csv(tmp_path)
    assert (cells["train_loss"], cells["gradient_norm"], cells["validation_loss"]) == ("nan", "inf", "")


def test_rows_are_appended_below_those_that_are_there(tmp_path: Path) -> None:
    for step in (1, 2):
        log = MetricsLog(tmp_path)
        log.write("step", {"step": step})
        log.close()
    assert [row["step"] for row in rows_of_jsonl(tmp_path)] == [1, 2]
    assert [row["step"] for row in rows_of_csv(tmp_path)] == ["1", "2"]


def test_a_column_that_was_not_named(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    with pytest.raises(ConfigError, match="accuracy"):
        log.write("epoch", {"step": 1, "accuracy": 0.5})
    log.close()
    assert rows_of_jsonl(tmp_path) == []


def test_a_row_goes_to_every_log(tmp_path: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
    logs = Logs([NoLog(), *(MetricsLog(folder) for folder in folders)])
    logs.write("epoch", {"step": 7})
    logs.close()
    assert [rows_of_jsonl(folder)[0]["step"] for folder in folders] == [7, 7]


def test_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = TensorBoardLog(tmp_path)
    log.write("epoch", {"epoch": 1, "step": 20, "train_loss": 0.5, "validation_loss": None})
    log.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert sorted(events.Tags()["scalars"]) == ["epoch/epoch", "epoch/train_loss"]
    (event,) = events.Scalars("epoch/train_loss")
    assert (event.step, event.value) == (20, 0.5)


def test_tensorboard_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match=r"pip install 'distloop\[tensorboard\]'"):
        TensorBoardLog(tmp_path)
