"""All stages once, on the built-in micro world: align, generate three sets of images, measure, write a page."""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import lbgen
from lbgen.alignment.config import AlignConfig
from lbgen.configuration import saved
from lbgen.configuration.documentation import Documented
from lbgen.configuration.ranges import Count, NonNegativeInt, between, ensure_config
from lbgen.configuration.recipes import TakesRecipes, resolve
from lbgen.configuration.saved import CONFIG
from lbgen.configuration.settings import Output
from lbgen.generation.config import GenerateConfig
from lbgen.runs import atomic, outputs
from lbgen.runs.console import counted
from lbgen.runs.parsing import Name, Seconds, Whole, read_json
from lbgen.runs.processes.waiting import idle_cores

if TYPE_CHECKING:
    from lbgen.quickstart.comparison import Line


OWN = ("adapter", "align", "aligned", "base", CONFIG, "diverse_prompts", "stages.json")
"""Names that a quickstart writes in its folder, besides the page and its figures. config.yaml is written first."""
RESULTS = ("report.html", "summary.json")
LEAST_LABEL_PROBABILITY = 0.9
"""Threshold of the label check in all sets. For its errors, see docs/studies/labels.md."""


@dataclass(frozen=True)
class QuickstartConfig(Output, TakesRecipes):
    """Quickstart."""

    VERB: ClassVar = "quickstart"
    MOST_USED: ClassVar = ("output", "images_per_category", "align_recipe", "max_steps", "seed")

    output: str = "runs/quickstart"
    """Folder for everything that is made. An interrupted quickstart continues when it is started again."""
    images_per_category: Annotated[int, between(2, 10**5, ", to measure diversity")] = 20
    """Images per category, 2 or more, in each of three sets: base, aligned, and base with diverse prompts."""
    align_recipe: Literal["quickstart", "independent", "microworld"] = "quickstart"
    """Recipe of the alignment: our independence term with the paper's individual term, shortened (quickstart) or in
    full (independent), or the paper's objective (microworld)."""
    max_steps: Count | None = None
    """Updates of the alignment; none is the recipe's number."""
    seed: NonNegativeInt = 0
    """Seed of the alignment and of the images."""


@dataclass(frozen=True)
class QuickstartResult(Documented):
    """Where a quickstart wrote its page."""

    page: Path
    """report.html."""
    summary: Path
    """summary.json, with every figure."""


def quickstart(config: QuickstartConfig) -> QuickstartResult:
    """Run the unfinished stages, and write `summary.json` and `report.html`.

    Aligns the micro world's generator, makes three datasets of images of 64 x 64 pixels, and compares them, in minutes
    on a CPU. Raises UserError for a mistake of the user, and Interrupted at a signal; the same call then continues.

    >>> import lbgen
    >>> result = lbgen.quickstart(lbgen.QuickstartConfig(output="runs/quickstart"))
    >>> print(result.page)
    """
    ensure_config(config, QuickstartConfig)
    output = config.folder
    atomic.ensure_writable(output)
    atomic.refuse_links(output, OWN)
    outputs.ensure_outside(output)
    record = output / CONFIG
    outputs.ensure_own(output, os.path.lexists(record), (*OWN, *RESULTS), "quickstart")
    if os.path.exists(record):  # Path.exists raises if a name is longer than the file system allows
        saved.ensure_same(config, record)
    align = align_config(config)
    generations = {name: screened(each, align) for name, each in generate_configs(config, align).items()}
    with atomic.making(output):
        saved.save(config, record)
    with threads_on_idle_cores(output):
        with timed("align", output):
            lbgen.align(align)
            copy_adapter(align.folder / "adapter", output / "adapter")
        for name, generation in generations.items():
            with timed(f"generate_{name}", output):
                lbgen.generate(generation)
        return measure(config, align)


