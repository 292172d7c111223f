"""Folders of IDX files, as MNIST and its relatives come: one file of images, one of labels, for each part."""

from __future__ import annotations

import gzip
import struct
import zlib
from math import prod
from pathlib import Path

import numpy as np
import numpy.typing as npt

from distloop.data.array_source import ArraySource
from distloop.data.mapped import MappedArray
from distloop.data.source import Task
from distloop.errors import DataError

IMAGES_MAGIC, LABELS_MAGIC = 2051, 2049
TRAIN, TEST = "train", "t10k"


def open_idx(
    folder: Path, task: Task = "auto", class_names: tuple[str, ...] | None = None
) -> tuple[ArraySource, ArraySource | None]:
    """The training part and, where the folder has one, the test part: images (1, height, width), values 0 to 1.

    Images that are not gzipped stay in their file; labels, one byte each, are read at once.
    """
    train = _part(folder, TRAIN, task, class_names)
    has_test = any(_find(folder, name) for name in _names(TEST))
    return train, _part(folder, TEST, task, class_names) if has_test else None


def _part(folder: Path, part: str, task: Task, class_names: tuple[str, ...] | None) -> ArraySource:
    images_path, labels_path = (_required(folder, name) for name in _names(part))
    images = _read(images_path, IMAGES_MAGIC, 3)
    labels = _read(labels_path, LABELS_MAGIC, 1)
    if len(images) != len(labels):
        raise DataError(
            f"{images_path} has {len(images)} images, {labels_path} {len(labels)} labels; expected "
            "as many labels as images: the two files must belong together"
        )
    return ArraySource(images, labels[:], task=task, class_names=class_names, name=str(images_path))


def _names(part: str) -> tuple[str, str]:
    return f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte"


def _find(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def _required(folder: Path, name: str) -> Path:
    path = _find(folder, name)
    if path is None:
        present = ", ".join(sorted(entry.name for entry in folder.iterdir())[:12]) or "nothing"
        raise DataError(
            f"{folder} holds {present}; expected {name} or {name}.gz in it. A folder of data holds IDX files, named as "
            "MNIST's: train-images-idx3-ubyte, train-labels-idx1-ubyte and, if there is a test part, the same with t10k"
        )
    return path


def _read(path: Path, magic: int, dimensions: int) -> npt.NDArray[np.uint8] | MappedArray:
    """Pixels (rows, 1, height, width), or labels (rows,)."""
    header_bytes = 4 + 4 * dimensions
    content = _unzipped(path) if path.suffix == ".gz" else None
    header = _head(path, header_bytes) if content is None else content[:header_bytes]
    given_bytes = path.stat().st_size if content is None else len(content)
    shape = _shape(path, header, given_bytes, magic, dimensions)
    if content is None:
        return MappedArray(path, np.uint8, shape, header_bytes)
    return np.frombuffer(content, np.uint8, offset=header_bytes).reshape(shape).copy()


def _shape(path: Path, header: bytes, given_bytes: int, magic: int, dimensions: int) -> tuple[int, ...]:
    kind = "images" if magic == IMAGES_MAGIC else "labels"
    if len(header) < 4 + 4 * dimensions:
        raise DataError(f"{path} has {given_bytes} bytes; expected a header of {4 + 4 * dimensions}: copy it again")
    given_magic, *sizes = struct.unpack(f">{dimensions + 1}I", header)
    if given_magic != magic:
        raise DataError(
            f"{path} starts with the magic number {given_magic}; expected {magic}, that of an IDX "
            f"file of {kind} in bytes"
        )
    expected_bytes = len(header) + prod(sizes)
    if given_bytes != expected_bytes:
        raise DataError(
            f"{path} has {given_bytes} bytes; expected {expected_bytes} for the "
            f"{' x '.join(map(str, sizes))} {kind} of its header: the file is cut short or damaged, copy it again"
        )
    return (sizes[0], 1, *sizes[1:]) if dimensions == 3 else (sizes[0],)


def _head(path: Path, size: int) -> bytes:
    with path.open("rb") as file:
        return file.read(size)


def _unzipped(path: Path) -> bytes:
    try:
        with gzip.open(path) as file:
            return file.read()
    except (EOFError, OSError, zlib.error) as error:
        raise DataError(
            f"{path} ({path.stat().st_size} bytes) cannot be unpacked: {error}. Expected a whole "
            "gzip file: copy it again"
        ) from error
