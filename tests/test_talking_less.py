"""The options by which ranks talk less: runs of the main job on the digits, their bytes, and what they still learn."""

from __future__ import annotations

from typing import get_args, get_type_hints

import pytest

from distloop.config import Config
from distloop.local_steps import OUTERS
from distloop.run_folder import load_weights
from distloop.strategies import COMPRESSIONS
from tests.compressed_cases import low_rank_lengths, ring_bytes
from tests.main_jobs import Outcome, run_all

RANKS = 2
STEPS_OF_AN_EPOCH = 45
EPOCHS = ["--epochs", "6", "--strategy", "ring"]
TOPK = ["--compress", "topk", "--compress-args.fraction"]
POWERSGD = ["--compress", "powersgd", "--compress-args.rank"]
LEARNING: dict[str, list[str]] = {
    "plain": EPOCHS,
    "topk": [*EPOCHS, *TOPK, "0.01"],
    "powersgd": [*EPOCHS, *POWERSGD, "2"],
    "local": [*EPOCHS, "--sync-every", "8"],
    "diloco": [*EPOCHS, "--sync-every", "8", "--outer", "nesterov"],
    "local-topk": [*EPOCHS, "--sync-every", "4", *TOPK, "0.1"],
    "zero-topk": [*EPOCHS, "--strategy", "zero", *TOPK, "0.01"],
}
# By how much fewer digits may be told apart than with all bytes: six epochs are few steps for what sends late.
MARGINS = {"topk": 0.08, "zero-topk": 0.08, "diloco": 0.08}
MARGIN = 0.03
SHORT = ["--steps", "5", "--model", "mlp", "--model-args.hidden", "64"]
NAN = [
    "--steps",
    "12",
    "--model",
    "linear",
    "--strategy",
    "ring",
    "--optimizer",
    "SGD",
    "--optimizer.lr",
    "1e38",
    "--schedule",
    "constant",
]
OTHERS = {
    "every-step": [*SHORT, "--strategy", "native", "--sync-every", "1"],
    "plain-native": [*SHORT, "--strategy", "native"],
    "diverged": [*NAN, "--sync-every", "4"],
    "clipped": [*SHORT, "--sync-every", "2", "--clip", "0.01"],
    "auto-topk": [*SHORT, *TOPK, "0.1"],
    "bf16-local": [*SHORT, "--strategy", "ring", "--sync-every", "2", "--gradient-dtype", "bf16"],
    "again": ["--config", "runs/topk/config.yaml", "--epochs", "1"],
}
REFUSED = {
    "shared": (["--strategy", "shared", *TOPK, "0.1"], "no bytes move that could be fewer"),
    "zero": (["--strategy", "zero", "--sync-every", "2"], "a replicated strategy with --sync-every"),
    "fraction": ([*TOPK, "2"], "topk with fraction 2: expected more than 0 and at most 1"),
    "rank": ([*POWERSGD, "0"], "powersgd with rank 0: expected a whole number, at least 1"),
    "argument": ([*TOPK, "0.1", "--compress-args.rank", "3"], "Expected as arguments: one of fraction"),
    "no-argument": (["--compress-args.rank", "3"], "Expected as arguments: none"),
    "bf16": ([*TOPK, "0.1", "--gradient-dtype", "bf16"], "topk with --gradient-dtype bf16"),
    "compression": (["--compress", "zip"], "--compress zip: expected one of none, topk, powersgd"),
    "every": (["--sync-every", "0"], "--sync-every 0: expected at least 1"),
    "outer": (["--sync-every", "2", "--outer", "adam"], "--outer adam: expected one of average, nesterov"),
    "outer-argument": (["--outer", "nesterov", "--outer-args.momentum", "-1"], "Invalid momentum value: -1"),
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    jobs = LEARNING | OTHERS | {name: given for name, (given, _) in REFUSED.items()}
    return run_all(RANKS, jobs, tmp_path_factory.mktemp("less"), timeout=240)


def test_everything_can_be_typed():
    hints = get_type_hints(Config)
    assert get_args(hints["compress"]) == COMPRESSIONS
    assert get_args(hints["outer"]) == tuple(OUTERS)


@pytest.mark.parametrize("name", LEARNING)
def test_it_still_learns(outcomes, name):
    """Seeded, so the figures do not change; with more epochs and seeds: ``python -m tests.benchmarks.talking_less``."""
    assert outcomes[name].code == 0, outcomes[name].stderr
    accuracy, plain = (outcomes[one].summary["validation"]["accuracy"] for one in (name, "plain"))
    assert accuracy > plain - MARGINS.get(name, MARGIN), f"{accuracy:.4f}, and {plain:.4f} with all bytes"


def shapes_of(outcome):
    return [tuple(tensor.shape) for tensor in load_weights(outcome.folder / "model.safetensors").values()]


def test_bytes_by_the_formulas(outcomes):
    """Of all that each rank has sent in training."""
    steps, meetings = 6 * STEPS_OF_AN_EPOCH, 6 * (STEPS_OF_AN_EPOCH // 8 + 1)
    elements, shapes = outcomes["plain"].summary["parameters"], shapes_of(outcomes["plain"])
    first, second = low_rank_lengths(shapes, 2)
    whole = [ring_bytes(elements, rank, RANKS) for rank in range(RANKS)]
    expected = {
        "plain": [steps * one for one in whole],
        "topk": [steps * 8 * -(-elements // 100) * (RANKS - 1)] * RANKS,
        "powersgd": [steps * (ring_bytes(first, r, RANKS) + ring_bytes(second, r, RANKS)) for r in range(RANKS)],
        "local": [meetings * one for one in whole],
        "diloco": [meetings * one for one in whole],
    }
    assert {name: outcomes[name].summary["sent_bytes_per_rank"] for name in expected} == expected


def test_meeting_at_every_step_is_what_it_was(outcomes):
    one, other = (outcomes[name].summary for name in ("every-step", "plain-native"))
    assert one["weights_sha256"] == other["weights_sha256"]
    assert one["sent_bytes_per_rank"] == other["sent_bytes_per_rank"]


def test_options_are_kept_with_the_run(outcomes):
    assert outcomes["again"].code == 0, outcomes["again"].stderr
    config = (outcomes["again"].folder / "config.yaml").read_text()
    assert "compress: topk" in config
    assert "fraction: 0.01" in config


def test_a_loss_that_is_not_finite_ends_the_run_together(outcomes):
    outcome = outcomes["diverged"]
    assert outcome.code == 1, outcome.stderr
    assert outcome.stderr.count("distloop: error: ") == 1, outcome.stderr
    assert "rank 1: the loss is not finite at step 2" in outcome.stderr
    assert "last meeting, 4 steps ago" in outcome.stderr
    assert all(tensor.isfinite().all() for tensor in load_weights(outcome.folder / "model.safetensors").values())


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("clipped", "average every 2 steps"),
        ("auto-topk", "topk"),
        ("bf16-local", "average every 2 steps"),
        ("diloco", "ring, nesterov every 8 steps"),
    ],
)
def test_the_start_line_says_it(outcomes, name, told):
    """Where the strategy is to be found, it is one that can do so."""
    assert outcomes[name].code == 0, outcomes[name].stderr
    assert told in outcomes[name].stdout.splitlines()[0]


def test_bfloat16_halves_what_is_sent_when_ranks_meet(outcomes):
    """Five steps: they meet after the second, the fourth and the last."""
    summary = outcomes["bf16-local"].summary
    whole = sum(ring_bytes(summary["parameters"], rank, RANKS) for rank in range(RANKS))
    assert sum(summary["sent_bytes_per_rank"]) == 3 * whole // 2


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_once(outcomes, name):
    outcomes[name].refused(REFUSED[name][1])
