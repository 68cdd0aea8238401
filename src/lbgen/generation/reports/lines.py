"""The lines that `lbgen generate` prints at its start and end."""

from __future__ import annotations

import shlex

from lbgen.configuration import saved
from lbgen.generation.config import GenerateConfig, approximations
from lbgen.generation.inputs import training_differences
from lbgen.generation.plan import Plan
from lbgen.generation.screening.balance import prompt
from lbgen.models.registry import SEMANTICS
from lbgen.runs.console import counted, say, table
from lbgen.runs.storage import is_remote


def trajectory_lines(config: GenerateConfig, plan: Plan) -> list[tuple[str, str]]:
    """The prompt and the sampling settings."""
    first = plan.shard(config.split, 0)[0]
    return [
        ("prompt", f'"{prompt(config, first.subject, first.target_values)}", of the first image'),
        ("steps", f"{counted(config.steps, f'{config.scheduler} step')}, {config.guidance}"),
    ]


def say_opening(config: GenerateConfig, plan: Plan, made: int, device: str) -> None:
    """Print what the run will make, and where it continues if it was begun before.

    made: number of images in finished shards, and of those that an earlier run drew of others.
    """
    images = plan.images(config.split)
    shards = counted(plan.shards(config.split), "shard")
    part = "" if config.part is None else f", part {config.part[0]} of {config.part[1]}"
    rows = [
        ("generator", f"{config.generator}, {f'adapter {config.adapter}' if config.adapter else 'no adapter'}"),
        *trajectory_lines(config, plan),
        ("checks", ", ".join(config.checks) or "none"),
        ("categories", f'{len(plan.categories):,} of {config.vocabulary}, the first is "{plan.categories[0].name}"'),
        ("images", f"{images:,} in {shards}, {config.format}, {config.image_format}"),
        ("output", f"{config.output}, split {config.split}{part}"),
        ("device", f"{device}, {config.precision}"),
    ]
    say(table(rows))
    saved.say_in_full(config)
    if used := approximations(config):
        say(f"approximated: {'; '.join(used)}")
    if differences := training_differences(config, plan.categories):
        say(f"not as the adapter was trained: {'; '.join(differences)}")
    if made:
        say(f"going on from image {made:,} of {images:,}")


def next_command(config: GenerateConfig) -> str:
    """The audit of the finished dataset, in the language space of the generator's name, if there is one.

    An audit reads folders, so a dataset on object storage is verified instead.
    """
    if is_remote(config.output):
        return shlex.join(["lbgen", "verify", config.output])
    space = ["--semantics", config.generator] if config.generator in SEMANTICS else []
    name = config.output.rstrip("/").rpartition("/")[2]
    return shlex.join(["lbgen", "audit", config.output, *space, "--output", f"audits/{name}"])
