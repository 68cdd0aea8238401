"""PixArt-Sigma (arXiv 2403.04692) through diffusers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from diffusers import AutoencoderKL, PixArtSigmaPipeline, PixArtTransformer2DModel
from torch import Tensor
from transformers import T5EncoderModel

from lbgen.models.families import stable_diffusion as diffusion
from lbgen.models.families.family import Conditioning, Schedule, TextAttention
from lbgen.models.families.transformer import Config, TransformerFamily


class PixArtSigma(TransformerFamily):
    """A transformer that predicts noise and a variance, which is not used; T5 as text encoder. See `Family`."""

    title = "PixArt-Sigma"
    pipeline_class = PixArtSigmaPipeline
    models = {"transformer": PixArtTransformer2DModel, "vae": AutoencoderKL, "text_encoder": T5EncoderModel}
    other_names = {"transformer": ("Transformer2DModel",)}
    limits = {"tokenizer": 300}
    text_attention = TextAttention(r"\.attn2$")
    widths = {"caption_channels": (("text_encoder", "d_model"),)}

    def encode(self, prompts: list[str]) -> Conditioning:
        text, mask, _, _ = self.pipeline.encode_prompt(prompts, device=self.device, do_classifier_free_guidance=False)
        return Conditioning({"text": text, "mask": mask})  # (B, T, D), (B, T)

    def predict(self, network: Any, latents: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
        prediction = network(
            latents,
            encoder_hidden_states=conditioning.tensors["text"],
            encoder_attention_mask=conditioning.tensors["mask"],
            timestep=timestep.expand(len(latents)),
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
            return_dict=False,
        )[0]
        return prediction[:, : latents.shape[1]]  # the other channels are the variance

    # ---- the schedule is that of Stable Diffusion ----

    def timesteps(self, steps: int, latent_shape: tuple[int, int, int]) -> Schedule:
        return diffusion.schedule(self.scheduler, steps, self.name)

    def noise_level(self, timestep: Tensor) -> float:
        return diffusion.noise_level(self.scheduler, timestep)

    def refuse_scheduler(self, name: str | None, config: Config) -> None:
        diffusion.refuse_scheduler(name, config, self.name)

    def scheduler_called(self, name: str | None) -> Any:
        return diffusion.scheduler_called(name, self.pipeline.scheduler, self.name)

    # ---- loading ----

    def faults(self, configs: Mapping[str, Config]) -> Iterator[str]:
        yield from super().faults(configs)
        if configs["transformer"].get("use_additional_conditions"):
            yield "transformer reads the image's size too, as PixArt-Alpha does"