@contextmanager
def threads_on_idle_cores(output: Path) -> Iterator[None]:
    """Within the context, torch has at most as many threads as cores are idle now; OMP_NUM_THREADS takes precedence.

    A quickstart that goes on in its folder `output` has the same number as before, on which the last bits depend.
    """
    import torch  # late: a quickstart that is refused does not need it

    before = torch.get_num_threads()
    if "OMP_NUM_THREADS" not in os.environ:
        earlier = max((stage.threads for stage in _stages(output).values()), default=0)
        torch.set_num_threads(min(before, earlier or idle_cores() or before))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def align_config(config: QuickstartConfig) -> AlignConfig:
    asked = {"output": config.folder / "align", "seed": config.seed}
    if config.max_steps is not None:
        asked["max_steps"] = config.max_steps
    return resolve(AlignConfig, config.align_recipe, asked)


def generate_configs(config: QuickstartConfig, align: AlignConfig) -> dict[str, GenerateConfig]:
    """Name of each set -> its config. All sets have the same noise and the alignment's trajectory."""
    shared = {
        "vocabulary": align.vocabulary,
        "qualify_names": align.qualify_names,
        "prompt_template": align.prompt_template,
        "generator": align.generator,
        "images_per_category": config.images_per_category,
        "seed": config.seed,
        "scheduler": align.scheduler,
        "steps": align.steps,
        "guidance_scale": align.guidance_scale,
        "guidance_rescale": align.guidance_rescale,
        "true_cfg_scale": align.true_cfg_scale,
        "pipeline_instruction": align.pipeline_instruction,
        "shard_size": 128,
    }

    def named(name: str, recipe: str | None = None, **own: object) -> GenerateConfig:
        return resolve(GenerateConfig, recipe, {"output": str(config.folder / name), **shared, **own})

    words = {"attributes": "microworld", "balance_template": "{name} {value}", "screen_semantics": align.spaces[0]}
    return {
        "base": named("base"),
        "aligned": named("aligned", adapter=config.folder / "adapter"),
        "diverse_prompts": named("diverse_prompts", "diverse-prompts", **words),
    }


def screened(generation: GenerateConfig, align: AlignConfig) -> GenerateConfig:
    """The config with a label check: an image is drawn again unless its category is by far the most likely.

    The check uses the alignment's language space, so it has no more knowledge than the alignment. A set with balanced
    attributes checks these too, because an image that is drawn again must show its target value.
    """
    return replace(
        generation,
        screen=("label",),
        screen_semantics=align.spaces[0],
        screen_template=align.text_template,
        label_top_k=1,
        least_label_probability=LEAST_LABEL_PROBABILITY,
        max_attempts=GenerateConfig.max_attempts,
    )


def copy_adapter(source: Path, target: Path) -> None:
    target.mkdir(exist_ok=True)
    for path in source.iterdir():
        atomic.write_bytes(target / path.name, path.read_bytes())


def measure(config: QuickstartConfig, align: AlignConfig) -> QuickstartResult:
    """Judge and compare the sets; write the page and summary.json, and print the table."""
    from lbgen.quickstart import judging
    from lbgen.quickstart.comparison import summary
    from lbgen.quickstart.page import write_report

    output, began = config.folder, time.monotonic()
    page = output / RESULTS[0]
    seconds = stage_seconds(output)
    folders = [output / name for name in judging.Sets._fields]
    sets = judging.Sets(*judging.judge_sets(folders, align))
    again = dict(zip(judging.Sets._fields, map(drawn_again, folders), strict=True))
    lines, diverse = write_report(sets, align.folder, align, facts(config, align, seconds, again), page)
    seconds["measure"] = round(time.monotonic() - began, 1)
    images = len(sets.base.images)
    content = {**summary(lines, diverse), "images": images, "drawn_again": again, "seconds": seconds}
    atomic.write_text(output / RESULTS[1], json.dumps(content, indent=2) + "\n")
    print(table(lines, diverse))
    print(f"\nThe page, with images and curves: {page}")
    return QuickstartResult(page, output / RESULTS[1])


def drawn_again(folder: Path) -> float:
    """Share of a dataset's images whose first attempt screening rejected."""
    from lbgen.datasets.index import read_index

    attempts = read_index(folder).column("attempt").to_pylist()
    return sum(attempt > 0 for attempt in attempts) / len(attempts)


