"""The line through measured times, t = alpha + bytes / bandwidth: a prediction to hold a measurement against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf


@dataclass(frozen=True)
class AlphaBeta:
    """``alpha_seconds`` is what nothing costs, ``bytes_per_second`` what much gets. Source: Hockney 1994."""

    alpha_seconds: float
    bytes_per_second: float

    def seconds(self, size_bytes: float) -> float:
        """The prediction for one size."""
        return self.alpha_seconds + size_bytes / self.bytes_per_second

    @classmethod
    def fit(cls, sizes_bytes: Sequence[float], seconds: Sequence[float]) -> AlphaBeta:
        """Least squares of the relative errors, so that 1 KB counts as much as 256 MB does.

        Times are taken as they are: give medians. Neither number is negative: where the best line would have it so,
        the other one alone is fitted. Raises ValueError without samples.
        """
        if not sizes_bytes or len(sizes_bytes) != len(seconds) or min(seconds) <= 0:
            raise ValueError(f"{len(sizes_bytes)} sizes and {len(seconds)} times: expected as many, and times above 0")
        ones = [1 / time for time in seconds]
        slopes = [size / time for size, time in zip(sizes_bytes, seconds, strict=True)]
        s11, s12, s22 = _dot(ones, ones), _dot(ones, slopes), _dot(slopes, slopes)
        r1, r2 = sum(ones), sum(slopes)
        determinant = s11 * s22 - s12 * s12
        if determinant > 1e-12 * s11 * s22:
            alpha, beta = (r1 * s22 - r2 * s12) / determinant, (r2 * s11 - r1 * s12) / determinant
            if alpha >= 0 and beta > 0:
                return cls(alpha, 1 / beta)
            if beta <= 0:
                return cls(r1 / s11, inf)
        return cls(0.0, s22 / r2) if r2 else cls(r1 / s11, inf)


def _dot(left: Sequence[float], right: Sequence[float]) -> float:
    return sum(a * b for a, b in zip(left, right, strict=True))
