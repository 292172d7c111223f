"""Models by name: the built-in ones, or a user's own by import path; a plain ``nn.Module`` is enough."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from distloop.data import Spec
from distloop.errors import ConfigError
from distloop.imports import is_import_path, made_by, named
from distloop.models.reference import CNN, GPT, MLP, Linear

BUILT_IN: dict[str, type[nn.Module]] = {"linear": Linear, "mlp": MLP, "cnn": CNN, "gpt": GPT}


def build_model(name: str, spec: Spec, arguments: dict[str, Any]) -> nn.Module:
    """The model ``name`` for data as ``spec`` says.

    ``auto`` is gpt for tokens, cnn for images of at least 4×4, else mlp. An import path names a class or function that
    is called with ``arguments``, and with ``input_shape`` and ``output_size`` if it has parameters of these names.
    Raises ConfigError for a name that is none, or arguments that do not fit.
    """
    if name == "auto":
        name = _fitting(spec)
    if name in BUILT_IN:
        made = _called(BUILT_IN[name], name, spec, arguments)
    elif is_import_path(name):
        made = made_by(name, "model", **(_offered(named(name, "model"), spec) | arguments))
    else:
        raise ConfigError(f"model={name}: expected auto, {', '.join(BUILT_IN)}, or package.module:attribute")
    if not isinstance(made, nn.Module):
        raise ConfigError(f"model={name} gives a {type(made).__name__}; expected a torch.nn.Module, or what makes one")
    return made


def _fitting(spec: Spec) -> str:
    if spec.target == "tokens":
        return "gpt"
    image = len(spec.input_shape) == 3 and min(spec.input_shape[1:]) >= 4
    return "cnn" if image else "mlp"


def _offered(maker: Any, spec: Spec) -> dict[str, Any]:
    if not callable(maker) or isinstance(maker, nn.Module):
        return {}
    wanted = inspect.signature(maker).parameters
    known: dict[str, Any] = {"input_shape": spec.input_shape}
    if spec.target not in ("class", "tokens") or spec.classes is not None:
        known["output_size"] = spec.output_size
    return {key: value for key, value in known.items() if key in wanted}


def _called(model: type[nn.Module], name: str, spec: Spec, arguments: dict[str, Any]) -> nn.Module:
    accepted = [key for key in inspect.signature(model).parameters if key not in ("input_shape", "output_size")]
    unknown = sorted(set(arguments) - set(accepted))
    if unknown:
        raise ConfigError(f"model {name} has no argument {', '.join(unknown)}; it has {', '.join(accepted) or 'none'}")
    try:
        return model(spec.input_shape, spec.output_size, **arguments)
    except (ValueError, TypeError, AssertionError) as error:
        raise ConfigError(
            f"model {name} cannot be made for inputs of shape {spec.input_shape} with {arguments or 'its defaults'} "
            f"({error}); expected another --model, or other --model-args"
        ) from error


__all__ = ["BUILT_IN", "CNN", "GPT", "MLP", "Linear", "build_model"]
