"""FLUX.1 through diffusers: dev, schnell, and every text-to-image checkpoint in their format."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, FluxPipeline, FluxTransformer2DModel
from torch import Tensor
from torch.nn import functional
from transformers import CLIPTextModel, T5EncoderModel

from lbgen.errors import UserError
from lbgen.models.checkpoints.suited import refuse_guidance
from lbgen.models.families.family import Conditioning, TextAttention
from lbgen.models.families.flow_matching import FlowMatching
from lbgen.models.guidance import Guidance


class Flux(FlowMatching):
    """The network reads a sequence of 2x2 patches of latents, T5's tokens and CLIP's pooled feature. See `Family`."""

    title = "FLUX.1"
    pipeline_class = FluxPipeline
    models = {
        "transformer": FluxTransformer2DModel,
        "vae": AutoencoderKL,
        "text_encoder": CLIPTextModel,
        "text_encoder_2": T5EncoderModel,
    }
    absent = {"image_encoder": None, "feature_extractor": None}
    limits = {"tokenizer": None, "tokenizer_2": 512}
    widths = {
        "joint_attention_dim": (("text_encoder_2", "d_model"),),
        "pooled_projection_dim": (("text_encoder", "hidden_size"),),
    }
    packs = 2
    text_attention = TextAttention(r"transformer_blocks\.\d+\.attn$", "first", patch=2)
    embedded_guidance: float | None = None
    """The guidance scale that the network reads; None if it reads none."""

    def take_guidance(self, guidance: Guidance) -> Guidance:
        """dev reads the scale, schnell was distilled to need none; only --true-cfg-scale needs two network calls."""
        if self.network.config.guidance_embeds:
            self.embedded_guidance = guidance.scale
        else:
            refuse_guidance(self.name, guidance.scale)
        if guidance.interval is not None and guidance.true_scale <= 1:
            raise UserError(
                f"generator {self.name}: --guidance-interval: its guidance has no second call of the network to leave "
                "out; give none"
            )
        return replace(guidance, scale=guidance.true_scale, true_scale=1.0)

    def encode(self, prompts: list[str]) -> Conditioning:
        text, pooled, _ = self.pipeline.encode_prompt(prompts, device=self.device)
        return Conditioning({"text": text, "pooled": pooled})  # (B, T, D) of T5, (B, P) of CLIP

    def sigmas(self, steps: int) -> np.ndarray:
        return np.linspace(1.0, 1 / steps, steps)

    def predict(self, network: Any, latents: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
        text, (batch, _, height, width) = conditioning.tensors["text"], latents.shape
        scale = self.embedded_guidance
        prediction = network(
            hidden_states=functional.pixel_unshuffle(latents, 2).flatten(2).transpose(1, 2),
            timestep=(timestep / 1000).expand(batch),
            guidance=None if scale is None else torch.full((batch,), scale, device=latents.device),
            pooled_projections=conditioning.tensors["pooled"],
            encoder_hidden_states=text,
            txt_ids=torch.zeros(text.shape[1], 3, device=latents.device),
            img_ids=positions(height // 2, width // 2, latents.device),
            return_dict=False,
        )[0]
        patches = prediction.transpose(1, 2).unflatten(2, (height // 2, width // 2))
        return functional.pixel_shuffle(patches, 2)


def positions(rows: int, columns: int, device: torch.device) -> Tensor:
    """(rows * columns, 3): 0, row and column of each patch."""
    axes = (torch.zeros(1, device=device), *(torch.arange(n, device=device).float() for n in (rows, columns)))
    return torch.cartesian_prod(*axes)
