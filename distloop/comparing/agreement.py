"""Whether the weights are those that plain torch comes to, in one process, on the global batch."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from distloop.build import Given, Ingredients, make_task
from distloop.comm import World, at_root, exchange
from distloop.comparing.runners import Plain
from distloop.config import Config
from distloop.data import Loader
from distloop.report.comparison import Agreement
from distloop.run_folder import weights_sha256
from distloop.tasks import Shard

TOLERANCE = 2e-3
TOLERANCE_BF16 = 0.1


class Reference:
    """Plain torch's weights after ``steps`` steps on the global batch: on rank 0, where alone they are looked at."""

    def __init__(self, config: Config, world: World, found: Ingredients, given: Given, steps: int) -> None:
        """Collective; rank 0 computes. It accumulates over as many minibatches as there are ranks, to save memory."""
        self.world, self.steps = world, steps
        self.tolerance = TOLERANCE_BF16 if config.precision == "bf16" else TOLERANCE
        self._start, self._weights = list[Tensor](), list[Tensor]()
        at_root(world.comm.control, lambda: self._compute(config, found, given))

    def _compute(self, config: Config, found: Ingredients, given: Given) -> None:
        finer = replace(config, accumulate=config.accumulate * self.world.size)
        task = make_task(finer, given, found.data, Shard(0, 1), found.device, Loader(found.data.train))
        plain = Plain("reference", config, found, task, 1.0)
        self._start = _weights(plain.module)
        plain.run(self.steps)
        self._weights = _weights(plain.module)

    def compare(self, module: nn.Module) -> Agreement:
        """After as many steps. Collective."""
        control = self.world.comm.control
        digests = exchange(control, weights_sha256([*module.named_parameters(), *module.named_buffers()]))
        difference, largest = at_root(control, lambda: self._distances(_weights(module)))
        return Agreement(self.steps, difference, largest, self.tolerance, len(set(digests)) == 1)

    def _distances(self, found: list[Tensor]) -> tuple[float, float]:
        """Over the way that the reference has come; and of the worst element, over the largest."""
        apart = [mine - other for mine, other in zip(found, self._weights, strict=True)]
        way = [other - start for other, start in zip(self._weights, self._start, strict=True)]
        largest = max(float(tensor.abs().max()) for tensor in apart if tensor.numel())
        scale = max(float(tensor.abs().max()) for tensor in self._weights if tensor.numel())
        return _length(apart) / max(_length(way), 1e-30), largest / max(scale, 1e-30)


def _weights(module: nn.Module) -> list[Tensor]:
    return [each.detach().to("cpu", torch.float32, copy=True) for each in module.parameters() if each.requires_grad]


def _length(tensors: list[Tensor]) -> float:
    squares = sum(float(torch.linalg.vector_norm(tensor, dtype=torch.float64)) ** 2 for tensor in tensors)
    return float(squares**0.5)
