"""What a user's own code makes (a model, a Dataset, a loss), given as an import path."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from distloop.errors import ConfigError

IMPORT_PATH = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*|[^\W\d]\w*(\.[^\W\d]\w*)+")


def is_import_path(text: str) -> bool:
    """Whether ``text`` has the form package.module:attribute or package.module.attribute."""
    return IMPORT_PATH.fullmatch(text) is not None


def named(path: str, option: str) -> Any:
    """The object that ``path`` names. ``option`` is where it was given, for the error: ConfigError if there is none.

    The current folder is on the path of imports, as with ``python -m``.
    """
    module_name, _, attributes = path.partition(":") if ":" in path else path.rpartition(".")
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    found: Any = _module(path, module_name, option)
    for attribute in attributes.split("."):
        if not hasattr(found, attribute):
            public = [name for name in vars(found) if not name.startswith("_")] if hasattr(found, "__dict__") else []
            raise ConfigError(
                f"{option}={path}: {module_name} has no {attribute}; it has {', '.join(public[:20]) or 'nothing'}"
            )
        found = getattr(found, attribute)
    return found


def made_by(path: str, option: str, **arguments: Any) -> Any:
    """What ``path`` names: an object, or what a class or function gives when it is called with ``arguments``."""
    found = named(path, option)
    if not isinstance(found, type) and not inspect.isroutine(found):
        return found
    try:
        inspect.signature(found).bind(**arguments)
    except TypeError as error:
        given = ", ".join(arguments) or "no arguments"
        raise ConfigError(
            f"{option}={path}: it cannot be called with {given} ({error}); expected one that can: give it defaults, "
            f"set --{option}-args.NAME where there is such an option, or name a function that makes it"
        ) from error
    return found(**arguments)


def _module(path: str, module_name: str, option: str) -> ModuleType:
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise ConfigError(
            f"{option}={path}: no module {error.name} in {Path.cwd()} or among the installed ones; expected a built-in "
            "name or package.module:attribute that can be imported from the current folder"
        ) from error
