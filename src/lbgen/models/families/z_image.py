"""Z-Image through diffusers, base and Turbo."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, ZImagePipeline, ZImageTransformer2DModel
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import Qwen3Model

from lbgen.models.families.family import Conditioning, Spans, TextAttention
from lbgen.models.families.flow_matching import FlowMatching
from lbgen.models.families.transformer import Config
from lbgen.models.guidance import Guidance


class ZImage(FlowMatching):
    """Qwen3's tokens without padding; time runs from 0 to 1, and the prediction is image - noise. See `Family`.

    Its guidance scale g starts at 0, conditional + g (conditional - unconditional), where others start at 1.
    """

    title = "Z-Image"
    pipeline_class = ZImagePipeline
    models = {"transformer": ZImageTransformer2DModel, "vae": AutoencoderKL, "text_encoder": Qwen3Model}
    limits = {"tokenizer": 512}
    widths = {"cap_feat_dim": (("text_encoder", "hidden_size"),)}

    def take_guidance(self, guidance: Guidance) -> Guidance:
        """A scale of 1 is off, as for all families; a larger one is converted."""
        guidance = guidance.without_true_scale(self.name)
        return replace(guidance, scale=guidance.scale + 1) if guidance.is_on else guidance

    def side_of_patch(self) -> int:
        return self.network.config.all_patch_size[0]

    def token_ids(self, prompt: str) -> tuple[tuple[int, ...], ...]:
        return (self.chat_ids(prompt, enable_thinking=True),)

    @property
    def text_attention(self) -> TextAttention:
        return TextAttention(r"^layers\.\d+\.attention$", "last", patch=self.patch_size, multiple=32)

    def tokens_at(self, prompt: str, spans: Spans) -> tuple[int, ...]:
        return self.chat_tokens_at(prompt, spans, enable_thinking=True)

    def encode(self, prompts: list[str]) -> Conditioning:
        texts, _ = self.pipeline.encode_prompt(list(prompts), device=self.device, do_classifier_free_guidance=False)
        most = texts[0].new_zeros(self.token_limit, texts[0].shape[1])  # so that all prompts have one shape
        text = pad_sequence([*texts, most], batch_first=True)[:-1]
        return Conditioning({"text": text, "tokens": torch.tensor([len(each) for each in texts])})  # (B, T, D), (B,)

    def sigmas(self, steps: int) -> np.ndarray:
        return torch.linspace(1.0, 1 / steps, steps).numpy()

    def predict(self, network: Any, latents: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
        counts = conditioning.tensors["tokens"].tolist()
        texts = [text[:count] for text, count in zip(conditioning.tensors["text"], counts, strict=True)]
        time = ((1000 - timestep) / 1000).expand(len(latents))
        predictions = network(list(latents.unsqueeze(2)), time, texts, return_dict=False)[0]  # each (C, 1, h, w)
        return -torch.stack(predictions).squeeze(2)

    def faults(self, configs: Mapping[str, Config]) -> Iterator[str]:
        yield from super().faults(configs)
        if configs["transformer"].get("siglip_feat_dim") is not None:
            yield "transformer reads images too, for editing"
