"""One node, against what its memory allows:

    python -m tests.benchmarks.node                            # all sections, about 5 minutes, with all three MPIs
    python -m tests.benchmarks.node steps --ranks 2            # or some: steps, reduce, adam, memory, small

Contenders take turns in one process, round by round, with the yardstick among them; a time is that of the slowest rank;
medians. ``steps``: a training step, fused Adam, against plain torch by itself on every rank at once. ``reduce``: an
all-reduce of 128 MB in shared memory, against gloo, each MPI library through mpi4py (with and without its page faults)
and Intel's own C benchmark. ``adam``: landing, sum and step against the bounds. ``memory``: proportional set sizes.
``small``: messages up to 8 KiB against the library's.
"""

from __future__ import annotations

import argparse
import copy
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from tests.launching import mpirun
from tests.mpi_prefixes import MPIS

SECTIONS = ("steps", "reduce", "adam", "memory", "small")
MEGABYTES = 128
WARM_UPS = 5
NO_FAULTS = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "17179869184"}
Step = Callable[[], None]


def main() -> None:
    """Start a job for each section, rank count and MPI, and print what it prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=", ".join(SECTIONS))
    parser.add_argument("--ranks", type=int, nargs="*", default=[2, 4])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        _WORKERS[options.worker](options.rounds)
        return
    if unknown := set(options.sections) - set(SECTIONS):
        parser.error(f"{', '.join(unknown)}: expected some of {', '.join(SECTIONS)}")
    for section in options.sections or SECTIONS:
        ranks = {"reduce": [2], "small": [2], "steps": [2]}.get(section, options.ranks)
        for count in ranks:
            for mpi in MPIS if section in ("reduce", "small") else ("mpich",):
                for settings in ({}, NO_FAULTS) if section == "reduce" else ({},):
                    _job(section, count, mpi, options.rounds, settings)
    if "reduce" in (options.sections or SECTIONS):
        _intel(2)


def _job(section: str, ranks: int, mpi: str, rounds: int, settings: dict[str, str]) -> None:
    if MPIS[mpi].missing:
        print(f"{section:7} {mpi}: {MPIS[mpi].missing}")
        return
    arguments = ["-m", "tests.benchmarks.node", "--worker", section, "--rounds", str(rounds)]
    done = mpirun(ranks, *arguments, mpi=mpi, timeout=300, env=settings | {"OMP_NUM_THREADS": "1"})
    told = f"{mpi}, {ranks} ranks{', malloc keeps its pages' if settings else ''}"
    if done.returncode:
        print(f"{section:7} {told}: failed\n{done.stderr[-2000:]}", file=sys.stderr)
        return
    for line in done.stdout.splitlines():
        print(f"{section:7} {told:36} {line}", flush=True)


def _intel(ranks: int) -> None:
    """Intel's C benchmark, as the wheel brings it: no Python at all."""
    mpi = MPIS["impi"]
    program = mpi.prefix / "bin" / "IMB-MPI1"
    if mpi.missing or not program.exists():
        print("reduce  IMB-MPI1 is not installed")
        return
    size = MEGABYTES * 1_000_000 // 4 * 4
    lengths = ["-msglog", "27:27", "-npmin", str(ranks), "-iter", "20", "-time", "60", "-mem", "2"]
    command = [str(mpi.mpirun), "-n", str(ranks), str(program), *lengths, "allreduce"]
    environment = mpi.environment()
    environment["LD_LIBRARY_PATH"] = str(mpi.prefix / "lib")
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, env=environment, check=False)
    found = re.findall(r"^ *(\d+) +(\d+) +([\d.]+) +([\d.]+) +([\d.]+)", done.stdout, re.MULTILINE)
    rows = [(int(row[0]), float(row[3])) for row in found if int(row[0])]
    for nbytes, microseconds in rows:
        print(f"reduce  IMB-MPI1 allreduce, {ranks} ranks: {microseconds * size / nbytes / 1e3:.1f} ms for 128 MB")
    if not rows:
        print(f"reduce  IMB-MPI1 gave nothing: {(done.stdout + done.stderr)[-500:]}")


class Rounds:
    """Contenders, and the yardstick among them, in turns."""

    def __init__(self, rounds: int) -> None:
        from distloop.comm import World
        from distloop.comm.yardstick import MemoryYardstick

        self.world, self.rounds = World.start(), rounds
        torch.set_num_threads(1)
        self.yardstick = MemoryYardstick(self.world.comm.control)

    def time(self, contenders: dict[str, Step], inner: int = 1) -> dict[str, list[float]]:
        """Seconds of each round, of the slowest rank; of ``B``, bytes per second."""
        import numpy as np
        from mpi4py import MPI

        times: dict[str, list[float]] = {name: [] for name in (*contenders, "B")}
        control = self.world.comm.control
        for turn in range(WARM_UPS + self.rounds):
            for name, step in contenders.items():
                control.Barrier()
                start = time.perf_counter()
                for _ in range(inner):
                    step()
                took = np.array([(time.perf_counter() - start) / inner])
                control.Allreduce(MPI.IN_PLACE, took, MPI.MAX)
                if turn >= WARM_UPS:
                    times[name].append(float(took[0]))
            bandwidth = self.yardstick.round()
            if turn >= WARM_UPS:
                times["B"].append(bandwidth)
        return times

    def say(self, text: str) -> None:
        """From rank 0."""
        self.world.say(text)


