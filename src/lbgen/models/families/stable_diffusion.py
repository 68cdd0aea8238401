"""Stable Diffusion 1.x and 2.x, and every checkpoint in their format, through diffusers."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
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
from transformers import CLIPTextConfig, CLIPTextModel

from lbgen.errors import UserError
from lbgen.models.checkpoints.forms import UNET_USES
from lbgen.models.checkpoints.suited import drops_zero_snr
from lbgen.models.families.family import Conditioning, Schedule, Spans, TextAttention, clip_positions
from lbgen.models.loading import load_model, read_config

SCHEDULERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "ddpm": (DDPMScheduler, {"clip_sample": False}),
    "ddim": (DDIMScheduler, {"clip_sample": False}),
    "pndm": (PNDMScheduler, {"skip_prk_steps": True}),
    "dpm++": (DPMSolverMultistepScheduler, {}),
}
"""Name -> scheduler, and settings that override those of the checkpoint's own scheduler."""

PREDICTIONS = {
    "ddpm": ("epsilon", "v_prediction", "sample"),
    "ddim": ("epsilon", "v_prediction", "sample"),
    "pndm": ("epsilon", "v_prediction"),
    "dpm++": ("epsilon", "v_prediction", "sample", "flow_prediction"),
}
"""Name -> the values of `prediction_type` that the scheduler supports."""

PURE_NOISE = 1000.0
"""Noise level above which no signal is left; the last timestep of Stable Diffusion 1.5 has 14.6."""

OTHER_INPUTS = {
    "time_cond_proj_dim": "the guidance scale, as latent consistency models do",
    "class_embed_type": "a class or a noise level",
    "num_class_embeds": "a class or a noise level",
    "addition_embed_type": "the image's size and a second text, as Stable Diffusion XL does",
    "encoder_hid_dim_type": "an image",
}
"""Setting of a UNet with inputs besides latents, timestep and text -> that input."""
MADE_FROM_TEXT = ("text", "text_proj")
"""Values of these settings for inputs that the UNet computes from the text itself."""

Config = dict[str, Any]


