"""The options of the main job, one run each, on two ranks."""

from __future__ import annotations

import math

import pytest
import torch

from distloop.run_folder import load_weights
from tests.main_jobs import Outcome, run_all

STEPS_OF_AN_EPOCH = 45  # 1,438 digits to train on, 32 a step
MLP = ["--model", "mlp", "--model-args.hidden", "16", "--steps", "5"]
JOBS = {
    "plain": MLP,
    "one-row": [*MLP, "--batch-size", "1"],
    "all-rows": [*MLP, "--batch-size", "all", "--steps", "2"],
    "accumulate": [*MLP, "--accumulate", "3"],
    "sgd": [*MLP, "--optimizer", "SGD", "--optimizer.lr", "0.1", "--optimizer.momentum", "0.9", "--clip", "0.01"],
    "bf16": [*MLP, "--precision", "bf16"],
    "linear": [*MLP, "--schedule", "linear", "--log_every", "2"],
    "warm": [*MLP, "--schedule", "constant", "--warmup-steps", "3", "--log-every", "1"],
    "step-lr": [*MLP, "--schedule", "torch.optim.lr_scheduler.StepLR", "--schedule-args.step_size", "2"],
    "tensorboard": [*MLP, "--logger", "tensorboard"],
    "epochs": ["--model", "linear", "--epochs", "2", "--strategy", "zero"],
    "many-steps": ["--model", "linear", "--steps", str(STEPS_OF_AN_EPOCH * 12)],
    "both": ["--model", "linear", "--epochs", "1", "--steps", "1000"],
    "nothing-held-out": [*MLP, "--holdout", "0"],
    "more-classes": [*MLP, "--classes", "12", "--threads", "1", "--seed", "3"],
    "silent": [*MLP, "--progress", "off"],
    "same-again": ["--config", "runs/accumulate/config.yaml", "--accumulate", "1"],
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    return run_all(2, JOBS, tmp_path_factory.mktemp("options"), timeout=120)


@pytest.mark.parametrize("name", JOBS)
def test_it_runs(outcomes, name):
    assert outcomes[name].code == 0, outcomes[name].stderr
    assert outcomes[name].stderr == ""
    assert math.isfinite(outcomes[name].summary["train_loss"])


def test_the_batch_size_is_that_of_the_global_batch(outcomes):
    samples = {name: outcomes[name].summary["samples"] for name in ("plain", "one-row", "all-rows", "accumulate")}
    assert samples == {"plain": 5 * 32, "one-row": 5, "all-rows": 2 * 1438, "accumulate": 5 * 32}


def test_accumulation_changes_neither_result_nor_traffic(outcomes):
    plain, accumulated, again = (outcomes[name] for name in ("plain", "accumulate", "same-again"))
    assert plain.summary["sent_bytes_per_rank"] == accumulated.summary["sent_bytes_per_rank"]
    weights = load_weights(plain.folder / "model.safetensors")
    for name, other in load_weights(accumulated.folder / "model.safetensors").items():
        torch.testing.assert_close(weights[name], other)
    assert again.summary["weights_sha256"] == plain.summary["weights_sha256"]


def test_clipping_shortens_the_step(outcomes):
    norms = [row["gradient_norm"] for row in outcomes["sgd"].rows]
    assert norms[-1] > 0.01  # as it was before clipping
    assert outcomes["plain"].rows[-1]["gradient_norm"] is None


def test_schedules(outcomes):
    def rates(name: str) -> list[float]:
        return [row["learning_rate"] / 3e-3 for row in outcomes[name].rows]

    assert rates("plain")[-1] == pytest.approx(0, abs=1e-6)  # cosine, at its end
    assert rates("linear") == pytest.approx([3 / 5, 1 / 5, 0], abs=1e-6)
    assert rates("warm") == pytest.approx([1 / 2, 3 / 4, 1, 1, 1, 1])
    assert rates("step-lr") == pytest.approx([0.01])


def test_rows_of_metrics(outcomes):
    assert [(row["kind"], row["step"]) for row in outcomes["linear"].rows] == [("step", 2), ("step", 4), ("epoch", 5)]
    assert [row["step"] for row in outcomes["epochs"].rows] == [STEPS_OF_AN_EPOCH, 2 * STEPS_OF_AN_EPOCH]
    last, cells = outcomes["epochs"].rows[-1], outcomes["epochs"].table[-1]
    assert last["epoch"] == 2
    assert {"validation_loss", "validation_accuracy", "train_loss", "seconds", "samples_per_second"} <= set(last)
    assert {name: str(value) for name, value in last.items() if value is not None} == {
        name: cell for name, cell in cells.items() if cell not in ("", "nan")
    }


def test_epochs_or_steps_say_how_long(outcomes):
    steps = {name: outcomes[name].summary["steps"] for name in ("epochs", "many-steps", "both")}
    assert steps == {"epochs": 90, "many-steps": 540, "both": 45}
    assert outcomes["many-steps"].summary["epochs"] == 12
    assert "epoch 12/12" in outcomes["many-steps"].stdout


def test_without_validation_it_says_so(outcomes):
    outcome = outcomes["nothing-held-out"]
    assert outcome.summary["validation"] == {}
    assert "none, no rows are held out" in outcome.stdout
    assert not any(name.startswith("validation") for name in outcome.rows[-1])


def test_what_else_options_do(outcomes):
    assert outcomes["silent"].stdout == ""
    assert outcomes["more-classes"].summary["outputs"]["classes"] == 12
    assert outcomes["more-classes"].summary["threads_per_rank"] == 1
    assert list(outcomes["tensorboard"].folder.glob("events.out.tfevents.*"))
    weights = load_weights(outcomes["bf16"].folder / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    assert outcomes["bf16"].summary["weights_sha256"] != outcomes["plain"].summary["weights_sha256"]
