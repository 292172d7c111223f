from math import inf

import pytest

from distloop.report.lines import bar_line, epoch_fields, fitted, plain, step_fields, styled
from distloop.report.pace import Pace, Plan

ROW = {
    "epoch": 3,
    "step": 30,
    "samples": 3000,
    "train_loss": 0.5,
    "learning_rate": 0.1,
    "gradient_norm": 2.0,
    "seconds": 4.25,
    "samples_per_second": 700.2,
    "validation_loss": 0.25,
    "accuracy": 0.9,
    "top_5": None,
}


def pace_after(seconds: float, samples: int, plan: Plan) -> Pace:
    pace = Pace(plan, now=100.0)
    pace.mark(100.0 + seconds, samples)
    return pace


def test_an_epoch_as_a_line() -> None:
    assert plain(epoch_fields(ROW, Plan(10, 100))) == (
        "epoch  3/10  train loss 0.5000  validation loss 0.2500  accuracy 0.9000  700 samples/s  after 4.2 s"
    )


def test_an_epoch_of_which_little_is_known() -> None:
    assert plain(epoch_fields({"epoch": 1}, Plan(1, None))) == "epoch 1/1"


def test_a_step_as_a_line() -> None:
    pace = pace_after(2.0, 500, Plan(10, 1000))
    assert plain(step_fields(pace, 102.0, 1, 50, 0.5)) == (
        "epoch  1/10  step    50/1,000  loss 0.5000  250 samples/s  0:38 left"
    )


def test_a_step_of_a_run_whose_end_nobody_knows() -> None:
    pace = pace_after(2.0, 500, Plan(10, None))
    assert plain(step_fields(pace, 102.0, 1, 50, 0.5)) == "epoch  1/10  step 50  loss 0.5000  250 samples/s"
    assert pace.fraction(50) is None


def test_a_resumed_run_counts_only_its_own_time_and_samples() -> None:
    pace = pace_after(10.0, 1100, Plan(10, 1000, steps_done=500, samples_done=1000))
    assert pace.samples_per_second() == 10.0
    assert pace.remaining_seconds(110.0, 600) == 40.0
    assert pace.remaining_seconds(110.0, 500) == inf


def test_speed_is_that_of_the_last_marks() -> None:
    pace = Pace(Plan(1, 1000), now=0.0)
    for mark in range(1, 101):
        pace.mark(float(mark), mark * (1 if mark <= 50 else 100))
    assert pace.samples_per_second() == pytest.approx(100.0)


def test_speed_before_any_time_has_passed() -> None:
    assert Pace(Plan(1, 1), now=0.0).samples_per_second() == 0.0


@pytest.mark.parametrize("columns", range(10, 140))
def test_a_live_line_fits_and_keeps_the_loss(columns: int) -> None:
    fields = step_fields(pace_after(2.0, 500, Plan(10, 1000)), 102.0, 1, 50, 0.5)
    line = bar_line(fields, 0.5, columns, "#-")
    assert line.cell_len <= max(columns, len("loss 0.5000"))
    assert "loss 0.5000" in line.plain


def test_a_live_line_shows_how_much_is_done() -> None:
    fields = step_fields(pace_after(2.0, 500, Plan(10, 1000)), 102.0, 1, 50, 0.5)
    assert bar_line(fields, 0.5, 120, "#-").plain.startswith("#" * 15 + "-" * 15 + "  epoch  1/10")
    assert bar_line(fields, None, 120, "#-").plain == styled(fields).plain


def test_an_epochs_line_is_shortened_by_its_least_important_fields() -> None:
    row = {"epoch": 3, "train_loss": 0.5, "validation_loss": 0.6, "validation_accuracy": 0.9, "seconds": 2.0}
    fields = epoch_fields(row, Plan(epochs=9, steps=None))
    assert (
        fitted(fields, 90).plain == "epoch 3/9  train loss 0.5000  validation loss 0.6000  accuracy 0.9000  after 2.0 s"
    )
    assert fitted(fields, 70).plain == "epoch 3/9  train loss 0.5000  validation loss 0.6000  accuracy 0.9000"
