"""The training loop: one update reads from top to bottom in `training_step`, the course of a run in `train`."""

import math
import time
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from lbgen.alignment import batches
from lbgen.alignment.images import differentiated_calls, sample_images
from lbgen.alignment.losses import discriminator_loss
from lbgen.alignment.monitor import Monitor, check_diversity, diversity_share
from lbgen.alignment.objective import Batch, gradient_norms, term_values, total_loss, unweighted
from lbgen.alignment.reports.trackers import log_pictures
from lbgen.alignment.state import AlignmentState
from lbgen.errors import Interrupted, UserError
from lbgen.runs.console import Progress, warn
from lbgen.training.metrics import FILE, append_line
from lbgen.training.processes import received_signal


def training_step(state: AlignmentState, batch_index: int) -> dict[str, float]:
    """One update of the discriminator and one of the adapter, both on the same batch (lbGen section 3).

    Returns "loss" (the weighted sum), every term unweighted, and "discriminator": means over the global batch.
    Raises UserError if the adapter's gradient is not finite; the adapter then stays as it was.
    """
    # Sample images; K of the denoising steps keep their gradient.
    batch = sample_batch(state, batch_index, differentiate=True, may_overflow=state.scaler.is_enabled())

    # Discriminator: texts are real, these images are fake.
    discriminator_first = state.config.update_first == "discriminator"
    if discriminator_first:
        discriminator = update_discriminator(state, batch, batch_index)

    # Independence: remember the images of all processes; the term compares with earlier updates only.
    remember_images(state, batch)

    # Adapter: clipped gradient of the weighted sum of the terms. In fp16 the scaler scales the loss against underflow
    # and skips the step after an overflow, also after an overflow in the images.
    values = term_values(state.terms, batch)
    loss = total_loss(state.terms, values)
    set_gradients(state.accelerator, state.parameters, state.scaler.scale(loss))
    state.scaler.unscale_(state.optimizer)
    norm = torch.nn.utils.clip_grad_norm_(state.parameters, state.config.max_grad_norm)
    if state.scaler.is_enabled() or torch.isfinite(norm):
        state.scaler.step(state.optimizer)
    state.scaler.update()
    ensure_finite(state, norm, batch_index)

    # The released script's order: the adapter was trained against the discriminator of the last update.
    if not discriminator_first:
        discriminator = update_discriminator(state, batch, batch_index)

    # Average the adapter over the updates, and copy it into the merged network that samples without gradient.
    if state.average is not None:
        state.average.step(state.parameters)
    state.generator.refresh_sampler()

    # Report means over the processes.
    means = mean_over_processes(state.accelerator, [value.detach() for value in (loss, *values.values())])
    reported = dict(zip(("loss", *values), (mean.item() for mean in means), strict=True))
    return reported | {"discriminator": discriminator}


def warm_up_step(state: AlignmentState, batch_index: int) -> dict[str, float]:
    """One update of only the discriminator; the independence term remembers the images.  Returns "discriminator"."""
    batch = sample_batch(state, batch_index, differentiate=False)
    discriminator = update_discriminator(state, batch, batch_index)
    remember_images(state, batch)
    return {"discriminator": discriminator}


# ---- the parts of a step ----


def sample_batch(state: AlignmentState, batch_index: int, *, differentiate: bool, may_overflow: bool = False) -> Batch:
    """Sample this process's part of a batch and compute the inputs of the terms.

    may_overflow: accept images that are not finite; otherwise they raise UserError.
    """
    config, generator = state.config, state.generator
    category_indices = local_category_indices(state, batch_index)
    calls = differentiated_calls(config, generator, batch_index) if differentiate else frozenset()
    with state.accelerator.autocast(), torch.set_grad_enabled(differentiate):
        images = training_images(state, batch_index, calls, may_overflow)
        raw_features = state.semantics.embed_images(images, normalize=False)
        features = state.semantics.unit_norm(raw_features)
        scores = state.quality.score(images, features).float() if state.quality is not None else torch.empty(0)
        base_images = torch.empty(0)
        if differentiate and config.base_weight > 0:
            with torch.no_grad(), generator.adapter_enabled(False):
                base_images = training_images(state, batch_index, may_overflow=may_overflow).float()
    return Batch(
        images=images.float(),
        features=features,
        discriminator_features=features if config.normalize_features else raw_features,
        text_features=state.text_features[category_indices],
        scores=scores,
        base_images=base_images,
        category_indices=torch.tensor(category_indices, device=images.device),
    )


