"""A task of one's own, a denoising autoencoder: the five words of the loop that say what is learned.

    mpirun -n 4 python examples/05_own_task.py

Look at the error, the same at any number of ranks: the noise depends on the round, and the task knows nothing of MPI.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from distloop import Learner, Loss, Minibatch, Partition, Progress, Shard, Task, World, strategy
from distloop.data.digits import open_digits
from distloop.loop import train


class Denoise(Task[Tensor]):
    """Inputs are noisy images (B, 64), targets the clean ones."""

    def __init__(self, images: Tensor, shard: Shard, batch_size: int = 64) -> None:
        self.images, self.shard, self.batch_size = images, shard, batch_size

    def collect(self, learners: Mapping[str, Learner], progress: Progress) -> Tensor:
        """Fresh noise each round, the same on every rank."""
        return torch.normal(self.images, 0.3, generator=torch.Generator().manual_seed(progress.round))

    def extract(self, data: Tensor) -> Iterator[Minibatch]:
        """This rank's rows of each global batch."""
        for rows in torch.split(torch.arange(len(data)), self.batch_size):
            mine = rows[Partition.even(len(rows), self.shard.world_size).slice_of(self.shard.rank)]
            yield Minibatch(data[mine], self.images[mine], global_rows=len(rows))

    def apply(self, learners: Mapping[str, Learner], minibatch: Minibatch) -> Tensor:
        """What the network makes of the noisy rows."""
        return learners["model"].module(minibatch.inputs)  # type: ignore[no-any-return]

    def targets(self, minibatch: Minibatch, outputs: Tensor) -> Tensor:
        """The clean rows."""
        return minibatch.targets

    def loss(self, outputs: Tensor, targets: Tensor) -> Loss:
        """A sum over these rows, with their number as its weight: ranks add both up and divide once."""
        return Loss((outputs - targets).square().mean(1).sum(), weight=len(targets))


def main() -> None:
    world = World.start()
    torch.manual_seed(0)
    images = open_digits().rows(torch.arange(1797).numpy())[0].flatten(1)
    autoencoder = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 64))
    learner = Learner(autoencoder, *strategy("zero", world.comm), lambda named: torch.optim.Adam(named, lr=3e-3))
    for progress in train(Denoise(images, Shard(world.rank, world.size)), {"model": learner}, 10, Progress()):
        if progress.position == 0:
            world.say(f"round {progress.round}  error {progress.loss:.5f}  (of the noisy images: {0.3**2:.5f})")


if __name__ == "__main__":
    main()
