"""The trained state of a pre-training: model, average and optimiser; saved in one file, from which a run resumes."""

from __future__ import annotations

import io
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
from accelerate import Accelerator
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.data.random_erasing import RandomErasing
from timm.loss.binary_cross_entropy import BinaryCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler.scheduler_factory import create_scheduler_v2
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn
from torchvision.transforms import v2  # type: ignore[import-untyped]

from lbgen.errors import UserError
from lbgen.models.backbones.backbone import similar_architectures
from lbgen.pretraining.config import CHECKPOINT, REFERENCE_BATCH, PretrainConfig
from lbgen.pretraining.feed.images import layout_of
from lbgen.runs import atomic
from lbgen.runs.parsing import Whole, checked
from lbgen.training.tensors import DAMAGE, load_tensors

OF_A_WEIGHT = ("momentum_buffer", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "square_avg", "slow_buffer")
"""Optimiser states with the same shape as their weight."""
STEP_DECAYS = (0.3, 0.6, 0.9)
"""Shares of the epochs at which the schedule `step` divides the learning rate by 10."""
FIRST_RATE = 1e-3
"""Learning rate of the first update in a warm-up, relative to the highest."""


@dataclass
class Best:
    """The best epoch so far by validation accuracy; without validation images, the last epoch."""

    epoch: Whole = 0
    top1: float = -1.0
    """A share in [0, 1]; -1 before the first epoch."""


@dataclass
class PretrainingProgress:
    """The progress of a run, and the quantities that a resumed run must share with it."""

    processes: Whole
    epoch: Whole = 0
    """Finished epochs, including validation."""
    update: Whole = 0
    """Completed updates of the current epoch."""
    loss_sums: list[float] = field(default_factory=list)
    """Sum of losses in the current epoch, per process."""
    best: Best = field(default_factory=Best)


class PretrainingState:
    """Model, average, optimiser, schedule and loss; equal in every process."""

    def __init__(
        self,
        config: PretrainConfig,
        classes: int,
        updates_per_epoch: int,
        progress: PretrainingProgress,
        accelerator: Accelerator,
    ) -> None:
        """updates_per_epoch: equal for all epochs."""
        self.config, self.accelerator, self.progress = config, accelerator, progress
        self.classes, self.updates_per_epoch = classes, updates_per_epoch
        torch.manual_seed(config.seed)
        self.model = build_model(config, classes).to(accelerator.device)
        if config.channels_last:
            self.model = self.model.to(memory_format=torch.channels_last)
        self.average = ModelEmaV3(self.model, decay=config.ema_decay, use_warmup=True) if config.ema_decay else None
        optimizer = build_optimizer(config, self.model)
        self.schedule = build_schedule(config, optimizer, updates_per_epoch, self.images_per_update)
        if config.compile:
            self.model.compile()
        self.trained, self.optimizer = accelerator.prepare(self.model, optimizer)
        self.loss = build_loss(config)
        self.mix = build_mix(config, classes)
        # Mean and standard deviation for pixels in 0 to 255, (1, 3, H, W) in a batch's layout: on a CPU, broadcasting
        # (1, 3, 1, 1) is slow.
        self.mean, self.std = (
            torch.tensor(values, device=accelerator.device)
            .mul(255)
            .view(1, 3, 1, 1)
            .expand(-1, -1, config.image_size, config.image_size)
            .contiguous(memory_format=layout_of(config))
            for values in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
        )
        self.erase = RandomErasing(config.random_erasing, mode="pixel", device=accelerator.device)

    @property
    def images_per_update(self) -> int:
        return self.config.batch_size * self.accelerator.num_processes

    @property
    def step(self) -> int:
        """Completed updates of all epochs."""
        return self.progress.epoch * self.updates_per_epoch + self.progress.update

    @property
    def validated(self) -> nn.Module:
        """The model that is validated and saved: the average, if there is one."""
        return self.model if self.average is None else self.average.module

    def parts(self) -> dict[str, Any]:
        """Name in the checkpoint -> object with a state dictionary."""
        parts: dict[str, Any] = {"model": self.model, "optimizer": self.optimizer}
        if self.average is not None:
            parts["average"] = self.average.module
        if self.accelerator.scaler is not None:
            parts["scaler"] = self.accelerator.scaler
        return parts

    # ---- the checkpoint ----

    def save(self, loss_sum: Tensor) -> None:
        """Replace the checkpoint; the first process writes, the others wait.

        loss_sum: of this process, in the current epoch.
        """
        sums = self.accelerator.gather(loss_sum.reshape(1))
        self.progress.loss_sums = sums.tolist()
        if self.accelerator.is_main_process:
            tensors = {name: part.state_dict() for name, part in self.parts().items()}
            buffer = io.BytesIO()  # so that a full disk raises OSError
            torch.save({"progress": asdict(self.progress), **tensors}, buffer)
            atomic.write_bytes(self.config.folder / CHECKPOINT, buffer.getvalue())
        self.accelerator.wait_for_everyone()

    def load(self, tensors: dict[str, Any]) -> None:
        """Load the tensors that `read_checkpoint` read."""
        try:
            self._ensure_possible(self.progress)
            settings = [dict(group) for group in self.optimizer.param_groups]
            for name, part in self.parts().items():
                part.load_state_dict(tensors[name])
            _ensure_usable(self.optimizer, settings)
        except DAMAGE as error:
            raise damaged(self.config.folder / CHECKPOINT, error) from error

    def _ensure_possible(self, progress: PretrainingProgress) -> None:
        """Raise ValueError for a progress that is impossible with this configuration."""
        best, ends = progress.best, self.config.epochs
        if not (progress.epoch <= ends and progress.update < self.updates_per_epoch):
            raise ValueError(f"update {progress.update} of epoch {progress.epoch + 1} is none of this run")
        if not (min(progress.epoch, 1) <= best.epoch <= progress.epoch and -1 <= best.top1 <= 1):
            raise ValueError(f"epoch {best.epoch} as the best, with top-1 {best.top1}")
        if not all(map(math.isfinite, progress.loss_sums)):
            raise ValueError("a sum of losses that is not finite")


