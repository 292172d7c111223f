"""The command line as people type it, and their mistakes in words: jsonargparse speaks of its own types instead."""

from __future__ import annotations

import re
from argparse import Action
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, fields
from difflib import get_close_matches
from types import NoneType, UnionType
from typing import Any, Literal, Union, final, get_args, get_origin, get_type_hints

import docstring_parser
from jsonargparse import ArgumentParser, DefaultHelpFormatter, Namespace

from distloop.errors import ConfigError

_OTHERS = {
    "--lr": "--optimizer.lr",
    "--learning-rate": "--optimizer.lr",
    "--momentum": "--optimizer.momentum",
    "--weight-decay": "--optimizer.weight_decay",
    "--hidden": "--model-args.hidden",
}
_KINDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "tuple": "a list, as [0.9,0.99]"}
_OPTIMIZER = "a class of torch.optim by name, as SGD, or one by import path, as my_module.MyOptimizer"


@final
class HelpFormatter(DefaultHelpFormatter):
    """Says what an option means and what it is if left out; not of which Python type it is."""

    def _get_help_string(self, action: Action) -> str:
        text = action.help or ""
        untold = "(default:" in text or action.default is False or action.default in (None, {}, "==SUPPRESS==")
        return text if untold or action.dest in ("help", "config") else f"{text} (default: %(default)s)"


def make_parser(prog: str, description: str, schema: type[Any]) -> ArgumentParser:
    """A parser with an option for every field of the dataclass ``schema``; its help is the field's docstring."""
    required = [entry.name for entry in fields(schema) if MISSING is entry.default is entry.default_factory]
    parser = _new_parser(prog, description, required)
    parser.add_argument("--config", action="config", help="A configuration file; options after it override its keys")
    helps = {
        entry.arg_name: entry.description
        for kind in schema.__mro__[:-1]  # a configuration may extend another
        for entry in docstring_parser.parse_from_object(kind).params
    }
    hints = get_type_hints(schema)
    for entry in fields(schema):
        text = " ".join((helps[entry.name] or "").split())
        if entry.name in required:
            parser.add_argument(entry.name, type=hints[entry.name], help=text)
        elif hints[entry.name] is bool:
            parser.add_argument(option_of(entry.name), action="store_true", help=text)
        else:
            default = entry.default if entry.default_factory is MISSING else entry.default_factory()
            action = parser.add_argument(option_of(entry.name), type=hints[entry.name], default=default, help=text)
            action.sub_add_kwargs = {"fail_untyped": False}  # a user's own class need not say its arguments' types
    return parser


def parse(parser: ArgumentParser, arguments: Sequence[str], schema: type[Any]) -> tuple[Namespace | None, int]:
    """The values; or none, and a code to exit with at once, where help was asked for. Raises ConfigError."""
    try:
        return parser.parse_args(normalised(arguments, schema)), 0
    except SystemExit as stop:  # --help and --print_config
        return None, int(stop.code or 0)
    except Exception as error:
        raise ConfigError(f"{explained(error, schema)}\nAll options: --help") from error


def _new_parser(prog: str, description: str, positional: Sequence[str]) -> ArgumentParser:
    """A parser without options yet: no abbreviations (a new option would change their meaning), errors are raised."""
    return ArgumentParser(
        prog=prog,
        usage=" ".join(["%(prog)s", *(name.upper() for name in positional), "[options]"]),
        description=description,
        formatter_class=HelpFormatter,
        exit_on_error=False,
        allow_abbrev=False,
    )


def normalised(arguments: Sequence[str], schema: type[Any]) -> list[str]:
    """The arguments with dashes in the names of options, which may be typed with underscores as well."""
    options = {option_of(name) for name in get_type_hints(schema)}

    def with_dashes(argument: str) -> str:
        head, rest = re.fullmatch(r"([^.=]*)(.*)", argument, re.DOTALL).groups()  # type: ignore[union-attr]
        dashed = head.replace("_", "-")
        return (
            dashed + rest if dashed in options else "--print_config" + rest if dashed == "--print-config" else argument
        )

    return [with_dashes(argument) for argument in arguments]


