"""`lbgen export adapter`: the adapter of a run as a file for diffusers, kohya's scripts, A1111 or ComfyUI."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open

from lbgen.errors import UserError
from lbgen.exports.config import ExportAdapterConfig
from lbgen.exports.sources import adapter_folder, made_by, refuse_inside, trained_alpha, writing
from lbgen.models.registry import ADAPTER_FILE
from lbgen.runs import atomic
from lbgen.runs.console import say

if TYPE_CHECKING:
    from peft import LoraConfig
    from torch import Tensor

    Parts = Mapping[str, tuple[LoraConfig, dict[str, Tensor]]]

METADATA = "lbgen"
"""The entry of a file's metadata that says what made it: JSON."""


def export_adapter(config: ExportAdapterConfig) -> Path:
    """Write the adapter of `config.run` in `config.format` to `config.output`, and return the file's path.

    Of transformers ComfyUI reads diffusers' names, of UNets kohya's. The file's metadata says what made it, and names
    no folder of this machine. Raises UserError for a run without an adapter, an adapter that cannot be read, and an
    output that cannot be written or is another file.

    >>> import lbgen
    >>> lbgen.export_adapter(lbgen.ExportAdapterConfig("runs/animals", "animals.safetensors", format="kohya"))
    """
    run, output = Path(config.run), Path(config.output)
    folder, file = adapter_folder(run), output if output.suffix == ".safetensors" else output / ADAPTER_FILE
    refuse_inside(run, file)
    refuse_other_file(file)
    from lbgen.models import adapter  # late: imports torch

    parts = {part: (lora, _common(state)) for part, (lora, state) in adapter.read(folder).items()}
    for part, (lora, state) in parts.items():
        ensure_whole(state, lora.r, f"{folder / ADAPTER_FILE}, {part}")
    origin = made_by(run, folder)
    metadata = {METADATA: json.dumps(origin, sort_keys=True, ensure_ascii=False)}
    with writing(file.parent):
        if config.format == "diffusers" or (config.format == "comfyui" and "unet" not in parts):
            weights, description = adapter.file_content(parts)
            _save(file, weights, {**metadata, adapter.METADATA: description})
        else:
            weights = by_kohya(parts, trained_alpha(run))
            _save(file, weights, {**metadata, **_described(weights)})
    say(f"the adapter is in {file}, by the names of {config.format}")
    return file


def ensure_whole(weights: Mapping[str, Tensor], rank: int, source: str) -> None:
    """Refuse an adapter of which a layer lacks A or B, or has them of another rank than the file says."""
    for key, tensor in weights.items():
        layer, factor, kind = key.partition(".lora_B." if ".lora_B." in key else ".lora_A.")
        other = f"{layer}{'.lora_A.' if factor == '.lora_B.' else '.lora_B.'}{kind}"
        ranked = tensor.dim() >= 2 and tensor.shape[factor == ".lora_B."] == rank
        if not (factor and other in weights and ranked):
            raise UserError(f"{source}: {key} is not one of two factors of rank {rank}; write the adapter again")


def refuse_other_file(file: Path) -> None:
    """Refuse to overwrite what is not an earlier export."""
    if os.path.isdir(file):
        raise UserError(f"{file}: it is a folder; give the name of a file")
    if os.path.lexists(file):
        try:
            if not file.is_file():  # a pipe would be waited for
                raise OSError
            with safe_open(file, framework="numpy") as tensors:
                is_own = METADATA in (tensors.metadata() or {})
        except (SafetensorError, OSError):
            is_own = False
        if not is_own:
            raise UserError(f"{file}: it is not of lbgen export; choose another name, or move it away")


# ---- names ----


def _common(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """By the names that all programs know: earlier versions left out the first word of those of CLIP's layers."""
    return {f"text_model.{key}" if key.startswith("encoder.layers.") else key: each for key, each in weights.items()}


def by_kohya(parts: Parts, trained_alpha: float | None) -> dict[str, Tensor]:
    """The weights by kohya's names: for each layer A and B as lora_down and lora_up, and alpha.

    Programs add alpha / rank * B A. A file of lbgen's has its rank for alpha, and B scaled accordingly; it gets the
    alpha that the run was trained with, if that is known.
    """
    import torch

    single = len([part for part in parts if _is_text_encoder(part)]) == 1 and "unet" in parts
    weights = {}
    for part, (config, state) in parts.items():
        alpha = trained_alpha or config.lora_alpha
        for layer, down, up in _layers(state):
            name = kohya_name(part, layer, single)
            weights[f"{name}.lora_down.weight"] = down.contiguous()
            weights[f"{name}.lora_up.weight"] = (up.float() * (config.lora_alpha / alpha)).to(up.dtype).contiguous()
            weights[f"{name}.alpha"] = torch.tensor(float(alpha))
    return weights


def _layers(weights: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Each layer's name, A (r, in, ...) and B (out, r, ...)."""
    for key in sorted(weights):
        layer, is_a, kind = key.partition(".lora_A.")
        if is_a:
            yield layer, weights[key], weights[f"{layer}.lora_B.{kind}"]


def kohya_name(part: str, layer: str, single: bool) -> str:
    """kohya's: lora_unet_LAYER or lora_transformer_LAYER, lora_te_LAYER, of several text encoders lora_te1_LAYER, ...

    Of a UNet's blocks A1111 and ComfyUI read diffusers' names too; of a transformer ComfyUI does, for SD 3 and FLUX.
    """
    if _is_text_encoder(part):
        number = "" if single else part.removeprefix("text_encoder").lstrip("_") or "1"
        return f"lora_te{number}_{layer}".replace(".", "_")
    return f"lora_{part}_{layer}".replace(".", "_")


def _is_text_encoder(part: str) -> bool:
    return part.startswith("text_encoder")


# ---- the file ----


def _described(weights: Mapping[str, Tensor]) -> dict[str, str]:
    """What kohya's scripts write of a network, and other programs show."""
    rank = next(tensor.shape[0] for key, tensor in weights.items() if key.endswith(".lora_down.weight"))
    alpha = next(tensor.item() for key, tensor in weights.items() if key.endswith(".alpha"))
    return {"ss_network_module": "networks.lora", "ss_network_dim": str(rank), "ss_network_alpha": f"{alpha:g}"}


def _save(file: Path, weights: dict[str, Tensor], metadata: dict[str, str]) -> None:
    from safetensors.torch import save_file

    with atomic.replacing(file) as temporary:
        save_file(weights, temporary, metadata)
