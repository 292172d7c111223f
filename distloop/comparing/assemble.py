"""From what the rounds have found to what the reports show: ratios, predictions, warnings."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from statistics import median

from distloop.comm import World, exchange
from distloop.comparing.run import Entry, Field
from distloop.report.comparison import ALONE, Comparison, Contender, Setting
from distloop.run_folder import versions

FEW_ROUNDS = 7
UNSTEADY = 0.15


def comparison_of(field: Field, steps: int, command: str) -> Comparison:
    """Collective."""
    setting = _setting(field, steps, command)
    alone = next(entry for entry in field.entries if entry.name == ALONE)
    losses = field.losses()
    contenders = [
        _contender(entry, alone, loss, field.world) for entry, loss in zip(field.entries, losses, strict=True)
    ]
    return Comparison(setting, contenders, warnings=_warnings(setting, contenders), left_out=field.left_out)


def _setting(field: Field, steps: int, command: str) -> Setting:
    config, world, found = field.config, field.world, field.found
    optimizer = field.entries[0].runner.optimizer_name
    return Setting(
        world.describe(found.threads),
        world.library,
        world.size,
        world.nodes,
        found.threads,
        world.cores,
        type(found.module).__name__,
        sum(each.numel() for each in found.module.parameters()),
        optimizer,
        found.task.batch_size,
        config.rounds,
        steps,
        versions(),
        datetime.now().strftime("%Y-%m-%d %H:%M"),
        command,
    )


def _contender(entry: Entry, alone: Entry, loss: float, world: World) -> Contender:
    timed, own = entry.timed, entry.runner
    assert entry.split is not None
    ours = entry.spec is not None
    sent = exchange(world.comm.control, [timed.sent.bytes / timed.steps, timed.sent.messages / timed.steps])
    ratios = [one / other for one, other in zip(alone.timed.step_seconds, timed.step_seconds, strict=True)]
    traced = sum(entry.split.values()) or 1.0
    p50 = median(timed.step_seconds)
    return Contender(
        own.name,
        timed.step_seconds,
        {phase: seconds / traced * p50 for phase, seconds in entry.split.items()},
        [bytes_ for bytes_, _ in sent] if ours else None,
        [messages for _, messages in sent] if ours else None,
        entry.memory_bytes,
        loss,
        entry.agreement,
        approximate=entry.spec is not None and entry.spec.approximate,
        ours=ours,
        ratio_to_alone=None if entry is alone else median(ratios),
        note="transfer is what backward takes longer than alone; gloo has no shared memory"
        if own.name == "ddp"
        else "",
    )


def _warnings(setting: Setting, contenders: Sequence[Contender]) -> list[str]:
    told = []
    if "oversubscribed" in setting.world:
        told.append(
            f"oversubscribed: {setting.world}. Ranks wait for each other's cores, so times say little about ranks that "
            "have one each: start fewer ranks, or --threads 1"
        )
    if setting.rounds < FEW_ROUNDS:
        told.append(f"{setting.rounds} rounds: a median of fewer than {FEW_ROUNDS} is unsure; see --rounds")
    unsteady = [f"{one.name} by {one.spread:.0%}" for one in contenders if one.spread > UNSTEADY]
    if unsteady:
        told.append(f"times differ between rounds: {', '.join(unsteady)}. Something else may be using the machine")
    return told
