"""What a user might have written: copied into the folder of a run as mymodule."""

import os
import signal
import sys
import time

import torch
from torch import nn
from torch.utils.data import Dataset

RANK = int(os.environ.get("PMI_RANK", os.environ.get("OMPI_COMM_WORLD_RANK", "0")))


class Rows(Dataset):
    """40 rows of 6 numbers, of 3 classes."""

    def __len__(self):
        return 40

    def __getitem__(self, index):
        return torch.arange(6.0) * (index % 3), index % 3


class Net(nn.Module):
    def __init__(self, input_shape, output_size, hidden=8):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(torch.Size(input_shape).numel(), hidden), nn.ReLU(), nn.Linear(hidden, output_size)
        )

    def forward(self, inputs):
        return self.layers(inputs)


class Narrow(Net):
    def __init__(self, input_shape):
        super().__init__(input_shape, 4)


class OfRank(Net):
    def __init__(self, input_shape, output_size):
        super().__init__(input_shape, output_size, hidden=8 + RANK)


class ForThreeInputs(Net):
    def __init__(self, output_size):
        super().__init__((3,), output_size)


class AtThirdStep(Net):
    """Does what EVENT says on rank 1 when it is called for the third time in training; slow on all ranks."""

    def __init__(self, input_shape, output_size):
        super().__init__(input_shape, output_size)
        self.calls = 0

    def forward(self, inputs):
        if self.training:
            self.calls += 1
            time.sleep(0.05)
            if self.calls == 3 and int(os.environ.get("EVENT_RANK", "1")) == RANK:
                print(f"event at {time.time()}", flush=True)
                _happen(os.environ["EVENT"])
        return super().forward(inputs)


def _happen(event):
    if event == "raise":
        raise RuntimeError("the model broke")
    if event == "exit":
        sys.exit(0)
    if event == "interrupt":
        signal.raise_signal(signal.SIGINT)
    if event == "kill":
        signal.raise_signal(signal.SIGKILL)
    if event == "sleep":
        time.sleep(60)


class Optimizer(torch.optim.SGD):
    def __init__(self, params, lr=0.1):
        super().__init__(params, lr=lr)


def schedule(optimizer, step_size=2):
    return torch.optim.lr_scheduler.StepLR(optimizer, step_size)


def distance(outputs, targets, power: float = 2.0):
    return (outputs.softmax(1).gather(1, targets[:, None]) - 1).abs().pow(power).mean()


def nonsense(outputs, targets):
    return "low"


def constant(outputs, targets):
    return outputs.argmax(1).float().mean()


def broken(outputs, targets):
    return outputs.nothing
