"""Numbers as a person reads them: losses, counts, speeds, bytes and times in a few characters each."""

from __future__ import annotations

from math import isfinite

_MINUTE, _HOUR, _DAY = 60, 3600, 86400


def number(value: float) -> str:
    """Return a loss or a metric with four digits after the point, or in scientific notation far from one."""
    if value == 0 or not isfinite(value) or 1e-3 <= abs(value) < 1e4:
        return f"{value:.4f}"
    return f"{value:.3e}"


def speed(per_second: float) -> str:
    """Return how many per second: whole ones from ten on."""
    if not isfinite(per_second):
        return "-"
    return f"{per_second:,.0f}" if per_second >= 10 else f"{per_second:.2f}"


def data_size(size_bytes: float) -> str:
    """Return bytes in powers of 1000, as networks count them: 1.50 MB."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size_bytes < 1000 or unit == "TB":
            break
        size_bytes /= 1000
    return f"{size_bytes:.0f} B" if unit == "B" else f"{size_bytes:.2f} {unit}"


def amount(count: float) -> str:
    """Return how many in three digits: 350, 12.3 k, 1.30 B (billions)."""
    for unit in ("", "k", "M", "B", "T"):
        if count < 999.5 or unit == "T":
            break
        count /= 1000
    digits = 0 if not unit or count >= 100 else 1 if count >= 10 else 2
    return f"{count:.{digits}f} {unit}".strip()


def duration(seconds: float) -> str:
    """Return a measured time in the unit that fits it: 840 µs, 1.25 ms, 12.3 s, 4 min 05 s, 2 h 03 min."""
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} µs"
    if seconds < 1:
        return f"{seconds * 1e3:.{2 if seconds < 0.01 else 1 if seconds < 0.1 else 0}f} ms"
    if seconds < _MINUTE:
        return f"{seconds:.1f} s"
    if seconds < _HOUR:
        return f"{int(seconds) // _MINUTE} min {int(seconds) % _MINUTE:02d} s"
    return f"{int(seconds) // _HOUR:,} h {int(seconds) % _HOUR // _MINUTE:02d} min"


def countdown(seconds: float) -> str:
    """Return a time to come, to the second: 0:29, 1:02:03, 2 d 03:04:05; dashes when it is not known."""
    if not isfinite(seconds):
        return "-:--"
    days, rest = divmod(max(round(seconds), 0), _DAY)
    hours, rest = divmod(rest, _HOUR)
    minutes, whole_seconds = divmod(rest, _MINUTE)
    if days:
        return f"{days} d {hours:02d}:{minutes:02d}:{whole_seconds:02d}"
    return f"{hours}:{minutes:02d}:{whole_seconds:02d}" if hours else f"{minutes}:{whole_seconds:02d}"
