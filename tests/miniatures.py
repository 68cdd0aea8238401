"""Random-weight miniatures of the real architectures, written as the folders their own libraries load.

Weights are drawn larger than the usual initialisation: the layers that training starts at zero are filled too, so that
every output depends on every input and gradients reach every weight.
"""

from pathlib import Path

import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import nn
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
)

TOKEN_LIMIT = 16
START, END = "<|startoftext|>", "<|endoftext|>"


def write_stable_diffusion(folder: Path, prediction_type: str = "epsilon") -> Path:
    """A Stable Diffusion folder for 32x32 images, latents 4x8x8, 50 k parameters in the UNet.

    Predicting epsilon it has the shape of 1.x; predicting v that of 2.x: linear projections, heads of equal width.
    """
    version_2 = prediction_type == "v_prediction"
    tokenizer = clip_tokenizer()
    text_encoder = CLIPTextModel(CLIPTextConfig(**_text_settings(tokenizer)))
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=(2, 4) if version_2 else 2,
        use_linear_projection=version_2,
        norm_num_groups=4,
    )
    vae = AutoencoderKL(
        latent_channels=4,
        block_out_channels=(8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        norm_num_groups=4,
        sample_size=32,
    )
    scheduler = PNDMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        skip_prk_steps=True,
        steps_offset=1,
        prediction_type=prediction_type,
    )
    for seed, module in enumerate((text_encoder, unet, vae)):
        randomize(module, seed)
    StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


def write_clip(folder: Path) -> Path:
    """A CLIP folder: 16x16 pixels, 12 dimensions."""
    tokenizer = clip_tokenizer()
    vision = {**_tower(), "image_size": 16, "patch_size": 8}
    config = CLIPConfig(text_config=_text_settings(tokenizer), vision_config=vision, projection_dim=12)
    processor = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    return _write(folder, CLIPModel(config), tokenizer, processor)


def write_siglip(folder: Path) -> Path:
    """A SigLIP folder: 16x16 pixels, 16 dimensions."""
    tokenizer = clip_tokenizer()
    vision = {**_tower(), "image_size": 16, "patch_size": 8}
    config = SiglipConfig(text_config=_text_settings(tokenizer), vision_config=vision)
    return _write(folder, SiglipModel(config), tokenizer, SiglipImageProcessor(size={"height": 16, "width": 16}))


def clip_tokenizer() -> CLIPTokenizer:
    """CLIP's byte-pair tokenizer over single letters, with a few merges; the end token has the highest id."""
    letters = [chr(code) for code in range(ord("!"), ord("~") + 1)]
    merges = [("p", "h"), ("ph", "o"), ("t", "o</w>"), ("pho", "to</w>"), ("o", "f</w>")]
    words = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(pair) for pair in merges), START, END]
    return CLIPTokenizer(
        vocab={word: number for number, word in enumerate(words)}, merges=merges, model_max_length=TOKEN_LIMIT
    )


def randomize(module: nn.Module, seed: int, gain: float = 1.0) -> None:
    """Fill every weight so that signals keep their size from layer to layer: none is zero, none explodes."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            drawn = torch.randn(parameter.shape, generator=rng)
            fan_in = parameter[0].numel() if parameter.dim() > 1 else 25
            parameter.copy_(drawn * gain / fan_in**0.5 + (1 if _is_norm_scale(module, parameter) else 0))


def _is_norm_scale(module: nn.Module, parameter: nn.Parameter) -> bool:
    norms = (child for child in module.modules() if isinstance(child, nn.GroupNorm | nn.LayerNorm))
    return any(child.weight is parameter for child in norms)


def _tower() -> dict[str, int]:
    return {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def _text_settings(tokenizer: CLIPTokenizer) -> dict[str, int]:
    return {
        **_tower(),
        "vocab_size": len(tokenizer),
        "max_position_embeddings": TOKEN_LIMIT,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def _write(folder: Path, model: nn.Module, tokenizer: CLIPTokenizer, processor: object) -> Path:
    randomize(model, seed=3)
    with torch.no_grad():
        model.logit_scale.fill_(2.0)
    for part in (model, tokenizer, processor):
        part.save_pretrained(folder)
    return folder
