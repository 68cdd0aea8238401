"""Stable Diffusion 1.x and 2.x, and every checkpoint in their format, through diffusers."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
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
from torch import Tensor
from transformers import CLIPTextModel

from lbgen.errors import UserError
from lbgen.models.families.family import Conditioning, Schedule
from lbgen.models.loading import load_model

SCHEDULERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "ddpm": (DDPMScheduler, {"clip_sample": False}),
    "ddim": (DDIMScheduler, {"clip_sample": False}),
    "pndm": (PNDMScheduler, {"skip_prk_steps": True}),
    "dpm++": (DPMSolverMultistepScheduler, {}),
}
"""Name -> scheduler, and the settings that latents need whatever the checkpoint's own scheduler says."""

MODELS = {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "text_encoder": CLIPTextModel}
"""The parts of a checkpoint that hold weights."""


class StableDiffusion:
    """A UNet that predicts noise or velocity, one CLIP text encoder, an autoencoder. See `Family`."""

    title = "Stable Diffusion 1.x and 2.x"
    network_name = "unet"
    text_encoder_targets: Sequence[str] = ("q_proj", "k_proj", "v_proj", "out_proj")

    def __init__(
        self, name: str, where: str, *, dtype: torch.dtype, device: torch.device, scheduler: str | None
    ) -> None:
        self.name, self.device, self.dtype = name, device, dtype
        self.pipeline = _load(where, dtype).to(device)
        self.network = self.unet = self.pipeline.unet
        self.vae, self.text_encoder = self.pipeline.vae, self.pipeline.text_encoder
        self.text_encoders: Mapping[str, Any] = {"text_encoder": self.text_encoder}
        self.scheduler = _scheduler(scheduler, self.pipeline.scheduler)
        self.token_limit = self.pipeline.tokenizer.model_max_length
        size, factor = self.unet.config.sample_size, self.pipeline.vae_scale_factor
        height, width = (size, size) if isinstance(size, int) else size
        self.default_size = (height * factor, width * factor)

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        factor = self.pipeline.vae_scale_factor
        if height % factor or width % factor:
            raise UserError(f"image size {height}x{width}: height and width must be multiples of {factor}")
        return self.unet.config.in_channels, height // factor, width // factor

    def count_tokens(self, prompt: str) -> int:
        return len(self.pipeline.tokenizer(prompt).input_ids)

    def token_ids(self, prompt: str) -> tuple[tuple[int, ...], ...]:
        return (tuple(self.pipeline.tokenizer(prompt).input_ids),)

    def encode(self, prompts: list[str]) -> Conditioning:
        text, _ = self.pipeline.encode_prompt(prompts, self.device, 1, do_classifier_free_guidance=False)
        return Conditioning({"text": text})  # (B, T, D), the text encoder's last hidden state

    def timesteps(self, steps: int, latent_shape: tuple[int, int, int]) -> Schedule:
        """The same for every image size."""
        scheduler, trained = copy.deepcopy(self.scheduler), self.scheduler.config.num_train_timesteps
        if steps <= trained:
            scheduler.set_timesteps(steps)
        if steps > trained or scheduler.timesteps.max() >= trained:  # an offset may lead beyond the last
            raise UserError(f"steps {steps}: {self.name} was trained on {trained} timesteps; give fewer")
        return Schedule(scheduler.timesteps, float(scheduler.init_noise_sigma), scheduler)

    def noise_level(self, timestep: Tensor) -> float:
        return noise_level(self.scheduler, timestep)

    def predict(self, network: Any, latents: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
        return network(latents, timestep, conditioning.tensors["text"], return_dict=False)[0]

    def to_decoder(self, latents: Tensor) -> Tensor:
        return latents / self.vae.config.scaling_factor


def noise_level(scheduler: Any, timestep: Tensor) -> float:
    """sqrt((1 - a) / a), where `a` is the signal's share of the variance at this timestep."""
    signal = float(scheduler.alphas_cumprod[int(timestep)])
    return ((1 - signal) / signal) ** 0.5


def _scheduler(name: str | None, own: Any) -> Any:
    """The scheduler called `name` with the checkpoint's noise schedule; None is the checkpoint's own."""
    if name is None:
        return own
    if name not in SCHEDULERS:
        raise UserError(f"--scheduler {name}: not known; choose one of {', '.join(SCHEDULERS)}")
    kind, settings = SCHEDULERS[name]
    return kind.from_config(own.config, **settings)


def _load(where: str, dtype: torch.dtype) -> Any:
    """diffusers' pipeline, without the safety checker."""
    parts = {part: load_model(kind, where, dtype, subfolder=part) for part, kind in MODELS.items()}
    return StableDiffusionPipeline.from_pretrained(
        where,
        use_safetensors=True,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        **parts,
    )
