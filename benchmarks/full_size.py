"""Stable Diffusion 1.5 and CLIP ViT-L/14 at their full size with random weights: `python benchmarks/full_size.py DIR`.

For time and memory only: DIR/generator is a diffusers folder, DIR/semantics a transformers one, both fp16, 3.2 GB in
all, both loaded like the real ones. Their tokenizer knows single letters only; prompts are padded to 77 tokens anyway.
"""

import argparse
from pathlib import Path

import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from measuring import DEVICE
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPTokenizer

TOKENS = 77
START, END = "<|startoftext|>", "<|endoftext|>"


def unet() -> UNet2DConditionModel:
    """860 M parameters, latents 4 x 64 x 64."""
    return UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)


def autoencoder() -> AutoencoderKL:
    """84 M parameters, images 3 x 512 x 512."""
    return AutoencoderKL(
        sample_size=512,
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
    )


def text_settings(tokenizer: CLIPTokenizer) -> dict[str, int]:
    """The text tower of CLIP ViT-L/14, which is also the text encoder of Stable Diffusion 1.5."""
    return {
        "vocab_size": 49408,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "max_position_embeddings": TOKENS,
        "projection_dim": 768,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """123 M parameters."""
    return CLIPTextModel(CLIPTextConfig(**text_settings(tokenizer)))


def clip(tokenizer: CLIPTokenizer) -> CLIPModel:
    """428 M parameters, images 3 x 224 x 224."""
    vision = {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 224,
        "patch_size": 14,
        "projection_dim": 768,
    }
    return CLIPModel(CLIPConfig(text_config=text_settings(tokenizer), vision_config=vision, projection_dim=768))


def letters() -> CLIPTokenizer:
    """CLIP's byte-pair tokenizer without merges; the end token has the highest id."""
    characters = [chr(code) for code in range(ord("!"), ord("~") + 1)]
    words = [*characters, *(f"{character}</w>" for character in characters), START, END]
    return CLIPTokenizer(vocab={word: row for row, word in enumerate(words)}, merges=[], model_max_length=TOKENS)


def scheduler() -> PNDMScheduler:
    return PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
    )


def write(directory: Path) -> None:
    tokenizer = letters()
    torch.manual_seed(0)
    with torch.device(DEVICE):
        models = {"unet": unet(), "vae": autoencoder(), "text_encoder": text_encoder(tokenizer)}
        semantics = clip(tokenizer)
    StableDiffusionPipeline(
        **{name: model.half() for name, model in models.items()},
        tokenizer=tokenizer,
        scheduler=scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(directory / "generator")
    for part in (semantics.half(), tokenizer, CLIPImageProcessor()):
        part.save_pretrained(directory / "semantics")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, metavar="DIR")
    write(parser.parse_args().directory)


if __name__ == "__main__":
    main()
