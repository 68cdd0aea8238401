"""A diffusers folder's weights by the names of the original code, in one file, as model sites offer them."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor

RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
AROUND = {
    "conv_in": "input_blocks.0.0", "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0", "conv_out": "out.2",
}  # fmt: skip
OPEN_CLIP = {
    "layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}  # fmt: skip


def write_single_file(folder: Path, file: Path, ema: dict[str, Tensor] | None = None) -> Path:
    """The weights of a Stable Diffusion 1.x or XL folder.  ema: an average of the UNet's, by diffusers' names."""
    unet = original_unet(UNet2DConditionModel.from_pretrained(folder, subfolder="unet"))
    weights = {f"model.diffusion_model.{name}": tensor for name, tensor in unet.items()}
    if ema is not None:
        average = UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
        average.load_state_dict(ema)
        renamed = original_unet(average)
        weights |= {f"model_ema.diffusion_model{name.replace('.', '')}": each for name, each in renamed.items()}
    vae = original_vae(AutoencoderKL.from_pretrained(folder, subfolder="vae"))
    weights |= {f"first_stage_model.{name}": tensor for name, tensor in vae.items()}
    text = clip_names(folder / "text_encoder")
    if (folder / "text_encoder_2").is_dir():
        weights |= {f"conditioner.embedders.0.transformer.{name}": each for name, each in text.items()}
        second = open_clip_names(clip_names(folder / "text_encoder_2"))
        weights |= {f"conditioner.embedders.1.model.{name}": each for name, each in second.items()}
    else:
        weights |= {f"cond_stage_model.transformer.{name}": each for name, each in text.items()}
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous().clone() for name, tensor in weights.items()}, file)
    return file


def original_unet(unet: UNet2DConditionModel) -> dict[str, Tensor]:
    """Blocks are numbered through: in every level the layers, then the one that changes the size."""
    layers, named = unet.config.layers_per_block, {}
    for name, tensor in unet.state_dict().items():
        around = next((mine for mine in AROUND if name.startswith(f"{mine}.")), None)
        if around:
            named[name.replace(around, AROUND[around], 1)] = tensor
            continue
        side, *rest = name.split(".")
        level = int(rest.pop(0)) if side != "mid_block" else 0
        kind, number, inner = rest[0], int(rest[1]), ".".join(rest[2:])
        if kind == "resnets":
            inner = next(inner.replace(mine, theirs, 1) for mine, theirs in RESNET.items() if inner.startswith(mine))
        place = 1 if kind == "attentions" else 0
        if side == "mid_block":
            block = f"middle_block.{1 if place else 2 * number}"
        elif kind == "downsamplers":
            block, inner = f"input_blocks.{(level + 1) * (layers + 1)}.0", inner.replace("conv", "op", 1)
        elif kind == "upsamplers":
            has_attention = hasattr(unet.up_blocks[level], "attentions")
            block = f"output_blocks.{level * (layers + 1) + layers}.{1 + has_attention}"
        elif side == "down_blocks":
            block = f"input_blocks.{1 + level * (layers + 1) + number}.{place}"
        else:
            block = f"output_blocks.{level * (layers + 1) + number}.{place}"
        named[f"{block}.{inner}"] = tensor
    return named


def original_vae(vae: AutoencoderKL) -> dict[str, Tensor]:
    """The decoder's levels are counted from the image; the attention's projections are convolutions."""
    levels, named = len(vae.config.block_out_channels), {}
    for name, tensor in vae.state_dict().items():
        name = name.replace("mid_block.resnets.0", "mid.block_1").replace("mid_block.resnets.1", "mid.block_2")
        if "mid_block.attentions.0" in name:
            name = name.replace("mid_block.attentions.0", "mid.attn_1").replace("group_norm", "norm")
            name = name.replace("to_out.0", "proj_out")
            for letter in "qkv":
                name = name.replace(f"to_{letter}", letter)
            if name.endswith("weight") and "norm" not in name:
                tensor = tensor[:, :, None, None]
        for level in range(levels):
            name = name.replace(f"down_blocks.{level}.", f"down.{level}.")
            name = name.replace(f"up_blocks.{level}.", f"up.{levels - 1 - level}.")
        name = name.replace("resnets", "block").replace("downsamplers.0", "downsample")
        name = name.replace("upsamplers.0", "upsample").replace("conv_shortcut", "nin_shortcut")
        named[name.replace("conv_norm_out", "norm_out")] = tensor
    return named


def clip_names(folder: Path) -> dict[str, Tensor]:
    """By the names that CLIP's text model had in transformers before 5.6."""
    weights = load_file(folder / "model.safetensors")
    return {
        name if name.startswith(("text_model.", "text_projection.")) else f"text_model.{name}": tensor
        for name, tensor in weights.items()
    }


def open_clip_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Queries, keys and values lie in one matrix."""
    named = {}
    for name, tensor in weights.items():
        name = name.removeprefix("text_model.")
        if name.startswith("encoder.layers."):
            _, _, layer, inner = name.split(".", 3)
            if "q_proj" in inner:
                joined = [weights[f"text_model.{name.replace('q_proj', f'{letter}_proj')}"] for letter in "qkv"]
                kind = inner.rpartition(".")[2]
                named[f"transformer.resblocks.{layer}.attn.in_proj_{kind}"] = torch.cat(joined)
            elif "k_proj" not in inner and "v_proj" not in inner:
                theirs = next(inner.replace(m, t, 1) for m, t in OPEN_CLIP.items() if inner.startswith(m))
                named[f"transformer.resblocks.{layer}.{theirs}"] = tensor
        elif name == "text_projection.weight":
            named["text_projection"] = tensor.T
        elif "position_embedding" in name:
            named["positional_embedding"] = tensor
        else:
            named[name.replace("embeddings.token", "token").replace("final_layer_norm", "ln_final")] = tensor
    return named
