"""What a vector looks like on the wire: as it is, or in fewer bytes. Whatever travels, sums are taken in float32."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, final

import numpy as np
import torch

from distloop.comm.memory import Array


class Wire(ABC):
    """Encodes what is sent and decodes what arrives, piece by piece. A piece is what ``piece`` made of an array."""

    @abstractmethod
    def carries(self, dtype: np.dtype[Any]) -> Wire:
        """What vectors of this type travel by: this, or as they are."""

    @abstractmethod
    def image(self, vector: Array) -> Array:
        """The memory (P,) that is sent and received for ``vector`` (P,): itself, if nothing is encoded."""

    @abstractmethod
    def piece(self, array: Array) -> Any:
        """A view of a part of a vector or of its image, as the calls below take it; made once, used at every step."""

    @abstractmethod
    def encode(self, piece: Any, image: Any) -> None:
        """Fill ``image``, which is sent, from ``piece``."""

    @abstractmethod
    def decode(self, image: Any, piece: Any) -> None:
        """Fill ``piece`` from ``image``, which has arrived."""

    @abstractmethod
    def add(self, piece: Any, image: Any) -> None:
        """Add to ``piece`` what has arrived in ``image``."""

    @abstractmethod
    def copy(self, piece: Any, other: Any) -> None:
        """Fill ``other``, the same piece in a neighbour's memory."""


@final
class Plain(Wire):
    """As it is."""

    def carries(self, dtype: np.dtype[Any]) -> Wire:
        """Anything."""
        return self

    def image(self, vector: Array) -> Array:
        """Itself."""
        return vector

    def piece(self, array: Array) -> Array:
        """Itself."""
        return array

    def encode(self, piece: Array, image: Array) -> None:
        """They are one."""

    def decode(self, image: Array, piece: Array) -> None:
        """They are one."""

    def add(self, piece: Array, image: Array) -> None:
        """In place."""
        np.add(piece, image, out=piece)

    def copy(self, piece: Array, other: Array) -> None:
        """As it is."""
        np.copyto(other, piece)


@final
class Bf16(Wire):
    """float32 travels as bfloat16, in half the bytes: 8 bits of mantissa, rounded to nearest even; the range stays.

    A sum over p ranks is rounded p times on its way (reduce-scatter: p-1, then it stays float32 at its owner).
    Scratch: the longest vector, at half its size. Other types travel as they are.
    """

    def __init__(self) -> None:
        self._plain = Plain()
        self._image = np.empty(0, np.uint16)

    def carries(self, dtype: np.dtype[Any]) -> Wire:
        """float32 only."""
        return self if dtype == np.float32 else self._plain

    def image(self, vector: Array) -> Array:
        """One for all vectors, since one travels at a time."""
        if self._image.size < vector.size:
            self._image = np.empty(vector.size, np.uint16)
        return self._image[: vector.size]

    def piece(self, array: Array) -> torch.Tensor:
        """torch knows the type; numpy and MPI see 16 bits."""
        tensor = torch.from_numpy(array)
        return tensor.view(torch.bfloat16) if array.dtype == np.uint16 else tensor

    def encode(self, piece: torch.Tensor, image: torch.Tensor) -> None:
        """Rounded to nearest even."""
        image.copy_(piece)

    def decode(self, image: torch.Tensor, piece: torch.Tensor) -> None:
        """Exact."""
        piece.copy_(image)

    def add(self, piece: torch.Tensor, image: torch.Tensor) -> None:
        """In float32."""
        piece.add_(image)

    def copy(self, piece: torch.Tensor, other: torch.Tensor) -> None:
        """As it is."""
        other.copy_(piece)
