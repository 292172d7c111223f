"""The lines of a running job, as fields of a label and a value; each reporter dresses them its own way."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from distloop.report.metrics import COLUMNS, Row
from distloop.report.pace import Pace, Plan
from distloop.report.words import countdown, duration, number, speed

Field = tuple[str, str]
"""Label and value; a label that starts with a space follows its value, as a unit does."""

_BAR_CELLS = (30, 20, 10, 0)


def epoch_fields(row: Row, plan: Plan) -> list[Field]:
    """Return what is shown of a row of an epoch: the losses, the task's metrics, speed and time."""
    fields = [("epoch", _of(_count(row, "epoch"), plan.epochs))]
    own = [name for name in row if name not in COLUMNS and name != "kind"]
    for name in ("train_loss", "validation_loss", *own):
        value = row.get(name)
        if value is not None:
            shown = value if isinstance(value, str) else number(float(value))
            label = name if name in COLUMNS else name.removeprefix("validation_")
            fields.append((label.replace("_", " "), shown))
    if (rate := _real(row, "samples_per_second")) is not None:
        fields.append((" samples/s", speed(rate)))
    if (seconds := _real(row, "seconds")) is not None:
        fields.append(("after", duration(seconds)))
    return fields


def step_fields(pace: Pace, now: float, epoch: int, step: int, loss: float) -> list[Field]:
    """Return what is shown of a step: where the run is, its loss, its speed and the time to go."""
    plan = pace.plan
    fields = [("epoch", _of(epoch, plan.epochs)), ("step", _of(step, plan.steps)), ("loss", number(loss))]
    fields.append((" samples/s", speed(pace.samples_per_second())))
    return fields if plan.steps is None else [*fields, (" left", countdown(pace.remaining_seconds(now, step)))]


def plain(fields: Sequence[Field]) -> str:
    """Return the fields as one line without colours."""
    return "  ".join(value + label if label.startswith(" ") else f"{label} {value}" for label, value in fields)


def styled(fields: Sequence[Field]) -> Text:
    """Return the fields as one line, labels dim and values bold."""
    line = Text()
    for label, value in fields:
        line.append("  " if line else "")
        after = label.startswith(" ")
        parts = [(value, "bold"), (label, "dim")] if after else [(label + " ", "dim"), (value, "bold")]
        for part, style in parts:
            line.append(part, style)
    return line


def bar_line(fields: Sequence[Field], fraction: float | None, columns: int, glyphs: str) -> Text:
    """Return the live line in at most ``columns`` cells: a shorter bar, then none, then fewer fields."""
    text = styled(fields)
    for cells in _BAR_CELLS if fraction is not None else ():
        if cells and text.cell_len + cells + 2 <= columns:
            return Text.assemble(_bar(fraction or 0.0, cells, glyphs), "  ", text)
    return fitted(fields, columns)


def fitted(fields: Sequence[Field], columns: int) -> Text:
    """Return the fields in at most ``columns`` cells, without the least important ones if need be."""
    kept, text = list(fields), styled(fields)
    while text.cell_len > columns and len(kept) > 1:
        kept.remove(min(kept, key=_importance))
        text = styled(kept)
    return text


def _bar(fraction: float, cells: int, glyphs: str) -> Text:
    done = round(fraction * cells)
    return Text.assemble((glyphs[0] * done, "cyan"), (glyphs[1] * (cells - done), "bright_black"))


def _importance(field: Field) -> int:
    order = (" samples/s", "after", "step", " left", "train loss", "epoch", "loss", "validation loss")
    return order.index(field[0]) if field[0] in order else order.index("train loss")


def _of(count: int, total: int | None) -> str:
    return f"{count:,}" if total is None else f"{count:>{len(f'{total:,}')},}/{total:,}"


def _count(row: Row, name: str) -> int:
    return int(_real(row, name) or 0)


def _real(row: Row, name: str) -> float | None:
    value = row.get(name)
    return None if value is None or isinstance(value, str) else float(value)