def facts(
    config: QuickstartConfig, align: AlignConfig, seconds: dict[str, float], again: dict[str, float]
) -> list[tuple[str, str]]:
    """How the page's figures were made, for its last section.  again: share of images drawn again, per set."""
    import torch

    command = f"lbgen quickstart --output {config.folder} --images-per-category {config.images_per_category}"
    command += f" --align-recipe {config.align_recipe} --seed {config.seed}"
    command += f" --max-steps {config.max_steps}" if config.max_steps is not None else ""
    return [
        ("Command", command),
        (
            "Alignment",
            f"{config.align_recipe}: {align.max_steps} updates of {align.batch_size} images, LoRA of rank {align.rank}",
        ),
        ("Objective", ", ".join(f"{name} x {weight:g}" for name, weight in align.weights.items() if weight)),
        (
            "Images",
            f"{config.images_per_category} of each category in each set, the same noise in all at the first attempt; "
            f"{align.scheduler}, {align.steps} steps, {align.guidance}",
        ),
        (
            "Screening",
            "an image to whose category the alignment's language space gives a probability below "
            f"{LEAST_LABEL_PROBABILITY} is drawn again from other noise, at most {GenerateConfig.max_attempts - 1} "
            "times; with diverse prompts, one on another scene too. Drawn again: "
            + ", ".join(f"{name.replace('_', ' ')} {share:.1%}" for name, share in again.items()),
        ),
        ("Wall time", ", ".join(f"{stage.replace('_', ' ')} {value:.0f} s" for stage, value in seconds.items())),
        ("Machine", f"{os.cpu_count()} processors, {counted(torch.get_num_threads(), 'thread')} of torch"),
        ("Diverse prompts", 'the base generator by recipe diverse-prompts: "fish on snow", each scene equally often'),
        ("Everything else", "align/config.yaml and the dataset.yaml of each set, in folders beside this page"),
    ]


# ---- wall time: summed over all attempts at a stage, because the quickstart may be interrupted ----


@contextmanager
def timed(stage: str, output: Path) -> Iterator[None]:
    """Add the block's time to the stage's, unless the stage was finished by an earlier quickstart."""
    record = _stages(output).get(stage, _Spent(0.0, False))
    if record.done:
        yield
        return
    began = time.monotonic()
    _write_stage(output, stage, record.seconds, done=False)  # a killed quickstart leaves its number of threads
    finished = False
    try:
        yield
        finished = True
    finally:
        _write_stage(output, stage, record.seconds + time.monotonic() - began, finished)


def _write_stage(output: Path, stage: str, seconds: float, done: bool) -> None:
    import torch

    spent = _Spent(round(seconds, 1), done, torch.get_num_threads())
    stages = {name: asdict(each) for name, each in {**_stages(output), stage: spent}.items()}
    atomic.write_text(output / "stages.json", json.dumps(stages, indent=2) + "\n")


def stage_seconds(output: Path) -> dict[str, float]:
    return {stage: record.seconds for stage, record in _stages(output).items()}


@dataclass(frozen=True)
class _Spent:
    seconds: Seconds
    done: bool
    threads: Whole = 0
    """Number of torch's threads; 0 in the files of earlier versions."""


def _stages(output: Path) -> dict[str, _Spent]:
    path = output / "stages.json"
    return read_json(atomic.read_bytes(path), dict[Name, _Spent], str(path)) if path.exists() else {}


# ---- printed table ----


def table(lines: "list[Line]", diverse: "list[Line]") -> str:
    """The figures with their 95% intervals, for a terminal."""
    from lbgen.quickstart.page import change, interval, number

    rows = [("", "base", "aligned", "change", "", "diverse prompts")]
    for line, other in zip(lines, diverse, strict=True):
        base, aligned, prompts = (
            f"{number(value, line)} ({interval(ends, line)})"
            for value, ends in (
                (line.base, line.base_interval),
                (line.after, line.after_interval),
                (other.after, other.after_interval),
            )
        )
        rows.append((line.figure.title, base, aligned, change(line), line.verdict, prompts))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    texts = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(texts)
