"""The same small trajectory through lbgen and through diffusers, on the miniatures."""

import json
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from peft import get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor

from lbgen.models.adapter import METADATA
from lbgen.models.generator import Generator, load_generator
from lbgen.models.noise import image_noise
from lbgen.models.registry import ADAPTER_FILE
from lbgen.models.sampling import sample

TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
"""The attention projections an adapter sits on by default."""
PROMPTS = ["fish", "photo of cup"]
STEPS = 5


def draws(shape: tuple[int, int, int] = (4, 8, 8)) -> tuple[Tensor, list[torch.Generator]]:
    """The noise of one image a prompt, (2, *shape), and each one's generator of later draws: always the same."""
    pairs = [image_noise(1, "fish", index, 0, shape) for index in range(len(PROMPTS))]
    return torch.stack([noise for noise, _ in pairs]), [rng for _, rng in pairs]


@torch.no_grad()
def images_of(generator: Generator) -> Tensor:
    noise, rngs = draws(generator.latent_shape(32, 32))
    return sample(generator, generator.encode(PROMPTS), noise, steps=STEPS, rngs=rngs)


def images_of_diffusers(pipeline: StableDiffusionPipeline, **options: float) -> Tensor:
    """What diffusers makes of the same noise; it clamps to [0, 1]."""
    noise, rngs = draws()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(
        PROMPTS, latents=noise, generator=rngs, num_inference_steps=STEPS, output_type="pt", **options
    ).images


@torch.no_grad()
def one_image_of_both(generator: Generator, pipeline: Any) -> tuple[Tensor, Tensor]:
    """The first image by lbgen and by a pipeline, without guidance."""
    (noise, rngs), prompts = draws(), PROMPTS[:1]
    ours = sample(generator, generator.encode(prompts), noise[:1], steps=STEPS, rngs=rngs[:1])
    settings = {"num_inference_steps": STEPS, "guidance_scale": 1.0, "output_type": "pt"}
    return ours, pipeline(prompts, latents=noise[:1], generator=rngs[:1], **settings).images


def plain(folder: Path) -> StableDiffusionPipeline:
    return StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, requires_safety_checker=False)


def adapted(folder: Path, *, text_encoder: bool = False, **options: Any) -> Generator:
    """A generator with a random adapter whose rank is not its alpha."""
    generator = load_generator(str(folder), **options)
    generator.add_adapter(rank=2, alpha=3, targets=TARGETS, text_encoder=text_encoder)
    shake(generator, 6)
    return generator


@torch.no_grad()
def shake(generator: Generator, seed: int) -> None:
    """Move the adapter away from its start, where it changes nothing and half of its gradients vanish."""
    rng = torch.Generator().manual_seed(seed)
    for _, parameter in generator.adapter_parameters():
        parameter.copy_(0.4 * torch.randn(parameter.shape, generator=rng))
    generator.refresh_sampler()


def gradients_of(generator: Generator, differentiate_at: AbstractSet[int] = frozenset({1, 3})) -> list[Tensor]:
    """The adapter's gradients of a simple loss."""
    noise, rngs = draws()
    images = sample(
        generator, generator.encode(PROMPTS), noise, steps=STEPS, differentiate_at=differentiate_at, rngs=rngs
    )
    return list(torch.autograd.grad(images.square().mean(), [p for _, p in generator.adapter_parameters()]))


def write_as_earlier(generator: Generator, folder: Path) -> None:
    """The file of earlier versions: alpha beside the weights, all of peft's settings, transformers' names."""
    weights, described = {}, {}
    for part, module in {"unet": generator.family.unet, "text_encoder": generator.family.text_encoder}.items():
        state = get_peft_model_state_dict(module, adapter_name="default", save_embedding_layers=False)
        weights |= {f"{part}.{name}": tensor.contiguous() for name, tensor in state.items()}
        settings = module.peft_config["default"].to_dict() | {"base_model_name_or_path": None}
        described |= {f"{part}.{name}": value for name, value in settings.items()}
    folder.mkdir(exist_ok=True)
    save_file(weights, folder / ADAPTER_FILE, {METADATA: json.dumps(described, sort_keys=True, default=sorted)})
