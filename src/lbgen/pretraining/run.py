"""`lbgen pretrain`: from labelled images to a backbone of timm.

This file decides whether a run may begin, and imports torch only after that. loop.py trains.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lbgen.configuration import saved
from lbgen.configuration.documentation import Documented
from lbgen.configuration.ranges import ensure_config, one_or_more
from lbgen.configuration.saved import CONFIG
from lbgen.datasets.files.remote import Address
from lbgen.datasets.open import dataset_place, open_dataset
from lbgen.errors import Interrupted, UserError
from lbgen.pretraining.config import BACKBONE, CHECKPOINT, MODEL_CONFIG, PretrainConfig
from lbgen.pretraining.feed.catalogue import Sources, read_sources
from lbgen.pretraining.lines import best_epoch, say_opening
from lbgen.runs import atomic, outputs
from lbgen.runs.console import counted, device_name
from lbgen.runs.parsing import Name, Whole, read_json
from lbgen.runs.signals import noted_signals
from lbgen.runs.storage import storage_errors
from lbgen.training import metrics, processes
from lbgen.training.loggers import ensure_logger, start_logger

if TYPE_CHECKING:
    from accelerate import Accelerator

    from lbgen.pretraining.state import PretrainingState

WRITTEN = (BACKBONE, CHECKPOINT, CONFIG, MODEL_CONFIG, "logs", metrics.FILE)
"""Files and folders that a run writes in its folder."""
MAY_CHANGE = ("output", "workers", "checkpoint_every", "logger")
"""Fields that may differ when a run is resumed."""
FINISHING = "this update, or the validation of this epoch, and saving a checkpoint"
"""What a run finishes before it ends after a signal, for messages."""


@dataclass(frozen=True)
class PretrainResult(Documented):
    """Where a pre-training wrote its backbone."""

    output: Path
    """The run folder."""
    backbone: Path
    """The weights, for `timm.create_model(architecture, num_classes=N, checkpoint_path=...)`."""
    epoch: int
    """The epoch of the weights, counted from 1: the best one on the validation images."""
    top1: float | None
    """Its validation accuracy; None without validation images."""
    next_command: str
    """The command that evaluates the backbone on a set that is always available."""
    summary: str
    """One line: the best epoch, its accuracy, and the path of its weights."""


def pretrain(directories: str | Path | Sequence[str | Path], config: PretrainConfig | None = None) -> PretrainResult:
    """Train a classifier on labelled images; resume the run in the run folder, if any.

    directories: one dataset folder or several: image folders, WebDatasets, tables. Categories with the same id are one.

    Writes backbone.safetensors, timm's config.json, metrics.jsonl and a checkpoint to `config.output`. Raises UserError
    for a mistake of the user, and Interrupted at a signal, after saving a checkpoint.

    >>> import lbgen
    >>> config = lbgen.PretrainConfig.from_recipe("micro", output="runs/backbone", epochs=2)
    >>> result = lbgen.pretrain("data/toy", config)
    """
    config = PretrainConfig() if config is None else config
    ensure_config(config, PretrainConfig)
    folders = dataset_folders(directories)
    ensure_can_begin(folders, config)
    with storage_errors(f"--output {config.folder}"), processes.lock(config.folder):
        ensure_same_config(config)
        sources = ready_sources(folders, config)
        return begin(config, folders, sources)


# ---- checks before a run begins ----


def dataset_folders(directories: str | Path | Sequence[str | Path]) -> list[Path]:
    """The folders, each once."""
    folders = [dataset_place(directory) for directory in one_or_more(directories, "datasets")]
    if not folders:
        raise UserError("no dataset folder is given; name one or more")
    real = [folder.resolve() for folder in folders]
    if twice := next((folder for folder in folders if real.count(folder.resolve()) > 1), None):
        raise UserError(f"{twice}: given twice; name every dataset folder once, and raise its --weights")
    return folders


def ensure_can_begin(folders: Sequence[Path], config: PretrainConfig) -> None:
    """Make all checks that do not need the index of a dataset."""
    validation = [dataset_place(config.validation)] if config.validation else []
    for folder in (*folders, *validation):
        if not isinstance(folder, Address):  # an address is listed once, when its index is read
            open_dataset(folder, config.label_column)
    if config.weights and len(config.weights) != len(folders):
        raise UserError(
            f"--weights: {counted(len(config.weights), 'number')} for {counted(len(folders), 'folder')}; give one each"
        )
    atomic.ensure_writable(config.folder)
    atomic.refuse_links(config.folder, WRITTEN)
    outputs.ensure_outside(config.folder, [*folders, *validation])
    outputs.ensure_own(config.folder, (config.folder / CONFIG).exists(), WRITTEN, "pretrain")
    ensure_same_config(config)
    processes.refuse_engines("pretrain")
    ensure_logger(config.logger)


def ensure_same_config(config: PretrainConfig) -> None:
    if (config.folder / CONFIG).exists():
        saved.ensure_same(config, config.folder / CONFIG, ignore=MAY_CHANGE)


def ready_sources(folders: Sequence[Path], config: PretrainConfig) -> Sources:
    """The images of the run; refuses a run folder that was begun with other images, and too few images."""
    validation = dataset_place(config.validation) if config.validation else None
    sources = read_sources(folders, config.label_column, validation, config.held_out)
    weights = config.weights_of(len(folders))
    images = int(sum(weight * len(each) for weight, each in zip(weights, sources.training, strict=True)))
    if any(not len(catalogue) for catalogue in sources.training) or images < 4:
        raise UserError(
            f"{folders[0]}: {counted(images, 'image')} to train on; give more, larger --weights or a smaller --held-out"
        )
    ensure_same_data(config, data_identity(folders, sources, config))
    return sources


def data_identity(folders: Sequence[Path], sources: Sources, config: PretrainConfig) -> dict[str, Any]:
    """The identity of the training and validation data, for config.json."""
    weights = config.weights_of(len(folders))
    names = [folder.resolve().name for folder in folders]
    labels = [f"{name}-{number + 1}" if names.count(name) > 1 else name for number, name in enumerate(names)]
    described = {
        label: {"index_sha256": catalogue.sha256, "images": len(catalogue), "weight": weight}
        for label, catalogue, weight in zip(labels, sources.training, weights, strict=True)
    }
    held_out = config.validation is None
    hashes = [] if held_out else [catalogue.sha256 for catalogue in sources.validation]
    tested = {"images": sum(map(len, sources.validation)), "held_out": held_out, "index_sha256": hashes}
    return {"data": described, "validation_data": tested}


@dataclass(frozen=True)
class StoredData:
    index_sha256: Name | list[Name]
    images: Whole


@dataclass(frozen=True)
class StoredIdentity:
    """The identity of the data in config.json."""

    data: dict[Name, StoredData]
    validation_data: StoredData


def ensure_same_data(config: PretrainConfig, now: dict[str, Any]) -> None:
    """Refuse to continue with other images than the run was begun with; folders may have moved."""
    path = config.folder / MODEL_CONFIG
    if not path.exists():
        if (config.folder / CHECKPOINT).exists():
            raise UserError(
                f"{path}: it is missing, but it lists the images that the run was begun with; restore it, or choose "
                "another --output"
            )
        return
    then = read_json(atomic.read_bytes(path), StoredIdentity, str(path))
    earlier = [(each.index_sha256, each.images) for each in (*then.data.values(), then.validation_data)]
    present = [(each["index_sha256"], each["images"]) for each in (*now["data"].values(), now["validation_data"])]
    if earlier != present:
        names = [*now["data"], "the validation set"]
        differing = [name for name, a, b in zip(names, earlier, present, strict=False) if a != b]
        raise UserError(
            f"{config.folder} was begun with other images ({', '.join(differing) or 'other folders'} differ); give the "
            "same folders in the same order and with the same content, or choose another --output"
        )


# ---- the run ----


def begin(config: PretrainConfig, folders: Sequence[Path], sources: Sources) -> PretrainResult:
    """Train from the checkpoint, or from the start; a finished run only reports its result."""
    from accelerate.utils import DistributedDataParallelKwargs  # late, like all imports of torch

    from lbgen.pretraining.loop import kept_randomness, train

    handlers = [DistributedDataParallelKwargs(gradient_as_bucket_view=True)]
    accelerator = processes.start_accelerator(config.precision, config.logger, config.folder, handlers)
    signals = noted_signals(FINISHING if accelerator.is_main_process else "")
    with kept_randomness(), signals as received:
        state = make_state(config, sources, accelerator)
        if accelerator.is_main_process:
            say_opening(config, folders, sources, state, device_name(accelerator.device))
        if state.progress.epoch < config.epochs:
            course = make_course(state, sources, received)
            prepare_folder(state, folders, sources)
            start_logger(config.logger, config.folder, saved.plain(config), accelerator)
            with device_errors(config), course.feed.working():
                train(state, course)
            accelerator.end_training()
    best = state.progress.best
    backbone = config.folder / BACKBONE
    if received:
        raise Interrupted(received[0], f"{config.folder} is finished; the backbone is in {backbone}")
    command = shlex.join(["lbgen", "transfer", str(config.folder), "--datasets", "digits"])
    top1 = best.top1 if sources.validation else None
    return PretrainResult(config.folder, backbone, best.epoch, top1, command, best_epoch(config, best, backbone))


@contextmanager
def device_errors(config: PretrainConfig) -> Iterator[None]:
    """Turn a lack of memory on the GPU into a message for the user."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"--batch-size {config.batch_size}: the GPU's memory ran out; choose another --output and a smaller "
            "--batch-size, or --precision bf16"
        ) from error


