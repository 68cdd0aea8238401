"""A text-to-image generator: the code that does not depend on the family, and loading a generator."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lbgen.configuration.values import PathOrText
from lbgen.errors import UserError
from lbgen.models import adapter
from lbgen.models.checkpoints.suited import is_distilled, refuse_guidance, suited_settings
from lbgen.models.compilation import Rows, compiled, padded
from lbgen.models.deep_cache import DeepCache, is_unet
from lbgen.models.families import load_family
from lbgen.models.families.family import Conditioning, Family, Schedule
from lbgen.models.families.kept_prompts import KeptPrompts
from lbgen.models.guidance import Guidance
from lbgen.vocabulary.distinct import Confusion, confusions
from lbgen.vocabulary.tokens import refuse_long_text
from lbgen.vocabulary.vocabulary import Category

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
"""Name in configs -> torch's dtype."""

DECODED_AT_ONCE = 8
"""Number of images. The decoder's largest activation, (B, 256, 512, 512), has 2**31 elements at B = 32, more than some
kernels can index, and a few images are enough to occupy a GPU."""

RECOMPUTED_PIXELS = 512 * 512
"""With gradient checkpointing, images are decoded together up to this number of pixels, or one by one."""


class Prediction(NamedTuple):
    """One step's call of the network; tensors are (B, C, h, w)."""

    latents: Tensor
    """The network's input."""
    timestep: Tensor
    conditional: Tensor
    """Prediction for the prompts."""
    unconditional: Tensor | None
    """Prediction for the empty prompt; None without guidance."""


