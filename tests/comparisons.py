"""A comparison with all that one can have in it, the same every time."""

from __future__ import annotations

from distloop.report.comparison import (
    Agreement,
    Bandwidth,
    Comparison,
    Contender,
    Scaling,
    Setting,
    Yardstick,
)

SETTING = Setting(
    world="2 ranks on 1 node, 1 thread each, 2 cores",
    library="MPICH 5.0.2",
    ranks=2,
    nodes=1,
    threads=1,
    cores=2,
    model="MLP",
    parameters=5_825_546,
    optimizer="Adam",
    batch_size=64,
    rounds=7,
    steps_per_round=20,
    versions={"python": "3.11.7", "torch": "2.13.0", "numpy": "2.4.6", "distloop": "0.1.0"},
    date="2026-11-25 18:00",
    command="mpirun -n 2 python -m distloop.compare --against ddp --collectives",
)


def _times(milliseconds: float) -> list[float]:
    return [milliseconds * factor / 1e3 for factor in (1.0, 0.99, 1.02, 1.0, 1.05, 0.98, 1.01)]


def contender(name: str, milliseconds: float, split: tuple[float, ...] | None, sent: float, **other) -> Contender:
    names = ("compute", "wait", "transfer", "optimizer")
    given = {
        "split": None if split is None else {phase: part / 1e3 for phase, part in zip(names, split, strict=True)},
        "sent_bytes": [sent, sent],
        "messages": [178.0 if sent else 0.0] * 2,
        "memory_bytes": 93e6,
        "loss": 0.4512,
        "agreement": Agreement(5, 3.4e-7, 1.2e-6, 1e-3, same_bits=True),
        "ratio_to_alone": 17.1 / milliseconds,
        "predicted_seconds": milliseconds * 0.93e-3,
        "of_bound": 0.71,
    }
    return Contender(name, _times(milliseconds), **(given | other))


CONTENDERS = [
    contender("ring", 31.8, (11.2, 0.6, 12.1, 7.9), 23.3e6),
    contender("shared", 16.2, (11.4, 0.4, 1.2, 3.2), 0, memory_bytes=58e6),
    contender("star", 44.0, (11.3, 8.9, 15.9, 7.9), 23.3e6, messages=[2.0, 2.0]),
    contender("zero", 27.6, (11.3, 0.5, 11.8, 4.0), 23.3e6, memory_bytes=70e6),
    contender("ring+topk", 15.1, (11.3, 0.4, 1.0, 2.4), 1.2e6, approximate=True, loss=0.4733),
    contender("ddp", 29.9, None, 0, sent_bytes=None, messages=None, ours=False, of_bound=None, predicted_seconds=None),
    Contender("alone", _times(17.1), {"compute": 0.0103, "wait": 0.0, "transfer": 0.0, "optimizer": 0.0068}, loss=0.46),
]

BANDWIDTHS = [
    Bandwidth(name, 1024 * 4**step, 2, _times(1e3 * (1024 * 4**step / speed + latency)), 0, 1024 * 4**step / 18e9)
    for name, speed, latency in [("shared", 14e9, 9e-6), ("ring", 3.1e9, 60e-6), ("native", 4.2e9, 3e-6)]
    for step in range(10)
]

SCALING = Scaling(
    "2 a node, 100 Gbit/s between nodes",
    {
        "ring": {2**n: 0.0171 + 0.0037 * (1 - 0.5**n) + 1e-5 * 2**n for n in range(1, 13)},
        "hierarchical": {2**n: 0.0151 + 0.0021 * (1 - 0.5**n) + 2e-6 * 2**n for n in range(1, 13)},
        "star": {2**n: 0.0171 + 0.0037 * 2**n for n in range(1, 13)},
    },
    0.0171,
)

COMPARISON = Comparison(
    SETTING,
    CONTENDERS,
    BANDWIDTHS,
    [Yardstick("memory", 18e9, 0.04)],
    SCALING,
    ["the memory yardstick differed by 12 % between rounds: fractions of the bound are that uncertain"],
    {"zero-offload": "it is for accelerators"},
)
