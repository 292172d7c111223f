"""What a run leaves behind, in a folder of its own: nothing is overwritten, no file is ever half there."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import platform
import socket
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from datetime import datetime
from importlib import metadata
from itertools import count
from pathlib import Path
from typing import Self, final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from distloop.errors import ConfigError, DataError

WEIGHTS_NAME = "model.safetensors"
LOCK_NAME = ".lock"
_ALIASES = "distloop.aliases"
_EXPECTED = "expected a new or empty folder: choose another --run-dir"
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


@final
class RunFolder:
    """A folder of one run, locked as long as the run lives; a context manager that frees the lock."""

    def __init__(self, path: Path, lock_fd: int) -> None:
        self.path = path
        self._lock_fd = lock_fd

    @classmethod
    def create(cls, path: str | Path | None = None) -> RunFolder:
        """Make and lock ``path``; when it is None, runs/YYYYmmdd-HHMMSS (-2, -3, ... if taken).

        Raises:  ConfigError if ``path`` is a file, holds anything, belongs to a run that is alive, or
                 cannot be made.
        """
        folder = Path("runs") if path is None else Path(path).expanduser()
        try:
            if folder.exists() and not folder.is_dir():
                raise ConfigError(f"--run-dir {folder} is a file; {_EXPECTED}")
            folder.mkdir(parents=True, exist_ok=True)
            if path is None:
                folder = _make_dated(folder)
            return cls(folder, _lock(folder))
        except OSError as error:
            raise ConfigError(f"--run-dir {folder} cannot be written: {error.strerror}; {_EXPECTED}") from error

    def write_text(self, name: str, text: str) -> Path:
        """Write ``text`` as UTF-8 to the file ``name`` and return its path."""
        return self.write_bytes(name, text.encode())

    def write_json(self, name: str, content: object) -> Path:
        """Write ``content`` as JSON; ValueError if it holds nan or infinity, which JSON has not."""
        return self.write_text(name, json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n")

    def write_bytes(self, name: str, data: bytes) -> Path:
        """Write ``data``: a reader finds the whole file or, until then, the one before."""
        return _write_aside(self.path / name, lambda aside: aside.write_bytes(data))

    def close(self) -> None:
        """Free the lock and remove its file; harmless when repeated."""
        if self._lock_fd >= 0:
            (self.path / LOCK_NAME).unlink(missing_ok=True)
            os.close(self._lock_fd)
            self._lock_fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _make_dated(parent: Path) -> Path:
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    for attempt in count(1):
        folder = parent / (stamp if attempt == 1 else f"{stamp}-{attempt}")
        with suppress(FileExistsError):
            folder.mkdir()
            break
    return folder


def _lock(folder: Path) -> int:
    """Return a descriptor that holds the lock of ``folder``, in which nothing else may be."""
    if not (folder / LOCK_NAME).exists():
        _require_empty(folder)  # before anything of ours is put there
    fd = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        _hold(fd, folder)
        _require_empty(folder)
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{socket.gethostname()}, process {os.getpid()}".encode(), 0)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _hold(fd: int, folder: Path) -> None:
    """Take the lock, which ends with the process; ConfigError naming its owner if that is alive."""
    owner = os.pread(fd, 1000, 0).decode(errors="replace")
    hint = ""
    try:
        # A POSIX lock (lockf) would be lost as soon as this process closed any descriptor of the file.
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        free = os.fstat(fd).st_nlink > 0  # else its owner removed it after we had opened it
    except (BlockingIOError, PermissionError):
        free = False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        free, hint = not owner, f" (if that run is dead, remove {folder / LOCK_NAME})"
    if not free:
        raise ConfigError(f"--run-dir {folder} is in use by a run on {owner or 'another host'}{hint}; {_EXPECTED}")


def _require_empty(folder: Path) -> None:
    found = sorted(entry.name for entry in folder.iterdir() if entry.name != LOCK_NAME)
    if found:
        shown = ", ".join(found[:3]) + (", ..." if len(found) > 3 else "")
        raise ConfigError(f"--run-dir {folder} holds {shown} and nothing is overwritten; {_EXPECTED}")


def _write_aside(path: Path, write: Callable[[Path], object]) -> Path:
    """Let ``write`` make a file beside ``path``, bring it to the disk and give it the name ``path``."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        write(aside)
        _sync(aside)
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    with suppress(OSError):  # some network file systems do not sync folders
        _sync(path.parent)
    return path


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def weights_sha256(named_parameters: Iterable[tuple[str, Tensor]]) -> str:
    """Return the sha256 of the parameters' values: their little-endian bytes, row-major, sorted by name.

    Two copies of a model have the same digest if and only if their weights are the same bits. Names give
    the order and are not hashed.
    """
    digest = hashlib.sha256()
    for _, parameter in sorted(named_parameters, key=lambda item: item[0]):
        # Flat first: a scalar cannot be seen as bytes.
        raw = parameter.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        if sys.byteorder == "big":
            raw = raw.view(-1, parameter.element_size()).flip(1).contiguous()
        digest.update(raw.numpy().data)
    return digest.hexdigest()


def save_weights(folder: str | Path, state_dict: Mapping[str, Tensor]) -> Path:
    """Write ``state_dict`` to model.safetensors in ``folder`` and return its path.

    Names of one and the same tensor (tied weights) are stored once, the other names in the file's metadata.
    """
    stored, aliases = _without_aliases(state_dict)
    notes = {"format": "pt"} | ({_ALIASES: json.dumps(aliases)} if aliases else {})
    path = Path(folder) / WEIGHTS_NAME
    return _write_aside(path, lambda aside: save_file(_apart(stored), aside, metadata=notes))


def load_weights(path: str | Path) -> dict[str, Tensor]:
    """Read what ``save_weights`` wrote, on the CPU; names of one tensor give one tensor again.

    Raises:  DataError if the file is missing, cut off or no safetensors file.
    """
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            weights: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            aliases = json.loads((file.metadata() or {}).get(_ALIASES, "{}"))
        return weights | {name: weights[kept] for name, kept in aliases.items()}
    except OSError as error:
        raise DataError(f"the weights {path} cannot be read: {error}; expected a .safetensors file") from error
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"the weights {path} are damaged or no safetensors file ({error}); expected a whole "
            f"{WEIGHTS_NAME} as a run writes it; copy it again or give another"
        ) from error


def versions() -> dict[str, str]:
    """Return the versions of what a run's results depend on, without importing any of it."""
    found = {"python": platform.python_version()}
    for package in ("distloop", "torch", "numpy", "mpi4py"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def _without_aliases(state_dict: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the distinct tensors by their first name, and the other names with the one each stands for."""
    first_names: dict[object, str] = {}
    aliases = {}
    for name, tensor in state_dict.items():
        place = (str(tensor.device), tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        kept = first_names.setdefault(place if tensor.numel() else name, name)
        if kept != name:
            aliases[name] = kept
    return {name: state_dict[name] for name in first_names.values()}, aliases


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return contiguous CPU tensors, copied where they overlap; views of one vector side by side are not."""
    apart = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    end = 0
    for name, tensor in sorted(apart.items(), key=lambda item: item[1].data_ptr()):
        if tensor.data_ptr() < end:
            apart[name] = tensor.clone()
        end = max(end, tensor.data_ptr() + tensor.nbytes)
    return apart
