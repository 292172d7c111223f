"""A task of one's own: a denoising autoencoder, told in the five words of the loop that say what is learned.

    mpirun -n 4 python examples/05_own_task.py

Look at the error: it falls far below that of the noisy images, and is the same at any number of ranks, because the
noise depends on the round and not on the rank. Nothing in the task knows of MPI.
"""

from collections.abc import Iterator, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from distloop import Learner, Loss, Minibatch, Partition, Progress, Shard, Task, World, strategy
from distloop.data.digits import open_digits
from distloop.loop import train


class Denoise(Task[Tensor]):
    def __init__(self, images: Tensor, shard: Shard, batch_size: int = 64) -> None:
        self.images, self.shard, self.batch_size = images, shard, batch_size

    def collect(self, learners: Mapping[str, Learner], progress: Progress) -> Tensor:
        random = torch.Generator().manual_seed(progress.round)
        return self.images + 0.3 * torch.randn(self.images.shape, generator=random)  # fresh noise each round

    def extract(self, data: Tensor) -> Iterator[Minibatch]:
        for noisy, clean in zip(data.split(self.batch_size), self.images.split(self.batch_size), strict=True):
            mine = Partition.even(len(noisy), self.shard.world_size).slice_of(self.shard.rank)
            yield Minibatch(noisy[mine], clean[mine], global_rows=len(noisy))

    def apply(self, learners: Mapping[str, Learner], minibatch: Minibatch) -> Tensor:
        return learners["model"].module(minibatch.inputs)  # type: ignore[no-any-return]

    def targets(self, minibatch: Minibatch, outputs: Tensor) -> Tensor:
        return minibatch.targets

    def loss(self, outputs: Tensor, targets: Tensor) -> Loss:
        return Loss((outputs - targets).square().mean(1).sum(), weight=len(targets))  # a sum and its weight


def main() -> None:
    world = World.start()
    torch.manual_seed(0)
    images = open_digits().rows(torch.arange(1797).numpy())[0].flatten(1)
    module = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 64))
    learner = Learner(module, *strategy("zero", world.comm), partial(torch.optim.Adam, lr=3e-3))
    for progress in train(Denoise(images, Shard(world.rank, world.size)), {"model": learner}, 10, Progress()):
        if progress.position == 0:
            world.say(f"round {progress.round}  error {progress.loss:.5f}  (of the noisy images: {0.3**2:.5f})")


if __name__ == "__main__":
    main()
