"""From what a user types to rows for training and rows held out."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from distloop.data import ArraySource, DatasetSource, formats, open_data
from distloop.errors import ConfigError, DataError

MODULE = """
import torch
from torch.utils.data import Dataset, TensorDataset
pairs = TensorDataset(torch.arange(20.).reshape(10, 2), torch.arange(10) % 2)
class Mine(Dataset):
    def __init__(self, length=4): self.length = length
    def __len__(self): return self.length
    def __getitem__(self, index): return torch.ones(2) * index, 0.5
    @classmethod
    def longer(cls): return cls(6)
def both(): return pairs, TensorDataset(torch.zeros(3, 2), torch.zeros(3, dtype=torch.int64))
def needy(folder): return pairs
number = 5
"""


def every(source: Any) -> tuple[torch.Tensor, torch.Tensor]:
    found: tuple[torch.Tensor, torch.Tensor] = source.rows(np.arange(len(source)))
    return found


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "mydata", raising=False)
    (tmp_path / "mydata.py").write_text(MODULE)
    return tmp_path


def test_digits_by_name() -> None:
    data = open_data("digits")
    assert (len(data.train), len(data.validation)) == (1438, 359)
    assert len(open_data("digits", holdout=0).validation) == 0
    assert open_data("digits", task="regression").train.spec.target == "number"
    whole = torch.cat([every(data.train)[0], every(data.validation)[0]]).sum()
    assert torch.isclose(whole, every(data.train.source)[0].sum())  # type: ignore[attr-defined]


@pytest.mark.skipif(
    not formats.FASHION_MNIST.is_dir(), reason="Debian's package dataset-fashion-mnist is not installed"
)
def test_fashion_mnist_by_name() -> None:
    data = open_data("fashion-mnist")
    assert (len(data.train), len(data.validation), data.train.spec.output_size) == (60_000, 10_000, 10)
    inputs, targets = data.validation.rows(np.arange(10_000))
    assert inputs.shape == (10_000, 1, 28, 28) and inputs.min() == 0 and inputs.max() == 1
    assert torch.bincount(targets).tolist() == [1000] * 10
    assert data.train.rows(np.array([0]))[1].item() == 9
    assert data.train.spec.class_names is not None and data.train.spec.class_names[9] == "Ankle boot"


def test_fashion_mnist_where_it_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "FASHION_MNIST", Path("/no/such/folder"))
    with pytest.raises(DataError, match="Debian's package dataset-fashion-mnist, or give any folder of IDX files"):
        open_data("fashion-mnist")


@pytest.mark.parametrize(
    ("name", "train", "validation"),
    [
        ("mydata:pairs", 8, 2),
        ("mydata.pairs", 8, 2),
        ("mydata:Mine", 3, 1),
        ("mydata.Mine", 3, 1),
        ("mydata:Mine.longer", 5, 1),
        ("mydata:both", 10, 3),
    ],
)
def test_datasets_by_import_path(here: Path, name: str, train: int, validation: int) -> None:
    data = open_data(name, holdout=0.2)
    assert (len(data.train), len(data.validation)) == (train, validation)


def test_datasets_and_sources_as_objects() -> None:
    source = ArraySource(np.arange(9.0), np.arange(9) % 3)
    dataset = TensorDataset(torch.zeros(4, 1), torch.tensor([0, 1, 2, 0]))
    data = open_data(source, validation=dataset)
    assert data.train is source and isinstance(data.validation, DatasetSource) and data.validation.spec.classes == 3
    with pytest.raises(DataError, match="row 1 has the label 1"):
        every(data.with_classes(3).validation.with_classes(1))


@pytest.mark.parametrize(
    ("data", "options", "error", "message"),
    [
        ("digitz", {}, ConfigError, "data=digitz is no name .*digits, fashion-mnist.*package.module:attribute"),
        ("no/such/folder", {}, DataError, "there is no file"),
        ("table.csv", {}, DataError, "there is no file .*table.csv"),
        ("no_such_module:thing", {}, ConfigError, "no module no_such_module in"),
        ("mydata:thing", {}, ConfigError, "mydata has no thing; it has .*pairs"),
        ("mydata:needy", {}, ConfigError, "cannot be called with no arguments .*'folder'"),
        ("mydata:number", {}, ConfigError, "data is a int; expected a map-style torch Dataset"),
        ("mydata.py", {}, ConfigError, "files ending in .py are not known; expected a built-in"),
        ("mydata:pairs", {"target": "x"}, ConfigError, "target=x names the column of a table; the data is a Tensor"),
        (
            "digits",
            {"targets": "y.npy"},
            ConfigError,
            "targets=y.npy names the targets of a .npy file; the data is digits",
        ),
        ("digits", {"task": "language"}, DataError, "for the task language"),
        ("digits", {"holdout": 1.0}, ConfigError, "holdout is 1.0"),
        (
            "digits",
            {"validation": "mydata:pairs"},
            DataError,
            r"\(1, 8, 8\) and targets of kind class .*\(2,\) and class",
        ),
    ],
)
def test_what_is_no_data(here: Path, data: str, options: dict[str, Any], error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        open_data(data, **options)


def test_a_module_that_misses_one_of_its_own_says_which(here: Path) -> None:
    (here / "needs.py").write_text("import no_such_dependency")
    with pytest.raises(ModuleNotFoundError, match="no_such_dependency"):
        open_data("needs:data")


def test_validation_tables_are_read_as_the_training_table_was(here: Path) -> None:
    Path("train.csv").write_text("1,dog\n2,cat\n3,cow\n")
    Path("held.csv").write_text("4,dog\n")
    data = open_data("train.csv", validation="held.csv")
    assert len(data.train) == 3 and every(data.validation)[1].tolist() == [2]
    assert data.validation.spec == data.train.spec
    Path("held.csv").write_text("4,cat\n5,fox\n")
    with pytest.raises(DataError, match=r"held.csv: line 2 \(row 1\) has the class 'fox'"):
        open_data("train.csv", validation="held.csv")
    Path("train.csv").write_text("1,0\n2,1\n3,2\n")
    Path("held.csv").write_text("4,1\n5,3\n")
    with pytest.raises(DataError, match=r"held\.csv: row 1 has the label 3; expected 0 to 2"):
        open_data("train.csv", validation="held.csv")
    Path("train.csv").write_text("1,0.5\n2,1\n3,2\n")
    assert every(open_data("train.csv", validation="held.csv").validation)[1].tolist() == [[1], [3]]


def test_arrays_with_targets_in_a_file_of_their_own(here: Path) -> None:
    np.save("x.npy", np.ones((10, 2, 2)))
    np.save("y.npy", np.arange(10))
    data = open_data("x.npy", targets="y.npy")
    assert data.train.spec.classes is None and data.train.target_range(0, len(data.train)) == (0, 9)
    assert data.with_classes(10).validation.spec.output_size == 10
    assert open_data("x.npy", targets="y.npy", task="regression").train.spec.output_size == 1
    with pytest.raises(DataError, match=r"targets=z\.npy: there is no such file"):
        open_data("x.npy", targets="z.npy")
    np.savez("d.npz", inputs=np.ones((4, 2)), targets=np.ones((4, 3)))
    assert open_data("d.npz").train.spec.output_size == 3


def test_the_last_rows_of_a_text_are_held_out(here: Path) -> None:
    text = bytes(range(256)) * 4
    Path("text.txt").write_bytes(text)
    Path("text.log").write_bytes(text)
    data = open_data("text.txt", context=10, holdout=0.1)
    assert (len(data.train), len(data.validation)) == (92, 10)
    assert bytes(every(data.validation)[0].ravel().tolist()) == text[920:1020]
    assert len(open_data("text.log", context=10, task="language", holdout=0.1).train) == 92
    with pytest.raises(ConfigError, match="task=regression with the text"):
        open_data("text.txt", task="regression")


def test_data_imports_neither_scikit_learn_nor_mpi() -> None:
    program = (
        "import sys; from distloop.data import open_data; open_data('digits'); "
        "print(*{'sklearn', 'mpi4py', 'pandas'} & set(sys.modules))"
    )
    root = Path(__file__).parent.parent
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=root)
    assert ran.stdout.strip() == ""
