"""FLUX.2 klein through diffusers, base and distilled."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLFlux2, Flux2KleinPipeline, Flux2Transformer2DModel
from torch import Tensor
from torch.nn import functional
from transformers import Qwen3ForCausalLM

from lbgen.models.checkpoints.suited import refuse_guidance
from lbgen.models.families.family import Conditioning, Spans, TextAttention
from lbgen.models.families.flow_matching import FlowMatching
from lbgen.models.guidance import Guidance


class Flux2Klein(FlowMatching):
    """Its latents are 2x2 patches of the autoencoder's latents, normalised by its batch norm. See `Family`.

    Texts are features of Qwen3 at three depths. A prompt is a user's message to Qwen3, with thinking disabled.
    """

    title = "FLUX.2 klein"
    pipeline_class = Flux2KleinPipeline
    models = {"transformer": Flux2Transformer2DModel, "vae": AutoencoderKLFlux2, "text_encoder": Qwen3ForCausalLM}
    limits = {"tokenizer": 512}
    packs = 2
    text_attention = TextAttention(r"transformer_blocks\.\d+\.attn$", "first")

    def take_guidance(self, guidance: Guidance) -> Guidance:
        if self.pipeline.config.is_distilled:
            refuse_guidance(self.name, guidance.scale)
        return guidance.without_true_scale(self.name)

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        channels, rows, columns = super().latent_shape(height, width)
        return channels * self.packs**2, rows // self.packs, columns // self.packs

    def token_ids(self, prompt: str) -> tuple[tuple[int, ...], ...]:
        return (self.chat_ids(prompt, enable_thinking=False),)

    def tokens_at(self, prompt: str, spans: Spans) -> tuple[int, ...]:
        return self.chat_tokens_at(prompt, spans, enable_thinking=False)

    def encode(self, prompts: list[str]) -> Conditioning:
        text, _ = self.pipeline.encode_prompt(prompts, device=self.device)
        return Conditioning({"text": text})  # (B, T, 3 D)

    def sigmas(self, steps: int) -> np.ndarray:
        return np.linspace(1.0, 1 / steps, steps)

    def shift(self, steps: int, latent_shape: tuple[int, int, int]) -> float:
        """The authors' fit: linear in the number of patches at 10 and at 200 steps, and interpolated between both."""
        patches = latent_shape[1] * latent_shape[2]
        at_200 = 0.00016927 * patches + 0.45666666
        if patches > 4300:
            return at_200
        at_10 = 8.73809524e-05 * patches + 1.89833333
        return at_200 + (at_200 - at_10) / 190 * (steps - 200)

    def predict(self, network: Any, latents: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
        text, (batch, _, height, width) = conditioning.tensors["text"], latents.shape
        prediction = network(
            hidden_states=latents.flatten(2).transpose(1, 2),
            timestep=(timestep / 1000).expand(batch),
            guidance=None,
            encoder_hidden_states=text,
            txt_ids=positions(1, 1, text.shape[1], device=latents.device),
            img_ids=positions(height, width, 1, device=latents.device),
            return_dict=False,
        )[0]
        return prediction.transpose(1, 2).unflatten(2, (height, width))

    def to_decoder(self, latents: Tensor) -> Tensor:
        norm, epsilon = self.vae.bn, self.vae.config.batch_norm_eps
        deviation, mean = (norm.running_var + epsilon).sqrt(), norm.running_mean  # of each channel
        return functional.pixel_shuffle(latents * deviation.view(-1, 1, 1) + mean.view(-1, 1, 1), self.packs)


def positions(rows: int, columns: int, tokens: int, *, device: torch.device) -> Tensor:
    """(rows * columns * tokens, 4): 0, row, column and token."""
    axes = (torch.arange(count, device=device) for count in (1, rows, columns, tokens))
    return torch.cartesian_prod(*axes)
