"""Sources: rows by index, checks that name the row, parts without memory, files far larger than memory."""

from __future__ import annotations

import pickle
import resource
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, TensorDataset

from distloop.data import ArraySource, DatasetSource, MappedArray, Source, Subset, open_data, split, split_tail
from distloop.errors import ConfigError, DataError

GENERATOR = np.random.default_rng(1)
INPUTS = GENERATOR.normal(size=(50, 3))
LABELS = np.arange(50) % 4


def at(*rows: int) -> np.ndarray:
    return np.array(rows, np.int64)


class Items(Dataset[Any]):
    def __init__(self, *items: Any) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


def test_rows_come_in_the_order_of_their_indices() -> None:
    source = ArraySource(INPUTS, LABELS)
    inputs, targets = source.rows(at(7, 3, 3))
    assert isinstance(source, Source)
    assert inputs.dtype == torch.float32 and targets.dtype == torch.int64
    assert np.array_equal(inputs.numpy(), INPUTS[[7, 3, 3]].astype(np.float32))
    assert targets.tolist() == [3, 3, 3]
    assert source.spec.output_size == 4


def test_no_rows_have_the_right_shapes() -> None:
    images = np.zeros((4, 2, 5, 5), np.uint8)
    for source in (ArraySource(images, np.zeros((4, 3))), DatasetSource(Items((np.zeros((2, 5, 5)), np.zeros(3))))):
        inputs, targets = source.rows(at())
        assert inputs.shape == (0, 2, 5, 5) and inputs.dtype == torch.float32
        assert targets.shape == (0, 3) and targets.dtype == torch.float32


def test_bytes_are_scaled_and_numbers_are_not() -> None:
    raw = np.array([[0, 51, 255]], np.uint8)
    scaled = ArraySource(raw, np.zeros(1)).rows(at(0))[0]
    assert torch.equal(scaled, torch.tensor([[0.0, 51 / 255, 1.0]]))
    assert ArraySource(raw, np.zeros(1), divisor=1).rows(at(0))[0].tolist() == [[0, 51, 255]]
    assert ArraySource(raw.astype(np.int32), np.zeros(1)).rows(at(0))[0].tolist() == [[0, 51, 255]]


@pytest.mark.parametrize(
    ("targets", "task", "kind", "size", "shape"),
    [
        (LABELS, "auto", "class", 4, (2,)),
        (LABELS, "regression", "number", 1, (2, 1)),
        (LABELS.astype(float), "auto", "number", 1, (2, 1)),
        (LABELS.astype(float), "classification", "class", 4, (2,)),
        (LABELS[:, None], "auto", "class", 4, (2,)),
        (INPUTS[:, :2], "auto", "number", 2, (2, 2)),
    ],
)
def test_the_task_and_the_type_decide_what_targets_are(
    targets: Any, task: Any, kind: str, size: int, shape: tuple[int, ...]
) -> None:
    source = ArraySource(INPUTS, targets, task=task)
    assert (source.spec.target, source.spec.output_size) == (kind, size)
    found = source.rows(at(1, 6))[1]
    assert found.shape == shape and found.dtype == (torch.int64 if kind == "class" else torch.float32)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, 1e300])
def test_a_number_that_is_not_finite_is_found_at_once_in_memory(wrong: float) -> None:
    broken = INPUTS.copy()
    broken[17, 2] = wrong
    with pytest.raises(DataError, match="inputs of row 17, column 2"):
        ArraySource(broken, LABELS)
    with pytest.raises(DataError, match="targets of row 17"):
        ArraySource(INPUTS, broken[:, 2])


