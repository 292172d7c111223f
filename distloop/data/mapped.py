"""Arrays that stay in their file: opening one reads nothing, and a row costs the pages it lies on."""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any, final

import numpy as np
import numpy.typing as npt

from distloop.errors import DataError

Array = npt.NDArray[Any]
READ_AHEAD_BYTES = 1 << 16


@final
class MappedArray:
    """An array inside a file, mapped when it is first used, and mapped again in a process that it is sent to.

    ``strides`` (bytes) may skip or overlap: a column of a table, windows of a text.
    """

    def __init__(
        self,
        path: Path,
        dtype: npt.DTypeLike,
        shape: tuple[int, ...],
        offset: int = 0,
        strides: tuple[int, ...] | None = None,
    ) -> None:
        self.path = path.resolve()
        self.dtype: np.dtype[Any] = np.dtype(dtype)
        self.shape = shape
        self.offset = offset
        self.strides = strides or contiguous_strides(shape, self.dtype.itemsize)
        self._array: Array | None = None
        self._check_size()

    @classmethod
    def of(cls, array: np.memmap[Any, Any]) -> MappedArray:
        """The same window on the same file as a numpy memmap, or as a slice of one."""
        root = array
        while isinstance(root.base, np.memmap):
            root = root.base
        distance = array.__array_interface__["data"][0] - root.__array_interface__["data"][0]
        return cls(Path(str(root.filename)), array.dtype, array.shape, int(root.offset) + distance, array.strides)

    @property
    def ndim(self) -> int:
        """The number of dimensions."""
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | npt.NDArray[np.int64]) -> Array:
        """Rows by slice (a view of the file, mapped for reading on) or by fancy index (a copy)."""
        if isinstance(rows, slice):
            return self._map(mmap.MADV_SEQUENTIAL)[rows]
        if self._array is None:
            # Reading ahead of a short row costs a thousand times the row, and throws useful pages out.
            self._array = self._map(mmap.MADV_RANDOM if self.strides[0] < READ_AHEAD_BYTES else mmap.MADV_NORMAL)
        return self._array[rows]

    def column(self, index: int) -> MappedArray:
        """One column of a table, (rows,)."""
        offset = self.offset + index * self.strides[1]
        return MappedArray(self.path, self.dtype, self.shape[:1], offset, self.strides[:1])

    def columns(self, stop: int) -> MappedArray:
        """The first ``stop`` columns of a table, (rows, stop)."""
        return MappedArray(self.path, self.dtype, (self.shape[0], stop), self.offset, self.strides)

    def __getstate__(self) -> Mapping[str, Any]:
        return {**self.__dict__, "_array": None}

    def _map(self, advice: int) -> Array:
        self._check_size()
        if prod(self.shape) == 0:
            return np.empty(self.shape, self.dtype)
        with self.path.open("rb") as file:
            whole = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        whole.madvise(advice)
        return np.ndarray(self.shape, self.dtype, whole, self.offset, self.strides)

    def _check_size(self) -> None:
        """Reading a page that the file does not have would kill the process."""
        given, needed = self.path.stat().st_size, self.offset
        if prod(self.shape):
            last = sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))
            needed += last + self.dtype.itemsize
        if given < needed:
            raise DataError(
                f"{self.path} has {given} bytes; {self.shape} {self.dtype} need {needed}. The file is cut short: "
                "copy or make it again"
            )


def contiguous_strides(shape: tuple[int, ...], itemsize: int, fortran: bool = False) -> tuple[int, ...]:
    """The bytes from one element to the next along each dimension."""
    if fortran:
        return tuple(itemsize * prod(shape[:axis]) for axis in range(len(shape)))
    return tuple(itemsize * prod(shape[axis + 1 :]) for axis in range(len(shape)))
