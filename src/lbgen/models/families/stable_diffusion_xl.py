"""Stable Diffusion XL, and every checkpoint in its format, through diffusers."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import StableDiffusionXLPipeline
from torch import Tensor
from transformers import CLIPTextModelWithProjection

from lbgen.errors import UserError
from lbgen.models.families.family import Conditioning, Spans, clip_positions
from lbgen.models.families.stable_diffusion import StableDiffusion
from lbgen.models.loading import load_model, read_config


class StableDiffusionXL(StableDiffusion):
    """The UNet also reads the second text encoder's pooled feature and the image's size. See `Family`.

    If the checkpoint says so, the conditioning of an empty prompt is zero (arXiv 2307.01952).
    """

    title = "Stable Diffusion XL"
    pipeline_class = StableDiffusionXLPipeline
    models = {**StableDiffusion.models, "text_encoder_2": CLIPTextModelWithProjection}
    absent = {"image_encoder": None, "feature_extractor": None, "add_watermarker": False}
    inputs = ("addition_embed_type",)

    def __init__(
        self, name: str, where: str, *, dtype: torch.dtype, device: torch.device, scheduler: str | None
    ) -> None:
        super().__init__(name, where, dtype=dtype, device=device, scheduler=scheduler)
        self.tokenizers = (self.pipeline.tokenizer, self.pipeline.tokenizer_2)

    def count_tokens(self, prompt: str) -> int:
        """The larger count of both tokenizers. They share a limit, because outputs are concatenated by channel."""
        return max(map(len, self.token_ids(prompt)))

    def token_ids(self, prompt: str) -> tuple[tuple[int, ...], ...]:
        return tuple(tuple(tokenizer(prompt).input_ids) for tokenizer in self.tokenizers)

    def tokens_at(self, prompt: str, spans: Spans) -> tuple[int, ...]:
        """Token positions of both encoders, whose outputs are concatenated by channel."""
        return tuple(sorted({each for t in self.tokenizers for each in clip_positions(t, prompt, spans)}))

    def encode(self, prompts: list[str]) -> Conditioning:
        text, _, pooled, _ = self.pipeline.encode_prompt(prompts, device=self.device, do_classifier_free_guidance=False)
        if self.pipeline.config.force_zeros_for_empty_prompt:
            given = torch.tensor([prompt != "" for prompt in prompts], device=self.device)
            text, pooled = text * given[:, None, None], pooled * given[:, None]
        return Conditioning({"text": text, "pooled": pooled})  # (B, T, D) of both encoders side by side, (B, P)

    def predict(self, network: Any, latents: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
        text, pooled = conditioning.tensors["text"], conditioning.tensors["pooled"]
        height, width = (side * self.pipeline.vae_scale_factor for side in latents.shape[-2:])
        sizes = text.new_tensor([[height, width, 0, 0, height, width]])  # original, place of the crop, target
        added = {"text_embeds": pooled, "time_ids": sizes.expand(len(latents), -1)}
        return network(latents, timestep, text, added_cond_kwargs=added, return_dict=False)[0]

    def to_decoder(self, latents: Tensor) -> Tensor:
        config = self.vae.config
        if config.latents_mean is None or config.latents_std is None:
            return latents / config.scaling_factor
        mean, std = (
            latents.new_tensor(values).view(1, -1, 1, 1) for values in (config.latents_mean, config.latents_std)
        )
        return latents * std / config.scaling_factor + mean

    # ---- loading ----

    @classmethod
    def refuse_other_parts(cls, where: str) -> None:
        super().refuse_other_parts(where)
        if (kind := read_config(where, "unet").get("addition_embed_type")) != "text_time":
            raise UserError(
                f"generator {where}: unet has addition_embed_type {kind!r:.40}, not 'text_time'; give a text-to-image "
                f"checkpoint of {cls.title}"
            )

    def _load(self, where: str, dtype: torch.dtype) -> Any:
        """The pipeline with its autoencoder in float32 if that overflows in half precision."""
        pipeline = super()._load(where, dtype)
        if dtype == torch.float16 and pipeline.vae.config.force_upcast:
            pipeline.vae = load_model(self.models["vae"], where, torch.float32, subfolder="vae")
        return pipeline
