"""The trained modules and the frozen models of a run; saves the trained part in checkpoints and loads it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from diffusers.training_utils import EMAModel
from torch import Tensor

from lbgen.alignment import checkpoint
from lbgen.alignment.checkpoint import initial_progress, saved_progress
from lbgen.alignment.config import AlignConfig
from lbgen.alignment.discriminator import discriminator_of
from lbgen.alignment.images import sample_images
from lbgen.alignment.independence.bank import BankImage, bank_images, bank_path, load_bank
from lbgen.alignment.independence.residual import ensure_residual, image_descriptors
from lbgen.alignment.independence.term import Independence
from lbgen.alignment.objective import objective
from lbgen.alignment.reports import adapter_card
from lbgen.errors import UserError
from lbgen.models import training
from lbgen.models.generator import PRECISIONS, Generator, load_generator
from lbgen.models.noise import derived_seed
from lbgen.models.quality import load_quality
from lbgen.models.spaces.joint import load_spaces
from lbgen.training.tensors import DAMAGE
from lbgen.vocabulary.distinct import refuse_confusions
from lbgen.vocabulary.vocabulary import Vocabulary


class AlignmentState:
    """Generator with adapter, discriminator, independence term, optimisers, adapter average and fp16 loss scaler.

    Every process holds the same state and processes its own part of each global batch.
    """

    def __init__(
        self, config: AlignConfig, vocabulary: Vocabulary, accelerator: Accelerator, resumed: Path | None = None
    ) -> None:
        """resumed: the checkpoint to continue from; None starts with a new adapter."""
        # Settings, progress of the run, and this process's part of a batch.
        self.config, self.vocabulary, self.accelerator = config, vocabulary, accelerator
        new = initial_progress(config, vocabulary, accelerator.num_processes)
        self.progress = new if resumed is None else saved_progress(resumed)
        self.recorded = None if resumed is None else checkpoint.recorded_identity(config.folder)

        # Frozen: models and text features.
        self._load_models()
        self._refuse_confusions(resumed is not None)
        self._embed_texts()

        # Trained: adapter and discriminator, with the terms and optimisers.
        self._add_adapter(resumed)
        self.parameters = [parameter for _, parameter in self.generator.adapter_parameters()]
        discriminator = discriminator_of(
            self.semantics, config.discriminator_hidden, config.seed, config.discriminator_activation
        )
        self.discriminator = discriminator.to(accelerator.device)
        self.independence = self._independence() if config.independence_weight > 0 else None
        self.terms = objective(config, self.discriminator, self.independence)
        self._add_optimizers()
        if resumed is not None:
            try:
                self._load(checkpoint.load_tensors(resumed, accelerator.device))
            except DAMAGE as error:
                cause = " ".join(str(error).split())[:200]
                raise UserError(f"{resumed}: its state.pt cannot be read; remove this checkpoint ({cause})") from error

    def process_batch(self, batch_index: int) -> int:
        """Number of images of this process in a batch."""
        in_warmup = batch_index < self.config.discriminator_warmup_steps
        return self.config.warmup_batch if in_warmup else self.config.batch_size

    def positions(self, batch_index: int) -> range:
        """Positions of this process's images in the global batch."""
        size = self.process_batch(batch_index)
        return range(size * self.accelerator.process_index, size * (self.accelerator.process_index + 1))

    # ---- making the parts ----

    def _load_models(self) -> None:
        """Load the frozen generator, semantics and quality scorer; refuse texts that they cannot read."""
        config, device, dtype = self.config, self.accelerator.device, PRECISIONS[self.config.precision]
        self.generator: Generator = load_generator(
            config.generator,
            dtype=dtype,
            device=device,
            scheduler=config.scheduler,
            guidance_scale=config.guidance_scale,
            true_cfg_scale=config.true_cfg_scale,
            guidance_rescale=config.guidance_rescale,
            pipeline_instruction=config.pipeline_instruction,
            merged_sampler=config.merged_sampler,
            compile=config.compile,
            latent_dtype=dtype if config.latent_precision == "network" else torch.float32,
            revision=config.revision,
            variant=config.variant,
        )
        if config.gradient_checkpointing:
            self.generator.enable_gradient_checkpointing()
        check_tokens = self.vocabulary.check_tokens
        check_tokens(self.generator.count_tokens, self.generator.token_limit, config.prompt_template)
        self.generator.prepare(self.vocabulary.texts(config.prompt_template))
        self.semantics = load_spaces(config.spaces, device, dtype)
        for template in (config.text_template, config.discriminator_template):
            for space in self.semantics.parts:
                check_tokens(space.count_tokens, space.token_limit, template)
        self.quality = load_quality(config.quality, self.semantics)

    @torch.no_grad()
    def _refuse_confusions(self, resumed: bool) -> None:
        """Refuse categories that the generator or the language space cannot tell apart."""
        config = self.config
        found = self.generator.confusions(self.vocabulary, config.prompt_template)
        for template in dict.fromkeys((config.text_template, config.discriminator_template)):
            found += self.semantics.confusions(self.vocabulary, template)
        known = self.vocabulary.ids if resumed else ()
        refuse_confusions(found, keep=not config.qualify_names, known=known, show=self.accelerator.print)

    @torch.no_grad()
    def _embed_texts(self) -> None:
        """Embed every category's text for L_in and for the discriminator, (C, D)."""
        config = self.config
        self.discriminator_texts = self.vocabulary.texts(config.discriminator_template)
        self.text_features = self.semantics.embed_texts(self.vocabulary.texts(config.text_template))
        self.real_features = self.semantics.embed_texts(self.discriminator_texts, normalize=config.normalize_features)

    def _add_adapter(self, resumed: Path | None) -> None:
        """Add a new adapter, equal in every process; then load the checkpoint's adapter into it, if any."""
        config = self.config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derived_seed(config.seed, "adapter"))
            self.generator.add_adapter(config.rank, config.lora_alpha, config.lora_targets, config.text_encoder_lora)
        if resumed is not None:
            self.generator.load_adapter(resumed / "adapter")

    def _add_optimizers(self) -> None:
        """Make AdamW for adapter and discriminator, the adapter's average (or None), and the loss scaler (for fp16)."""
        config = self.config
        self.optimizer = torch.optim.AdamW(
            self.parameters, config.learning_rate, config.adam_betas, weight_decay=config.weight_decay
        )
        self.discriminator_optimizer = torch.optim.AdamW(
            self.discriminator.parameters(),
            config.discriminator_learning_rate,
            config.discriminator_betas,
            weight_decay=config.weight_decay,
        )
        self.average = EMAModel(self.parameters, decay=config.ema_decay) if config.ema_decay > 0 else None
        self.scaler = self.accelerator.scaler or torch.amp.GradScaler(enabled=False)

    def _independence(self) -> Independence:
        """The independence term, with its bank of the base generator's images."""
        config, accelerator = self.config, self.accelerator
        ensure_residual(self.text_features, config.independence_span)
        descriptors, category_indices = load_bank(
            bank_path(config, self.vocabulary, self.recorded),
            bank_images(config.independence_bank, len(self.vocabulary)),
            (accelerator.process_index, accelerator.num_processes),
            self._base_descriptors,
            accelerator.wait_for_everyone,
        )
        term = Independence(config, self.text_features, descriptors, category_indices, self.progress.images_per_update)
        term.to(accelerator.device)
        broadcast(list(term.buffers()))  # use the first process's: the sign of an eigenvector depends on the machine
        return term

    @torch.no_grad()
    def _base_descriptors(self, images: Sequence[BankImage]) -> Tensor:
        """Descriptors of the base generator's images, (B, L), float32 on the CPU."""
        category_indices, image_indices = zip(*images, strict=True)
        with self.generator.adapter_enabled(False), self.accelerator.autocast():
            sampled = sample_images(
                self.config, self.vocabulary, self.generator,
                category_indices, image_indices, [0] * len(images), purpose="bank",
            )  # fmt: skip
            features = self.semantics.embed_images(sampled).float()
            return image_descriptors(features, sampled, self.config.independence_thumbnail).cpu()

    # ---- the averaged adapter ----

    @contextmanager
    def averaged_adapter(self) -> Iterator[None]:
        """Replace the adapter, within the context, by its average over the updates, if the run keeps one."""
        if self.average is None:
            yield
            return
        self.average.store(self.parameters)
        self.average.copy_to(self.parameters)
        self.generator.refresh_sampler()
        try:
            yield
        finally:
            self.average.restore(self.parameters)
            self.generator.refresh_sampler()

    # ---- checkpoints ----

    @property
    def checkpoint_path(self) -> Path:
        """Folder of the checkpoint at the current step."""
        return checkpoint.checkpoint_path(self.config.folder, self.progress.step)

    def save(self) -> None:
        """Write a checkpoint and remove old ones; the main process writes, the others wait."""
        if self.accelerator.is_main_process:
            with checkpoint.new_folder(self.checkpoint_path) as folder:
                checkpoint.save_tensors(folder, self._tensors())
                with self.averaged_adapter():
                    self.generator.save_adapter(folder / "adapter")
                training.write(folder / "adapter", self.config, self.vocabulary)
                adapter_card.write(folder / "adapter", self.config, self.vocabulary)
                checkpoint.mark_complete(folder, self.progress)
            checkpoint.clean(self.config.folder)
        self.accelerator.wait_for_everyone()

    def _tensors(self) -> dict[str, Any]:
        tensors = {name: part.state_dict() for name, part in self._parts().items()}
        if self.independence is not None:
            tensors["independence"] = self.independence.checkpoint_state()
        # The checkpoint's adapter may be the average, and its B is multiplied by alpha / rank, which rounds.
        if self.average is not None or self.config.lora_alpha != self.config.rank:
            tensors["parameters"] = [parameter.detach() for parameter in self.parameters]
        return tensors

    @torch.no_grad()
    def _load(self, tensors: dict[str, Any]) -> None:
        for name, part in self._parts().items():
            part.load_state_dict(tensors[name])
        if self.independence is not None:
            self.independence.load_checkpoint_state(tensors["independence"])
        for parameter, saved in zip(self.parameters, tensors.get("parameters", self.parameters), strict=True):
            parameter.copy_(saved)
        self.generator.refresh_sampler()

    def _parts(self) -> dict[str, Any]:
        """Name in checkpoints -> object with a state dictionary."""
        parts: dict[str, Any] = {
            "optimizer": self.optimizer,
            "discriminator": self.discriminator,
            "discriminator_optimizer": self.discriminator_optimizer,
        }
        if self.average is not None:
            parts["average"] = self.average
        if self.scaler.is_enabled():
            parts["scaler"] = self.scaler
        return parts
