"""`lbgen align`: from a config to an adapter on disk (lbGen, arXiv 2412.10831)."""

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.tracking import get_available_trackers
from accelerate.utils import AutocastKwargs, LoggerType
from safetensors import SafetensorError

from lbgen.alignment import batches, checkpoint
from lbgen.alignment.checkpoint import Progress, saved_progress
from lbgen.alignment.config import AlignConfig
from lbgen.alignment.loop import evaluate, measure_gradients, received_signal, train, write_line
from lbgen.alignment.monitor import Monitor
from lbgen.alignment.objective import ensure_reached
from lbgen.alignment.state import TrainingState, initial_progress
from lbgen.configuration import saved
from lbgen.errors import Interrupted, UserError
from lbgen.models.registry import GENERATORS, SEMANTICS, resolve
from lbgen.runs import atomic, identity, outputs
from lbgen.runs.identity import Identity
from lbgen.runs.parsing import read_json
from lbgen.runs.signals import noted_signals
from lbgen.vocabulary.vocabulary import Vocabulary, load_vocabulary

PROVENANCE = "provenance.json"
"""The identity of a run: what it was started with."""

CONFIG = "config.yaml"
"""The configuration of a run. It is the first file that a run writes, and makes the folder its own."""

WRITTEN = (
    "adapter",
    "checkpoints",
    CONFIG,
    "evaluations.jsonl",
    "logs",
    "metrics.jsonl",
    PROVENANCE,
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


@dataclass(frozen=True)
class AlignResult:
    output: Path
    """The run folder."""
    adapter: Path
    """Folder of the adapter, a standard diffusers LoRA."""
    steps: int
    """Updates of the adapter, including those of earlier runs in the same folder."""


def align(config: AlignConfig) -> AlignResult:
    """Fine-tune the generator's adapter on the weighted objective; continue where the run folder stands."""
    atomic.ensure_writable(config.folder)
    atomic.refuse_links(config.folder, WRITTEN)
    outputs.ensure_outside(config.folder)
    outputs.ensure_own(config.folder, (config.folder / CONFIG).exists(), WRITTEN, "align")
    try:
        return _align(config)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"--output {config.folder}: {reason}; nothing saved is lost, make room and start again"
        ) from error


def _align(config: AlignConfig) -> AlignResult:
    """`align`, except that errors of the system are not yet turned into messages for the user."""
    # Refuse a folder that holds another run; find the checkpoint to continue from.
    if (config.folder / CONFIG).exists():
        saved.ensure_same(config, config.folder / CONFIG, ignore=may_change(config))
    accelerator = start_accelerator(config)
    vocabulary = load_vocabulary(config.vocabulary, config.qualify_names)
    resumed = checkpoint.newest(config.folder)
    if resumed is not None:
        checkpoint.ensure_unchanged(resumed)
        ensure_resumable(resumed, initial_progress(config, vocabulary, accelerator))
        if (step := saved_progress(resumed).step) >= config.max_steps:
            return finished_result(config, vocabulary, accelerator, resumed, step)

    # Refuse texts and weights that the run cannot use.
    if config.discriminator_texts == "others":
        batches.ensure_different_texts(vocabulary.texts(config.discriminator_template))
    if resumed is not None:
        ensure_same_weights(config, vocabulary)

    # Load the models; a new run checks that every weighted term reaches the adapter.
    state = TrainingState(config, vocabulary, accelerator, resumed)
    accelerator.print(f"images per update: {state.images_per_update}, processes: {accelerator.num_processes}")
    norms = check_gradients(state) if resumed is None else {}
    prepare_folder(config, vocabulary, accelerator, state.progress.step if resumed is not None else None)
    start_logger(config, accelerator)
    monitor = make_monitor(state)

    # Train, then publish the adapter of the last checkpoint.
    with noted_signals() as signals:
        if resumed is None:
            shown = {"entire": 0.0, "individual": 0.0, "quality": 0.0, **norms}
            write_line(state, "metrics.jsonl", {"step": 0, "gradient_norms": shown})
            evaluate(state, monitor)
        train(state, monitor, signals)
        return finish(state, signals)


# ---- start and end ----


def start_accelerator(config: AlignConfig) -> Accelerator:
    """Device, precision and processes, as `accelerate launch` or torchrun set them up."""
    cpu = not torch.accelerator.is_available()  # on CPUs accelerate joins the processes of torchrun only if told so
    if config.precision == "fp16" and PartialState(cpu).device.type == "cpu":
        raise UserError("--precision fp16 needs a GPU; choose fp32 or bf16")
    if config.logger != "none" and LoggerType(config.logger) not in get_available_trackers():
        raise UserError(f"--logger {config.logger} is not installed; pip install {config.logger}, or --logger none")
    AcceleratorState._reset_state()  # an earlier run in this Python may have had another precision
    return Accelerator(
        cpu=cpu,
        mixed_precision="no" if config.precision == "fp32" else config.precision,
        log_with=None if config.logger == "none" else config.logger,
        project_dir=config.folder / "logs",
        # A cast cached in a step without grad would be used again, without a graph, in a step with grad.
        kwargs_handlers=[AutocastKwargs(cache_enabled=False)],
    )