def _spread(values: list[float]) -> float:
    low, middle, high = statistics.quantiles(values, n=4)
    return (high - low) / middle


# ---- training steps -------------------------------------------------------------------------------------------------


def _mlp(*widths: int, rows: int = 32) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    layers = [part for pair in pairwise(widths) for part in (nn.Linear(*pair), nn.ReLU())][:-1]
    return nn.Sequential(*layers), torch.randn(rows, widths[0]), torch.randint(widths[-1], (rows,))


def _gpt() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    from distloop.models.reference import GPT

    tokens = torch.randint(256, (4, 65))
    return GPT((64,), 256, width=384, layers=6, heads=6), tokens[:, :-1], tokens[:, 1:].reshape(-1)


def _cnn() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    from distloop.models.reference import CNN

    return CNN((1, 28, 28), 10), torch.randn(32, 1, 28, 28), torch.randint(10, (32,))


MODELS: dict[str, tuple[Callable[[], Any], int]] = {
    "MLP 784-2048-2048-10, 32 rows": (lambda: _mlp(784, 2048, 2048, 10), 2),
    "GPT of 11 M, 4 x 64 tokens": (_gpt, 1),
    "CNN of 422 k, 32 images": (_cnn, 4),
    "digits' MLP, 16 rows": (lambda: _mlp(64, 200, 200, 10, rows=16), 100),
    "MLP of 37 M, 32 rows": (lambda: _mlp(784, 4096, 4096, 4096, 10), 1),
}


def _plain(module: nn.Module, inputs: torch.Tensor, targets: torch.Tensor) -> Step:
    """The loop of any tutorial."""
    module = copy.deepcopy(module)
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(module(inputs).flatten(0, -2), targets)
        loss.backward()
        optimizer.step()
        loss.item()

    return step


def _synchronised(rounds: Rounds, name: str, module: nn.Module, inputs: torch.Tensor, targets: torch.Tensor) -> Step:
    from distloop.learner import Learner
    from distloop.strategies import strategy
    from distloop.tasks import Loss

    ways = strategy(name, rounds.world.comm)
    learner = Learner(copy.deepcopy(module), *ways, lambda named: torch.optim.Adam(named, lr=1e-4, fused=True))
    weight = len(targets)

    def step() -> None:
        outputs = learner.module(inputs).flatten(0, -2)
        loss = Loss(nn.functional.cross_entropy(outputs, targets, reduction="sum"), weight)
        gradients = learner.gradients(loss / (weight * rounds.world.size))
        for block in learner.reduce_to_owner(gradients):
            learner.apply(block)
        learner.broadcast()

    return step


def _ddp(rounds: Rounds, module: nn.Module, inputs: torch.Tensor, targets: torch.Tensor) -> Step:
    from distloop.comparing.ddp import start_gloo

    start_gloo(rounds.world)
    return _plain(nn.parallel.DistributedDataParallel(copy.deepcopy(module)), inputs, targets)


def _steps(count: int) -> None:
    rounds = Rounds(count)
    for name, (make, inner) in MODELS.items():
        torch.manual_seed(0)
        given = make()
        contenders = {"alone": _plain(*given), "alone again": _plain(*given)}
        contenders |= {way: _synchronised(rounds, way, *given) for way in ("shared", "native")}
        contenders["ddp"] = _ddp(rounds, *given)
        times = rounds.time(contenders, inner)
        alone = statistics.median(times["alone"])
        told = [f"{way} {alone / statistics.median(times[way]):.2f}" for way in list(contenders)[1:]]
        rounds.say(f"{name:30} alone {alone * 1e3:8.2f} ms; efficiency of {', '.join(told)}")


# ---- all-reduce -----------------------------------------------------------------------------------------------------


def _reduce(count: int) -> None:
    import torch.distributed as dist

    from distloop.comm import Native, Shared
    from distloop.comparing.ddp import start_gloo

    rounds = Rounds(count)
    length = MEGABYTES * 1_000_000 // 4
    shared, native = Shared(rounds.world.comm), Native(rounds.world.comm)
    window, private = shared.memory.own(length, torch.float32), torch.zeros(length)
    start_gloo(rounds.world)
    times = rounds.time(
        {
            "shared": lambda: shared.all_reduce(window),
            "library": lambda: native.all_reduce(private),
            "gloo": lambda: dist.all_reduce(private),
        }
    )
    window.fill_(rounds.world.rank + 1)
    shared.all_reduce(window)
    wrong = int((window != sum(range(1, rounds.world.size + 1))).sum())
    ours, bandwidth = statistics.median(times["shared"]), statistics.median(times["B"])
    bound = 2 * rounds.world.size * 4 * length / bandwidth
    told = [f"{name} {statistics.median(times[name]) * 1e3:.1f} ms" for name in ("shared", "library", "gloo")]
    ratios = [f"{name} {statistics.median(times[name]) / ours:.2f}" for name in ("library", "gloo")]
    rounds.say(
        f"{', '.join(told)}; over shared: {', '.join(ratios)}; shared at {bound / ours:.2f} of 2pN/B, "
        f"B {bandwidth / 1e9:.1f} GB/s (spread {_spread(times['B']):.2f}); wrong elements {wrong}"
    )


