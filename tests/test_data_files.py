"""Every format of file: what a whole one gives, and what a broken one says."""

from __future__ import annotations

import gzip
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from distloop.data.arrays import open_npy, open_npz
from distloop.data.digits import open_digits
from distloop.data.idx import open_idx
from distloop.data.mapped import MappedArray
from distloop.data.tables import open_table
from distloop.data.text import open_text
from distloop.errors import ConfigError, DataError

PIXELS = np.arange(5 * 2 * 3, dtype=np.uint8).reshape(5, 2, 3) * 8
LABELS = np.array([0, 2, 1, 2, 0], np.uint8)
EVERY = np.arange(5)


def idx_bytes(array: np.ndarray, magic: int | None = None) -> bytes:
    header = struct.pack(f">{array.ndim + 1}I", magic or 2048 + array.ndim, *array.shape)
    return header + array.tobytes()


def idx_folder(folder: Path, part: str = "train", zipped: bool = False) -> Path:
    for kind, array in (("images-idx3", PIXELS), ("labels-idx1", LABELS)):
        path = folder / f"{part}-{kind}-ubyte{'.gz' if zipped else ''}"
        path.write_bytes(gzip.compress(idx_bytes(array)) if zipped else idx_bytes(array))
    return folder


def table(folder: Path, text: str | bytes, name: str = "table.csv") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_digits_are_those_of_scikit_learn() -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    expected, source = datasets.load_digits(), open_digits()
    inputs, targets = source.rows(np.arange(1797))
    assert len(source) == 1797 and inputs.shape == (1797, 1, 8, 8)
    assert np.array_equal(inputs[:, 0].numpy() * 16, expected.images)
    assert np.array_equal(targets.numpy(), expected.target)
    assert source.spec.output_size == 10


@pytest.mark.parametrize("zipped", [False, True])
def test_idx_folders(tmp_path: Path, zipped: bool) -> None:
    train, test = open_idx(idx_folder(tmp_path, zipped=zipped))
    assert test is None
    inputs, targets = train.rows(EVERY)
    assert torch.equal(inputs, torch.from_numpy(PIXELS[:, None].astype(np.float32) / 255))
    assert targets.tolist() == LABELS.tolist() and train.spec.output_size == 3
    assert isinstance(train._inputs, MappedArray) is not zipped
    _, test = open_idx(idx_folder(tmp_path, "t10k", zipped))
    assert test is not None and len(test) == 5


