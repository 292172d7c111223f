"""NumPy's own files: an array stays in its file, even inside an uncompressed .npz."""

from __future__ import annotations

import struct
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from distloop.data.array_source import ArraySource
from distloop.data.mapped import MappedArray, contiguous_strides
from distloop.data.source import Task
from distloop.errors import DataError

LOCAL_HEADER_BYTES = 30


def open_npy(path: Path, targets: Path | None, task: Task = "auto") -> ArraySource:
    """Rows of one array, with the targets in another file or, of a table (rows, columns), in its last column."""
    inputs = map_npy(path)
    if targets is not None:
        return ArraySource(inputs, map_npy(targets), task=task, name=str(path))
    if inputs.ndim != 2 or inputs.shape[1] < 2:
        raise DataError(
            f"{path} has shape {inputs.shape}; expected a table (rows, columns) whose last column "
            "is the target. Give the targets of other arrays in a file of their own: targets=PATH.npy"
        )
    last = inputs.shape[1] - 1
    return ArraySource(inputs.columns(last), inputs.column(last), task=task, name=str(path))


def open_npz(path: Path, task: Task = "auto") -> ArraySource:
    """The arrays ``inputs`` and ``targets`` of an archive: mapped if stored as they are, loaded if compressed."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            if missing := [name for name in ("inputs", "targets") if name not in members]:
                raise DataError(
                    f"{path} holds {', '.join(members) or 'nothing'}, and no "
                    f"{' and no '.join(missing)}; expected the arrays "
                    "inputs and targets: np.savez(path, inputs=..., targets=...)"
                )
            inputs, targets = (_member(archive, members[name], path) for name in ("inputs", "targets"))
    except (zipfile.BadZipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path} is not a whole .npz file: {error}. Copy or make it again") from error
    return ArraySource(inputs, targets, task=task, name=str(path))


def map_npy(path: Path) -> MappedArray:
    """The array of a .npy file, left in it."""
    with path.open("rb") as file:
        dtype, shape, fortran = _header(file, str(path))
        return MappedArray(path, dtype, shape, file.tell(), contiguous_strides(shape, dtype.itemsize, fortran))


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> npt.NDArray[Any] | MappedArray:
    name = f"{path}, {info.filename}"
    with archive.open(info) as member:
        dtype, shape, fortran = _header(member, name)
        header_bytes = member.tell()
    if info.compress_type == zipfile.ZIP_STORED:
        start = _content_offset(path, info) + header_bytes
        return MappedArray(path, dtype, shape, start, contiguous_strides(shape, dtype.itemsize, fortran))
    with archive.open(info) as member:
        try:
            array: npt.NDArray[Any] = np.lib.format.read_array(member, allow_pickle=False)
        except ValueError as error:
            raise DataError(f"{name} cannot be read: {error}. Make it again with np.savez") from error
    return array


def _content_offset(path: Path, info: zipfile.ZipInfo) -> int:
    """Where a member's bytes start: after a local header whose name and extra field vary in length."""
    with path.open("rb") as file:
        file.seek(info.header_offset)
        name_bytes, extra_bytes = struct.unpack("<HH", file.read(LOCAL_HEADER_BYTES)[26:30])
    return info.header_offset + LOCAL_HEADER_BYTES + int(name_bytes) + int(extra_bytes)


def _header(file: IO[bytes], name: str) -> tuple[np.dtype[Any], tuple[int, ...], bool]:
    """Type, shape and whether columns come first; the file is left at the array's first byte."""
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(file)
    except ValueError as error:
        raise DataError(f"{name} is not a whole .npy array: {error}. Make it again with np.save") from error
    if dtype.hasobject or dtype.names is not None:
        raise DataError(
            f"{name} holds {'Python objects' if dtype.hasobject else 'records'}; expected an array "
            "of numbers: save it as float32"
        )
    return dtype, shape, fortran