def option_of(name: str) -> str:
    """The option that sets a field: ``--batch-size`` of ``batch_size``."""
    return "--" + name.replace("_", "-")


def explained(error: Exception, schema: type[Any]) -> str:
    """What is wrong with a command line or a configuration file: what was given, what was expected, what to do."""
    text, hints = " ".join(str(error).split()), get_type_hints(schema)
    if found := re.match(r"unrecognized arguments: (\S+)", text):
        return _unknown_option(found[1].partition("=")[0], hints)
    if found := re.match(r"Option '([^']+)' is not accepted", text):
        return f"{found[1]} in the configuration file is no key that is known{_suggestion(found[1], hints)}"
    if found := re.match(r"argument (\S+): expected", text):
        return f"{found[1]}: expected a value after it"
    if found := re.match(r"Parser key \"config\": (.*)", text):
        return f"--config: {found[1]}. Expected a file as --print_config writes it"
    if (found := re.match(r"Parser key \"optimizer\": (.*)", text)) and get_origin(hints["optimizer"]) is not Literal:
        return _optimizer(found[1])
    if (found := re.match(r"Parser key \"(\w+)\": (.*)", text)) and found[1] in hints:
        return f"{option_of(found[1])} {_given(found[2])}: expected {_expected(hints[found[1]])}"
    if text.startswith(("Problems parsing config", "Unexpected config")):
        return f"the configuration file is no YAML of keys and values, as --print_config writes it: {text}"
    return text


def _unknown_option(option: str, hints: Mapping[str, Any]) -> str:
    if not option.startswith("-"):
        return f"{option}: expected an option, which starts with --, as --data {option}"
    return f"{option} is no option{_suggestion(option, [*map(option_of, hints), *_OTHERS])}"


def _suggestion(name: str, known: Iterable[str]) -> str:
    close = get_close_matches(name, known, n=1)
    return f"; did you mean {_OTHERS.get(close[0], close[0])}?" if close else ""


def _optimizer(text: str) -> str:
    """Of this key jsonargparse says the type, then what is wrong inside, then all of its value."""
    kind = re.search(r"Got value: Namespace\(class_path='([\w.]+)'", text)
    name = kind[1] if kind else ""
    if found := re.search(r"Option '([^']+)' is not accepted", text):
        return f"--optimizer.{found[1]}: {name} has no such argument. Those that it has: --optimizer.help {name}"
    if found := re.search(r"Parser key \"(\w+)\": (.*?)\.? Got value: Namespace", text):
        kinds = [_KINDS[kind] for kind in re.findall(r"Expected a <class '(\w+)'>", found[2]) if kind in _KINDS]
        return f"--optimizer.{found[1]} {_given(found[2])}: expected {' or '.join(kinds) or 'another value'}"
    reason = re.sub(r".*callable class: ", "", re.sub(r"\.* Got value: .*", "", text))
    if found := re.match(r"Expected a dot import path string: (.*)", reason):
        return f"--optimizer {found[1]}: expected {_OPTIMIZER}"
    return f"--optimizer: {reason}. Expected {_OPTIMIZER}"


def _given(text: str) -> str:
    found = re.search(r"(?:Given|Got) value: (?!.*Given value: )(.*)$", text)
    return found[1] if found else ""


def _expected(hint: Any) -> str:
    if get_origin(hint) is Literal:
        names = [str(name) for name in get_args(hint)]
        return names[0] if len(names) == 1 else f"one of {', '.join(names)}"
    if get_origin(hint) in (Union, UnionType):
        return ", or ".join(_expected(part) for part in get_args(hint))
    if hint is NoneType:
        return "null"
    if get_origin(hint) is dict:
        return "names and values, as --model-args.hidden 256"
    return _KINDS.get(getattr(hint, "__name__", ""), "text")