IMAGES, IMAGES_GZ = "train-images-idx3-ubyte", "train-images-idx3-ubyte.gz"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (IMAGES, idx_bytes(PIXELS)[:-1], "has 45 bytes; expected 46 for the 5 x 2 x 3 images"),
        (IMAGES, idx_bytes(PIXELS) + b"x", "has 47 bytes; expected 46"),
        (IMAGES, idx_bytes(PIXELS)[:9], "has 9 bytes; expected a header of 16"),
        (IMAGES, b"", "has 0 bytes; expected a header of 16"),
        (IMAGES, idx_bytes(PIXELS, 2049), "magic number 2049; expected 2051"),
        (IMAGES, idx_bytes(PIXELS[:4]), "has 4 images, .*train-labels-idx1-ubyte 5 labels"),
        (IMAGES_GZ, gzip.compress(idx_bytes(PIXELS))[:-9], "cannot be unpacked"),
        (IMAGES_GZ, b"no gzip at all", "cannot be unpacked"),
        (IMAGES_GZ, gzip.compress(idx_bytes(PIXELS)[:-1]), "has 45 bytes; expected 46"),
        ("train-labels-idx1-ubyte", idx_bytes(LABELS)[:-2], "has 11 bytes; expected 13 for the 5 labels"),
        ("train-labels-idx1-ubyte", idx_bytes(LABELS, 2051), "magic number 2051; expected 2049"),
        ("t10k-labels-idx1-ubyte", idx_bytes(LABELS), "expected t10k-images-idx3-ubyte or"),
    ],
)
def test_broken_idx_files(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    idx_folder(tmp_path)
    if name.endswith(".gz"):
        (tmp_path / IMAGES).unlink()
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        open_idx(tmp_path)


def test_a_folder_without_idx_files_says_what_it_holds(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds nothing; expected train-images-idx3-ubyte or"):
        open_idx(tmp_path)
    (tmp_path / "cat.png").touch()
    with pytest.raises(DataError, match=r"holds cat\.png; expected train-images"):
        open_idx(tmp_path)


@pytest.mark.parametrize(
    ("text", "kind", "size", "targets"),
    [
        ("1,2,0\n3,4,1\n5,6,1\n", "class", 2, [0, 1, 1]),
        ("a,b,t\n1,2,0\n3,4,1\n5,6,1\n", "class", 2, [0, 1, 1]),
        ("\ufeffa;b;t\r\n\r\n1;2;0\r\n3;4;1\r\n\r\n5;6;1", "class", 2, [0, 1, 1]),
        ('"a","b","t"\n"1","2","0"\n3, 4, 1\n5,6,1\n', "class", 2, [0, 1, 1]),
        ("1,2,0.0\n3,4,1.0\n5,6,1.0\n", "number", 1, [[0], [1], [1]]),
        ("1,2,0\n3,4,2\n5,6,2\n", "number", 1, [[0], [2], [2]]),
        ("1,2,-1\n3,4,1\n5,6,0\n", "number", 1, [[-1], [1], [0]]),
        ("1,2,0.5\n3,4,1e3\n5,6,-1\n", "number", 1, [[0.5], [1000], [-1]]),
        ("1,2,dog\n3,4,cat\n5,6,dog\n", "class", 2, [1, 0, 1]),
        ("a\tb\tt\n1\t2\tred fox\n3\t4\tcat\n5\t6\tred fox\n", "class", 2, [1, 0, 1]),
    ],
)
def test_tables(tmp_path: Path, text: str, kind: str, size: int, targets: list[Any]) -> None:
    source = open_table(table(tmp_path, text))
    inputs, found = source.rows(np.arange(3))
    assert inputs.tolist() == [[1, 2], [3, 4], [5, 6]] and inputs.dtype == torch.float32
    assert (source.spec.target, source.spec.output_size) == (kind, size)
    assert found.tolist() == targets


def test_the_target_of_a_table_by_name_and_by_task(tmp_path: Path) -> None:
    path = table(tmp_path, gzip.compress(b"t,1,b\n0,1,2\n1,3,4\n"), "table.csv.gz")
    inputs, targets = open_table(path, target="t").rows(np.arange(2))
    assert inputs.tolist() == [[1, 2], [3, 4]] and targets.tolist() == [0, 1]
    numbers = open_table(path, target="t", task="regression")
    assert numbers.spec.target == "number"
    with pytest.raises(ConfigError, match=r"target=x is not in the first line of .*\(t, 1, b\), which is no header"):
        open_table(path, target="x")
    sparse = table(tmp_path, "1,0\n1,5\n")
    assert open_table(sparse, task="classification").spec.output_size == 6
    with pytest.raises(ConfigError, match="which is no header"):
        open_table(sparse, target="t")


def test_many_whole_numbers_are_no_classes(tmp_path: Path) -> None:
    rows = "".join(f"1,{number}\n" for number in range(101))
    assert open_table(table(tmp_path, rows)).spec.target == "number"
    assert open_table(table(tmp_path, rows.replace("1,100\n", ""))).spec.output_size == 100


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("\n\n", "is empty"),
        ("a,b\n", "has a header and no rows"),
        ("1\n2\n", "has one column"),
        ("a,b,t\n1,2,0\n\n3,,1\n", r"line 4, column 2 \(b\): a hole \(''\)"),
        ("1,2,0\n3,nan,1\n", r"line 2, column 2: a hole \('nan'\)"),
        ("1,2,0\n3,NA,1\n", r"line 2, column 2: a hole \('NA'\)"),
        ("1,,0\n3,4,1\n", "line 1, column 2: a hole"),
        ("1,2,0\n3,4,\n", "line 2, column 3: a hole"),
        ("1,2,cat\n3,4,\n", "line 2, column 3: a hole"),
        ("1,2,0\n3,4x,1\n", "line 2, column 2: '4x' is not a number"),
        ("1,2,0\n3,4,cat\n", "line 2, column 3: 'cat' is not a number"),
        ("a,1,t\n3,4,1\n", "line 1, column 1: 'a' is not a number; .* header"),
        ("1,2,0\n3,inf,1\n", "line 2, column 2: inf is not finite"),
        ("1,2,0\n3,4\n", "line 2 has 2 columns; expected 3"),
        ("1,2,0\n3,4,1,5\n", "line 2 has 4 columns; expected 3"),
        ("1,2,cat\n3,4,dog,5\n", "line 2 has 4 columns; expected 3"),
        ("a,b,t\n1,2\n3,4\n", "line 2 has 2 columns; expected 3"),
        ("1,2,0\n3,1_000,1\n", "line 2, column 2: '1_000' is not a number"),
        ("1,1e200,0\n3,4,1\n", "inputs of row 0, column 1 are inf as float32"),
        (b"1,2,caf\xe9\n", "is not text in UTF-8"),
        (gzip.compress(b"1,2,0\n" * 99)[:-12], "cannot be read|is not text"),
    ],
)
def test_broken_tables(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_table(table(tmp_path, text))


def test_a_broken_gzipped_table(tmp_path: Path) -> None:
    path = table(tmp_path, gzip.compress(b"1,2,0\n" * 9999)[:-12], "table.csv.gz")
    with pytest.raises(DataError, match="Expected a whole file"):
        open_table(path)


def test_labels_of_a_table_that_are_no_classes(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"row 1 has the target 0\.5"):
        open_table(table(tmp_path, "1,0\n1,0.5\n"), task="classification")
    with pytest.raises(DataError, match="row 0 has the label -1"):
        open_table(table(tmp_path, "1,-1\n1,1\n"), task="classification")
    with pytest.raises(DataError, match="column 2 holds text"):
        open_table(table(tmp_path, "1,cat\n"), task="regression")
    with pytest.raises(DataError, match=r"line 3 \(row 1\) has the class 'cow'; expected .*: dog, cat"):
        open_table(table(tmp_path, "a,t\n1,cat\n1,cow\n"), class_names=("dog", "cat"))
    assert open_table(table(tmp_path, "1,cat\n2,cat\n"), class_names=("dog", "cat")).rows(at(0, 1))[1].tolist() == [
        1,
        1,
    ]


def at(*rows: int) -> np.ndarray:
    return np.array(rows, np.int64)


@pytest.mark.parametrize("order", ["C", "F"])
def test_npy_tables_and_pairs_stay_in_their_files(tmp_path: Path, order: Any) -> None:
    values = np.random.default_rng(0).normal(size=(7, 4))
    np.save(tmp_path / "table.npy", np.asarray(values, order=order))
    np.save(tmp_path / "y.npy", np.arange(7))
    source = open_npy(tmp_path / "table.npy", None)
    inputs, targets = source.rows(at(6, 2))
    assert np.array_equal(inputs.numpy(), values[[6, 2], :3].astype(np.float32))
    assert np.array_equal(targets.numpy(), values[[6, 2], 3:].astype(np.float32))
    pair = open_npy(tmp_path / "table.npy", tmp_path / "y.npy")
    assert pair.spec.input_shape == (4,) and pair.rows(at(5))[1].tolist() == [5]
    assert all(isinstance(held, MappedArray) for held in (source._inputs, source._targets, pair._targets))


@pytest.mark.parametrize("compressed", [False, True])
def test_npz_archives(tmp_path: Path, compressed: bool) -> None:
    inputs, targets = np.random.default_rng(0).normal(size=(7, 2, 3)), np.arange(7) % 3
    (np.savez_compressed if compressed else np.savez)(tmp_path / "d.npz", other=1, inputs=inputs, targets=targets)
    source = open_npz(tmp_path / "d.npz")
    assert isinstance(source._inputs, MappedArray) is not compressed
    found = source.rows(at(4, 0))
    assert np.array_equal(found[0].numpy(), inputs[[4, 0]].astype(np.float32)) and found[1].tolist() == [1, 0]
    assert source.target_range(0, 7) == (0, 2)


def test_broken_arrays(tmp_path: Path) -> None:
    path, archive = tmp_path / "x.npy", tmp_path / "x.npz"
    np.save(path, np.zeros(5))
    with pytest.raises(DataError, match=r"has shape \(5,\); expected a table .*targets=PATH"):
        open_npy(path, None)
    np.save(path, np.zeros((5, 2)))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"has 207 bytes; .* need 208. The file is cut short"):
        open_npy(path, None)
    path.write_bytes(b"not numpy")
    with pytest.raises(DataError, match=r"is not a whole \.npy array"):
        open_npy(path, None)
    np.save(path, np.array([[{}, 1]], object), allow_pickle=True)
    with pytest.raises(DataError, match="holds Python objects"):
        open_npy(path, None)
    np.savez(archive, x=1)
    with pytest.raises(DataError, match="holds x, and no inputs and no targets"):
        open_npz(archive)
    archive.write_bytes(archive.read_bytes()[:-30])
    with pytest.raises(DataError, match=r"is not a whole \.npz file"):
        open_npz(archive)


def test_a_damaged_compressed_member_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez_compressed(path, inputs=np.random.default_rng(0).normal(size=(999, 9)), targets=np.zeros(999))
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        middle = archive.infolist()[0].header_offset + archive.infolist()[0].compress_size // 2
    content[middle : middle + 64] = bytes(64)
    path.write_bytes(bytes(content))
    with pytest.raises(DataError, match=r"x\.npz"):
        open_npz(path)


def test_text_is_read_in_windows(tmp_path: Path) -> None:
    path = table(tmp_path, b"0123456789abcdef", "text.txt")
    source = open_text(path, context=5)
    inputs, targets = source.rows(at(2, 0))
    assert len(source) == 3 and source.spec.output_size == 256 and source.spec.target == "tokens"
    assert [bytes(row.tolist()) for row in inputs] == [b"abcde", b"01234"]
    assert [bytes(row.tolist()) for row in targets] == [b"bcdef", b"12345"]
    assert inputs.dtype == targets.dtype == torch.int64
    with pytest.raises(DataError, match="has 16 bytes; expected at least 17"):
        open_text(path, context=8)
    with pytest.raises(ConfigError, match="context is 0"):
        open_text(path, context=0)
