"""Stable Diffusion 3 and 3.5 (arXiv 2403.03206) through diffusers."""

from __future__ import annotations

from typing import Any

from diffusers import AutoencoderKL, SD3Transformer2DModel, StableDiffusion3Pipeline
from torch import Tensor
from transformers import CLIPTextModelWithProjection, T5EncoderModel

from lbgen.errors import UserError
from lbgen.models.families.family import Conditioning, Spans, TextAttention, clip_positions, token_positions
from lbgen.models.families.flow_matching import FlowMatching


class StableDiffusion3(FlowMatching):
    """Two CLIP text encoders and T5, whose features are zeros if a checkpoint omits it. See `Family`."""

    title = "Stable Diffusion 3 and 3.5"
    pipeline_class = StableDiffusion3Pipeline
    models = {
        "transformer": SD3Transformer2DModel,
        "vae": AutoencoderKL,
        "text_encoder": CLIPTextModelWithProjection,
        "text_encoder_2": CLIPTextModelWithProjection,
        "text_encoder_3": T5EncoderModel,
    }
    optional = ("text_encoder_3", "tokenizer_3")
    largest_shift = 1.16
    absent = {"image_encoder": None, "feature_extractor": None}
    limits = {"tokenizer": None, "tokenizer_2": None, "tokenizer_3": 256}
    widths = {
        "joint_attention_dim": (("text_encoder_3", "d_model"),),
        "pooled_projection_dim": (("text_encoder", "projection_dim"), ("text_encoder_2", "projection_dim")),
    }

    @property
    def text_attention(self) -> TextAttention:
        return TextAttention(r"^transformer_blocks\.\d+\.attn$", "last", patch=self.patch_size)

    def tokens_at(self, prompt: str, spans: Spans) -> tuple[int, ...]:
        """Token positions of both CLIP encoders, whose outputs are concatenated by channel, and of T5."""
        tokenizers = (self.pipeline.tokenizer, self.pipeline.tokenizer_2)
        found = {each for tokenizer in tokenizers for each in clip_positions(tokenizer, prompt, spans)}
        if (tokenizer := self.pipeline.tokenizer_3) is not None:
            before = self.pipeline.tokenizer_max_length
            found |= {before + each for each in token_positions(tokenizer, prompt, spans)}
        return tuple(sorted(found))

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """See `Family`; UserError for more than the transformer's square of positions."""
        shape, side = super().latent_shape(height, width), self.network.config.pos_embed_max_size * self.patch_size
        if max(shape[1:]) > side:
            most = side * self.pipeline.vae_scale_factor
            raise UserError(f"image size {height}x{width}: {self.name} reads at most {most}x{most}; give a smaller one")
        return shape

    def encode(self, prompts: list[str]) -> Conditioning:
        text, _, pooled, _ = self.pipeline.encode_prompt(
            prompts, None, None, device=self.device, do_classifier_free_guidance=False
        )
        return Conditioning({"text": text, "pooled": pooled})  # (B, T, D), CLIPs' tokens and then T5's; (B, P)

    def predict(self, network: Any, latents: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
        return network(
            hidden_states=latents,
            timestep=timestep.expand(len(latents)),
            encoder_hidden_states=conditioning.tensors["text"],
            pooled_projections=conditioning.tensors["pooled"],
            return_dict=False,
        )[0]
