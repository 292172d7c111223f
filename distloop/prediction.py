"""Prediction with a trained run: its model made again, its weights loaded, rows divided over the ranks."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distloop.build import pick_device
from distloop.comm import World, at_root, together
from distloop.config import Config, read_config
from distloop.data import Source, Spec, open_data
from distloop.data.unlabelled import open_inputs
from distloop.errors import ConfigError, DataError
from distloop.evaluation import share
from distloop.models import build_model
from distloop.partition import Partition
from distloop.run_folder import WEIGHTS_NAME, load_weights
from distloop.tasks import goal_of

Rows = list[list[str]]


@dataclass
class PredictConfig:
    """What to predict, and where it goes."""

    run: str
    """Folder of a finished run"""
    data: str | None = None
    """What to predict, as --data of train; its validation part if it has one. A .csv, .tsv or .npy file may lack the
    targets (default: the rows that the run held out)"""
    output: str | None = None
    """File to write, new; a row for each input, in order (default: predictions.csv in the run's folder)"""
    device: str = "auto"
    """As --device of train"""
    threads: int | None = None
    """Torch's threads per rank (default: the node's cores divided by its ranks)"""


def predict_rows(config: PredictConfig, world: World) -> str:
    """Write a CSV file with a row per input: its number, the prediction and, for classes, its probability.

    Collective. Returns what there is to say. Raises a UserError on all ranks for what is wrong.
    """
    torch.set_num_threads(config.threads or world.threads)
    run, control = Path(config.run).expanduser(), world.comm.control
    with together(control):
        summary = _read_summary(run)
        trained, spec = read_config(run / "config.yaml"), _spec(summary)
        device = pick_device(config.device, world.local_rank)
        module = _load(trained, spec, run, device)
        source = _open(config.data, trained, spec)
    output = Path(config.output).expanduser() if config.output else run / "predictions.csv"
    at_root(control, lambda: _refuse_existing(output))
    mine = Partition.even(len(source), world.size).slice_of(world.rank)
    with together(control):
        written = _as_csv(_predicted(module, source, mine, spec, device))
    world.write_in_order(output, _header(spec), written)
    return f"{len(source):,} rows predicted by {world.size} ranks: {output}"


def _read_summary(run: Path) -> dict[str, Any]:
    path = run / "summary.json"
    try:
        summary: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read ({error}). Expected the folder of a run that has ended") from error
    return summary


def _spec(summary: dict[str, Any]) -> Spec:
    inputs, outputs = summary["inputs"], summary["outputs"]
    names = outputs["class_names"]
    return Spec(
        tuple(inputs["shape"]),
        getattr(torch, inputs["dtype"]),
        outputs["target"],
        outputs["classes"],
        tuple(names) if names else None,
        outputs["numbers"],
    )


def _load(config: Config, spec: Spec, run: Path, device: torch.device) -> nn.Module:
    module = build_model(config.model, spec, config.model_args)
    try:
        module.load_state_dict(load_weights(run / WEIGHTS_NAME))
    except RuntimeError as error:
        raise ConfigError(f"{run / WEIGHTS_NAME} does not fit model={config.model}: {error}") from error
    return module.to(device).eval()


def _open(data: str | None, config: Config, spec: Spec) -> Source:
    if data is not None:
        bare = open_inputs(Path(data), spec.input_shape) if Path(data).is_file() else None
        if bare is not None:
            return bare
    kinds = {"class": "classification", "tokens": "language", "number": "regression"}
    opened = open_data(
        config.data if data is None else data,
        validation=config.validation if data is None else None,
        holdout=config.holdout if data is None else 0.0,
        target=config.target,
        targets=config.targets if data is None else None,
        context=config.context,
        task=kinds.get(spec.target or "", "auto"),  # type: ignore[arg-type]
    )
    source = opened.validation if len(opened.validation) else opened.train
    if source.spec.input_shape != spec.input_shape:
        raise DataError(
            f"data={data or config.data} has inputs of shape {source.spec.input_shape}; the run was trained on "
            f"{spec.input_shape}. Expected rows of that shape"
        )
    return source


def _refuse_existing(output: Path) -> None:
    if output.exists():
        raise ConfigError(f"{output} exists, and nothing is overwritten. Expected a new file: choose another --output")
    if not os.access(output.parent, os.W_OK):
        raise ConfigError(f"{output.parent} cannot be written to. Expected a folder that can: choose another --output")


def _predicted(module: nn.Module, source: Source, mine: slice, spec: Spec, device: torch.device) -> Iterator[list[str]]:
    goal, row = goal_of(spec), mine.start
    with torch.inference_mode():
        for inputs, _ in share(source, mine):
            outputs = module(inputs.to(device)).float().cpu()
            for cells in _cells(goal.predict(outputs), outputs, spec):
                yield [str(row), *cells]
                row += 1


def _cells(predicted: Tensor, outputs: Tensor, spec: Spec) -> Rows:
    if spec.target == "class":
        names = spec.class_names or [str(label) for label in range(spec.classes or 0)]
        chances = outputs.softmax(-1).amax(-1)
        return [[names[int(label)], f"{float(p):.6f}"] for label, p in zip(predicted, chances, strict=True)]
    if spec.target == "tokens" and spec.classes != 256:
        return [[" ".join(map(str, row))] for row in predicted.tolist()]
    if spec.target == "tokens":
        return [[bytes(row.tolist()).decode("utf-8", "replace")] for row in predicted.to(torch.uint8)]
    return [[repr(value) for value in row] for row in predicted.flatten(1).numpy().astype(float).tolist()]


def _header(spec: Spec) -> str:
    columns = {"class": ["class", "probability"], "tokens": ["next"]}.get(spec.target or "")
    numbers = ["value"] if spec.numbers == 1 else [f"value_{index}" for index in range(spec.numbers)]
    return _as_csv([["row", *(columns or numbers)]])


def _as_csv(rows: Any) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