def _ensure_usable(optimizer: torch.optim.Optimizer, settings: list[dict[str, Any]]) -> None:
    """Raise ValueError for a loaded state that is unusable.  settings: of the groups of a new optimiser."""
    for group, made in zip(optimizer.param_groups, settings, strict=True):
        if odd := [name for name, value in made.items() if type(group.get(name)) is not type(value)]:
            raise ValueError(f"the optimizer's {odd[0]} is not of its type")
    for weight, state in optimizer.state.items():
        for name in OF_A_WEIGHT:
            if (
                name in state
                and getattr(state[name], "shape", weight.shape if state[name] is None else None) != weight.shape
            ):
                raise ValueError(f"the optimizer's {name} is not of its weight's shape")


def read_checkpoint(path: Path) -> tuple[PretrainingProgress, dict[str, Any]]:
    """The progress and the state dictionaries; only tensors and plain values are read, no code is run."""
    try:
        stored = load_tensors(path, "cpu")
        progress = checked(stored.pop("progress"), PretrainingProgress, f"{path}, progress")
    except UserError:
        raise
    except DAMAGE as error:
        raise damaged(path, error) from error
    if len(progress.loss_sums) not in (0, progress.processes):
        raise damaged(path, ValueError(f"{len(progress.loss_sums)} sums of losses for {progress.processes} processes"))
    return progress, stored


def damaged(path: Path, error: Exception) -> UserError:
    cause = " ".join(str(error).split())[:200]
    return UserError(f"{path}: it cannot be read; restore it, or remove it to start again ({cause})")


# ---- the parts, all from timm and torchvision ----


def build_model(config: PretrainConfig, classes: int) -> nn.Module:
    """The architecture for images of the configured size; raises UserError for arguments that timm refuses."""
    if not timm.is_model(config.architecture):
        close = similar_architectures(config.architecture)[:5]
        remedy = f"did you mean {', '.join(close)}?" if close else "timm.list_models() lists them"
        raise UserError(f"--architecture {config.architecture}: timm has no such architecture; {remedy}")
    more: dict[str, Any] = {"drop_path_rate": config.drop_path} if config.drop_path else {}
    settings: Any = timm.get_pretrained_cfg(config.architecture)
    if settings is not None and settings.fixed_input_size:
        more["img_size"] = config.image_size
    try:
        return timm.create_model(config.architecture, num_classes=classes, **more, **config.arguments)
    except Exception as error:  # architectures raise different exceptions
        reason = " ".join(str(error).split())
        raise UserError(
            f"--architecture {config.architecture}: timm does not make it with --image-size {config.image_size}, "
            f"--drop-path {config.drop_path:g} and --model-arguments {' '.join(config.model_arguments) or 'empty'} "
            f"({reason}); change one of them"
        ) from error


def build_optimizer(config: PretrainConfig, model: nn.Module) -> torch.optim.Optimizer:
    """timm's optimiser; raises UserError for a name that it does not have."""
    betas: dict[str, Any] = {"betas": config.betas} if config.betas != (0.9, 0.999) else {}
    try:
        return create_optimizer_v2(
            model,
            opt=config.optimizer,
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            momentum=config.momentum,
            layer_decay=config.layer_decay if config.layer_decay < 1 else None,
            **betas,
        )
    except (ValueError, TypeError, AssertionError, AttributeError) as error:
        raise UserError(
            f"--optimizer {config.optimizer}: {' '.join(str(error).split())}; timm.optim.list_optimizers() lists them"
        ) from error


def build_schedule(config: PretrainConfig, optimizer: torch.optim.Optimizer, updates: int, images: int) -> Any:
    """timm's schedule per update.  updates: per epoch.  images: per update; they scale the learning rate."""
    scale = images / REFERENCE_BATCH
    for group in optimizer.param_groups:
        group["lr"] = group["lr"] * scale
    highest = config.learning_rate * scale
    schedule, _ = create_scheduler_v2(
        optimizer,
        sched="multistep" if config.schedule == "step" else config.schedule,
        num_epochs=config.epochs,
        decay_milestones=[round(share * config.epochs) for share in STEP_DECAYS],
        warmup_epochs=min(config.warmup_epochs, config.epochs - 1),
        warmup_lr=highest * FIRST_RATE,
        min_lr=config.minimum_learning_rate * scale,
        step_on_epochs=False,
        updates_per_epoch=updates,
    )
    return schedule


def build_loss(config: PretrainConfig) -> nn.Module:
    """The mean loss over a batch of logits (B, C) and labels (B,) or label shares (B, C)."""
    if config.loss == "binary":
        return BinaryCrossEntropy(config.label_smoothing)
    return nn.CrossEntropyLoss(label_smoothing=config.label_smoothing)


def build_mix(config: PretrainConfig, classes: int) -> nn.Module | None:
    """Mixup and CutMix for batches of any size; None if both are off."""
    mixes = [
        mix(alpha=alpha, num_classes=classes)
        for mix, alpha in ((v2.MixUp, config.mixup), (v2.CutMix, config.cutmix))
        if alpha > 0
    ]
    return v2.RandomApply([v2.RandomChoice(mixes)], p=config.mix_probability) if mixes else None
