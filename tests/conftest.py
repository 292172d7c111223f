"""What all tests share: the same random numbers, and one thread, as many tests' ranks share few cores."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

pytest_plugins = ["tests.harness.plugin", "tests.launching"]
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeds() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
