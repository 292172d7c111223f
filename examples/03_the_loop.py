"""The loop and the four families behind it, put together by hand.

    mpirun -n 4 python examples/03_the_loop.py

Look at the four choices: any collective goes with any ownership, placement and task. What a run needs besides
training (here: evaluation and early stopping) stands in the caller's own ``for``.
"""

from functools import partial

import torch

from distloop import Learner, Resident, Ring, Shard, Sharded, Supervised, World
from distloop.data import open_data
from distloop.evaluation import evaluate
from distloop.loop import Progress, train
from distloop.models import build_model
from distloop.tasks import goal_of

GOOD_ENOUGH = 0.97


def main() -> None:
    world = World.start()
    torch.set_num_threads(world.threads)
    torch.manual_seed(0)
    data = open_data("digits", holdout=0.2)
    spec = data.train.spec.with_classes(10)

    collective = Ring(world.comm)  # how bytes move: Star, Ring, Native
    ownership = Sharded(collective)  # who updates what: Replicated, Sharded, RootOwned
    placement = Resident()  # where the optimizer works: Resident, Offloaded
    task = Supervised(data.train, Shard(world.rank, world.size), goal_of(spec), batch_size=32)  # what is learned

    make_optimizer = partial(torch.optim.Adam, lr=3e-3, fused=True)
    learners = {"model": Learner(build_model("mlp", spec, {}), ownership, placement, make_optimizer)}

    for progress in train(task, learners, rounds=10, progress=Progress()):
        if progress.position:
            continue  # within an epoch
        found = evaluate(task, learners, data.validation, world.comm.control)
        world.say(f"epoch {progress.round}  step {progress.step}  accuracy {found['accuracy']:.4f}")
        if found["accuracy"] >= GOOD_ENOUGH:
            world.say("good enough")
            break


if __name__ == "__main__":
    main()
