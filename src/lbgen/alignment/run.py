"""`lbgen align`: from a config to an adapter on disk (lbGen, arXiv 2412.10831).

This file decides whether a run may begin, and imports torch only after that. training.py trains.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError

from lbgen.alignment import checkpoint
from lbgen.alignment.checkpoint import AlignmentProgress, initial_progress, saved_progress
from lbgen.alignment.config import AlignConfig
from lbgen.alignment.reports.lines import next_command, say_opening
from lbgen.configuration import extensions, saved
from lbgen.configuration.documentation import Documented
from lbgen.configuration.ranges import ensure_config
from lbgen.configuration.saved import CONFIG
from lbgen.configuration.yaml_lines import read_yaml
from lbgen.errors import UserError
from lbgen.models.checkpoints.suited import ensure_suited
from lbgen.models.registry import ensure_generator, ensure_quality, ensure_semantics
from lbgen.runs import atomic, identity, outputs
from lbgen.runs.console import device_name
from lbgen.training import metrics, processes
from lbgen.training.loggers import ensure_logger
from lbgen.vocabulary.vocabulary import Vocabulary, load_vocabulary

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor

    from lbgen.alignment.objective import Batch

WRITTEN = (
    "adapter",
    "checkpoints",
    CONFIG,
    "evaluations.jsonl",
    "logs",
    metrics.FILE,
    identity.PROVENANCE,
    "samples",
)
"""Files and folders that a run writes in its folder, besides the bank of the independence term."""

MAY_CHANGE = (
    "output",
    "max_steps",
    "batch_size",
    "checkpoint_every",
    "evaluate_every",
    "guard",
    "guard_diversity",
    "logger",
)
"""Fields that may differ when a run is resumed; instead of batch_size, the images per update are compared."""

EVALUATION_IMAGES = 32
"""Default number of evaluation images, unless the run is short."""


@dataclass(frozen=True)
class AlignResult(Documented):
    """Where an alignment wrote its adapter."""

    output: Path
    """The run folder."""
    adapter: Path
    """Folder of the adapter, a standard diffusers LoRA."""
    steps: int
    """Updates of the adapter, including those of earlier runs in the same folder."""
    next_command: str
    """The command that generates with the adapter."""


def align(
    config: AlignConfig, *, extra_terms: Mapping[str, tuple[float, Callable[[Batch], Tensor]]] | None = None
) -> AlignResult:
    """Fine-tune the generator's adapter on the weighted objective; resume the run in the run folder, if any.

    extra_terms: name -> (weight, function) of additional terms. The function maps a `Batch` of B images to a scalar,
    which is minimised. The images are (B, 3, H, W) in about [0, 1], the features (B, D) of unit norm. Each term is
    logged by its name and checked at the start like lbgen's own: its gradient must reach the adapter. A run can only be
    resumed with the same names and weights.

    Writes the adapter, checkpoints, metrics.jsonl, evaluations.jsonl and samples to `config.output`, and returns the
    adapter's path. Raises UserError for a mistake of the user, and Interrupted at a signal, after saving a checkpoint.

    >>> import lbgen
    >>> config = lbgen.AlignConfig.from_recipe("independent", output="runs/toy", max_steps=20)
    >>> result = lbgen.align(config, extra_terms={"darkness": (0.1, lambda batch: batch.images.mean())})
    >>> dataset = lbgen.GenerateConfig.from_recipe(None, output="data/toy", adapter=result.adapter)
    """
    ensure_config(config, AlignConfig)
    config = with_extra_terms(config, extra_terms or {})
    ensure_output(config)
    config = with_evaluation_images(config)
    with system_errors(config):
        ensure_can_begin(config)  # refuses before anything is written, even the lock
        with processes.lock(config.folder):
            vocabulary, resumed = ensure_can_begin(config)
            return begin(config, vocabulary, resumed)


def with_extra_terms(config: AlignConfig, terms: Mapping[str, tuple[float, Callable[[Batch], Tensor]]]) -> AlignConfig:
    """The config with the names and weights of terms passed from Python, whose functions are registered."""
    pairs = terms.values() if isinstance(terms, Mapping) else [terms]
    if not all(isinstance(pair, tuple) and len(pair) == 2 and callable(pair[1]) for pair in pairs):
        raise UserError('extra_terms: give {"NAME": (WEIGHT, FUNCTION)}, with a function of a Batch')
    for name, (_, function) in terms.items():
        extensions.register("terms", name, function)
    weights = {**config.extra_weights, **{name: weight for name, (weight, _) in terms.items()}}
    return replace(config, extra_terms=tuple(f"{name}={weight}" for name, weight in weights.items()))


def with_evaluation_images(config: AlignConfig) -> AlignConfig:
    """The config with a number of evaluation images: its own, else the resumed run's, else the run's default."""
    if config.evaluation_images is not None:
        return config
    if (config.folder / CONFIG).exists():
        number = read_yaml(config.folder / CONFIG).get("evaluation_images") or EVALUATION_IMAGES
    else:
        number = max(4, min(EVALUATION_IMAGES, config.max_steps * config.batch_size // 4))
    return replace(config, evaluation_images=number)


def ensure_output(config: AlignConfig) -> None:
    """Refuse an output folder that cannot be written, or that belongs to something else."""
    atomic.ensure_writable(config.folder)
    atomic.refuse_links(config.folder, WRITTEN)
    outputs.ensure_outside(config.folder)
    outputs.ensure_own(config.folder, (config.folder / CONFIG).exists(), WRITTEN, "align")


def begin(config: AlignConfig, vocabulary: Vocabulary, resumed: Path | None) -> AlignResult:
    """Train from the checkpoint `resumed`, or from the start; a finished run only publishes its adapter."""
    if resumed is not None:
        checkpoint.ensure_unchanged(resumed)
        if not is_finished(config, resumed):
            ensure_same_weights(config, vocabulary)
    from lbgen.alignment import training  # late: imports torch

    accelerator = start_accelerator(config)
    progress = initial_progress(config, vocabulary, accelerator.num_processes)
    if resumed is not None:
        ensure_resumable(resumed, progress)
        progress = saved_progress(resumed)
    if is_finished(config, resumed):
        assert resumed is not None
        adapter, steps = training.finished_adapter(config, vocabulary, accelerator, resumed)
    else:
        if accelerator.is_main_process:
            say_opening(config, vocabulary, progress, accelerator.num_processes, device_name(accelerator.device))
        adapter, steps = training.train_adapter(config, vocabulary, accelerator, resumed)
    return AlignResult(config.folder, adapter, steps, next_command(config, adapter))


@contextmanager
def system_errors(config: AlignConfig) -> Iterator[None]:
    """Turn operating-system errors into messages for the user."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"--output {config.folder}: {reason}; nothing saved is lost, make room and start again"
        ) from error