def start_logger(config: AlignConfig, accelerator: Accelerator) -> None:
    """Start the logger of the config, if any, and give it the settings."""
    if config.logger == "none":
        return
    settings = {name: str(value) for name, value in asdict(config).items()}
    try:
        accelerator.init_trackers("align", settings)
    except Exception as error:  # every logger raises its own: no account, no connection, no space
        reason = f"{error}; fix this, or choose another --logger"
        raise UserError(f"--logger {config.logger} did not start: {reason}") from error


def make_monitor(state: TrainingState) -> Monitor | None:
    """The monitor on the main process, None on the others."""
    if not state.accelerator.is_main_process:
        return None
    models = (state.generator, state.semantics, state.quality)
    return Monitor(state.config, state.vocabulary, *models, state.accelerator.autocast)


def check_gradients(state: TrainingState) -> dict[str, float]:
    """Measure and print each weighted term's gradient norm on the adapter; refuse a term that does not reach it."""
    norms = measure_gradients(state)
    shown = (f"{name} {norm:.3g}" for name, norm in norms.items() if state.terms[name].weight > 0)
    state.accelerator.print("gradient norms: " + ", ".join(shown))
    ensure_reached(state.terms, norms)
    return norms


def finish(state: TrainingState, signals: list[int]) -> AlignResult:
    """Write the last checkpoint and publish its adapter; raises Interrupted for a signal that came too late to stop."""
    output, accelerator = state.config.folder, state.accelerator
    adapter = output / "adapter"
    state.save()
    if accelerator.is_main_process:
        checkpoint.publish_adapter(state.checkpoint_path, adapter)
    signum = received_signal(accelerator, signals)
    accelerator.end_training()
    if signum:
        raise Interrupted(signum, f"{output} is finished; the adapter is in {adapter}")
    return AlignResult(output, adapter, state.progress.step)


def finished_result(
    config: AlignConfig, vocabulary: Vocabulary, accelerator: Accelerator, resumed: Path, step: int
) -> AlignResult:
    """The result of a run that has all its steps. Publishes its adapter if the run was killed before doing so."""
    adapter = config.folder / "adapter"
    if not checkpoint.is_published(resumed, adapter):
        prepare_folder(config, vocabulary, accelerator, step)
        if accelerator.is_main_process:
            checkpoint.publish_adapter(resumed, adapter)
    accelerator.print(f"{config.folder} is finished: {step} steps; the adapter is in {adapter}")
    return AlignResult(config.folder, adapter, step)


# ---- resuming ----


def may_change(config: AlignConfig) -> tuple[str, ...]:
    """Fields that may differ when this run is resumed.

    The released script's texts are those of one process's batch, so batch_size must then stay.
    """
    fixed = "batch_size" if config.discriminator_texts == "released-code" else None
    return tuple(name for name in MAY_CHANGE if name != fixed)


def ensure_resumable(folder: Path, expected: Progress) -> None:
    """Refuse to resume a checkpoint with other images per update or other categories than this run's."""
    earlier = saved_progress(folder)
    if (then := earlier.images_per_update) != (now := expected.images_per_update):
        raise UserError(
            f"{folder} has {then} images per update, this run {now}; choose --batch-size x processes = {then}"
        )
    if earlier.vocabulary != expected.vocabulary:
        raise UserError(f"{folder} was made with other categories; restore the vocabulary or choose another --output")


def ensure_same_weights(config: AlignConfig, vocabulary: Vocabulary) -> None:
    """Refuse to resume a run that was started with other frozen weights; other library versions are allowed."""
    path = config.folder / PROVENANCE
    if path.exists():
        content = read_json(atomic.read_bytes(path), Any, str(path))
        recorded = Identity.from_plain(content, (), str(path))
        identity_of(config, vocabulary).ensure_same_hashes(recorded, str(config.folder))


def identity_of(config: AlignConfig, vocabulary: Vocabulary) -> Identity:
    """Hashes of the categories and of the frozen weights, and the library versions."""
    return Identity(
        hashes={
            "vocabulary": identity.vocabulary_sha256(vocabulary),
            "generator": identity.weights_sha256(resolve(config.generator, GENERATORS)),
            "semantics": identity.weights_sha256(resolve(config.semantics, SEMANTICS)),
        },
        versions=identity.versions(),
    )


# ---- the run folder ----


def prepare_folder(config: AlignConfig, vocabulary: Vocabulary, accelerator: Accelerator, step: int | None) -> None:
    """Write the config; remove lines after `step` and incomplete checkpoints.  step: None for a new run."""
    if accelerator.is_main_process:
        with atomic.making(config.folder):
            saved.save(config, config.folder / CONFIG)
        if step is None:
            shutil.rmtree(config.folder / "samples", ignore_errors=True)
            write_provenance(config, vocabulary)
        checkpoint.clean(config.folder)
        for name in ("metrics.jsonl", "evaluations.jsonl"):
            checkpoint.drop_lines_after(config.folder / name, -1 if step is None else step)
    accelerator.wait_for_everyone()


def write_provenance(config: AlignConfig, vocabulary: Vocabulary) -> None:
    """Record the identity of a run at its start; resuming does not change it."""
    content = json.dumps(identity_of(config, vocabulary).to_plain(), indent=2) + "\n"
    atomic.write_text(config.folder / PROVENANCE, content)
