"""`lbgen align`: the training loop, from a config to an adapter on disk (lbGen, arXiv 2412.10831)."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.tracking import get_available_trackers
from accelerate.utils import AutocastKwargs, LoggerType
from safetensors import SafetensorError

from lbgen.alignment import batches, checkpoint
from lbgen.alignment.config import AlignConfig
from lbgen.alignment.objective import ensure_reached
from lbgen.alignment.run import Run
from lbgen.alignment.trainer import Trainer
from lbgen.configuration import saved
from lbgen.errors import UserError
from lbgen.models.registry import GENERATORS, SEMANTICS, resolve
from lbgen.runs import atomic, identity
from lbgen.runs.signals import noted_signals
from lbgen.vocabulary.vocabulary import Vocabulary, load_vocabulary

OWN = (
    "adapter",
    "checkpoints",
    "config.yaml",
    "evaluations.jsonl",
    "logs",
    "metrics.jsonl",
    "provenance.json",
    "samples",
)
"""What a run writes in its folder, besides the bank of the independence term."""

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
"""Fields with which a run may be resumed differently; the images per update are compared instead of batch_size."""


@dataclass(frozen=True)
class AlignResult:
    output: Path
    """The run folder."""
    adapter: Path
    """Folder of the adapter, a standard diffusers LoRA."""
    steps: int
    """Updates of the adapter, earlier runs in the same folder included."""


def align(config: AlignConfig) -> AlignResult:
    """Fine-tune the generator's adapter on the weighted objective, from where the run folder stands."""
    atomic.ensure_writable(config.folder)
    atomic.refuse_links(config.folder, OWN)
    try:
        return _align(config)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"--output {config.folder}: {reason}; nothing saved is lost, make room and start again"
        ) from error


def _align(config: AlignConfig) -> AlignResult:
    if (config.folder / "config.yaml").exists():
        saved.ensure_same(config, config.folder / "config.yaml", ignore=may_change(config))
    accelerator = start_accelerator(config)
    vocabulary = load_vocabulary(config.vocabulary, config.qualify_names)
    resumed = checkpoint.newest(config.folder)
    record = {"step": 0, "warmup": 0, **fingerprint(config, vocabulary, accelerator)}
    if resumed is not None:
        record = resumable(resumed, record)
    adapter = config.folder / "adapter"
    if resumed is not None and record["step"] >= config.max_steps:
        if not checkpoint.is_published(resumed, adapter):
            prepare_folder(config, vocabulary, accelerator, record["step"])
            if accelerator.is_main_process:
                checkpoint.publish_adapter(resumed, adapter)
        accelerator.print(f"{config.folder} is finished: {record['step']} steps; the adapter is in {adapter}")
        return AlignResult(config.folder, adapter, record["step"])
    if config.discriminator_texts == "others":
        batches.ensure_others(vocabulary.texts(config.discriminator_template))
    if resumed is not None:
        ensure_same_weights(config)
    trainer = Trainer(config, vocabulary, accelerator, resumed)
    accelerator.print(f"images an update: {trainer.global_batch}, processes: {accelerator.num_processes}")
    gradient_norms = {} if resumed is not None else checked_gradients(trainer, accelerator)
    prepare_folder(config, vocabulary, accelerator, record["step"] if resumed is not None else -1)
    run = Run(config, trainer, accelerator, record)
    with noted_signals() as signals:
        if resumed is None:
            run.begin(gradient_norms)
        run.warm_up(signals)
        run.loop(signals)
        run.finish(adapter, signals)
    return AlignResult(config.folder, adapter, run.record["step"])


def may_change(config: AlignConfig) -> tuple[str, ...]:
    """The released script's texts are those of one process's batch, so its size must stay."""
    kept = "batch_size" if config.discriminator_texts == "released-code" else None
    return tuple(name for name in MAY_CHANGE if name != kept)


def start_accelerator(config: AlignConfig) -> Accelerator:
    """Device, precision and processes, as `accelerate launch` or torchrun set them up."""
    cpu = not torch.accelerator.is_available()  # accelerate joins the processes of torchrun on CPUs only when told so
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


def fingerprint(config: AlignConfig, vocabulary: Vocabulary, accelerator: Accelerator) -> dict[str, Any]:
    """What the config alone does not say, and a resumed run must share."""
    return {
        "images_per_update": config.batch_size * accelerator.num_processes,
        "vocabulary": identity.vocabulary_sha256(vocabulary),
    }


def resumable(folder: Path, expected: dict[str, Any]) -> dict[str, Any]:
    """The checkpoint's record, if this run may go on from it."""
    record = checkpoint.read_record(folder)
    assert record is not None
    then, now = record["images_per_update"], expected["images_per_update"]
    if then != now:
        raise UserError(
            f"{folder} has {then} images an update, this run {now}; choose --batch-size x processes = {then}"
        )
    if record["vocabulary"] != expected["vocabulary"]:
        raise UserError(f"{folder} was made with other categories; restore the vocabulary or choose another --output")
    return {name: record[name] for name in expected}


def weights(config: AlignConfig) -> dict[str, str | None]:
    """Hashes of the frozen weights, by the name of their flag."""
    return {
        "generator": identity.weights_sha256(resolve(config.generator, GENERATORS)),
        "semantics": identity.weights_sha256(resolve(config.semantics, SEMANTICS)),
    }


def ensure_same_weights(config: AlignConfig) -> None:
    """Refuse to go on with weights that are not those the run was begun with; libraries may have changed."""
    path = config.folder / "provenance.json"
    recorded = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for name, now in weights(config).items():
        if recorded.get(f"{name}_sha256", now) != now:
            raise UserError(
                f"{config.folder} was begun with other weights of --{name} {getattr(config, name)} than are there now; "
                "restore them or choose another --output"
            )


def checked_gradients(trainer: Trainer, accelerator: Accelerator) -> dict[str, float]:
    """Measure and print each weighted term's gradient on the adapter; one that does not reach it ends the run."""
    norms = trainer.measure_gradients()
    shown = (f"{name} {norm:.3g}" for name, norm in norms.items() if trainer.terms[name].weight > 0)
    accelerator.print("gradient norms: " + ", ".join(shown))
    ensure_reached(trainer.terms, norms)
    return norms


def prepare_folder(config: AlignConfig, vocabulary: Vocabulary, accelerator: Accelerator, step: int) -> None:
    """Write the config and what it only names; drop what is newer than `step` (-1: all) and what a kill left."""
    if accelerator.is_main_process:
        if step < 0:
            shutil.rmtree(config.folder / "samples", ignore_errors=True)
            write_provenance(config, vocabulary)
        saved.save(config, config.folder / "config.yaml")
        checkpoint.clean(config.folder)
        for name in ("metrics.jsonl", "evaluations.jsonl"):
            checkpoint.cut_back(config.folder / name, step)
    accelerator.wait_for_everyone()


def write_provenance(config: AlignConfig, vocabulary: Vocabulary) -> None:
    """What the run was begun with; a resumed one leaves it as it is."""
    origin = {
        "vocabulary_sha256": identity.vocabulary_sha256(vocabulary),
        **{f"{name}_sha256": sha256 for name, sha256 in weights(config).items()},
        "versions": identity.versions(),
    }
    with atomic.making(config.folder):
        config.folder.mkdir(parents=True, exist_ok=True)
    atomic.write_text(config.folder / "provenance.json", json.dumps(origin, indent=2) + "\n")
