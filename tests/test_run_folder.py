import errno
import fcntl
import hashlib
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import nn

from distloop.errors import ConfigError, DataError
from distloop.run_folder import LOCK_NAME, RunFolder, load_weights, save_weights, versions, weights_sha256

ROOT = Path(__file__).parent.parent

# A run that says that it lives, and lives until its stdin closes.
RUN = """
import sys
from distloop.run_folder import RunFolder
folder = RunFolder.create(sys.argv[1])
print("alive", flush=True)
sys.stdin.read()
"""


def start_run(path: Path) -> subprocess.Popen[str]:
    run = subprocess.Popen(
        [sys.executable, "-c", RUN, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert run.stdout is not None
    assert run.stdout.readline() == "alive\n"
    return run


def end_run(run: subprocess.Popen[str]) -> None:
    run.kill()
    run.communicate()


def test_the_usual_folder_is_named_after_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folders = [RunFolder.create() for _ in range(3)]
    paths = [folder.path for folder in folders]
    assert len(set(paths)) == 3
    assert all(re.fullmatch(r"runs/\d{8}-\d{6}(-[23])?", str(path)) and path.is_dir() for path in paths)
    for folder in folders:
        folder.close()


def test_a_new_folder_in_new_folders(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path / "a" / "b") as folder:
        assert (folder.path / LOCK_NAME).read_text() == f"{socket.gethostname()}, process {os.getpid()}"
    assert list((tmp_path / "a" / "b").iterdir()) == []
    folder.close()


def test_an_empty_folder(tmp_path: Path) -> None:
    RunFolder.create(str(tmp_path)).close()


def test_a_folder_that_holds_something_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(ConfigError, match=r"holds thesis.tex.*expected a new or empty folder.*--run-dir"):
        RunFolder.create(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_run_that_is_alive_is_named(tmp_path: Path) -> None:
    run = start_run(tmp_path)
    try:
        with pytest.raises(ConfigError, match=f"in use by a run on {socket.gethostname()}, process {run.pid}"):
            RunFolder.create(tmp_path)
    finally:
        end_run(run)


def test_a_run_of_this_process_is_alive_too(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path):
        for _ in range(2):
            with pytest.raises(ConfigError, match=f"process {os.getpid()}"):
                RunFolder.create(tmp_path)


def test_the_lock_of_a_dead_run_does_not_count(tmp_path: Path) -> None:
    end_run(start_run(tmp_path))
    assert (tmp_path / LOCK_NAME).exists()
    with RunFolder.create(tmp_path) as folder:
        assert str(os.getpid()) in (folder.path / LOCK_NAME).read_text()


def test_the_files_of_a_dead_run_do_count(tmp_path: Path) -> None:
    end_run(start_run(tmp_path))
    (tmp_path / "metrics.csv").write_text("1")
    with pytest.raises(ConfigError, match=r"holds metrics\.csv"):
        RunFolder.create(tmp_path)


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(fd: int, operation: int) -> NoReturn:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    with RunFolder.create(tmp_path), pytest.raises(ConfigError, match=r"if that run is dead, remove .*\.lock"):
        RunFolder.create(tmp_path)


@pytest.mark.parametrize("below", ["", "x", "x/y"])
def test_a_path_that_is_a_file_or_below_one(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("text")
    with pytest.raises(ConfigError, match=r"file.*expected a new or empty folder"):
        RunFolder.create(tmp_path / "file" / below)


def test_a_parent_that_cannot_be_written() -> None:
    with pytest.raises(ConfigError, match="cannot be written"):
        RunFolder.create("/proc/distloop/run")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_parent_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ConfigError, match="cannot be written: Permission denied"):
        RunFolder.create(tmp_path / "run")


def test_files_are_whole_and_nothing_else_is_left(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path) as folder:
        folder.write_text("a.txt", "old")
        folder.write_text("a.txt", "Grüße")
        folder.write_bytes("b.bin", b"\0\1")
        folder.write_json("c.json", {"loss": 0.5, "name": "é"})
    assert (tmp_path / "a.txt").read_text("utf-8") == "Grüße"
    assert (tmp_path / "b.bin").read_bytes() == b"\0\1"
    assert json.loads((tmp_path / "c.json").read_text("utf-8")) == {"loss": 0.5, "name": "é"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "b.bin", "c.json"]


def test_a_write_that_fails_leaves_the_file_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(fd: int) -> NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device")

    with RunFolder.create(tmp_path) as folder:
        folder.write_text("a.txt", "old")
        monkeypatch.setattr(os, "fsync", fsync)
        with pytest.raises(OSError, match="No space left"):
            folder.write_text("a.txt", "new")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.txt", "old")]


def test_json_without_nan(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path) as folder, pytest.raises(ValueError, match="not JSON compliant"):
        folder.write_json("a.json", {"loss": float("nan")})


def test_the_digest_is_that_of_the_bytes_in_order_of_name() -> None:
    first, second = torch.arange(6.0).reshape(2, 3), torch.tensor(7.0, dtype=torch.float64)
    expected = hashlib.sha256(np.arange(6, dtype="<f4").reshape(2, 3).T.tobytes() + np.array(7, dtype="<f8").tobytes())
    assert weights_sha256([("b", second), ("a", first.t())]) == expected.hexdigest()


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.int64, torch.bool]
)
def test_the_digest_sees_every_bit_of_every_type(dtype: torch.dtype) -> None:
    vector = torch.ones(5).to(dtype)
    other = vector.clone()
    other[4] = 0
    assert weights_sha256([("a", vector)]) == weights_sha256([("a", vector.clone())])
    assert weights_sha256([("a", vector)]) != weights_sha256([("a", other)])


def test_the_digest_of_half_types_and_of_nothing() -> None:
    assert weights_sha256([("a", torch.ones(1, dtype=torch.bfloat16))]) == hashlib.sha256(b"\x80\x3f").hexdigest()
    assert weights_sha256([("a", torch.empty(0))]) == hashlib.sha256().hexdigest()


def test_the_digest_of_parameters_in_a_flat_vector() -> None:
    model = nn.Linear(3, 2)
    flat = torch.cat([parameter.detach().reshape(-1) for parameter in model.parameters()])
    views = [("weight", flat[:6].view(2, 3)), ("bias", flat[6:])]
    assert weights_sha256(views) == weights_sha256(model.named_parameters())


def saved_and_loaded(folder: Path, state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    loaded = load_weights(save_weights(folder, state_dict))
    assert loaded.keys() == state_dict.keys()
    for name, tensor in state_dict.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor.detach())
    assert [path.name for path in folder.iterdir()] == ["model.safetensors"]
    return loaded


def test_weights_of_many_types_and_shapes(tmp_path: Path) -> None:
    types = (torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.int64, torch.bool)
    weights = {str(dtype): torch.randn(3, 4).to(dtype) for dtype in types}
    saved_and_loaded(tmp_path, weights | {"scalar": torch.tensor(3.0), "none": torch.empty(0), "no": torch.empty(0)})


def test_weights_of_a_model_into_a_model(tmp_path: Path) -> None:
    model, other = (nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)) for _ in range(2))
    other.load_state_dict(saved_and_loaded(tmp_path, model.state_dict()))
    assert weights_sha256(model.named_parameters()) == weights_sha256(other.named_parameters())