def training_images(
    state: AlignmentState,
    batch_index: int,
    differentiate_at: AbstractSet[int] = frozenset(),
    may_overflow: bool = False,
) -> Tensor:
    """This process's images of the batch, (B, 3, H, W); see `sample_images`."""
    places: Sequence[int] = state.positions(batch_index)
    if state.config.shared_noise:
        places = batches.places_in_process(places, state.process_batch(batch_index))
    return sample_images(
        state.config, state.vocabulary, state.generator,
        local_category_indices(state, batch_index), [batch_index] * len(places), places,
        purpose="training", differentiate_at=differentiate_at, may_overflow=may_overflow,
    )  # fmt: skip


def local_category_indices(state: AlignmentState, batch_index: int) -> list[int]:
    """The categories of this process's images."""
    config, categories = state.config, len(state.vocabulary)
    warmup_images = config.warmup_batch * state.accelerator.num_processes
    return batches.batch_category_indices(
        config.seed,
        batch_index,
        state.positions(batch_index),
        state.progress.images_per_update,
        categories,
        warmup=(config.discriminator_warmup_steps, warmup_images),
        whole_passes=config.whole_passes,
    )


def real_category_indices(state: AlignmentState, batch_index: int) -> list[int]:
    """The categories whose texts the discriminator sees as real, one for each of this process's images."""
    config, positions = state.config, state.positions(batch_index)
    if config.discriminator_texts == "released-code":
        return batches.first_category_indices(positions, state.process_batch(batch_index), len(state.vocabulary))
    shown = local_category_indices(state, batch_index)
    return batches.other_category_indices(config.seed, batch_index, positions, shown, state.discriminator_texts)


def update_discriminator(state: AlignmentState, batch: Batch, batch_index: int) -> float:
    """One step on this batch's features and the same number of texts.  Returns the loss on the global batch."""
    real_logits = state.discriminator(state.real_features[real_category_indices(state, batch_index)])
    fake_logits = state.discriminator(batch.discriminator_features.detach())
    loss = state.config.discriminator_loss_weight * discriminator_loss(real_logits, fake_logits)
    parameters = list(state.discriminator.parameters())
    set_gradients(state.accelerator, parameters, loss)
    norm = torch.nn.utils.clip_grad_norm_(parameters, state.config.discriminator_max_grad_norm or math.inf)
    if torch.isfinite(norm):  # otherwise an overflow in fp16 would make the weights NaN
        state.discriminator_optimizer.step()
    return mean_over_processes(state.accelerator, [loss.detach()])[0].item()


def remember_images(state: AlignmentState, batch: Batch) -> None:
    """Give the images of all processes to the independence term, if there is one."""
    if state.independence is not None:
        descriptors = state.independence.descriptors(batch.features, batch.images).detach()
        state.independence.remember(*state.accelerator.gather((descriptors, batch.category_indices)))


def set_gradients(accelerator: Accelerator, parameters: Sequence[Tensor], loss: Tensor) -> None:
    """Set each parameter's gradient to the mean over the processes."""
    gradients = torch.autograd.grad(loss, parameters, materialize_grads=True)
    for parameter, gradient in zip(parameters, mean_over_processes(accelerator, gradients), strict=True):
        parameter.grad = gradient


def mean_over_processes(accelerator: Accelerator, tensors: Sequence[Tensor]) -> list[Tensor]:
    """The mean of each tensor over the processes, in one message."""
    if accelerator.num_processes == 1:
        return list(tensors)
    flat = accelerator.reduce(torch.cat([tensor.flatten() for tensor in tensors]), "mean")
    parts = flat.split([tensor.numel() for tensor in tensors])
    return [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]


def ensure_finite(state: AlignmentState, norm: Tensor, batch_index: int) -> None:
    """Stop a run whose gradient is not finite; in fp16 only after the loss scale has fallen below 1."""
    scaler = state.scaler
    if not torch.isfinite(norm) and not (scaler.is_enabled() and scaler.get_scale() >= 1):
        step = batch_index + 1 - state.config.discriminator_warmup_steps
        remedy = "--precision bf16, or " if scaler.is_enabled() else ""
        raise UserError(
            f"{state.config.folder}, step {step}: the adapter's gradient is {norm.item()}; choose another --output "
            f"and {remedy}a lower --learning-rate, or --detach-input"
        )


