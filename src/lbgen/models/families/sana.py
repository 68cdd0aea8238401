"""Sana (arXiv 2410.10629) through diffusers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from inspect import signature
from typing import Any

from diffusers import AutoencoderDC, SanaPipeline, SanaTransformer2DModel
from torch import Tensor
from transformers import Gemma2Model

from lbgen.models.families.family import Conditioning, TextAttention
from lbgen.models.families.flow_matching import FlowMatching
from lbgen.models.families.transformer import Config


class Sana(FlowMatching):
    """Gemma 2 as text encoder, an autoencoder with latents 32 times smaller, DPM-Solver. See `Family`."""

    title = "Sana"
    pipeline_class = SanaPipeline
    models = {"transformer": SanaTransformer2DModel, "vae": AutoencoderDC, "text_encoder": Gemma2Model}
    limits = {"tokenizer": 300}
    largest_shift = None
    text_attention = TextAttention(r"\.attn2$")
    widths = {"caption_channels": (("text_encoder", "hidden_size"),)}

    instruction: list[str] | None = None
    """The pipeline's instruction to embellish the prompt that follows; None uses prompts without it."""

    def use_instruction(self) -> None:
        self.instruction = signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default

    def encode(self, prompts: list[str]) -> Conditioning:
        text, mask, _, _ = self.pipeline.encode_prompt(
            prompts,
            device=self.device,
            do_classifier_free_guidance=False,
            complex_human_instruction=self.instruction if all(prompts) else None,
        )
        return Conditioning({"text": text, "mask": mask})  # (B, T, D), (B, T)

    def predict(self, network: Any, latents: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
        return network(
            latents,
            encoder_hidden_states=conditioning.tensors["text"],
            encoder_attention_mask=conditioning.tensors["mask"],
            timestep=timestep.expand(len(latents)) * self.network.config.timestep_scale,
            return_dict=False,
        )[0]

    def faults(self, configs: Mapping[str, Config]) -> Iterator[str]:
        yield from super().faults(configs)
        if configs["transformer"].get("guidance_embeds"):
            yield "transformer reads the guidance scale, as Sana-Sprint does"