def test_tied_weights_are_stored_once_and_tied_again(tmp_path: Path) -> None:
    model = nn.ModuleDict({"embedding": nn.Embedding(7, 4), "head": nn.Linear(4, 7, bias=False)})
    model["head"].weight = model["embedding"].weight
    loaded = saved_and_loaded(tmp_path, model.state_dict())
    assert loaded["head.weight"] is loaded["embedding.weight"]
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert list(file.keys()) == ["embedding.weight"]


def test_views_of_a_flat_vector_and_views_that_overlap(tmp_path: Path) -> None:
    flat = torch.arange(12.0)
    weights = {"a": flat[:6].view(2, 3), "b": flat[6:], "c": flat[4:8], "d": flat, "e": flat.view(3, 4).t()}
    loaded = saved_and_loaded(tmp_path, weights)
    loaded["c"].zero_()
    assert torch.equal(loaded["d"], flat)


def test_tensors_that_are_not_contiguous(tmp_path: Path) -> None:
    saved_and_loaded(tmp_path, {"a": torch.arange(6.0).view(2, 3).t(), "b": torch.ones(1).expand(4)})


def test_weights_are_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing\.safetensors cannot be read"):
        load_weights(tmp_path / "nothing.safetensors")
    with pytest.raises(DataError, match=r"expected a .* file|damaged"):
        load_weights(tmp_path)


@pytest.mark.parametrize("kept", [0, 4, 20, 200, -1])
def test_weights_are_cut_off(tmp_path: Path, kept: int) -> None:
    path = save_weights(tmp_path, {"a": torch.ones(100)})
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(DataError, match=r"model\.safetensors"):
        load_weights(path)


@pytest.mark.parametrize("aliases", ["{", "[1]", '{"b": "nobody"}', '{"b": [1]}'])
def test_weights_with_aliases_that_make_no_sense(tmp_path: Path, aliases: str) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.ones(1)}, tmp_path / "x.safetensors", metadata={"distloop.aliases": aliases})
    with pytest.raises(DataError, match="damaged"):
        load_weights(tmp_path / "x.safetensors")


def test_versions() -> None:
    found = versions()
    assert list(found) == ["python", "distloop", "torch", "numpy", "mpi4py"]
    assert found["numpy"] == np.__version__