def measure_gradients(state: AlignmentState) -> dict[str, float]:
    """Norm of each weighted term's gradient on the adapter, for the first batch of the adapter's size."""
    first = state.config.discriminator_warmup_steps if state.config.discriminator_warmup_batch else 0
    values = term_values(state.terms, sample_batch(state, first, differentiate=True))

    def average(gradients: list[Tensor]) -> list[Tensor]:
        return mean_over_processes(state.accelerator, gradients)

    return gradient_norms(state.terms, values, state.parameters, average, state.scaler.get_scale())


# ---- the course of a run ----


def train(state: AlignmentState, monitor: Monitor | None, signals: list[int]) -> None:
    """Warm up the discriminator, then update until config.max_steps; evaluate and save at intervals.

    monitor: None except on the main process.  signals: numbers of the signals received so far.
    Raises Interrupted, after saving, if a signal is received; UserError if the guard stops the run.
    """
    config, progress = state.config, state.progress
    with progress_bar(state, "warm-up", config.discriminator_warmup_steps, progress.warmup) as bar:
        while progress.warmup < config.discriminator_warmup_steps:
            losses = warm_up_step(state, progress.batch_index)
            progress.warmup += 1
            advance(bar, losses)
            leave_if_asked(state, signals)

    hidden = unweighted(config.weights)
    with progress_bar(state, "align", config.max_steps, progress.step) as bar:
        while progress.step < config.max_steps:
            began = time.perf_counter()
            metrics = training_step(state, progress.batch_index)
            progress.step += 1
            metrics["images_per_second"] = state.progress.images_per_update / (time.perf_counter() - began)
            write_metrics(state, metrics)
            advance(bar, {name: value for name, value in metrics.items() if name not in hidden})
            last = progress.step == config.max_steps
            if last or (config.evaluate_every and progress.step % config.evaluate_every == 0):
                evaluate(state, monitor)
            if last:
                break
            if progress.step % config.checkpoint_every == 0:
                state.save()
            leave_if_asked(state, signals)


def evaluate(state: AlignmentState, monitor: Monitor | None) -> None:
    """Measure the evaluation images on the main process; the guard makes the same decision in every process.

    Raises UserError, after saving, if the guard stops the run.
    """
    config, accelerator, step = state.config, state.accelerator, state.progress.step
    share = 1.0
    if monitor is not None:
        with state.averaged_adapter():
            statistics = monitor.evaluate(step)
        write_line(state, "evaluations.jsonl", {"step": step, **statistics})
        log_pictures(accelerator, monitor.grid_path(step), step)
        share = diversity_share(statistics["diversity"], monitor.base_diversity)
    if config.guard == "off":
        return
    share = float(accelerator.gather(torch.tensor([share], device=accelerator.device))[0])  # of the main process
    warning = check_diversity(config, step, share)
    if warning and config.guard == "stop":
        state.save()
        accelerator.end_training()
        raise UserError(warning)
    if warning and accelerator.is_main_process:
        warn(warning)


def leave_if_asked(state: AlignmentState, signals: list[int]) -> None:
    """Save and stop every process if one of them has received a signal; raises Interrupted."""
    if signum := received_signal(state.accelerator, signals):
        state.save()
        state.accelerator.end_training()
        raise Interrupted(signum, f"saved {state.checkpoint_path}; the same command goes on from there")


# ---- output ----


def write_metrics(state: AlignmentState, metrics: dict[str, float]) -> None:
    """Write one update's line of metrics.jsonl; it always has the paper's terms, null if they are not computed."""
    always = dict.fromkeys(("loss", "entire", "individual", "quality"))
    write_line(state, FILE, {"step": state.progress.step, **(always | metrics)})


def write_line(state: AlignmentState, name: str, line: dict[str, Any]) -> None:
    """Append a line to a file of the run, and pass its numbers to the logger; a non-finite number becomes null."""
    if not state.accelerator.is_main_process:
        return
    finite = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in line.items()
    }
    append_line(state.config.folder / name, finite)
    numbers = {f"{Path(name).stem}/{key}": value for key, value in finite.items() if isinstance(value, float)}
    state.accelerator.log(numbers, step=line["step"])


def progress_bar(state: AlignmentState, name: str, total: int, done: int) -> Progress:
    return Progress(name, total, "updates", done=done, shown=state.accelerator.is_main_process)


def advance(progress: Progress, losses: dict[str, float]) -> None:
    """Count one update and show its numbers."""
    progress.advance(note=", ".join(f"{name} {value:.3f}" for name, value in losses.items()))