class Generator:
    """Text to image, differentiable under grad. Latents are in `latent_dtype`; the networks compute in `dtype`.

    Under grad the family's own network runs, with its adapter. Without grad a faster form of it can run: a copy with
    the adapter merged, with cached deep blocks, or compiled.
    """

    def __init__(
        self,
        family: Family,
        guidance: Guidance,
        *,
        deep_cache_interval: int = 1,
        merged_sampler: bool = False,
        compile: bool = False,
        latent_dtype: torch.dtype = torch.float32,
    ) -> None:
        """See `load_generator`."""
        self.family, self.latent_dtype = family, latent_dtype
        left = getattr(family, "take_guidance", lambda guidance: guidance.without_true_scale(family.name))
        self.guidance = left(guidance)  # the guidance done by two calls of the network
        self.name, self.device, self.dtype = family.name, family.device, family.dtype
        self.default_size, self.token_limit = family.default_size, family.token_limit
        self._parts: dict[str, Any] = {family.network_name: family.network, **family.text_encoders}
        for module in (*self._parts.values(), family.vae):
            module.eval().requires_grad_(False)

        self._prompts = KeptPrompts(family) if getattr(family, "keeps_prompts", False) else None
        self.fixed_batch = 0
        """Smaller batches are padded to this size for compiled networks, so that these are compiled only once."""
        self._compiles, self._adapter_on, self._decoded_at_once = compile, True, DECODED_AT_ONCE
        # The network for calls without grad; the copy is made before there is an adapter.
        self._merged = adapter.MergedCopy(family.network) if merged_sampler else None
        network = self._merged.network if self._merged else family.network
        if deep_cache_interval > 1 and not is_unet(network):
            raise UserError(
                f"--deep-cache-interval {deep_cache_interval}: it reuses the deep blocks of a UNet, and {family.title} "
                "has a transformer; give 1"
            )
        self._observers: list[Callable[[Prediction], None]] = []
        self._deep_cache = DeepCache(network, deep_cache_interval) if deep_cache_interval > 1 else None
        self._sampler: Any = compiled(network, cuda_graphs=self._deep_cache is None) if compile else network
        self._decoder: Any = compiled(family.vae.decoder, cuda_graphs=False) if compile else family.vae.decoder

    # ---- prompts and shapes ----

    def count_tokens(self, prompt: str) -> int:
        """Number of tokens of `prompt`, including the start and end tokens."""
        return self.family.count_tokens(prompt)

    def confusions(self, categories: Sequence[Category], template: str) -> list[Confusion]:
        """Categories whose prompts have the same tokens, so that their images differ only in noise."""
        prompts = [template.replace("{name}", category.name) for category in categories]
        return confusions(categories, map(self.family.token_ids, prompts), f"generator {self.name}")

    def encode(self, prompts: list[str]) -> Conditioning:
        """Embed prompts; under grad the gradient reaches the text encoders' adapter."""
        for prompt in prompts:
            refuse_long_text(prompt, self.count_tokens, self.token_limit, source=f"generator {self.name}, prompt")
        encode = self._prompts.rows if self._prompts else self.family.encode
        conditioning = encode(prompts)
        if not self.guidance.is_on:
            return conditioning
        return conditioning.with_unconditional(encode([""] * len(prompts)))

    def prepare(self, prompts: Iterable[str]) -> None:
        """Encode prompts ahead of use if the family caches them, so that its text encoders are needed only once."""
        if self._prompts:
            self._prompts.encode([*prompts, ""] if self.guidance.is_on else prompts)

    def forget_prompts(self) -> None:
        """Empty the cache of encoded prompts."""
        if self._prompts:
            self._prompts.clear()

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(C, h, w) of the latents of an image of `height` x `width` pixels; UserError if the size is not possible."""
        return self.family.latent_shape(height, width)

    def check_trajectory(self, steps: int, size: tuple[int, int] | None = None) -> None:
        """Refuse more steps than the checkpoint was trained on, and a size (H, W) that latents cannot have."""
        self.timesteps(steps, self.latent_shape(*(size or self.default_size)))

    # ---- the trajectory ----

    def timesteps(self, steps: int, latent_shape: tuple[int, int, int] | None = None) -> Schedule:
        """A new schedule for latents of this shape, by default for images of `default_size`."""
        return self.family.timesteps(steps, latent_shape or self.latent_shape(*self.default_size))

    def start_trajectory(self) -> None:
        """Forget the cached outputs of an earlier trajectory."""
        if self._deep_cache:
            self._deep_cache.reset()

    def predict(self, latents: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
        """(B, C, h, w) The network's prediction with guidance.  latents: scaled by the schedule."""
        count = len(latents)
        latents, conditioning = self._padded(latents.to(self.dtype)), self._padded(conditioning)
        if not self._guides(timestep):
            predicted = conditional = self._network(latents, timestep, conditioning)
            unconditional = None
        else:
            both = self._network(torch.cat([latents, latents]), timestep, conditioning.for_guidance())
            unconditional, conditional = both.chunk(2)
            predicted = self.guidance.combine(unconditional, conditional)
        for observer in self._observers:
            observer(Prediction(latents, timestep, conditional, unconditional))
        return predicted[:count]

    def predict_unguided(self, latents: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
        """The network's prediction without guidance; observers are not called.

        latents: from a Prediction, with the same rows.
        """
        return self._network(latents, timestep, self._padded(conditioning))

    @contextmanager
    def observed(self, observer: Callable[[Prediction], None]) -> Iterator[None]:
        """Call `observer` with each prediction within the context."""
        self._observers.append(observer)
        try:
            yield
        finally:
            self._observers.remove(observer)

    def _guides(self, timestep: Tensor) -> bool:
        guidance = self.guidance
        if guidance.interval is None:
            return guidance.is_on
        return guidance.is_on and guidance.covers(self.family.noise_level(timestep))

    def _network(self, latents: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
        """One network call. Under grad, autocast runs the float32 adapter in `dtype`, the type of all other weights."""
        training = torch.is_grad_enabled()
        network = self.family.network if training or not self._adapter_on else self._sampler
        if self._deep_cache and not training:
            self._deep_cache.begin_call(len(latents))
        with torch.autocast(self.device.type, self.dtype, enabled=training and self.dtype != torch.float32):
            predicted = self.family.predict(network, latents, timestep.to(self.device), conditioning)
        return predicted.to(self.latent_dtype, copy=True)  # a CUDA graph's next run overwrites the output of this one

    def decode(self, latents: Tensor) -> Tensor:
        """(B, C, h, w) to images (B, 3, H, W), float32, nominally in [0, 1], never clamped.

        The number of images decoded at once is the same with and without grad, because it changes the last bits.
        """
        dtype = self.family.vae.dtype  # float32 if the autoencoder of a half-precision generator would overflow
        parts = self._padded(self.family.to_decoder(latents)).to(dtype).split(self._decoded_at_once)
        with torch.autocast(self.device.type, enabled=False) if dtype == torch.float32 else nullcontext():
            images = torch.cat([self._decoded(part) for part in parts])
        return images[: len(latents)].float() / 2 + 0.5

    def _decoded(self, latents: Tensor) -> Tensor:
        """The autoencoder's `decode`; without grad, its decoder may be compiled."""
        vae = self.family.vae
        if torch.is_grad_enabled():
            return vae.decode(latents, return_dict=False)[0]
        first = getattr(vae, "post_quant_conv", None)
        return self._decoder(latents if first is None else first(latents))

    def _padded(self, rows: Rows) -> Rows:
        return padded(rows, self.fixed_batch) if self._compiles else rows

    def why_not_finite(self) -> str:
        """The likely cause of a non-finite image, and the remedy, for messages."""
        for part, module in {**self._parts, "vae": self.family.vae}.items():
            for name, parameter in module.named_parameters():
                if f".{adapter.NAME}." not in name and not parameter.isfinite().all():
                    return f"{part}.{name} is not finite: restore the checkpoint, or give another adapter"
        if self.dtype == torch.float16:
            return "float16 overflows beyond 65504: choose --precision bf16 or fp32"
        if self._adapter_on and any(value.any() for name, value in self.adapter_parameters() if ".lora_B." in name):
            return "the adapter has diverged: choose another --output and a lower --learning-rate, or --detach-input"
        return "the trajectory has diverged: choose a lower --guidance-scale, another --scheduler or another adapter"

    # ---- the adapter ----

    def add_adapter(self, rank: int, alpha: float, targets: Sequence[str], text_encoder: bool = False) -> None:
        """Put a new trainable LoRA on the network's `targets`: float32, gaussian init from torch's global seed.

        text_encoder: put one on every text encoder too.
        """
        if text_encoder and not self.family.text_encoder_targets:
            raise UserError(
                f"--text-encoder-lora: {self.family.title} encodes each prompt once, with unchanged text encoders; "
                "leave it out"
            )
        adapter.attach(self.family.network, adapter.configuration(rank, alpha, targets))
        for encoder in self.family.text_encoders.values() if text_encoder else ():
            adapter.attach(encoder, adapter.configuration(rank, alpha, self.family.text_encoder_targets))
        self.refresh_sampler()

    def adapter_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """The trainable weights by name, always in the same order."""
        return [
            (f"{part}.{name}", parameter)
            for part, module in self._adapted().items()
            for name, parameter in adapter.parameters(module)
        ]

    def _adapted(self) -> dict[str, Any]:
        """The parts that have an adapter."""
        return {part: module for part, module in self._parts.items() if any(adapter.layers(module))}

    @contextmanager
    def adapter_enabled(self, enabled: bool) -> Iterator[None]:
        """Switch the adapter on or off within the context; off gives the base model."""
        before = self._adapter_on
        self._switch_adapter(enabled)
        try:
            yield
        finally:
            self._switch_adapter(before)

    def _switch_adapter(self, enabled: bool) -> None:
        self._adapter_on = enabled
        for module in self._adapted().values():
            adapter.enable(module, enabled)

    def refresh_sampler(self) -> None:
        """Update the merged copy; call this after each change of the adapter."""
        if self._merged is not None:
            self._merged.refresh()

    def save_adapter(self, directory: PathOrText) -> None:
        """Write the adapter as a LoRA file that diffusers and ComfyUI read."""
        adapter.save(Path(directory), self._adapted())

    def load_adapter(self, directory: PathOrText) -> None:
        """Load a saved adapter, trainable. An adapter that is already attached keeps its alpha."""
        parts = tuple(self._parts) if self.family.text_encoder_targets else (self.family.network_name,)
        for part, (config, weights) in adapter.read(Path(directory), parts).items():
            try:
                adapter.restore(self._parts[part], config, weights)
            except ValueError as error:
                raise UserError(
                    f"adapter {directory} was made for another generator than {self.name} ({error}); "
                    "give the one it was aligned from"
                ) from error
        self.refresh_sampler()

    def merge_adapter(self, directory: PathOrText) -> None:
        """Add a saved adapter to the base weights, and remove the adapter itself."""
        self.load_adapter(directory)
        for module in self._adapted().values():
            adapter.merge(module)

    # ---- speed and memory ----

    def enable_gradient_checkpointing(self) -> None:
        """Recompute activations in the backward pass instead of keeping them."""
        self.family.network.enable_gradient_checkpointing()
        if self.family.vae._supports_gradient_checkpointing:
            self.family.vae.enable_gradient_checkpointing()
        height, width = self.default_size
        self._decoded_at_once = max(1, min(DECODED_AT_ONCE, RECOMPUTED_PIXELS // (height * width)))

    def optimize(self) -> None:
        """Use faster layouts for sampling without gradients; images change in their last bits at most.

        Call this after `merge_adapter`. On a CPU the network keeps its layout (benchmarks/speed/matrix_rate.py).
        """
        if is_unet(self.family.network):  # fused projections fail in some transformers, such as SD 3.5 medium
            self.family.network.fuse_qkv_projections()
        modules = [self.family.vae] if self.device.type == "cpu" else [self.family.vae, self.family.network]
        for module in modules:
            module.to(memory_format=torch.channels_last)


def load_generator(
    name: str,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    scheduler: str | None = None,
    guidance_scale: float | None = None,
    true_cfg_scale: float = 1.0,
    guidance_rescale: float = 0.0,
    guidance_interval: tuple[float, float] | None = None,
    pipeline_instruction: bool = False,
    deep_cache_interval: int = 1,
    merged_sampler: bool = False,
    compile: bool = False,
    latent_dtype: torch.dtype = torch.float32,
    revision: str | None = None,
    variant: str | None = None,
) -> Generator:
    """Load a checkpoint by registry name, folder, hub id or single .safetensors file.

    scheduler: its name; None and "native" mean the checkpoint's own.
    guidance_scale: None means the default for the generator: 2, or for example 1 (off) if it was distilled.
    true_cfg_scale: scale of classifier-free guidance for FLUX.1, which reads `guidance_scale` as an input; 1 is off.
    guidance_interval: guidance acts only at noise levels above the first and up to the second (arXiv 2404.07724).
    pipeline_instruction: put the instruction of the family's pipeline before each prompt.
    deep_cache_interval: without grad, compute the deep blocks once in this many calls (arXiv 2312.00858); 1 is off.
    merged_sampler: predict without grad with a copy that has the adapter merged (see `refresh_sampler`).
    compile: torch.compile the networks that predict and decode without grad.
    latent_dtype: type of the latents, of guidance and of the scheduler's steps.
    revision: of a hub id; None means main.  variant: of the weights, such as fp16, or "ema" in a single file.
    """
    where: dict[str, Any] = {"device": torch.device(device), "revision": revision, "variant": variant}
    family = load_family(name, dtype=dtype, scheduler=None if scheduler == "native" else scheduler, **where)
    if pipeline_instruction:
        if not hasattr(family, "use_instruction"):
            raise UserError(f"--pipeline-instruction: the pipeline of {family.title} has none; leave it out")
        family.use_instruction()
    if guidance_scale is None:
        guidance_scale = suited_settings(name, revision).get("guidance_scale", Guidance.scale)
    elif is_distilled(name, revision):
        refuse_guidance(name, guidance_scale)
    return Generator(
        family,
        Guidance(guidance_scale, guidance_rescale, true_cfg_scale, guidance_interval),
        deep_cache_interval=deep_cache_interval,
        merged_sampler=merged_sampler,
        compile=compile,
        latent_dtype=latent_dtype,
    )