# ---- checks before a run begins ----


def ensure_can_begin(config: AlignConfig) -> tuple[Vocabulary, Path | None]:
    """The categories, and the checkpoint to continue from. Makes all checks that need no model weights."""
    # The folder holds no other run, and the machine supports the settings.
    if (config.folder / CONFIG).exists():
        saved.ensure_same(config, config.folder / CONFIG, ignore=may_change(config))
    processes.refuse_engines("align")
    ensure_logger(config.logger)

    # The categories have usable texts, and are the same as in the checkpoint.
    if processes.is_launched():
        refuse_pipe(config.vocabulary)
    resumed = checkpoint.newest(config.folder)
    vocabulary = load_categories(config, resumed)
    if config.discriminator_texts == "others":
        ensure_different_texts(vocabulary.texts(config.discriminator_template))
    if resumed is not None and not processes.is_launched():
        ensure_resumable(resumed, initial_progress(config, vocabulary, 1))

    # The models exist in a form that can be read.
    if not is_finished(config, resumed):
        ensure_terms(config)
        ensure_generator(config.generator, config.revision, config.variant)
        ensure_suited(config.generator, config.revision, config.scheduler, config.guidance_scale)
        for name in config.spaces:
            ensure_semantics(name)
        ensure_quality(config.quality)
    return vocabulary, resumed


