"""The lines that a run prints at its start and end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lbgen.configuration import saved
from lbgen.pretraining.config import PretrainConfig
from lbgen.pretraining.feed.catalogue import Catalogue, Sources
from lbgen.runs.console import counted, say, table

if TYPE_CHECKING:
    from lbgen.pretraining.state import Best, PretrainingState


def say_opening(
    config: PretrainConfig, folders: Sequence[Path], sources: Sources, state: PretrainingState, device: str
) -> None:
    """Print what the run will do, and where it continues if it was begun before."""
    count = state.accelerator.num_processes
    each = f" ({count} processes of {config.batch_size})" if count > 1 else ""
    rows = [
        *described_data(config, folders, sources),
        ("architecture", described_model(config, state)),
        ("update", f"{counted(state.images_per_update, 'image')} at most{each}"),
        ("epochs", f"{config.epochs:,} of {counted(state.updates_per_epoch, 'update')}"),
        ("output", str(config.folder)),
        ("device", f"{device}, {config.precision}"),
    ]
    say(table(rows))
    saved.say_in_full(config)
    if state.step and state.progress.epoch < config.epochs:
        say(f"going on from update {state.progress.update} of epoch {state.progress.epoch + 1}")


def described_data(config: PretrainConfig, folders: Sequence[Path], sources: Sources) -> list[tuple[str, str]]:
    weights = config.weights_of(len(folders))
    rows = []
    for folder, catalogue, weight in zip(folders, sources.training, weights, strict=True):
        often = "" if weight == 1 else f", {weight:g} times an epoch"
        rows.append(("dataset", f"{folder}: {counted(len(catalogue), 'image')}{often}{left_out(catalogue)}"))
    tested = counted(sum(map(len, sources.validation)), "image")
    where = f"{config.validation}: {tested}" if config.validation else f"{tested}, held out"
    return [
        *rows,
        ("categories", f'{len(sources.categories):,}, the first is {sources.categories[0]}, "{sources.names[0]}"'),
        ("validation", where if sources.validation else "none; the last epoch counts as the best"),
    ]


def left_out(catalogue: Catalogue) -> str:
    skipped = sum(each.count for each in catalogue.reader.skipped.values())
    parts = [f"{catalogue.unusable:,} without a label or unreadable"] * bool(catalogue.unusable)
    return "".join(f"; {part}" for part in [*parts, *[f"{skipped:,} other files skipped"] * bool(skipped)])


def described_model(config: PretrainConfig, state: PretrainingState) -> str:
    parameters = sum(parameter.numel() for parameter in state.model.parameters()) / 1e6
    more = f" with {' '.join(config.model_arguments)}" if config.model_arguments else ""
    return f"{config.architecture}{more}, {parameters:.3g} M parameters, images of {config.image_size} pixels"


def best_epoch(config: PretrainConfig, best: Best, backbone: Path) -> str:
    """The last line: the best epoch, and where its weights are."""
    accuracy = f", top-1 {best.top1:.1%}" if best.top1 > 0 else ""
    kind = "average" if config.ema_decay else "backbone"
    return f"best epoch: {best.epoch} of {config.epochs}{accuracy}; its {kind} is in {backbone}"
