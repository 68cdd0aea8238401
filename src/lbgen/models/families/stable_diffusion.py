"""Stable Diffusion 1.x and 2.x, and every checkpoint in their format, through diffusers."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from torch import Tensor, nn
from transformers import CLIPTextModel

from lbgen.errors import UserError
from lbgen.models import adapter
from lbgen.models.deep_cache import DeepCache
from lbgen.models.generator import Conditioning, Generator
from lbgen.models.loading import complete, loading
from lbgen.models.registry import GENERATORS, resolve

SCHEDULERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "ddpm": (DDPMScheduler, {"clip_sample": False}),
    "ddim": (DDIMScheduler, {"clip_sample": False}),
    "pndm": (PNDMScheduler, {"skip_prk_steps": True}),
    "dpm++": (DPMSolverMultistepScheduler, {}),
}
"""Name -> scheduler and what latents need of it whatever the checkpoint's own scheduler says."""

MODELS = {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "text_encoder": CLIPTextModel}
"""The parts of a checkpoint that hold weights."""

TEXT_ENCODER_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj")

DECODED_AT_ONCE = 8
"""Images. The decoder's largest activation, (B, 256, 512, 512), has 2**31 elements at B = 32: more than some of its
kernels can index. A few images keep a GPU busy."""


class StableDiffusion(Generator):
    def __init__(
        self,
        name: str,
        *,
        dtype: torch.dtype,
        device: torch.device,
        scheduler: str | None,
        guidance_scale: float,
        guidance_rescale: float,
        guidance_interval: tuple[float, float] | None,
        deep_cache_interval: int,
        merged_sampler: bool,
        compile: bool,
    ) -> None:
        self.name = name
        self.pipeline = _load(resolve(name, GENERATORS), dtype).to(device)
        self.unet, self.text_encoder, self.vae = self.pipeline.unet, self.pipeline.text_encoder, self.pipeline.vae
        for module in (self.unet, self.text_encoder, self.vae):
            module.eval().requires_grad_(False)
        self.device, self.dtype = device, dtype
        self.guidance_scale, self.guidance_rescale = guidance_scale, guidance_rescale
        self.guidance_interval = guidance_interval
        self.token_limit = self.pipeline.tokenizer.model_max_length
        size = self.unet.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        self.default_size = (height * self.pipeline.vae_scale_factor, width * self.pipeline.vae_scale_factor)
        self.set_scheduler(scheduler)
        self._merged = adapter.MergedCopy(self.unet) if merged_sampler else None
        self._adapter_on = True
        network = self._merged.network if self._merged else self.unet
        self._deep_cache = DeepCache(network, deep_cache_interval) if deep_cache_interval > 1 else None
        self._sampler: Any = _compiled(network, cuda_graphs=self._deep_cache is None) if compile else network
        self._decoder: Any = _compiled(self.vae.decoder, cuda_graphs=False) if compile else self.vae.decoder
        self._compiles, self._decoded_at_once = compile, DECODED_AT_ONCE

    # -- shapes and prompts

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        factor = self.pipeline.vae_scale_factor
        if height % factor or width % factor:
            raise UserError(f"image size {height}x{width}: height and width must be multiples of {factor}")
        return self.unet.config.in_channels, height // factor, width // factor

    def count_tokens(self, prompt: str) -> int:
        return len(self.pipeline.tokenizer(prompt).input_ids)

    def encode(self, prompts: list[str]) -> Conditioning:
        for prompt in prompts:
            if self.count_tokens(prompt) > self.token_limit:
                raise UserError(f"prompt {prompt!r} has more than {self.token_limit} tokens; shorten it")
        positive, negative = self.pipeline.encode_prompt(prompts, self.device, 1, do_classifier_free_guidance=True)
        return Conditioning(positive, negative)

    # -- the trajectory

    def set_scheduler(self, name: str | None) -> None:
        if name is None:
            self.scheduler = self.pipeline.scheduler
        elif name in SCHEDULERS:
            kind, settings = SCHEDULERS[name]
            self.scheduler = kind.from_config(self.pipeline.scheduler.config, **settings)
        else:
            raise UserError(f"--scheduler {name}: not known; choose one of {', '.join(SCHEDULERS)}")
        self._step_takes_rngs = "generator" in inspect.signature(self.scheduler.step).parameters

    def timesteps(self, steps: int) -> Tensor:
        """(calls,) on the CPU, where the schedulers index their tables. Forgets the previous trajectory."""
        trained = self.scheduler.config.num_train_timesteps
        if steps <= trained:
            self.scheduler.set_timesteps(steps)
        if steps > trained or self.scheduler.timesteps.max() >= trained:  # an offset may lead beyond the last
            raise UserError(f"steps {steps}: {self.name} was trained on {trained} timesteps; give fewer")
        if self._deep_cache:
            self._deep_cache.reset()
        return self.scheduler.timesteps

    @property
    def noise_scale(self) -> float:
        return float(self.scheduler.init_noise_sigma)

    def predict(self, latents: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
        """Classifier-free guidance (arXiv 2207.12598) and its rescale (arXiv 2305.08891, section 3.4)."""
        seen = self._filled(self.scheduler.scale_model_input(latents, timestep).to(self.dtype))  # (B, C, h, w)
        positive, negative = self._filled(conditioning.positive), self._filled(conditioning.negative)
        if not self._guides(timestep):
            return self._network(seen, timestep, positive)[: len(latents)]
        both = torch.cat([negative, positive])  # (2B, T, D)
        without, within = self._network(torch.cat([seen, seen]), timestep, both).chunk(2)
        guided = without + self.guidance_scale * (within - without)
        if self.guidance_rescale > 0:
            ratio = within.std(dim=(1, 2, 3), keepdim=True) / guided.std(dim=(1, 2, 3), keepdim=True)
            guided = guided * (self.guidance_rescale * ratio + 1 - self.guidance_rescale)
        return guided[: len(latents)]

    def _guides(self, timestep: Tensor) -> bool:
        """Whether there is guidance at this timestep: its noise level is to lie in the interval (arXiv 2404.07724)."""
        if self.guidance_scale <= 1 or self.guidance_interval is None:
            return self.guidance_scale > 1
        lowest, highest = self.guidance_interval
        return lowest < noise_level(self.scheduler, timestep) <= highest

    def _network(self, latents: Tensor, timestep: Tensor, embeddings: Tensor) -> Tensor:
        """One call. Under grad the float32 adapter computes in `dtype` too, without it everything already does."""
        training = torch.is_grad_enabled()
        network = self.unet if training or not self._adapter_on else self._sampler
        if self._deep_cache and not training:
            self._deep_cache.begin_call(len(latents))
        with torch.autocast(self.device.type, self.dtype, enabled=training and self.dtype != torch.float32):
            predicted = network(latents, timestep.to(self.device), embeddings, return_dict=False)[0]
        return predicted.to(torch.float32, copy=True)  # a CUDA graph's next run overwrites the output of this one

    def _filled(self, rows: Tensor) -> Tensor:
        """The rows, for compiled networks with the last one repeated up to `fixed_batch`."""
        missing = self.fixed_batch - len(rows)
        if not self._compiles or missing <= 0:
            return rows
        return torch.cat([rows, rows[-1:].expand(missing, *rows.shape[1:])])

    def step(
        self, prediction: Tensor, timestep: Tensor, latents: Tensor, rngs: Sequence[torch.Generator] | None = None
    ) -> Tensor:
        noise = {"generator": list(rngs)} if rngs is not None and self._step_takes_rngs else {}
        return self.scheduler.step(prediction, timestep, latents, return_dict=False, **noise)[0]

    def decode(self, latents: Tensor) -> Tensor:
        """A few images at a time, and as many under grad as without: another number gives other last bits."""
        parts = self._filled(latents / self.vae.config.scaling_factor).to(self.dtype).split(self._decoded_at_once)
        return torch.cat([self._decoded(part) for part in parts])[: len(latents)].float() / 2 + 0.5

    def _decoded(self, latents: Tensor) -> Tensor:
        """What the autoencoder's own `decode` does, without grad with its decoder compiled."""
        if torch.is_grad_enabled():
            return self.vae.decode(latents, return_dict=False)[0]
        if self.vae.post_quant_conv is not None:
            latents = self.vae.post_quant_conv(latents)
        return self._decoder(latents)

    # -- the adapter

    def add_adapter(self, rank: int, alpha: float, targets: Sequence[str], text_encoder: bool = False) -> None:
        parts = [(self.unet, targets)] + [(self.text_encoder, TEXT_ENCODER_TARGETS)] * text_encoder
        for module, names in parts:
            adapter.attach(module, adapter.configuration(rank, alpha, names))
        self.refresh_sampler()

    def adapter_parameters(self) -> list[tuple[str, nn.Parameter]]:
        return [
            (f"{part}.{name}", parameter)
            for part, module in self._parts()
            for name, parameter in adapter.parameters(module)
        ]

    def _parts(self) -> list[tuple[str, nn.Module]]:
        """The parts that carry an adapter."""
        parts = (("unet", self.unet), ("text_encoder", self.text_encoder))
        return [(part, module) for part, module in parts if any(adapter.layers(module))]

    @contextmanager
    def adapter_enabled(self, enabled: bool) -> Iterator[None]:
        before = self._adapter_on
        self._switch_adapter(enabled)
        try:
            yield
        finally:
            self._switch_adapter(before)

    def _switch_adapter(self, enabled: bool) -> None:
        self._adapter_on = enabled
        for _, module in self._parts():
            adapter.enable(module, enabled)

    def refresh_sampler(self) -> None:
        if self._merged is not None:
            self._merged.refresh()

    def save_adapter(self, directory: Path) -> None:
        adapter.save(directory, dict(self._parts()))

    def load_adapter(self, directory: Path) -> None:
        for part, (config, weights) in adapter.read(directory).items():
            try:
                adapter.restore(getattr(self, part), config, weights)
            except ValueError as error:
                raise UserError(
                    f"adapter {directory} was made for another generator than {self.name} ({error}); "
                    "give the one it was aligned from"
                ) from error
        self.refresh_sampler()

    def merge_adapter(self, directory: Path) -> None:
        self.load_adapter(directory)
        for _, module in self._parts():
            adapter.merge(module)

    # -- speed and memory

    def enable_gradient_checkpointing(self) -> None:
        self.unet.enable_gradient_checkpointing()
        self.vae.enable_gradient_checkpointing()
        self._decoded_at_once = 1  # so that only one image's activations exist at a time

    def optimize(self) -> None:
        self.unet.fuse_qkv_projections()
        self.unet.to(memory_format=torch.channels_last)
        self.vae.to(memory_format=torch.channels_last)


def noise_level(scheduler: Any, timestep: Tensor) -> float:
    """Sigma: the standard deviation of the noise in a noisy latent, divided by the signal's scale."""
    signal = float(scheduler.alphas_cumprod[int(timestep)])  # the share of the variance
    return ((1 - signal) / signal) ** 0.5


def _compiled(network: Any, *, cuda_graphs: bool) -> Callable[..., Any]:
    """The whole network compiled once for each shape it meets: a CUDA graph replays one shape only.

    On a GPU, `cuda_graphs` launches it as one graph. That does not hold where outputs outlive the next call.
    """
    compiled = torch.compile(network, dynamic=False, mode="reduce-overhead" if cuda_graphs else "default")

    def call(*inputs: Any, **options: Any) -> Any:
        torch.compiler.cudagraph_mark_step_begin()
        return compiled(*inputs, **options)

    return call


def _load(where: str, dtype: torch.dtype) -> Any:
    with loading("generator", where, marker="model_index.json"):
        index = StableDiffusionPipeline.load_config(where)
        kind = index["_class_name"]
        if kind != "StableDiffusionPipeline":
            raise UserError(f"generator {where} is a {kind}; give a checkpoint in Stable Diffusion 1.x or 2.x format")
        for part, described in index.items():
            if isinstance(described, list) and not _is_known(*described):
                raise UserError(f"generator {where}, model_index.json: {part} is no class of diffusers or transformers")
        parts = {part: complete(MODELS[part], where, dtype, subfolder=part) for part in MODELS}
        return StableDiffusionPipeline.from_pretrained(
            where,
            use_safetensors=True,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
            **parts,
        )


def _is_known(library: str | None, kind: str | None) -> bool:
    """Whether a part's class runs no code of the checkpoint; transformers' Auto classes might."""
    known = library in ("diffusers", "transformers", "stable_diffusion")
    return kind is None or (known and not (library == "transformers" and kind.startswith("Auto")))
