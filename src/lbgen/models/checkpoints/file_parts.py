"""Which parts of a checkpoint a single file holds, and which are loaded from the folder with its configurations."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from lbgen.errors import UserError
from lbgen.models.checkpoints.known import FLUX, KLEIN, SANA, SD3, Z_IMAGE
from lbgen.runs.model_folder import INDEX, cached_config, part_names, weight_files

NETWORK = "model.diffusion_model."
"""Prefix of the network's weight names in a file with several parts, and in some files with the network alone."""
NETWORKS = ("unet", "transformer")
"""The parts that a single file always holds."""
NOT_LOADED = ("safety_checker", "feature_extractor", "image_encoder")
"""Parts that no family loads."""
UNCONVERTED = ("PixArtTransformer2DModel", "Transformer2DModel")
"""Networks whose original weight names diffusers cannot convert."""
FLUX_2 = "double_stream_modulation_img.lin.weight"
"""A layer that identifies FLUX.2; all its other names also occur in FLUX.1."""
FLOW_LAYERS = {
    "joint_blocks.0.x_block.attn.qkv.weight": SD3,
    FLUX_2: KLEIN,
    "double_blocks.0.img_attn.qkv.weight": FLUX,
    "blocks.0.mlp.inverted_conv.conv.weight": SANA,
    "layers.0.adaLN_modulation.0.weight": Z_IMAGE,
}
"""Class of the pipeline, by a layer that only a flow-matching network of this class has."""
QUANTISED = (".scale_weight", ".weight_scale", ".scale_input", "scaled_fp8", ".comfy_quant", ".absmax", ".qweight")
"""Suffixes of tensor names that occur only in files of quantised weights, which need a scale."""
BEGINNINGS = {
    ("vae", "AutoencoderKL"): ("first_stage_model.", "vae."),
    ("text_encoder", "CLIPTextModel"): ("cond_stage_model.", "conditioner.embedders.0.", "text_encoders.clip_l."),
    ("text_encoder", "CLIPTextModelWithProjection"): ("text_encoders.clip_l.",),
    ("text_encoder_2", "CLIPTextModelWithProjection"): ("conditioner.embedders.1.", "text_encoders.clip_g."),
    ("text_encoder_2", "T5EncoderModel"): ("text_encoders.t5xxl.",),
    ("text_encoder_3", "T5EncoderModel"): ("text_encoders.t5xxl.",),
}
"""Prefixes of the weight names of a part, by the part and its class. diffusers converts no other part from a file."""


def flow_class(names: Collection[str]) -> str | None:
    """The pipeline class of a flow-matching network, from the names in a file; None for another network."""
    found = (kind for layer, kind in FLOW_LAYERS.items() if layer in names or NETWORK + layer in names)
    return next(found, None)


def parts_elsewhere(names: Collection[str], folder: Path) -> list[str]:
    """The parts that are loaded from the folder, because a file with these weight names lacks them."""
    return [
        part
        for part, kind in _classes(folder)
        if part not in (*NETWORKS, *NOT_LOADED) and not _holds(names, BEGINNINGS.get((part, kind), ()))
    ]


def _classes(folder: Path) -> Iterator[tuple[str, str]]:
    """Part -> class of each part of a checkpoint that has weights."""
    index = cached_config(str(folder), INDEX)
    return ((part, index[part][1]) for part in part_names(folder) if (folder / part / "config.json").is_file())


def _holds(names: Collection[str], beginnings: tuple[str, ...]) -> bool:
    return bool(beginnings) and any(name.startswith(beginnings) for name in names)


def refuse_quantised(file: str, names: Collection[str]) -> None:
    """Refuse a file of quantised weights, which diffusers would read without their scales."""
    if scales := sorted(name for name in names if name.endswith(QUANTISED)):
        raise UserError(
            f"generator {file}: its weights are quantised ({scales[0]}); give a file in fp16, bf16 or fp32, or in fp8 "
            "without scales"
        )


def ensure_complete(file: str, names: Collection[str], folder: Path) -> None:
    """Refuse a file that diffusers cannot convert, and a part that neither the file nor the folder holds."""
    for kind in [kind for part, kind in _classes(folder) if part in NETWORKS and kind in UNCONVERTED]:
        raise UserError(f"generator {file}: diffusers reads no single file of {kind}; give a folder or a hub id")
    if lacking := [part for part in parts_elsewhere(names, folder) if not weight_files(folder / part)]:
        raise UserError(
            f"generator {file}: the file holds no {', no '.join(lacking)}, and {folder} has no weights of them; put "
            f"into {folder / lacking[0]} what the model's diffusers repository has there, or give a file of all parts"
        )
