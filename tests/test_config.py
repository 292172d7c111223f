"""The configuration: what it refuses, and what the command line and the file come to."""

from __future__ import annotations

from typing import get_args, get_type_hints

import pytest
import torch

from distloop.comm import World
from distloop.config import Config, parse_together
from distloop.errors import ConfigError
from distloop.parsing import make_parser
from distloop.strategies import NAMES


@pytest.fixture
def parse(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    control = World.start().comm.control

    def parse(*arguments: str) -> Config:
        return parse_together(make_parser("train", "", Config), arguments, control, Config).config

    return parse


@pytest.fixture
def refused(parse):
    def refused(*arguments: str) -> str:
        with pytest.raises(ConfigError) as caught:
            parse(*arguments)
        return str(caught.value).splitlines()[0]

    return refused


def test_every_strategy_can_be_typed():
    assert get_args(get_type_hints(Config)["strategy"]) == ("auto", *NAMES)


def test_names_may_have_dashes_or_underscores(parse, tmp_path):
    assert parse("--batch_size", "8").batch_size == parse("--batch-size=8").batch_size == 8
    assert parse("--model_args.hidden=3").model_args == parse("--model-args.hidden", "3").model_args == {"hidden": 3}
    (tmp_path / "dash.yaml").write_text("batch-size: 7\nlog_every: 3\n")
    both = parse("--config", "dash.yaml", "--log-every", "4")
    assert (both.batch_size, both.log_every) == (7, 4)


def test_optimizers_by_name_and_fused(parse):
    def made(*arguments: str) -> torch.optim.Optimizer:
        return parse(*arguments).optimizer([torch.zeros(2)])

    adam = made()
    assert (type(adam), adam.defaults["lr"], adam.defaults["fused"]) == (torch.optim.Adam, 3e-3, True)
    sgd = made("--optimizer", "SGD", "--optimizer.lr", "0.1", "--optimizer.momentum", "0.9")
    assert (type(sgd), sgd.defaults["momentum"], sgd.defaults["fused"]) == (torch.optim.SGD, 0.9, True)
    assert made("--optimizer.fused", "false").defaults["fused"] is False
    assert made("--optimizer.foreach", "true").defaults["fused"] is None
    assert made("--optimizer", "torch.optim.RMSprop").defaults["alpha"] == 0.99


def test_the_resolved_configuration_is_complete_and_comes_to_the_same():
    control = World.start().comm.control
    parser = make_parser("train", "", Config)
    first = parse_together(parser, ["--optimizer", "Adagrad", "--clip", "2"], control, Config)
    for name in Config.__dataclass_fields__:
        assert f"\n{name}:" in f"\n{first.resolved}"
    assert "class_path: torch.optim.Adagrad" in first.resolved
    assert "fused: true" in first.resolved


@pytest.mark.parametrize(("given", "text"), [
    ("--epoch 3", "--epoch is no option; did you mean --epochs?"),
    ("--run_dirs x", "--run_dirs is no option; did you mean --run-dir?"),
    ("--lr 3", "--lr is no option; did you mean --optimizer.lr?"),
    ("--frobnicate", "--frobnicate is no option"),
    ("digits", "digits: expected an option, which starts with --, as --data digits"),
    ("--epochs", "--epochs: expected a value after it"),
    ("--epochs 1.5", "--epochs 1.5: expected a whole number, or null"),
    ("--batch-size al", "--batch-size al: expected a whole number, or all"),
    ("--precision fp16", "--precision fp16: expected one of float32, bf16"),
    ("--model-args 3", "--model-args 3: expected names and values, as --model-args.hidden 256"),
    ("--holdout 1", "--holdout 1.0: expected a fraction from 0 to below 1"),
    ("--clip 0", "--clip 0.0: expected a norm greater than 0"),
    ("--threads 0", "--threads 0: expected at least 1"),
    ("--optimizer.lr fast", "--optimizer.lr fast: expected a number"),
    ("--optimizer.spice 3", "--optimizer.spice: torch.optim.Adam has no such argument. Those that it has: "
                            "--optimizer.help torch.optim.Adam"),
    ("--optimizer.betas 3", "--optimizer.betas 3: expected a list, as [0.9,0.99]"),
    ("--optimizer sgd", "--optimizer sgd: expected a class of torch.optim by name, as SGD, or one by import path, as "
                        "my_module.MyOptimizer"),
    ("--optimizer nowhere.X", "--optimizer: No module named 'nowhere'. Expected a class of torch.optim by name, as "
                              "SGD, or one by import path, as my_module.MyOptimizer"),
])  # fmt: skip
def test_mistakes_on_the_command_line(refused, given, text):
    assert refused(*given.split()) == text


@pytest.mark.parametrize(("content", "text"), [
    ("epoks: 3", "epoks in the configuration file is no key that is known; did you mean epochs?"),
    ("epochs: many", "--epochs many: expected a whole number, or null"),
    ("optimizer:\n  class_path: SGD\n  init_args:\n    spice: 1", "--optimizer.spice: torch.optim.SGD has no such"),
    ("[1", "the configuration file is no YAML of keys and values"),
    ("3", "the configuration file is no YAML of keys and values"),
])  # fmt: skip
def test_mistakes_in_a_file(refused, tmp_path, content, text):
    (tmp_path / "mistaken.yaml").write_text(content)
    assert refused("--config", "mistaken.yaml").startswith(text)


def test_a_file_that_is_missing(refused):
    assert refused("--config", "missing.yaml").startswith("--config: File does not exist")


def test_help_has_a_text_for_every_option():
    parser = make_parser("train", "Train.", Config)
    text = parser.format_help()
    assert text.startswith("usage: train [options]\n")
    assert "typing." not in text
    assert "(type:" not in text
    for action in parser._actions:
        assert action.help, action.dest
