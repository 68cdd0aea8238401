"""The names that kohya's scripts give to the layers of an adapter.

Transformers keep the names of their original code, where queries, keys and values are one layer; diffusers splits it.
A name is `lora_unet_` and the layer's name with underscores. ComfyUI reads such names for every network that it knows.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

from lbgen.errors import UserError
from lbgen.models.checkpoints.known import FLUX, KLEIN, PIXART, SD3, Z_IMAGE


class MakersLayer(NamedTuple):
    """A layer of a transformer's original code, and the position in it of a layer of diffusers."""

    layer: str
    """Name of the original layer. Its rows can be those of several layers of diffusers, one after another."""
    number: int = 0
    """Index of this layer of diffusers among them."""
    widths: tuple[int, ...] = (1,)
    """Number of rows of each of them, relative to the first."""


def _joined(names: Collection[str], layer: str, widths: tuple[int, ...] = (1, 1, 1)) -> dict[str, MakersLayer]:
    return {name: MakersLayer(layer, number, widths) for number, name in enumerate(names)}


def _same(names: Mapping[str, str]) -> dict[str, MakersLayer]:
    return {name: MakersLayer(layer) for name, layer in names.items()}


QKV, ADDED = ("to_q", "to_k", "to_v"), ("add_q_proj", "add_k_proj", "add_v_proj")
_FLUX_ATTENTION = {
    **_joined([f"attn.{name}" for name in QKV], "img_attn.qkv"),
    **_joined([f"attn.{name}" for name in ADDED], "txt_attn.qkv"),
    **_same({"attn.to_out.0": "img_attn.proj", "attn.to_add_out": "txt_attn.proj"}),
}
_Z_IMAGE_BLOCK = {
    **_joined([f"attention.{name}" for name in QKV], "attention.qkv"),
    **_same({"attention.to_out.0": "attention.out", "adaLN_modulation.0": "adaLN_modulation.0"}),
    **_same({f"feed_forward.w{number}": f"feed_forward.w{number}" for number in (1, 2, 3)}),
}
BLOCKS: dict[str, dict[str, tuple[str, dict[str, MakersLayer]]]] = {
    SD3: {
        "transformer_blocks": (
            "joint_blocks",
            {
                **_joined([f"attn.{name}" for name in QKV], "x_block.attn.qkv"),
                **_joined([f"attn2.{name}" for name in QKV], "x_block.attn2.qkv"),
                **_joined([f"attn.{name}" for name in ADDED], "context_block.attn.qkv"),
                **_same({"attn.to_out.0": "x_block.attn.proj", "attn2.to_out.0": "x_block.attn2.proj"}),
                **_same({"attn.to_add_out": "context_block.attn.proj", "norm1.linear": "x_block.adaLN_modulation.1"}),
                **_same({"ff.net.0.proj": "x_block.mlp.fc1", "ff.net.2": "x_block.mlp.fc2"}),
                **_same(
                    {"ff_context.net.0.proj": "context_block.mlp.fc1", "ff_context.net.2": "context_block.mlp.fc2"}
                ),
            },
        )
    },
    FLUX: {
        "transformer_blocks": (
            "double_blocks",
            {
                **_FLUX_ATTENTION,
                **_same({"norm1.linear": "img_mod.lin", "norm1_context.linear": "txt_mod.lin"}),
                **_same({"ff.net.0.proj": "img_mlp.0", "ff.net.2": "img_mlp.2"}),
                **_same({"ff_context.net.0.proj": "txt_mlp.0", "ff_context.net.2": "txt_mlp.2"}),
            },
        ),
        "single_transformer_blocks": (
            "single_blocks",
            {
                **_joined([*(f"attn.{name}" for name in QKV), "proj_mlp"], "linear1", (1, 1, 1, 4)),
                **_same({"proj_out": "linear2", "norm.linear": "modulation.lin"}),
            },
        ),
    },
    KLEIN: {
        "transformer_blocks": (
            "double_blocks",
            {
                **_FLUX_ATTENTION,
                **_same({"ff.linear_in": "img_mlp.0", "ff.linear_out": "img_mlp.2"}),
                **_same({"ff_context.linear_in": "txt_mlp.0", "ff_context.linear_out": "txt_mlp.2"}),
            },
        ),
        "single_transformer_blocks": (
            "single_blocks",
            _same({"attn.to_qkv_mlp_proj": "linear1", "attn.to_out": "linear2"}),
        ),
    },
    Z_IMAGE: {name: (name, _Z_IMAGE_BLOCK) for name in ("layers", "noise_refiner", "context_refiner")},
}
"""Pipeline class -> name of a block in diffusers -> its original name, and the original layer of each layer in it.

The last norm of Stable Diffusion 3 and of FLUX is left out, because its rows have another order.
"""


def makers_layer(kind: str, layer: str) -> MakersLayer | None:
    """The original layer of a transformer's layer, by its full name; None if the original code has none."""
    blocks, _, rest = layer.partition(".")
    number, _, inner = rest.partition(".")
    begin, layers = BLOCKS[kind].get(blocks, ("", {}))
    found = layers.get(inner)
    return found and found._replace(layer=f"{begin}.{number}.{found.layer}")


def kind_of(layers: Collection[str]) -> str | None:
    """The only pipeline class that has all of these layers; None if there is none, or more than one."""
    kinds = [kind for kind in BLOCKS if all(makers_layer(kind, layer) for layer in layers)]
    return kinds[0] if len(kinds) == 1 else None


def makers_layers(kind: str | None, layers: Collection[str]) -> dict[str, MakersLayer]:
    """The original layer of each layer of an adapter.  kind: the pipeline class, None if it is unknown."""
    known = kind or kind_of(layers)
    if known is None:
        raise UserError(
            "--format kohya: its names depend on the generator's family; give the run folder, whose config.yaml names "
            "the generator, or --format comfyui"
        )
    if known not in BLOCKS:
        other = "comfyui" if known == PIXART else "diffusers"
        raise UserError(f"--format kohya: kohya's scripts do not read adapters of a {known}; give --format {other}")
    found = {layer: makers_layer(known, layer) for layer in layers}
    if lacking := [layer for layer, each in found.items() if each is None]:
        raise UserError(f"--format kohya: it has no name for the layer {lacking[0]}; give --format comfyui")
    return {layer: each for layer, each in found.items() if each is not None}


def kohya_name(part: str, layer: str, single: bool) -> str:
    """kohya's name: lora_unet_LAYER, lora_te_LAYER for one text encoder, lora_te1_LAYER, lora_te2_LAYER for several.

    For UNet blocks, A1111 and ComfyUI also read diffusers' names.
    """
    if part.startswith("text_encoder"):
        number = "" if single else part.removeprefix("text_encoder").lstrip("_") or "1"
        return f"lora_te{number}_{layer}".replace(".", "_")
    return f"lora_unet_{layer}".replace(".", "_")
