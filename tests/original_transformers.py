"""The weights of transformers by the names of their makers' code, as model sites offer them and ComfyUI reads them.

Written from that code: queries, keys and values lie in one matrix, and the last norm shifts before it scales.
"""

from collections.abc import Callable

import torch
from safetensors.torch import load_file
from torch import Tensor

Weights = dict[str, Tensor]


def renamed(weights: Weights, names: dict[str, str]) -> Weights:
    """Every part of a name that is in `names`, in order, by the other's."""
    found = {}
    for name, tensor in weights.items():
        for own, original in names.items():
            name = name.replace(own, original)
        found[name] = tensor
    return found


def joined(weights: Weights, parts: tuple[str, ...], whole: str) -> Weights:
    """Layers of these names, which follow each other, as one."""
    found = dict(weights)
    for name in weights:
        if f".{parts[0]}." in name:
            rows = [found.pop(name.replace(f".{parts[0]}.", f".{part}.")) for part in parts]
            found[name.replace(f".{parts[0]}.", f".{whole}.")] = torch.cat(rows)
    return found


def swapped(weights: Weights, name: str) -> Weights:
    """The two halves of a layer change places."""
    return {
        each: torch.cat(tensor.chunk(2)[::-1]) if each.startswith(f"{name}.") else tensor
        for each, tensor in weights.items()
    }


EMBEDDED = {
    "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
    "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
}


def stable_diffusion_3(weights: Weights) -> Weights:
    """Of the image's and the text's stream, x_block and context_block."""
    weights = joined(weights, ("to_q", "to_k", "to_v"), "qkv")
    weights = joined(weights, ("add_q_proj", "add_k_proj", "add_v_proj"), "context_qkv")
    last = max(int(name.split(".")[1]) for name in weights if name.startswith("transformer_blocks."))
    weights = swapped(swapped(weights, "norm_out.linear"), f"transformer_blocks.{last}.norm1_context.linear")
    text = {
        "attn.context_qkv": "context_block.attn.qkv", "attn.norm_added_q": "context_block.attn.ln_q",
        "attn.norm_added_k": "context_block.attn.ln_k", "attn.to_add_out": "context_block.attn.proj",
        "norm1_context.linear": "context_block.adaLN_modulation.1",
        "ff_context.net.0.proj": "context_block.mlp.fc1", "ff_context.net.2": "context_block.mlp.fc2",
    }  # fmt: skip
    image = {
        f".{attn}.{own}": f".x_block.{attn}.{original}"
        for attn in ("attn", "attn2")
        for own, original in {"qkv": "qkv", "norm_q": "ln_q", "norm_k": "ln_k", "to_out.0": "proj"}.items()
    }
    image |= {
        ".norm1.linear": ".x_block.adaLN_modulation.1", ".ff.net.0.proj": ".x_block.mlp.fc1",
        ".ff.net.2": ".x_block.mlp.fc2",
    }  # fmt: skip
    around = {
        "transformer_blocks.": "joint_blocks.", "norm_out.linear": "final_layer.adaLN_modulation.1",
        "proj_out.": "final_layer.linear.", "pos_embed.proj": "x_embedder.proj", "pos_embed.pos_embed": "pos_embed",
    }  # fmt: skip
    return renamed(weights, {**image, **text, **around, **EMBEDDED})


FLUX_STREAMS = {
    "attn.img_qkv": "img_attn.qkv", "attn.txt_qkv": "txt_attn.qkv",
    "attn.norm_q.weight": "img_attn.norm.query_norm.scale", "attn.norm_k.weight": "img_attn.norm.key_norm.scale",
    "attn.norm_added_q.weight": "txt_attn.norm.query_norm.scale",
    "attn.norm_added_k.weight": "txt_attn.norm.key_norm.scale",
    "attn.to_out.0": "img_attn.proj", "attn.to_add_out": "txt_attn.proj",
}  # fmt: skip
FLUX_SINGLE = {
    "img_attn.norm.": "norm.", "attn.to_qkv_mlp_proj": "linear1", "attn.qkv_mlp": "linear1",
}  # fmt: skip


def flux_streams(weights: Weights, single: dict[str, str], double: dict[str, str]) -> Weights:
    """Blocks of one and of two streams."""
    kinds = {
        "single_transformer_blocks.": ("single_blocks.", FLUX_STREAMS | FLUX_SINGLE | single),
        "transformer_blocks.": ("double_blocks.", FLUX_STREAMS | double),
    }
    found = {}
    for name, tensor in weights.items():
        kind = next((kind for kind in kinds if name.startswith(kind)), None)
        if kind is None:
            found[name] = tensor
        else:
            begin, names = kinds[kind]
            found |= renamed({name: tensor}, {kind: begin, **names})
    return found