def test_a_number_that_is_not_finite_is_found_when_read_from_a_file(tmp_path: Path) -> None:
    broken = INPUTS.copy()
    broken[17, 2] = np.nan
    np.save(tmp_path / "x.npy", broken)
    source = ArraySource(np.load(tmp_path / "x.npy", mmap_mode="r"), LABELS)
    source.rows(at(16, 18))
    with pytest.raises(DataError, match="the arrays: the inputs of row 17"):
        source.rows(at(16, 17))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.array([0, -1, 1]), "row 1 has the label -1; expected 0 or more"),
        (np.array([0, 0.5, 1]), "row 1 has the target 0.5"),
        (np.array([0, np.nan, 1]), "row 1 has the target nan"),
    ],
)
def test_what_is_no_label_is_refused(labels: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        ArraySource(INPUTS[:3], labels, task="classification")


def test_labels_outside_the_classes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="row 3 has the label 3; expected 0 to 2, for 3 classes"):
        ArraySource(INPUTS, LABELS).with_classes(3)
    assert ArraySource(INPUTS, LABELS).with_classes(9).spec.output_size == 9
    np.save(tmp_path / "y.npy", LABELS)
    mapped = ArraySource(INPUTS, np.load(tmp_path / "y.npy", mmap_mode="r"))
    assert mapped.spec.classes is None
    few = mapped.with_classes(3)
    few.rows(at(0, 1, 2))
    with pytest.raises(DataError, match="row 7 has the label 3"):
        few.rows(at(5, 7))
    with pytest.raises(DataError, match="row 3 has the label 3"):
        few.target_range(0, 50)


def test_the_range_of_labels_can_be_divided(tmp_path: Path) -> None:
    np.save(tmp_path / "y.npy", np.array([5, 4, 1, 9, 2]))
    source = ArraySource(INPUTS[:5], np.load(tmp_path / "y.npy", mmap_mode="r"))
    assert [source.target_range(*share) for share in [(0, 2), (2, 2), (2, 5)]] == [(4, 5), (0, -1), (1, 9)]
    train, held = split(source, 0.4)
    for part in (train, held):
        cuts = [0, 1, len(part)]
        found = [part.target_range(*share) for share in pairwise(cuts)]
        assert max(high for _, high in found) == 9


def test_inputs_and_targets_must_have_the_same_number_of_rows() -> None:
    with pytest.raises(DataError, match="50 rows of inputs, 49 of targets"):
        ArraySource(INPUTS, LABELS[:-1])
    with pytest.raises(DataError, match="type <U1"):
        ArraySource(INPUTS, np.array(["a"] * 50))
    with pytest.raises(DataError, match="one class for each row"):
        ArraySource(INPUTS, INPUTS, task="classification")


@pytest.mark.parametrize("holdout", [0.0, 0.001, 0.1, 0.5, 0.999])
def test_a_split_loses_no_row_and_doubles_none(holdout: float) -> None:
    source = ArraySource(np.arange(50.0), LABELS)
    train, held = split(source, holdout)
    rows = [part.rows(np.arange(len(part)))[0].ravel() for part in (train, held)]
    assert sorted(torch.cat(rows).tolist()) == list(range(50))
    assert len(held) == {0.0: 0, 0.001: 1, 0.1: 5, 0.5: 25, 0.999: 49}[holdout]
    assert torch.equal(split(source, holdout)[1].rows(np.arange(len(held)))[0].ravel(), rows[1])


def test_the_tail_of_a_source_stays_in_order() -> None:
    train, held = split_tail(ArraySource(np.arange(50.0), LABELS), 0.1)
    assert train.rows(at(0, 44))[0].tolist() == [[0], [44]]
    assert held.rows(at(0, 4))[0].tolist() == [[45], [49]]
    with pytest.raises(IndexError):
        held.rows(at(5))
    with pytest.raises(ConfigError, match=r"holdout is 1\.5"):
        split_tail(held, 1.5)


def test_items_of_a_dataset_become_rows() -> None:
    inputs, labels = torch.randn(9, 2, dtype=torch.float64), torch.arange(9) % 3
    source = DatasetSource(TensorDataset(inputs, labels))
    assert source.spec.target == "class" and source.spec.classes is None
    assert source.target_range(0, 9) == (0, 2)
    found = source.with_classes(3).rows(at(8, 1))
    assert torch.equal(found[0], inputs[[8, 1]].float()) and found[1].tolist() == [2, 1]
    with pytest.raises(DataError, match="row 8 has the label 2"):
        source.with_classes(2).rows(at(1, 8))