def make_state(config: PretrainConfig, sources: Sources, accelerator: Accelerator) -> PretrainingState:
    """A new state, or the state in the checkpoint."""
    import torch

    from lbgen.pretraining.feed.order import updates_per_epoch
    from lbgen.pretraining.state import PretrainingProgress, PretrainingState, read_checkpoint

    count, path = accelerator.num_processes, config.folder / CHECKPOINT
    progress, tensors = PretrainingProgress(count), None
    if path.exists():
        progress, tensors = read_checkpoint(path)
        if progress.processes != count:
            raise UserError(
                f"{config.folder} was begun with {counted(progress.processes, 'process')}, this run has {count}; start "
                f"{progress.processes}, or choose another --output"
            )
    weights = config.weights_of(len(sources.training))
    updates = updates_per_epoch([len(each) for each in sources.training], weights, config.batch_size * count)
    if accelerator.device.type == "cuda":
        torch.backends.cudnn.benchmark = True  # images have one size, and batches two
    state = PretrainingState(config, len(sources.categories), updates, progress, accelerator)
    if tensors is not None:
        state.load(tensors)
        if progress.best.epoch and not (config.folder / BACKBONE).is_file():
            raise UserError(
                f"{config.folder / BACKBONE}, of epoch {progress.best.epoch}, is missing; restore it, or remove "
                f"{path.name} to start again"
            )
    state.schedule.step_update(state.step)
    return state


def make_course(state: PretrainingState, sources: Sources, signals: list[int]) -> Any:
    from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

    from lbgen.pretraining.feed.images import Feed, Images
    from lbgen.pretraining.loop import Course

    images = Images(sources, state.config, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    on_gpu = state.accelerator.device.type == "cuda"
    return Course(sources, Feed(images, state.config.workers, on_gpu), signals)


def prepare_folder(state: PretrainingState, folders: Sequence[Path], sources: Sources) -> None:
    """Write the configuration and timm's config.json; remove lines of updates that will be made again."""
    from lbgen.pretraining.export import write_model_config

    config = state.config
    if state.accelerator.is_main_process:
        with atomic.making(config.folder):
            saved.save(config, config.folder / CONFIG)
        write_model_config(state.model, config, sources, data_identity(folders, sources, config))
        metrics.drop_lines_after(config.folder / metrics.FILE, state.step if state.step else -1)
    state.accelerator.wait_for_everyone()
