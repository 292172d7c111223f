"""Only the collectives: sum a tensor over all ranks, or cut the sum among them, and count what was sent.

    mpirun -n 4 python examples/04_collectives.py

Look at the last two columns: what each rank sent, counted where it is sent, is what the algorithm's price says.
"""

import torch

from distloop import Native, Partition, Ring, Star, World
from distloop.comm import Collective

ELEMENTS = 12_000


def expected_bytes(collective: Collective, size: int) -> int:
    """Bytes that this rank sends in one all-reduce of ``size`` bytes; the ranks divide the elements evenly here."""
    ranks = collective.world_size
    if isinstance(collective, Ring):
        return 2 * (ranks - 1) * size // ranks
    if isinstance(collective, Star):
        return (ranks - 1) * size if collective.rank == 0 else size
    return size  # the library is handed the vector once


def main() -> None:
    world = World.start()
    total = sum(range(1, world.size + 1))
    for collective in (Star(world.comm), Ring(world.comm), Native(world.comm)):
        tensor = torch.full((ELEMENTS,), float(world.rank + 1))
        before = world.comm.sent.copy()
        collective.all_reduce(tensor)  # in place: every rank now holds the sum
        sent = (world.comm.sent - before).bytes
        assert bool((tensor == total).all())
        assert sent == expected_bytes(collective, tensor.nbytes)
        world.say(f"{type(collective).__name__:6}  sum {tensor[0]:.0f}  rank 0 sent {sent:,} bytes, as expected")

    # The two halves of which an all-reduce is made: between them each rank may work on its own slice.
    partition = Partition.even(ELEMENTS, world.size)
    mine = partition.slice_of(world.rank)
    tensor = torch.full((ELEMENTS,), float(world.rank + 1))
    Ring(world.comm).reduce_scatter(tensor, partition)  # my slice of the sum
    tensor[mine] *= -1
    Ring(world.comm).all_gather(tensor, partition)  # everybody's slice
    world.say(f"halves  sum {tensor[0]:.0f} to {tensor[-1]:.0f}  slices of {partition.counts}")


if __name__ == "__main__":
    main()
