"""The one call, with objects instead of names."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import distloop
from distloop.comm import exchange
from distloop.config import read_config
from distloop.errors import ConfigError, NotFiniteError

pytestmark = pytest.mark.mpi(ranks=(1, 3))
QUIET: dict[str, Any] = {"progress": "off", "epochs": 2, "batch_size": 16}


def images() -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 2, (90,), generator=generator)
    dark = torch.randint(0, 120, (90, 1, 4, 4), generator=generator)
    return TensorDataset((dark + 120 * labels.view(-1, 1, 1, 1)).to(torch.uint8), labels)


def test_it_trains_and_predicts_bytes_as_it_was_trained_on_them(comm: Any) -> None:
    data = images()
    fast = partial(torch.optim.Adam, lr=0.05)
    trained = distloop.train(data, model="linear", optimizer=fast, strategy="zero", **(QUIET | {"epochs": 10}))
    right = (trained.predict(data.tensors[0]) == data.tensors[1]).float().mean()
    assert right > 0.9
    assert len(set(exchange(comm, trained.summary["weights_sha256"]))) == 1
    assert not any(parameter._post_accumulate_grad_hooks for parameter in trained.module.parameters())


def test_what_was_given_as_an_object_is_recorded_as_one(comm: Any, rank: int, tmp_path: Any) -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    distloop.train(images(), model=module, loss=nn.functional.cross_entropy, run_dir=tmp_path / "run", **QUIET)
    if rank == 0:
        config = read_config(tmp_path / "run" / "config.yaml")
        assert config.data == "<TensorDataset, given as an object>"
        assert config.model == "<Sequential, given as an object>"
        assert json.loads((tmp_path / "run" / "summary.json").read_text())["steps"] == 10
    comm.Barrier()


def test_frozen_parts_stay_in_evaluation_mode(comm: Any) -> None:
    backbone = nn.BatchNorm2d(1).eval().requires_grad_(False)
    module = nn.Sequential(backbone, nn.Flatten(), nn.Linear(16, 2))
    distloop.train(images(), model=module, **QUIET)
    assert not backbone.training and module.training
    assert torch.equal(backbone.running_mean, torch.zeros(1))


def test_wrong_options_and_other_data_on_a_rank_are_refused_everywhere(comm: Any, rank: int, world_size: int) -> None:
    with pytest.raises(ConfigError, match="no option epoch;"):
        distloop.train(images(), epoch=3)
    with pytest.raises(ConfigError, match="batch_size=half: expected a whole number"):
        distloop.train(images(), batch_size="half")
    if world_size > 1:
        part = torch.utils.data.Subset(images(), range(60 + rank))
        with pytest.raises(ConfigError, match="differs between ranks"):
            distloop.train(part, **QUIET)


def test_a_loss_that_is_not_finite_gives_the_module_back(comm: Any) -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    with pytest.raises(NotFiniteError, match="at step 1"):
        distloop.train(images(), model=module, loss=lambda outputs, targets: outputs.sum() * np.inf, **QUIET)
    assert not any(parameter._post_accumulate_grad_hooks for parameter in module.parameters())


def test_tokens_of_ones_own(comm: Any) -> None:
    tokens = torch.arange(40).reshape(4, 10) % 7
    data = TensorDataset(tokens, (tokens + 1) % 7)
    small = {"width": 16, "layers": 1, "heads": 2}
    trained = distloop.train(data, task="language", model="gpt", model_args=small, holdout=0.0, **QUIET)
    assert trained.predict(tokens).shape == (4, 10)
    assert trained.summary["outputs"]["classes"] == 7
