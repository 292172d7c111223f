"""From what the rounds have found to what the reports show: ratios, predictions, warnings."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from statistics import median

from distloop.comm import World, exchange
from distloop.comparing.run import HIDDEN, Entry, Field
from distloop.comparing.specs import AUTO
from distloop.comparing.sticks import Model, optimizer_cost
from distloop.cost import MODELS, Workload
from distloop.report.comparison import (
    ALONE,
    FEW_ROUNDS,
    PHASES,
    UNSTEADY,
    Comparison,
    Contender,
    Scaling,
    Setting,
    Yardstick,
)
from distloop.run_folder import versions

DDP_NOTE = "transfer is what backward takes longer than alone; gloo has no shared memory"
UNSTEADY_STICK = 0.1


def comparison_of(field: Field, steps: int, command: str) -> Comparison:
    """Times the bare collectives too, where they were asked for. Collective."""
    setting = _setting(field, steps, command)
    found = field.bandwidths()
    alone = next(entry for entry in field.entries if entry.name == ALONE)
    model = _model(field, alone)
    pairs = zip(field.entries, field.losses(), strict=True)
    contenders = [_contender(entry, alone, loss, field.world, model) for entry, loss in pairs]
    sticks = field.sticks.told
    return Comparison(
        setting,
        contenders,
        found,
        sticks,
        _scaling(field, model),
        _warnings(setting, contenders, sticks),
        field.left_out,
    )


def _model(field: Field, alone: Entry) -> Model | None:
    cost = optimizer_cost(alone.runner.optimizer)
    if cost is None:
        return None
    parameters = sum(each.numel() for each in field.found.module.parameters() if each.requires_grad)
    return Model(Workload(parameters, cost, _scaled(alone)["compute"]), field.sticks.topology)


def _scaling(field: Field, model: Model | None) -> Scaling | None:
    if model is None:
        return None
    named = [entry.strategy for entry in field.entries if entry.strategy]
    known = [name for name in dict.fromkeys([*named, "hierarchical"]) if name in MODELS]
    return model.scaling(known, field.config.link_bytes)


def _scaled(entry: Entry) -> dict[str, float]:
    """The parts of the traced steps, as parts of the median of those without a trace."""
    assert entry.split is not None
    split = {phase: entry.split[phase] for phase in PHASES}
    traced = sum(split.values()) or 1.0
    return {phase: seconds / traced * median(entry.timed.step_seconds) for phase, seconds in split.items()}


def _setting(field: Field, steps: int, command: str) -> Setting:
    config, world, found = field.config, field.world, field.found
    optimizer = type(field.entries[0].runner.optimizer).__name__
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


def _contender(entry: Entry, alone: Entry, loss: float, world: World, model: Model | None) -> Contender:
    timed, name, spec = entry.timed, entry.name, entry.spec
    sent = exchange(world.comm.control, [timed.sent.bytes / timed.steps, timed.sent.messages / timed.steps])
    ratios = [one / other for one, other in zip(alone.timed.step_seconds, timed.step_seconds, strict=True)]
    split = _scaled(entry)
    besides = sum(split.values()) - split["compute"]
    exact = spec is None or not spec.approximate
    bounded = exact and entry is not alone and besides > 0
    return Contender(
        name,
        timed.step_seconds,
        split,
        [bytes_ for bytes_, _ in sent] if spec else None,
        [messages for _, messages in sent] if spec else None,
        entry.memory_bytes,
        loss,
        entry.agreement,
        approximate=not exact,
        ours=spec is not None,
        ratio_to_alone=None if entry is alone else median(ratios),
        predicted_seconds=model.step_seconds(entry.strategy) if model and entry.strategy else None,
        of_bound=model.bound_seconds / besides if model and bounded else None,
        hidden_seconds=entry.split[HIDDEN] if entry.split else None,
        stands_for=entry.strategy if name == AUTO else None,
        note=_note(entry),
    )


def _note(entry: Entry) -> str:
    if entry.name == AUTO:
        return f"chose {entry.strategy}" if entry.strategy else ""
    return DDP_NOTE if entry.name == "ddp" else ""


def _warnings(setting: Setting, contenders: Sequence[Contender], sticks: Sequence[Yardstick]) -> list[str]:
    told = []
    if "oversubscribed" in setting.world:
        told.append(
            "oversubscribed: ranks wait for each other's cores, so times say little about ranks with one each. Start "
            "fewer of them, or --threads 1"
        )
    if setting.rounds < FEW_ROUNDS:
        told.append(f"{setting.rounds} rounds: a median of fewer than {FEW_ROUNDS} is unsure; see --rounds")
    unsteady = [f"{one.name} by {one.spread:.0%}" for one in contenders if one.spread > UNSTEADY]
    if unsteady:
        told.append(f"times differ between rounds: {', '.join(unsteady)}. Something else may be using the machine")
    told += [
        f"the yardstick, {one.name}, differed by {one.spread:.0%} between rounds: bounds are that unsure"
        for one in sticks
        if one.spread > UNSTEADY_STICK
    ]
    return told
