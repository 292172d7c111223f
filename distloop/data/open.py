"""From a name, a path, an import path or an object to rows for training and rows held out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

from distloop.data.dataset_source import DatasetSource, MapStyle
from distloop.data.formats import ACCEPTED, BUILT_IN, Opened, Options, format_of, open_path, refuse
from distloop.data.source import Source, Spec, Task, split, split_tail
from distloop.errors import ConfigError, DataError
from distloop.imports import is_import_path, made_by

TASK_OF_TARGET: dict[str | None, Task] = {"class": "classification", "number": "regression", "tokens": "language"}


@final
@dataclass(frozen=True)
class Data:
    """What is trained on and what is held out; the latter may have no rows."""

    train: Source
    validation: Source

    def with_classes(self, classes: int) -> Data:
        """Both with that many classes; DataError names a label outside of them."""
        return Data(self.train.with_classes(classes), self.validation.with_classes(classes))


def open_data(
    data: str | MapStyle | Source,
    *,
    validation: str | MapStyle | Source | None = None,
    holdout: float = 0.2,
    target: str | None = None,
    targets: str | None = None,
    context: int = 128,
    task: Task = "auto",
) -> Data:
    """Open data to train on, and to validate on.

    data:        a built-in name (digits, fashion-mnist), a path, an import path, a map-style Dataset or a Source.
    validation:  likewise; without it the part that comes with the data, or else a fraction ``holdout`` of its rows:
                 the same in every run, drawn by a shuffle, or the last ones of a text.
    target:      the column of a table that is learned; without it the last one.
    targets:     the .npy file of the targets of a .npy file.
    context:     the bytes in a row of a text.
    task:        auto, classification, regression or language: whether whole numbers are classes.

    Nothing big is read: ``spec.classes`` stays None where that would be needed to count them (see `Source`).
    Raises ConfigError for a name or option that is none, DataError for a file or row that is not as expected.
    """
    options = Options(target, targets, context, task)
    opened = _opened(data, options)
    train, held = opened.train, opened.validation
    if validation is not None:
        found = _opened(validation, _like(options, train.spec))
        held = found.validation or found.train
    if held is None:
        return Data(*(split_tail if opened.in_order else split)(train, holdout))
    _check_alike(train.spec, held.spec)
    return Data(train, held if train.spec.classes is None else held.with_classes(train.spec.classes))


def _opened(data: str | MapStyle | Source, options: Options) -> Opened:
    if not isinstance(data, str):
        return _of_object(data, options)
    if data in BUILT_IN:
        refuse(options, data, "target", "targets")
        return BUILT_IN[data](options)
    path = Path(data).expanduser()
    if path.exists():
        return open_path(path, options)
    if "/" in data or format_of(path) is not None:
        raise DataError(f"data={data}: there is no file {path.absolute()}; expected {ACCEPTED}")
    if is_import_path(data):
        return _of_object(made_by(data, "data"), options)
    raise ConfigError(f"data={data} is no name that is known, and no file; expected {ACCEPTED}")


def _of_object(data: Any, options: Options) -> Opened:
    if isinstance(data, tuple) and len(data) == 2:
        train, validation = (_of_object(part, options).train for part in data)
        return Opened(train, validation)
    refuse(options, f"a {type(data).__name__}", "target", "targets")
    if isinstance(data, Source):
        return Opened(data)
    if isinstance(data, MapStyle):
        return Opened(DatasetSource(data, task=options.task))
    raise ConfigError(
        f"data is a {type(data).__name__}; expected a map-style torch Dataset (with __len__ and "
        "__getitem__), a source, or a pair of them, to train on and to validate on"
    )


def _like(options: Options, spec: Spec) -> Options:
    """Validation data is read as the training data was: the same kind of target, the same names of classes."""
    return options._replace(task=TASK_OF_TARGET.get(spec.target, "auto"), class_names=spec.class_names, targets=None)


def _check_alike(train: Spec, validation: Spec) -> None:
    seen = [replace(spec, classes=None, class_names=None) for spec in (train, validation)]
    if seen[0] != seen[1]:
        raise DataError(
            f"rows to train on have inputs {train.input_shape} and targets of kind {train.target} "
            f"({train.numbers}), those to "
            f"validate on {validation.input_shape} and {validation.target} ({validation.numbers}); expected the same"
        )
