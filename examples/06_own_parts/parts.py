"""A model, a data set and a loss of one's own, given to the main job by import path; none has a base class of distloop.

    cd examples/06_own_parts
    mpirun -n 4 python -m distloop.train --config parts.yaml
    mpirun -n 4 python -m distloop.train --model parts:Net --data parts:Swings --loss parts:log_cosh --epochs 5

Look at parts.yaml, which says what the second command says: every key of the file is an option, and options after
``--config`` override it. The folder in which the command runs is on the path of imports.
"""

import math

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset


class Swings(Dataset[tuple[Tensor, Tensor]]):
    """Noisy records (64,) of pendulums that lose energy; the target (1,) is the frequency."""

    def __init__(self, rows: int = 2000) -> None:
        random = torch.Generator().manual_seed(0)
        self.frequency = 1 + 3 * torch.rand(rows, 1, generator=random)
        time = torch.linspace(0, 1, 64)
        clean = torch.exp(-time) * torch.sin(2 * math.pi * self.frequency * time)
        self.records = clean + 0.05 * torch.randn(clean.shape, generator=random)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.records[index], self.frequency[index]


class Net(nn.Module):
    """``input_shape`` and ``output_size`` are filled in from the data, if a model has arguments of these names."""

    def __init__(self, input_shape: tuple[int, ...], output_size: int, hidden: int = 64) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(input_shape[0], hidden), nn.Tanh(), nn.Linear(hidden, output_size))

    def forward(self, records: Tensor) -> Tensor:
        """Records (B, 64), outputs (B, 1)."""
        return self.layers(records)  # type: ignore[no-any-return]


def log_cosh(outputs: Tensor, targets: Tensor) -> Tensor:
    """Like the square for small errors, like the absolute value for large ones; the mean over the rows given."""
    error = outputs - targets
    return (error + nn.functional.softplus(-2 * error) - math.log(2)).mean()
