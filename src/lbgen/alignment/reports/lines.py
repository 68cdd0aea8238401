"""The lines that `lbgen align` prints at its start and end."""

import shlex
from pathlib import Path

from lbgen.alignment.checkpoint import AlignmentProgress
from lbgen.alignment.config import AlignConfig
from lbgen.configuration import saved
from lbgen.runs.console import counted, say, table
from lbgen.vocabulary.vocabulary import Vocabulary


def say_opening(
    config: AlignConfig, vocabulary: Vocabulary, progress: AlignmentProgress, processes: int, device: str
) -> None:
    """Print what the run will do, and where it continues if it was begun before.  device: name of the device."""
    each = f" ({processes} processes of {config.batch_size})" if processes > 1 else ""
    is_logged_only = config.quality != "none" and config.quality_weight == 0
    rows = [
        ("generator", f"{config.generator}, with a LoRA of rank {config.rank}"),
        ("language space", ", ".join(config.spaces)),
        ("scorer", f"{config.quality}, for the log only (weight 0)" if is_logged_only else config.quality),
        *([("extra terms", ", ".join(config.extra_terms))] if config.extra_terms else []),
        ("categories", f'{len(vocabulary):,} of {config.vocabulary}, the first is "{vocabulary[0].name}"'),
        ("update", f"{counted(progress.images_per_update, 'image')}{each}"),
        ("updates", updates(config)),
        ("output", str(config.folder)),
        ("device", f"{device}, {config.precision}"),
    ]
    say(table(rows))
    saved.say_in_full(config)
    if progress.step:
        say(f"going on from step {progress.step} of {config.max_steps}")
    elif progress.warmup:
        say(f"going on from warm-up update {progress.warmup} of {config.discriminator_warmup_steps}")


def updates(config: AlignConfig) -> str:
    """The number of updates of the whole run, in words."""
    warmup = config.discriminator_warmup_steps
    return f"{config.max_steps:,}" + (f", after {warmup:,} of the discriminator alone" if warmup else "")


def next_command(config: AlignConfig, adapter: Path) -> str:
    """The command that generates with the finished adapter."""
    inputs = ["--vocabulary", config.vocabulary, "--generator", config.generator]
    for name in ("revision", "variant"):
        if (value := getattr(config, name)) is not None:
            inputs += [f"--{name}", value]
    output = f"data/{config.folder.resolve().name}"
    return shlex.join(["lbgen", "generate", "--adapter", str(adapter), *inputs, "--output", output])
