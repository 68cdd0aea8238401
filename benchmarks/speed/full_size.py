"""Stable Diffusion 1.5 and CLIP ViT-L/14 at full size, random weights: `python benchmarks/speed/full_size.py DIR`.

For time and memory only: DIR/generator is a diffusers folder, DIR/semantics a transformers one, both fp16, 3.2 GB in
all, both loaded like the real ones. Their tokenizer knows single letters only; prompts are padded to 77 tokens anyway.
`--miniature` writes small networks of the same kinds, for 64 x 64 images, to try out scripts that need these folders.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPTokenizer

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.measuring import DEVICE, flags_parser

TOKENS = 77
START, END = "<|startoftext|>", "<|endoftext|>"


@dataclass(frozen=True)
class Size:
    """Sides in latents or pixels, channels, layers, attention heads."""

    latents: int = 64
    unet_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    autoencoder_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers: int = 2
    """Layers of a block, in the UNet and the autoencoder."""
    text: tuple[int, int, int] = (768, 12, 12)
    """Channels, layers, heads."""
    vision: tuple[int, int, int] = (1024, 24, 16)
    image: int = 224
    patch: int = 14


FULL = Size()
MINIATURE = Size(8, (32,) * 2, (32,) * 4, layers=1, text=(32, 1, 2), vision=(32, 1, 2), image=32, patch=16)


def unet(size: Size = FULL) -> UNet2DConditionModel:
    """860 M parameters, latents 4 x 64 x 64."""
    attentive = len(size.unet_channels) - 1  # levels with attention: all but the deepest
    return UNet2DConditionModel(
        sample_size=size.latents,
        block_out_channels=size.unet_channels,
        down_block_types=(*("CrossAttnDownBlock2D",) * attentive, "DownBlock2D"),
        up_block_types=("UpBlock2D", *("CrossAttnUpBlock2D",) * attentive),
        layers_per_block=size.layers,
        cross_attention_dim=size.text[0],
        attention_head_dim=8,
    )


def autoencoder(size: Size = FULL) -> AutoencoderKL:
    """84 M parameters, images 3 x 512 x 512."""
    return AutoencoderKL(
        sample_size=8 * size.latents,
        block_out_channels=size.autoencoder_channels,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=size.layers,
    )


def tower(channels: int, layers: int, heads: int) -> dict[str, int]:
    """A transformer as in CLIP."""
    return {
        "hidden_size": channels,
        "intermediate_size": 4 * channels,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
    }


def text_settings(tokenizer: CLIPTokenizer, size: Size) -> dict[str, int]:
    """The text tower of CLIP ViT-L/14, which is also the text encoder of Stable Diffusion 1.5."""
    return {
        **tower(*size.text),
        "vocab_size": 49408,
        "max_position_embeddings": TOKENS,
        "projection_dim": size.text[0],
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def text_encoder(tokenizer: CLIPTokenizer, size: Size = FULL) -> CLIPTextModel:
    """123 M parameters."""
    return CLIPTextModel(CLIPTextConfig(**text_settings(tokenizer, size)))


def clip(tokenizer: CLIPTokenizer, size: Size = FULL) -> CLIPModel:
    """428 M parameters, images 3 x 224 x 224."""
    shared = {"projection_dim": size.text[0]}
    vision = {**tower(*size.vision), "image_size": size.image, "patch_size": size.patch, **shared}
    return CLIPModel(CLIPConfig(text_config=text_settings(tokenizer, size), vision_config=vision, **shared))


def letters() -> CLIPTokenizer:
    """CLIP's byte-pair tokenizer without merges; the end token has the highest id."""
    characters = [chr(code) for code in range(ord("!"), ord("~") + 1)]
    words = [*characters, *(f"{character}</w>" for character in characters), START, END]
    return CLIPTokenizer(vocab={word: token for token, word in enumerate(words)}, merges=[], model_max_length=TOKENS)


def scheduler() -> PNDMScheduler:
    return PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
    )


def write(directory: Path, size: Size = FULL) -> None:
    tokenizer = letters()
    torch.manual_seed(0)
    with torch.device(DEVICE):
        models = {"unet": unet(size), "vae": autoencoder(size), "text_encoder": text_encoder(tokenizer, size)}
        semantics = clip(tokenizer, size)
    StableDiffusionPipeline(
        **{name: model.half() for name, model in models.items()},
        tokenizer=tokenizer,
        scheduler=scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(directory / "generator")
    sides = {"size": {"shortest_edge": size.image}, "crop_size": {"height": size.image, "width": size.image}}
    for part in (semantics.half(), tokenizer, CLIPImageProcessor(**sides)):
        part.save_pretrained(directory / "semantics")


def main(argv: list[str] | None = None) -> None:
    parser = flags_parser(__doc__)
    parser.add_argument("directory", type=Path, metavar="DIR")
    parser.add_argument("--miniature", action="store_true", help="small networks of the same kinds")
    arguments = parser.parse_args(argv)
    write(arguments.directory, MINIATURE if arguments.miniature else FULL)


if __name__ == "__main__":
    main()