def load_categories(config: AlignConfig, resumed: Path | None) -> Vocabulary:
    """The vocabulary, with underscores in names handled as in the checkpoint `resumed`."""
    if resumed is not None:
        as_written = load_vocabulary(config.vocabulary, config.qualify_names, underscores=True)
        if saved_progress(resumed).vocabulary == identity.vocabulary_sha256(as_written):
            return as_written
    return load_vocabulary(config.vocabulary, config.qualify_names)


def refuse_pipe(vocabulary: str) -> None:
    """Refuse a pipe for several processes, because each would read another part of it."""
    if os.path.exists(vocabulary) and stat.S_ISFIFO(os.stat(vocabulary).st_mode):
        raise UserError(
            f"--vocabulary {vocabulary}: every process of this run reads it, but a pipe can be read only once; give "
            "a file"
        )


def is_finished(config: AlignConfig, resumed: Path | None) -> bool:
    return resumed is not None and saved_progress(resumed).step >= config.max_steps


def may_change(config: AlignConfig) -> tuple[str, ...]:
    """Fields that may differ when this run is resumed.

    batch_size must stay the same if results depend on one process's batch: with the released script's texts and noise,
    and with batches of two sizes.
    """
    by_process = config.discriminator_texts == "released-code" or config.shared_noise
    fixed = "batch_size" if by_process or config.discriminator_warmup_batch else None
    return tuple(name for name in MAY_CHANGE if name != fixed)


def ensure_resumable(folder: Path, expected: AlignmentProgress) -> None:
    """Refuse to resume a checkpoint with other images per update or other categories than this run's."""
    earlier = saved_progress(folder)
    then, now = earlier.images_per_update, expected.images_per_update
    if then != now:
        raise UserError(
            f"{folder} has {then} images per update, this run {now}; choose --batch-size x processes = {then}"
        )
    if earlier.vocabulary != expected.vocabulary:
        raise UserError(f"{folder} was made with other categories; restore the vocabulary or choose another --output")


def ensure_different_texts(texts: list[str]) -> None:
    """Refuse a vocabulary whose categories all have the same text: the adversarial term needs different texts."""
    if len(set(texts)) < 2:
        raise UserError(
            f'--vocabulary: every category has the same text "{texts[0]}", but the adversarial term needs two; give '
            "categories with different names"
        )


def ensure_same_weights(config: AlignConfig, vocabulary: Vocabulary) -> None:
    """Refuse to resume a run that was started with other frozen weights; other library versions are allowed."""
    recorded = checkpoint.recorded_identity(config.folder)
    if recorded is not None:
        now = checkpoint.identity_of(config, vocabulary, recorded)
        now.ensure_same_hashes(recorded, str(config.folder))


def ensure_terms(config: AlignConfig) -> None:
    """Refuse the name of an extra term that is neither installed nor registered."""
    for name in config.extra_weights:
        if not extensions.is_extension("terms", name, ()):
            known = extensions.names("terms", ()) or "none"
            raise UserError(
                f"--extra-terms {name}: no such term (installed: {known}); install its package, or pass its function: "
                f'lbgen.align(config, extra_terms={{"{name}": (weight, function)}})'
            )


def start_accelerator(config: AlignConfig) -> Accelerator:
    """Device, precision and processes, as `accelerate launch` or torchrun set them up."""
    from accelerate.utils import AutocastKwargs  # late: imports torch

    # A cast cached in a step without grad would be reused, without a graph, in a step with grad.
    handlers = [AutocastKwargs(cache_enabled=False)]
    return processes.start_accelerator(config.precision, config.logger, config.folder, handlers)
