"""`lbgen export adapter`: the adapter of a run as a file for diffusers, kohya's scripts, A1111 or ComfyUI."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open

from lbgen.configuration.ranges import ensure_config
from lbgen.errors import UserError
from lbgen.exports.config import ExportAdapterConfig
from lbgen.exports.kohya_names import MakersLayer, kind_of, kohya_name, makers_layers
from lbgen.exports.sources import adapter_folder, made_by, refuse_inside, settings, trained_alpha, writing
from lbgen.models.checkpoints.known import KLEIN
from lbgen.models.checkpoints.suited import pipeline_of
from lbgen.models.registry import ADAPTER_FILE
from lbgen.runs import atomic
from lbgen.runs.console import say

if TYPE_CHECKING:
    from peft import LoraConfig
    from torch import Tensor

    Parts = Mapping[str, tuple[LoraConfig, dict[str, Tensor]]]

METADATA = "lbgen"
"""Metadata entry of a file that describes its origin, as JSON."""


def export_adapter(config: ExportAdapterConfig) -> Path:
    """Write the adapter of `config.run` in `config.format` to `config.output`, and return the file's path.

    For comfyui, transformers get diffusers' names, and UNets and FLUX.2 get kohya's. The file's metadata describes its
    origin without local paths. Raises UserError for a run without an adapter, an adapter that cannot be read or that
    has no names in this format, and an output that cannot be written or is another file.

    >>> import lbgen
    >>> lbgen.export_adapter(lbgen.ExportAdapterConfig("runs/animals", "animals.safetensors", format="kohya"))
    """
    ensure_config(config, ExportAdapterConfig)
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
    kind = _pipeline_class(run)
    with writing(file.parent):
        if config.format == "diffusers" or (config.format == "comfyui" and reads_diffusers_names(parts, kind)):
            weights, description = adapter.file_content(parts)
            _save(file, weights, {**metadata, adapter.METADATA: description})
        else:
            alpha = trained_alpha(run)
            _save(file, by_kohya(parts, alpha, kind), {**metadata, **_described(parts, alpha)})
    say(f"the adapter is in {file}, by the names of {config.format}")
    return file


def _pipeline_class(run: Path) -> str | None:
    """The pipeline class of the run's generator, if it is known; nothing is downloaded."""
    generator, revision = (settings(run).get(field) for field in ("generator", "revision"))
    if not isinstance(generator, str):
        return None
    return pipeline_of(generator, revision if isinstance(revision, str) else None)


def reads_diffusers_names(parts: Parts, kind: str | None) -> bool:
    """Whether ComfyUI reads diffusers' names of all layers: of transformers, except FLUX.2's single-stream blocks."""
    layers = [layer for part, (_, state) in parts.items() if part == "transformer" for layer, *_ in _layers(state)]
    return "unet" not in parts and (kind or kind_of(layers)) != KLEIN


def ensure_whole(weights: Mapping[str, Tensor], rank: int, source: str) -> None:
    """Refuse an adapter in which a layer lacks A or B, or has another rank than the file declares."""
    for key, tensor in weights.items():
        layer, factor, kind = key.partition(".lora_B." if ".lora_B." in key else ".lora_A.")
        other = f"{layer}{'.lora_A.' if factor == '.lora_B.' else '.lora_B.'}{kind}"
        ranked = tensor.dim() >= 2 and tensor.shape[factor == ".lora_B."] == rank
        if not (factor and other in weights and ranked):
            raise UserError(f"{source}: {key} is not one of two factors of rank {rank}; write the adapter again")


def refuse_other_file(file: Path) -> None:
    """Refuse to overwrite a file that is not an earlier export."""
    if os.path.isdir(file):
        raise UserError(f"{file}: it is a folder; give the name of a file")
    if os.path.lexists(file):
        try:
            if not file.is_file():  # reading a pipe would block
                raise OSError
            with safe_open(file, framework="numpy") as tensors:
                is_own = METADATA in (tensors.metadata() or {})
        except (SafetensorError, OSError):
            is_own = False
        if not is_own:
            raise UserError(f"{file}: lbgen export did not write it; choose another name, or move it away")


# ---- names ----


def _common(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights with names that all programs know: earlier versions omitted the prefix of CLIP's layers."""
    return {f"text_model.{key}" if key.startswith("encoder.layers.") else key: each for key, each in weights.items()}


def by_kohya(parts: Parts, trained_alpha: float | None, kind: str | None) -> dict[str, Tensor]:
    """The weights by kohya's names: for each layer A and B as lora_down and lora_up, and alpha.

    Programs add alpha / rank * B A. lbgen's files store the rank as alpha, and B scaled accordingly; here alpha becomes
    the alpha of the training, if it is known. Layers of diffusers that are one layer in other programs are joined, and
    their ranks and alphas added.  kind: the class of the generator's pipeline.
    """
    import torch

    single = len([part for part in parts if part.startswith("text_encoder")]) == 1 and "unet" in parts
    weights = {}
    for part, (config, state) in parts.items():
        alpha = trained_alpha or config.lora_alpha
        layers = {layer: (down, up.float() * (config.lora_alpha / alpha)) for layer, down, up in _layers(state)}
        where = (
            makers_layers(kind, layers) if part == "transformer" else {layer: MakersLayer(layer) for layer in layers}
        )
        for layer in sorted({each.layer for each in where.values()}):
            members = {each: layers[name] for name, each in where.items() if each.layer == layer}
            down, up = _as_one(members)
            name, dtype = kohya_name(part, layer, single), down.dtype
            weights[f"{name}.lora_down.weight"] = down.contiguous()
            weights[f"{name}.lora_up.weight"] = up.to(dtype).contiguous()
            weights[f"{name}.alpha"] = torch.tensor(float(alpha) * len(members))
    return weights


def _as_one(members: Mapping[MakersLayer, tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """A and B of an original layer that consists of the rows of several layers of diffusers.

    m of these layers have an adapter of rank r: A is (m r, in), their A stacked; B is (out, m r), block by block.
    """
    import torch

    first, *others = sorted(members, key=lambda each: each.number)
    down, up = members[first]
    if first.widths == (1,):
        return down, up
    row, rank = len(up) // first.widths[first.number], len(down)
    whole = up.new_zeros(row * sum(first.widths), rank * len(members))
    for index, each in enumerate([first, *others]):
        factor, begin = members[each][1], row * sum(first.widths[: each.number])
        whole[begin : begin + len(factor), rank * index : rank * (index + 1)] = factor
    return torch.cat([members[each][0] for each in (first, *others)]), whole


def _layers(weights: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Each layer's name, A (r, in, ...) and B (out, r, ...)."""
    for key in sorted(weights):
        layer, is_a, kind = key.partition(".lora_A.")
        if is_a:
            yield layer, weights[key], weights[f"{layer}.lora_B.{kind}"]


# ---- the file ----


def _described(parts: Parts, trained_alpha: float | None) -> dict[str, str]:
    """The metadata that kohya's scripts write and other programs show."""
    config = next(lora for lora, _ in parts.values())
    alpha = f"{trained_alpha or config.lora_alpha:g}"
    return {"ss_network_module": "networks.lora", "ss_network_dim": str(config.r), "ss_network_alpha": alpha}


def _save(file: Path, weights: dict[str, Tensor], metadata: dict[str, str]) -> None:
    from safetensors.torch import save_file

    with atomic.replacing(file) as temporary:
        save_file(weights, temporary, metadata)
