"""The kinds of data that have a name or lie in a file, and which reader each one takes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from distloop.data.arrays import open_npy, open_npz
from distloop.data.digits import open_digits
from distloop.data.idx import open_idx
from distloop.data.source import Source, Task
from distloop.data.tables import open_table
from distloop.data.text import open_text
from distloop.errors import ConfigError, DataError

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")  # where Debian's package puts it
FASHION_NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
ACCEPTED = (
    "a built-in name (digits, fashion-mnist); a path to a .csv, .tsv, .npz, .npy or .txt file or "
    "to a folder of IDX files; or package.module:attribute, a torch Dataset of your own"
)


class Options(NamedTuple):
    """What a format may need to know."""

    target: str | None
    targets: str | None
    context: int
    task: Task
    class_names: tuple[str, ...] | None = None


class Opened(NamedTuple):
    """What a format found: rows, and a part for validation if it comes with one."""

    train: Source
    validation: Source | None = None
    in_order: bool = False


def open_path(path: Path, options: Options) -> Opened:
    """Open an existing file or folder; with the task language, a file of any other ending is text."""
    if path.is_dir():
        refuse(options, f"the folder {path}", "target", "targets")
        return Opened(*open_idx(path, options.task, options.class_names))
    if options.task == "language" and format_of(path) is None:
        return _text(path, options)
    opener = format_of(path)
    if opener is None:
        raise ConfigError(f"data={path}: files ending in {path.suffix or 'nothing'} are not known; expected {ACCEPTED}")
    return opener(path, options)


def _table(path: Path, options: Options) -> Opened:
    refuse(options, f"the table {path}", "targets")
    if options.task == "language":
        raise ConfigError(f"task=language with the table {path}; expected a text file, or another task")
    return Opened(open_table(path, target=options.target, task=options.task, class_names=options.class_names))


def _npz(path: Path, options: Options) -> Opened:
    refuse(options, f"the archive {path}", "target", "targets")
    return Opened(open_npz(path, options.task))


def _npy(path: Path, options: Options) -> Opened:
    refuse(options, f"the array {path}", "target")
    if options.targets is not None and not Path(options.targets).is_file():
        raise DataError(
            f"targets={options.targets}: there is no such file; expected a .npy file of one target for each row"
        )
    return Opened(open_npy(path, Path(options.targets) if options.targets else None, options.task))


def _text(path: Path, options: Options) -> Opened:
    refuse(options, f"the text {path}", "target", "targets")
    if options.task not in ("auto", "language"):
        raise ConfigError(f"task={options.task} with the text {path}; expected task=language, or a table of numbers")
    return Opened(open_text(path, options.context), in_order=True)


def _digits(options: Options) -> Opened:
    return Opened(open_digits(options.task))


def _fashion_mnist(options: Options) -> Opened:
    if not FASHION_MNIST.is_dir():
        raise DataError(
            f"data=fashion-mnist: there is no {FASHION_MNIST}. Install Debian's package "
            "dataset-fashion-mnist, or give any folder of IDX files, such as data=path/to/mnist"
        )
    return Opened(*open_idx(FASHION_MNIST, options.task, FASHION_NAMES))


BUILT_IN: dict[str, Callable[[Options], Opened]] = {"digits": _digits, "fashion-mnist": _fashion_mnist}
_FORMATS: dict[str, Callable[[Path, Options], Opened]] = {
    ".csv": _table,
    ".csv.gz": _table,
    ".tsv": _table,
    ".tsv.gz": _table,
    ".npz": _npz,
    ".npy": _npy,
    ".txt": _text,
}


def format_of(path: Path) -> Callable[[Path, Options], Opened] | None:
    """What opens a file of this name; None if nothing does."""
    return next((opener for ending, opener in _FORMATS.items() if path.name.lower().endswith(ending)), None)


def refuse(options: Options, given: str, *names: str) -> None:
    """Raise if options are set that the data has no use for."""
    for name in names:
        if (value := getattr(options, name)) is not None:
            use = {"target": "the column of a table", "targets": "the targets of a .npy file"}[name]
            raise ConfigError(f"{name}={value} names {use}; the data is {given}. Leave {name} out")