def flux(weights: Weights) -> Weights:
    """FLUX.1."""
    singles = {name: each for name, each in weights.items() if name.startswith("single_")}
    doubles = {name: each for name, each in weights.items() if name not in singles}
    for name in [name for name in singles if ".proj_mlp." in name]:
        singles[name.replace("proj_mlp", "attn.mlp")] = singles.pop(name)
    singles = joined(singles, ("to_q", "to_k", "to_v", "mlp"), "qkv_mlp")
    doubles = joined(doubles, ("to_q", "to_k", "to_v"), "img_qkv")
    doubles = joined(doubles, ("add_q_proj", "add_k_proj", "add_v_proj"), "txt_qkv")
    double = {
        "norm1.linear": "img_mod.lin", "norm1_context.linear": "txt_mod.lin", "ff.net.0.proj": "img_mlp.0",
        "ff.net.2": "img_mlp.2", "ff_context.net.0.proj": "txt_mlp.0", "ff_context.net.2": "txt_mlp.2",
    }  # fmt: skip
    blocks = flux_streams(singles | doubles, {"norm.linear": "modulation.lin", "proj_out": "linear2"}, double)
    around = {
        "time_text_embed.timestep_embedder.linear_1": "time_in.in_layer",
        "time_text_embed.timestep_embedder.linear_2": "time_in.out_layer",
        "time_text_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
        "time_text_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
        "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
        "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
        "context_embedder": "txt_in", "x_embedder": "img_in", "norm_out.linear": "final_layer.adaLN_modulation.1",
        "proj_out": "final_layer.linear",
    }  # fmt: skip
    return renamed(swapped(blocks, "norm_out.linear"), around)


def flux_2(weights: Weights) -> Weights:
    """FLUX.2, whose blocks share their modulation."""
    weights = joined(weights, ("to_q", "to_k", "to_v"), "img_qkv")
    weights = joined(weights, ("add_q_proj", "add_k_proj", "add_v_proj"), "txt_qkv")
    double = {
        "ff.linear_in": "img_mlp.0", "ff.linear_out": "img_mlp.2", "ff_context.linear_in": "txt_mlp.0",
        "ff_context.linear_out": "txt_mlp.2",
    }  # fmt: skip
    blocks = flux_streams(swapped(weights, "norm_out.linear"), {"attn.to_out": "linear2"}, double)
    around = {
        "time_guidance_embed.timestep_embedder.linear_1": "time_in.in_layer",
        "time_guidance_embed.timestep_embedder.linear_2": "time_in.out_layer",
        "stream_modulation_img.linear": "stream_modulation_img.lin",
        "stream_modulation_txt.linear": "stream_modulation_txt.lin",
        "single_stream_modulation.linear": "single_stream_modulation.lin",
        "context_embedder": "txt_in", "x_embedder": "img_in", "norm_out.linear": "final_layer.adaLN_modulation.1",
        "proj_out": "final_layer.linear",
    }  # fmt: skip
    return renamed(blocks, around)


def sana(weights: Weights) -> Weights:
    """With the two tables that only its training needs."""
    weights = dict(weights)
    for name in [name for name in weights if ".attn1.to_q" in name]:
        rows = [weights.pop(name.replace("to_q", f"to_{letter}")) for letter in "qkv"]
        weights[name.replace("attn1.to_q", "attn1.qkv")] = torch.cat(rows)
    weights = joined(weights, ("to_k", "to_v"), "kv_linear")
    names = {
        "attn1.qkv": "attn.qkv", "attn1.to_out.0": "attn.proj", "attn2.to_q": "cross_attn.q_linear",
        "attn2.kv_linear": "cross_attn.kv_linear", "attn2.to_out.0": "cross_attn.proj",
        "ff.conv_inverted": "mlp.inverted_conv.conv", "ff.conv_depth": "mlp.depth_conv.conv",
        "ff.conv_point": "mlp.point_conv.conv", "transformer_blocks.": "blocks.",
        "patch_embed.proj": "x_embedder.proj", "time_embed.emb.timestep_embedder.linear_1": "t_embedder.mlp.0",
        "time_embed.emb.timestep_embedder.linear_2": "t_embedder.mlp.2", "time_embed.linear": "t_block.1",
        "caption_projection.linear_1": "y_embedder.y_proj.fc1", "caption_projection.linear_2": "y_embedder.y_proj.fc2",
        "caption_norm": "attention_y_norm", "proj_out": "final_layer.linear",
    }  # fmt: skip
    table = {"final_layer.scale_shift_table": weights.pop("scale_shift_table")}
    unused = {"pos_embed": torch.zeros(1, 16, 16), "y_embedder.y_embedding": torch.zeros(300, 16)}
    return {**renamed(weights, names), **table, **unused}


def z_image(weights: Weights) -> Weights:
    """With a norm that its code has and does not use."""
    names = {
        "attention.to_out.0": "attention.out", "attention.norm_q": "attention.q_norm",
        "attention.norm_k": "attention.k_norm", "all_final_layer.2-1.": "final_layer.",
        "all_x_embedder.2-1.": "x_embedder.",
    }  # fmt: skip
    found = renamed(joined(weights, ("to_q", "to_k", "to_v"), "qkv"), names)
    return {**found, "norm_final.weight": torch.ones(32)}


ORIGINAL: dict[str, Callable[[Weights], Weights]] = {
    "sd3": stable_diffusion_3,
    "flux": flux,
    "flux-2-klein": flux_2,
    "sana": sana,
    "z-image": z_image,
}
"""Family -> its transformer's weights by diffusers' names to those by its makers'."""


def original(family: str, folder: object) -> Weights:
    """Of the transformer in a diffusers folder."""
    file = f"{folder}/transformer/diffusion_pytorch_model.safetensors"
    return {name: each.contiguous() for name, each in ORIGINAL[family](load_file(file)).items()}