def test_a_dataset_may_have_numbers_names_tokens_or_its_own_collation() -> None:
    numbers = DatasetSource(
        Items(([1.0], 0.5), ([2.0], 1.5)), collate=lambda items: tuple(map(torch.tensor, zip(*items, strict=True)))
    )
    assert numbers.rows(at(1, 0))[1].tolist() == [[1.5], [0.5]]
    named = Items((np.ones((1, 2, 2), np.uint8) * 255, 1))
    named.classes = ["cat", "dog"]  # type: ignore[attr-defined]
    pictures = DatasetSource(named)
    assert pictures.spec.class_names == ("cat", "dog") and pictures.rows(at(0))[0].max() == 1
    tokens = DatasetSource(Items((torch.tensor([1, 2]), torch.tensor([2, 7]))), task="language")
    assert tokens.spec.target == "tokens" and tokens.target_range(0, 1) == (1, 7)
    assert tokens.rows(at(0))[0].dtype == torch.int64


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([], "has no items"),
        ([(1.0,)], "item 0 is 1 parts; expected a pair"),
        ([{"x": 1.0}], "item 0 is a dict; expected a pair"),
        ([("text", 1)], "collate to .*; expected two tensors"),
        ([(object(), 1)], "cannot be collated"),
        ([(torch.tensor([1.0, np.nan]), 1)], "inputs of row 0, column 1 are nan"),
    ],
)
def test_items_that_are_no_pairs_of_numbers_are_refused(items: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        DatasetSource(Items(*items))


def test_items_of_different_shapes_name_their_indices() -> None:
    source = DatasetSource(Items((torch.zeros(2), 0), (torch.zeros(3), 1)))
    with pytest.raises(DataError, match="items 0, 1 cannot be collated"):
        source.rows(at(0, 1))


def test_a_sparse_file_of_many_gigabytes_is_read_by_row(tmp_path: Path) -> None:
    path, rows, columns = tmp_path / "huge.npy", 200_000_000, 33
    header = np.lib.format.header_data_from_array_1_0(np.empty((0, 0), np.float32)) | {"shape": (rows, columns)}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        start = file.tell()
        file.truncate(start + rows * columns * 4)
        file.seek(start + (rows - 1) * columns * 4)
        file.write(np.arange(columns, dtype=np.float32).tobytes())
    assert path.stat().st_size > 26e9
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    data = open_data(str(path), holdout=0.01)
    assert len(data.train) + len(data.validation) == rows
    inputs, targets = data.train.source.rows(at(rows - 1, 5))  # type: ignore[attr-defined]
    assert inputs.shape == (2, 32) and inputs[0].tolist() == list(range(32)) and targets.tolist() == [[32], [0]]
    for _ in range(20):
        data.train.rows(GENERATOR.integers(0, len(data.train), 64))
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown_kib < 300 * 1024


def test_a_mapped_array_travels_as_a_path(tmp_path: Path) -> None:
    table = GENERATOR.normal(size=(1000, 5))
    np.save(tmp_path / "x.npy", table)
    source = ArraySource(np.load(tmp_path / "x.npy", mmap_mode="r")[10:, 1:], LABELS.repeat(20)[:990])
    source.rows(at(3))
    sent = pickle.dumps(Subset(source, None, 5, 900))
    assert len(sent) < 12_000
    found = pickle.loads(sent).rows(at(0))[0]
    assert np.array_equal(found.numpy(), table[[15], 1:].astype(np.float32))


def test_a_mapped_array_finds_that_its_file_shrank(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    path.write_bytes(bytes(100))
    array = MappedArray(path, np.float32, (5, 5))
    path.write_bytes(bytes(99))
    with pytest.raises(DataError, match=r"has 99 bytes; \(5, 5\) float32 need 100"):
        array[:1]
