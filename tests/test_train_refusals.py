"""What a user gives wrongly: one message, not one of each rank, exit code 2, and nothing left or overwritten."""

from __future__ import annotations

import numpy as np
import pytest

from tests.main_jobs import Outcome, run_all
from tests.test_train_data import write_idx

SMALL = ["--steps", "5", "--model", "linear"]
OWN = ["--steps", "5", "--model"]
REFUSED = {
    "abbreviation": (["--epoch", "1"], "--epoch is no option; did you mean --epochs?"),
    "unknown": (["--learning-rate", "1"], "--learning-rate is no option; did you mean --optimizer.lr?"),
    "no-option": (["digits"], "digits: expected an option"),
    "no-number": (["--epochs", "many"], "--epochs many: expected a whole number"),
    "too-small": (["--batch-size", "0"], "--batch-size 0: expected at least 1"),
    "no-strategy": (["--strategy", "rings"], "--strategy rings: expected one of auto, shared"),
    "unknown-key": (["--config", "wrong.yaml"], "epoks in the configuration file"),
    "no-config": (["--config", "missing.yaml"], "File does not exist"),
    "no-such-file": (["--data", "missing.csv"], "there is no file"),
    "no-such-name": (["--data", "digit"], "data=digit is no name that is known"),
    "idx-cut-short": (["--data", "cut"], "the file is cut short or damaged"),
    "csv-with-a-hole": (["--data", "hole.csv"], "hole.csv: line 3"),
    "labels-outside": ([*SMALL, "--classes", "5"], "expected 0 to 4, for 5 classes"),
    "nan-in-memory": (["--data", "nan.npz"], "expected finite numbers"),
    "optimizer-argument": (["--optimizer.spice", "1"], "--optimizer.spice: torch.optim.Adam has no such argument"),
    "optimizer-value": ([*SMALL, "--optimizer.lr", "-1"], "Invalid learning rate: -1.0"),
    "no-optimizer": (["--optimizer", "Adamm"], "--optimizer Adamm: expected a class of torch.optim"),
    "no-schedule": ([*SMALL, "--schedule", "cosin"], "schedule=cosin: expected constant, linear, cosine"),
    "schedule-argument": ([*SMALL, "--schedule", "torch.optim.lr_scheduler.StepLR"], "'step_size'"),
    "no-cuda": (["--device", "cuda"], "--device cuda cannot be used"),
    "no-device": (["--device", "abacus"], "--device abacus cannot be used"),
    "no-model": (["--model", "mlpp"], "model=mlpp: expected auto, linear"),
    "model-argument": (["--model-args.depth", "3"], "has no argument depth"),
    "model-for-other-rows": ([*OWN, "mymodule.ForThreeInputs"], "the model does not take a row of this data"),
    "model-too-narrow": ([*OWN, "mymodule.Narrow"], "the model gives 4 outputs, for data of 10 classes"),
    "model-of-the-rank": ([*OWN, "mymodule.OfRank"], "rank 1 has another model than rank 0"),
    "nonsense-loss": ([*SMALL, "--loss", "mymodule.nonsense"], "the loss returned str"),
    "broken-loss": ([*SMALL, "--loss", "mymodule.broken"], "no attribute 'nothing' (mymodule.py, line"),
    "sum-as-loss": ([*SMALL, "--loss", "torch.nn.CrossEntropyLoss", "--loss-args.reduction", "sum"], "reduction='sum'"),
}  # fmt: skip


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    folder = tmp_path_factory.mktemp("refusals")
    (folder / "wrong.yaml").write_text("epoks: 3\n")
    images = write_idx(folder / "cut", zipped=False) / "train-images-idx3-ubyte"
    images.write_bytes(images.read_bytes()[:-1])
    (folder / "hole.csv").write_text("a,b\n1,2\n3,\n5,6\n")
    np.savez(folder / "nan.npz", inputs=np.array([[1.0], [np.nan], [2.0]]), targets=np.zeros(3))
    jobs = {"first": SMALL} | {name: given for name, (given, _) in REFUSED.items()}
    return run_all(2, jobs, folder, timeout=120)


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_once(outcomes, name):
    outcomes[name].refused(REFUSED[name][1])
    assert outcomes[name].stdout == ""
    assert len(outcomes[name].stderr) < 600


def test_a_folder_in_which_a_run_was_is_left_alone(tmp_path):
    """The second run has the folder of the first."""
    outcomes = run_all(2, {"run": SMALL, "run/../run": SMALL}, tmp_path)
    first, second = outcomes["run"], outcomes["run/../run"]
    assert (first.code, second.code) == (0, 2)
    assert second.stderr.count("nothing is overwritten") == 1
    assert sorted(path.name for path in first.folder.iterdir()) == [
        "config.yaml", "metrics.csv", "metrics.jsonl", "model.safetensors", "summary.json",
    ]  # fmt: skip