def _small(count: int) -> None:
    from mpi4py import MPI

    from distloop.comm import Shared

    rounds = Rounds(count)
    shared, library = Shared(rounds.world.comm), rounds.world.comm.control
    for nbytes in (4, 64, 1024, 8192):
        vector = shared.memory.own(nbytes // 4, torch.float32).numpy()
        times = rounds.time(
            {
                "shared": shared.reducing(vector, None),
                "library": lambda v=vector: library.Allreduce(MPI.IN_PLACE, v),  # type: ignore[misc]
            },
            inner=300,
        )
        ours, theirs = (statistics.median(times[name]) * 1e6 for name in ("shared", "library"))
        rounds.say(f"{nbytes:5} bytes: shared {ours:6.2f} us, library {theirs:6.2f} us: {ours / theirs:.2f}")


# ---- the optimizer's step, and memory -------------------------------------------------------------------------------


def _adam(count: int) -> None:
    """No forward: gradients are there, as backward would leave them. They are copied to where they are summed, cold;
    or are there already, as backward leaves those of large affine layers."""
    rounds = Rounds(count)
    module = nn.ParameterList([nn.Parameter(torch.zeros(1 << 22)) for _ in range(8)])
    values = [torch.randn(1 << 22) for _ in range(2)]
    learner = _learner(rounds, module)

    def step() -> None:
        for block in learner.reduce_to_owner(learner.gathered(1.0, 1.0)):
            learner.apply(block)
        learner.broadcast()

    def copied() -> None:
        for index, parameter in enumerate(learner.landing.parameters):
            parameter.grad = values[index % 2]
            for hook in parameter._post_accumulate_grad_hooks.values():
                hook(parameter)
        step()

    def written() -> None:
        learner.landing._landed[:] = bytes([1] * 8)
        step()

    times = rounds.time({"copied": copied, "written in place": written})
    p, size, bandwidth = rounds.world.size, 4 * learner.flats[0].length, statistics.median(times["B"])
    for name in ("copied", "written in place"):
        took = statistics.median(times[name])
        rounds.say(
            f"N {size / 1e6:.0f} MB, gradients {name}: {took * 1e3:.1f} ms; {took * bandwidth / (9 * p * size):.2f} of "
            f"9pN/B, what any replicated step needs; its own bound (p+6)N/B is "
            f"{(p + 6) * size / bandwidth / took:.2f} of it; B {bandwidth / 1e9:.1f} GB/s "
            f"(spread {_spread(times['B']):.2f})"
        )


def _memory(count: int) -> None:
    """What any process needs is there before: a small learner has taken its steps."""
    from distloop.comparing.footprint import held_bytes

    rounds = Rounds(count)
    rounds.yardstick.close()
    control, p = rounds.world.comm.control, rounds.world.size
    small = _stepped(rounds, 16)
    before = held_bytes(control)
    learner = _stepped(rounds, 1 << 22)
    after = held_bytes(control)
    assert before is not None and after is not None
    held, size = (after - before) * p, 4 * learner.flats[0].length
    assert small.steps == learner.steps
    rounds.say(
        f"N {size / 1e6:.0f} MB: the node holds {held / size:.3f} N more than before; (p+3)N is {p + 3} N: "
        f"{held / size / (p + 3):.3f} of it; DDP's 4pN is {4 * p} N"
    )


def _stepped(rounds: Rounds, elements: int) -> Any:
    """After two steps of eight parameters of so many elements."""
    learner = _learner(rounds, nn.ParameterList([nn.Parameter(torch.zeros(elements)) for _ in range(8)]))
    for _ in range(2):
        learner.flats[0].gradients.fill_(1.0)
        learner.landing._landed[:] = bytes([1] * 8)
        for block in learner.reduce_to_owner(learner.gathered(1.0, 1.0)):
            learner.apply(block)
        learner.broadcast()
    return learner


def _learner(rounds: Rounds, module: nn.Module) -> Any:
    from distloop.learner import Learner
    from distloop.strategies import strategy

    ways = strategy("shared", rounds.world.comm)
    return Learner(module, *ways, lambda named: torch.optim.Adam(named, lr=1e-4, fused=True))


_WORKERS = {"steps": _steps, "reduce": _reduce, "adam": _adam, "memory": _memory, "small": _small}

if __name__ == "__main__":
    main()
