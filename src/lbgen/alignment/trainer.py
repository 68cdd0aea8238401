"""The models and optimisers of a run, and its two kinds of update."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import broadcast
from diffusers.training_utils import EMAModel
from torch import Tensor

from lbgen.alignment import batches, checkpoint
from lbgen.alignment.config import AlignConfig
from lbgen.alignment.discriminator import seeded_discriminator
from lbgen.alignment.independence.bank import Place, bank_path, bank_places, load_bank
from lbgen.alignment.independence.residual import ensure_rest, looks
from lbgen.alignment.independence.term import Independence
from lbgen.alignment.losses import discriminator_loss
from lbgen.alignment.objective import Batch, gradient_norms, objective, term_values, total_loss
from lbgen.errors import UserError
from lbgen.models.generator import PRECISIONS, load_generator
from lbgen.models.quality.antonyms import load_quality
from lbgen.models.sampling import differentiated_indices, sample, start_count
from lbgen.models.semantics import load_semantics
from lbgen.vocabulary.vocabulary import Vocabulary


class Trainer:
    """All that changes during a run: adapter, discriminator, their optimisers, averages, and the loss scale of fp16.

    Every process holds the same state and sees its own part of the global batch; losses and gradients are means over
    the global batch.
    """

    def __init__(
        self, config: AlignConfig, vocabulary: Vocabulary, accelerator: Accelerator, resumed: Path | None
    ) -> None:
        self.config, self.vocabulary, self.accelerator = config, vocabulary, accelerator
        self.prompts = vocabulary.texts(config.prompt_template)
        self.global_batch = config.batch_size * accelerator.num_processes
        first = config.batch_size * accelerator.process_index
        self.positions = range(first, first + config.batch_size)

        device, dtype = accelerator.device, PRECISIONS[config.precision]
        self.generator = load_generator(
            config.generator,
            dtype=dtype,
            device=device,
            scheduler=config.scheduler,
            guidance_scale=config.guidance_scale,
            guidance_rescale=config.guidance_rescale,
            merged_sampler=config.merged_sampler,
            compile=config.compile,
        )
        if config.gradient_checkpointing:
            self.generator.enable_gradient_checkpointing()
        vocabulary.check_tokens(self.generator.count_tokens, self.generator.token_limit, config.prompt_template)
        self.semantics = load_semantics(config.semantics, device, dtype)
        for template in (config.text_template, config.discriminator_template):
            vocabulary.check_tokens(self.semantics.count_tokens, self.semantics.token_limit, template)
        self.quality = load_quality(config.quality, self.semantics)
        self.discriminator_texts = vocabulary.texts(config.discriminator_template)
        with torch.no_grad():  # features of every category's texts, (categories, D)
            self.text_features = self.semantics.embed_texts(vocabulary.texts(config.text_template))
            self.real_features = self.semantics.embed_texts(
                self.discriminator_texts, normalize=config.normalize_features
            )

        self._add_adapter(resumed)
        self.parameters = [parameter for _, parameter in self.generator.adapter_parameters()]
        discriminator = seeded_discriminator(self.semantics.dimension, config.discriminator_hidden, config.seed)
        self.discriminator = discriminator.to(device)
        self.independence = self._independence() if config.independence_weight > 0 else None
        self.terms = objective(config, self.discriminator, self.independence)
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
        self.scaler = accelerator.scaler
        if resumed is not None:
            self._load_state(checkpoint.load_tensors(resumed, device))

    def _add_adapter(self, resumed: Path | None) -> None:
        """A fresh adapter, equal in every process, or that of a checkpoint."""
        config = self.config
        if resumed is not None:
            self.generator.load_adapter(resumed / "adapter")
            return
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(batches.derived_seed(config.seed, "adapter"))
            self.generator.add_adapter(config.rank, config.alpha, config.lora_targets, config.text_encoder_lora)

    def _independence(self) -> Independence:
        """The independence term, with its bank of the base generator's images."""
        config, accelerator = self.config, self.accelerator
        ensure_rest(self.text_features, config.independence_span)
        places = bank_places(config.independence_bank, len(self.vocabulary))
        seen, rows = load_bank(
            bank_path(config, self.vocabulary),
            places,
            (accelerator.process_index, accelerator.num_processes),
            self._base_looks,
            accelerator.wait_for_everyone,
        )
        term = Independence(config, self.text_features, seen, rows, self.global_batch).to(accelerator.device)
        broadcast(list(term.buffers()))  # an eigenvector's sign is the machine's: all take those of the first process
        return term

    @torch.no_grad()
    def _base_looks(self, places: Sequence[Place]) -> Tensor:
        """Of the base generator's images, (B, L) float32 on the CPU."""
        rows, indices = zip(*places, strict=True)
        with self.generator.adapter_enabled(False), self.accelerator.autocast():
            images = self._sample(rows, "bank", indices, [0] * len(rows), frozenset())
            features = self.semantics.embed_images(images).float()
            return looks(features, images, self.config.independence_thumbnail).cpu()

    # ---- one batch ----

    def batch(self, draw: int, *, differentiate: bool) -> Batch:
        """Sample this process's part of the `draw`-th batch and see it as the terms do."""
        config = self.config
        rows = self._rows(draw)
        with self.accelerator.autocast(), torch.set_grad_enabled(differentiate):
            images = self._training_images(rows, draw, self._differentiated(draw) if differentiate else frozenset())
            raw_features = self.semantics.embed_images(images, normalize=False)
            features = F.normalize(raw_features, dim=-1)
            return Batch(
                images=images.float(),
                features=features,
                discriminator_features=features if config.normalize_features else raw_features,
                text_features=self.text_features[rows],
                scores=self.quality.score(images, features).float() if self.quality is not None else torch.empty(0),
                base_images=self._base_images(rows, draw)
                if differentiate and config.base_weight > 0
                else torch.empty(0),
                rows=torch.tensor(rows, device=images.device),
            )

    def _rows(self, draw: int) -> list[int]:
        return batches.category_rows(self.config.seed, draw, self.positions, self.global_batch, len(self.vocabulary))

    def _differentiated(self, draw: int) -> frozenset[int]:
        calls, count = len(self.generator.timesteps(self.config.steps)), self.config.differentiated_steps
        start = batches.differentiated_start(self.config.seed, draw, start_count(calls, count))
        return differentiated_indices(calls, count, start)

    def _training_images(self, rows: Sequence[int], draw: int, differentiate_at: frozenset[int]) -> Tensor:
        return self._sample(rows, "training", [draw] * len(rows), self.positions, differentiate_at)

    def _sample(
        self,
        rows: Sequence[int],
        purpose: str,
        indices: Sequence[int],
        attempts: Sequence[int],
        differentiate_at: frozenset[int],
    ) -> Tensor:
        generator, config = self.generator, self.config
        noise, rngs = batches.stacked_noise(
            batches.derived_seed(config.seed, purpose),
            [self.vocabulary[row].id for row in rows],
            indices,
            attempts,
            generator.latent_shape(*generator.default_size),
        )
        return sample(
            generator,
            generator.encode([self.prompts[row] for row in rows]),
            noise.to(generator.device),
            steps=config.steps,
            differentiate_at=differentiate_at,
            detach_input=config.detach_input,
            rngs=rngs,
        )

    @torch.no_grad()
    def _base_images(self, rows: Sequence[int], draw: int) -> Tensor:
        with self.generator.adapter_enabled(False):
            return self._training_images(rows, draw, frozenset()).float()

    # ---- updates ----

    def measure_gradients(self) -> dict[str, float]:
        """Norm of each weighted term's gradient on the adapter, for the first batch."""
        values = term_values(self.terms, self.batch(0, differentiate=True))
        scale = self.scaler.get_scale() if self.scaler is not None else 1.0
        return gradient_norms(self.terms, values, self.parameters, self._averaged, scale)

    def update_opponents(self, batch: Batch, draw: int) -> dict[str, float]:
        """One step of all that learns against the adapter; returns their losses."""
        losses = {"discriminator": self.update_discriminator(batch, draw)}
        if self.independence is not None:
            seen = self.independence.looks(batch.features, batch.images).detach()
            seen, rows = self.accelerator.gather((seen, batch.rows))
            losses |= self.independence.update(seen, rows, draw)
        return losses

    def update_discriminator(self, batch: Batch, draw: int) -> float:
        """One step of D on this batch's features and as many texts; returns its loss."""
        real = self.discriminator(self.real_features[self._real_rows(draw)])
        loss = discriminator_loss(real, self.discriminator(batch.discriminator_features.detach()))
        parameters = list(self.discriminator.parameters())
        self._assign(parameters, torch.autograd.grad(loss, parameters))
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.config.discriminator_max_grad_norm)
        if torch.isfinite(norm):  # a batch that overflowed in fp16 would undo D for good
            self.discriminator_optimizer.step()
        return self._averaged([loss.detach()])[0].item()

    def _real_rows(self, draw: int) -> list[int]:
        """The categories whose texts the discriminator sees as real."""
        if self.config.discriminator_texts == "released-code":
            return batches.first_rows(self.positions, self.config.batch_size, len(self.vocabulary))
        return batches.other_rows(self.config.seed, draw, self.positions, self._rows(draw), self.discriminator_texts)

    def update_adapter(self, batch: Batch, step: int) -> dict[str, float]:
        """One step of the adapter on the weighted sum of the terms; returns it as `loss`, and every term unweighted."""
        values = term_values(self.terms, batch)
        loss = total_loss(self.terms, values)
        scaled = loss if self.scaler is None else self.scaler.scale(loss)
        self._assign(self.parameters, torch.autograd.grad(scaled, self.parameters, materialize_grads=True))
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.config.max_grad_norm)
        if self.scaler is not None:  # skips the step and lowers the scale where fp16 overflowed
            self.scaler.step(self.optimizer)
            self.scaler.update()
        elif torch.isfinite(norm):
            self.optimizer.step()
        if not torch.isfinite(norm) and (self.scaler is None or self.scaler.get_scale() < 1):
            raise UserError(
                f"{self.config.folder}, step {step}: the adapter's gradient is {norm.item()}; choose another --output "
                "and a lower --learning-rate, or --detach-input"
            )
        if self.average is not None:
            self.average.step(self.parameters)
        self.generator.refresh_sampler()
        reported = {"loss": loss, **values}
        means = self._averaged([value.detach() for value in reported.values()])
        return dict(zip(reported, (mean.item() for mean in means), strict=True))

    def _assign(self, parameters: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
        for parameter, gradient in zip(parameters, self._averaged(gradients), strict=True):
            parameter.grad = gradient

    def _averaged(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The mean of each over the processes, in one message."""
        if self.accelerator.num_processes == 1:
            return list(tensors)
        flat = self.accelerator.reduce(torch.cat([tensor.flatten() for tensor in tensors]), "mean")
        parts = flat.split([tensor.numel() for tensor in tensors])
        return [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]

    # ---- state ----

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within the context the adapter is the average of its past, where the run keeps one."""
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

    def save(self, folder: Path) -> None:
        """Adapter (a diffusers LoRA) and all other state, into an existing folder."""
        checkpoint.save_tensors(folder, self._state())
        with self.averaged():
            self.generator.save_adapter(folder / "adapter")

    def _state(self) -> dict[str, Any]:
        parameters = {"parameters": [parameter.detach() for parameter in self.parameters]} if self.average else {}
        return {name: part.state_dict() for name, part in self._parts().items()} | parameters

    @torch.no_grad()
    def _load_state(self, state: dict[str, Any]) -> None:
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        for parameter, saved in zip(self.parameters, state.get("parameters", self.parameters), strict=True):
            parameter.copy_(saved)
        self.generator.refresh_sampler()

    def _parts(self) -> dict[str, Any]:
        parts = {
            "optimizer": self.optimizer,
            "discriminator": self.discriminator,
            "discriminator_optimizer": self.discriminator_optimizer,
        }
        if self.independence is not None:
            parts |= self.independence.parts()
        if self.average is not None:
            parts["average"] = self.average
        return parts | ({"scaler": self.scaler} if self.scaler is not None else {})