class StableDiffusion:
    """A UNet that predicts noise or velocity, one CLIP text encoder, an autoencoder. See `Family`."""

    title = "Stable Diffusion 1.x and 2.x"
    network_name = "unet"
    text_encoder_targets: Sequence[str] = ("q_proj", "k_proj", "v_proj", "out_proj")
    pipeline_class: Any = StableDiffusionPipeline
    models: Mapping[str, Any] = {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "text_encoder": CLIPTextModel}
    """The parts of a checkpoint that hold weights."""
    absent: Mapping[str, Any] = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    """Arguments of the pipeline for parts that are not loaded."""
    inputs: Collection[str] = ()
    """The settings in OTHER_INPUTS whose inputs this family gives to its UNet."""
    text_attention = TextAttention(r"\.attn2$")

    def __init__(
        self, name: str, where: str, *, dtype: torch.dtype, device: torch.device, scheduler: str | None
    ) -> None:
        self.name, self.device, self.dtype = name, device, dtype
        self.refuse_other_parts(where)
        refuse_scheduler(scheduler, read_config(where, "scheduler", "scheduler_config.json"), name)
        self.pipeline = self._load(where, dtype).to(device)
        self.network = self.unet = self.pipeline.unet
        self.vae, self.text_encoder = self.pipeline.vae, self.pipeline.text_encoder
        self.text_encoders: Mapping[str, Any] = {
            part: getattr(self.pipeline, part) for part in self.models if "text" in part
        }
        self.scheduler = scheduler_called(scheduler, self.pipeline.scheduler, name)
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

    def tokens_at(self, prompt: str, spans: Spans) -> tuple[int, ...]:
        return clip_positions(self.pipeline.tokenizer, prompt, spans)

    def encode(self, prompts: list[str]) -> Conditioning:
        text, _ = self.pipeline.encode_prompt(prompts, self.device, 1, do_classifier_free_guidance=False)
        return Conditioning({"text": text})  # (B, T, D), the text encoder's last hidden state

    def timesteps(self, steps: int, latent_shape: tuple[int, int, int]) -> Schedule:
        """See `Family`; the schedule does not depend on the image size."""
        return schedule(self.scheduler, steps, self.name)

    def noise_level(self, timestep: Tensor) -> float:
        return noise_level(self.scheduler, timestep)

    def predict(self, network: Any, latents: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
        return network(latents, timestep, conditioning.tensors["text"], return_dict=False)[0]

    def to_decoder(self, latents: Tensor) -> Tensor:
        return latents / self.vae.config.scaling_factor

    # ---- loading ----

    @classmethod
    def refuse_other_parts(cls, where: str) -> None:
        """Refuse parts of other classes and a UNet with other inputs, according to their configurations."""
        configs = {part: read_config(where, part) for part in cls.models}
        for fault in (*_wrong_classes(configs, cls.models), *_wrong_inputs(configs, cls.inputs)):
            raise UserError(f"generator {where}: {fault}; give a text-to-image checkpoint of {cls.title}")

    def _load(self, where: str, dtype: torch.dtype) -> Any:
        """diffusers' pipeline, without the parts that are not used here."""
        parts = {part: load_model(kind, where, dtype, subfolder=part) for part, kind in self.models.items()}
        return self.pipeline_class.from_pretrained(where, use_safetensors=True, **self.absent, **parts)


def _wrong_classes(configs: Mapping[str, Config], models: Mapping[str, Any]) -> Iterator[str]:
    for part, config in configs.items():
        if "text" in part:
            if (kind := config.get("model_type")) not in (None, "clip", CLIPTextConfig.model_type):
                yield f"{part} is of type {kind!r:.40}, not {CLIPTextConfig.model_type}"
        elif (kind := config.get("_class_name")) not in (None, models[part].__name__):
            yield f"{part} is of class {kind!r:.40}, not {models[part].__name__}"


def _wrong_inputs(configs: Mapping[str, Config], inputs: Collection[str]) -> Iterator[str]:
    """Faults in the UNet's inputs; a missing setting has the default of its class."""
    unet, latents = configs["unet"], configs["vae"].get("latent_channels", 4)
    for name in ("in_channels", "out_channels"):
        if (channels := unet.get(name, 4)) != latents:
            use = UNET_USES.get(channels, "inpainting or depth") if isinstance(channels, int) else "another use"
            yield f"unet has {name} {channels!r:.40}, latents have {latents!r:.40} (it may be for {use})"
    for name, taken in OTHER_INPUTS.items():
        if name not in inputs and (value := unet.get(name)) not in (None, *MADE_FROM_TEXT):
            yield f"unet has {name} {value!r:.40}: it takes {taken}, which lbgen does not give"
    encoders = {part: config.get("text_config") or config for part, config in configs.items() if "text" in part}
    widths = [config.get("hidden_size", 512) for config in encoders.values()]
    read = unet.get("encoder_hid_dim") or unet.get("cross_attention_dim", 1280)
    if isinstance(read, int) and (not all(isinstance(width, int) for width in widths) or sum(widths) != read):
        given = " + ".join(f"{width!r:.40}" for width in widths)
        yield f"unet reads texts of {read} channels, {' and '.join(encoders)} give{'s' * (len(widths) == 1)} {given}"


def schedule(scheduler: Any, steps: int, checkpoint: str) -> Schedule:
    """A new schedule of a diffusion model; `scheduler` does not change."""
    scheduler, trained = copy.deepcopy(scheduler), scheduler.config.num_train_timesteps
    if steps <= trained:
        try:
            scheduler.set_timesteps(steps)
        except ValueError as error:  # a timestep spacing that the scheduler does not support
            raise UserError(f"generator {checkpoint}, scheduler_config.json: {' '.join(str(error).split())}") from error
    if steps > trained or scheduler.timesteps.max() >= trained:  # an offset may exceed the last timestep
        raise UserError(f"steps {steps}: {checkpoint} was trained on {trained} timesteps; give fewer")
    _refuse_lost_signal(scheduler, checkpoint)
    return Schedule(scheduler.timesteps, float(scheduler.init_noise_sigma), scheduler)


def noise_level(scheduler: Any, timestep: Tensor) -> float:
    """sqrt((1 - a) / a), where `a` is the signal's share of the variance at this timestep; infinite if a = 0."""
    signal = float(scheduler.alphas_cumprod[int(timestep)])
    return ((1 - signal) / signal) ** 0.5 if signal > 0 else math.inf


def refuse_scheduler(name: str | None, config: Mapping[str, Any], checkpoint: str) -> None:
    """Refuse a scheduler before the weights are loaded.  config: of the checkpoint's own scheduler."""
    if name is not None and name not in SCHEDULERS:
        raise UserError(f"--scheduler {name}: not known; choose one of {', '.join(SCHEDULERS)}")
    if name is not None:
        _refuse_unsuited(name, SCHEDULERS[name][0], config, checkpoint)


def scheduler_called(name: str | None, own: Any, checkpoint: str) -> Any:
    """The scheduler called `name` with the checkpoint's noise schedule; None is the checkpoint's own."""
    kind, settings = SCHEDULERS[name] if name is not None else (type(own), {})
    _refuse_unsuited(name, kind, own.config, checkpoint)
    return own if name is None else kind.from_config(own.config, **settings)


def _refuse_unsuited(name: str | None, kind: Any, config: Mapping[str, Any], checkpoint: str) -> None:
    """Refuse a scheduler that does not fit the checkpoint's training.  config: of the checkpoint's own scheduler."""
    if config.get("rescale_betas_zero_snr") and not _reaches_pure_noise(kind):
        suited = [other for other, (scheduler, _) in SCHEDULERS.items() if _reaches_pure_noise(scheduler)]
        raise drops_zero_snr(checkpoint, name or kind.__name__, suited)
    predicts = config.get("prediction_type", "epsilon")
    if name is not None and predicts not in PREDICTIONS[name]:
        able = ", ".join(other for other, known in PREDICTIONS.items() if predicts in known)
        remedy = f"choose --scheduler {able}" if able else "correct prediction_type in its scheduler_config.json"
        raise UserError(
            f"generator {checkpoint}: {name} cannot sample from a network that predicts {predicts!s:.40}; {remedy}"
        )


def _reaches_pure_noise(kind: Any) -> bool:
    """Whether schedulers of this class can rescale their schedule to zero signal at its end (arXiv 2305.08891)."""
    return "rescale_betas_zero_snr" in inspect.signature(kind.__init__).parameters


def _refuse_lost_signal(scheduler: Any, checkpoint: str) -> None:
    """Refuse a trajectory that begins at pure noise if the network predicts noise: that does not determine an image."""
    first = scheduler.timesteps.max()
    predicts_noise = scheduler.config.get("prediction_type") == "epsilon" and hasattr(scheduler, "alphas_cumprod")
    if predicts_noise and noise_level(scheduler, first) >= PURE_NOISE:
        raise UserError(
            f"generator {checkpoint}: its timestep {int(first)} is pure noise, from which no image can be made if the "
            "network predicts epsilon; correct its scheduler_config.json: with rescale_betas_zero_snr, prediction_type "
            "is v_prediction"
        )
