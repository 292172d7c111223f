from math import inf, nan

import pytest

from distloop.report.words import countdown, data_size, duration, number, speed


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.12345, "0.1235"), (0, "0.0000"), (12.3, "12.3000"), (4e-5, "4.000e-05"), (-2e7, "-2.000e+07")],
)
def test_number(value: float, text: str) -> None:
    assert number(value) == text


def test_number_that_is_not_finite() -> None:
    assert (number(nan), number(inf)) == ("nan", "inf")


@pytest.mark.parametrize(("value", "text"), [(0.5, "0.50"), (12345.6, "12,346"), (inf, "-")])
def test_speed(value: float, text: str) -> None:
    assert speed(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 B"), (999, "999 B"), (1500, "1.50 kB"), (2.5e9, "2.50 GB"), (4e16, "40000.00 TB")],
)
def test_data_size(value: float, text: str) -> None:
    assert data_size(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.00084, "840 µs"),
        (0.00412, "4.12 ms"),
        (0.0412, "41.2 ms"),
        (0.8552, "855 ms"),
        (12.34, "12.3 s"),
        (245, "4 min 05 s"),
        (7380, "2 h 03 min"),
    ],
)
def test_duration(value: float, text: str) -> None:
    assert duration(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(-1, "0:00"), (29.4, "0:29"), (3723, "1:02:03"), (2 * 86400 + 7384, "2 d 02:03:04"), (inf, "-:--")],
)
def test_countdown(value: float, text: str) -> None:
    assert countdown(value) == text
