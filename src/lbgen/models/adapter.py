"""LoRA adapters (arXiv 2106.09685) on the parts of a generator: attach, merge, write and read."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import recurse_remove_peft_layers
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextModel

from lbgen.errors import UserError
from lbgen.models.registry import ADAPTER_FILE, adapter_file
from lbgen.runs.atomic import replacing
from lbgen.runs.parsing import Name, read_json

NAME = "default"
"""Name of our only adapter in peft."""
READ = ("r", "lora_alpha", "target_modules", "init_lora_weights", "base_model_name_or_path", "inference_mode",
        "peft_type", "peft_version", "revision", "task_type", "auto_mapping")  # fmt: skip
"""Settings of a stored configuration that are read here or only describe the adapter's origin."""
LARGEST_RANK = 65536
"""A file with a larger rank is refused before memory for it is allocated."""
LARGEST_ALPHA = 2.0**53
"""A larger alpha is not exact in floating point, and may overflow."""
METADATA = "lora_adapter_metadata"
"""The metadata entry in which diffusers stores the configurations of a file's adapters."""
WRITTEN = ("r", "lora_alpha", "target_modules", "init_lora_weights", "rank_pattern", "alpha_pattern", "use_dora",
           "lora_bias")  # fmt: skip
"""The settings that are stored. diffusers passes every stored setting to peft, which refuses unknown ones; peft 0.17
knows all of these."""
WRAPPER = "text_model."
"""Prefix of the weight names in CLIP's text encoder before transformers 5.6. All readers of adapter files accept it."""
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""Data types allowed for the weights in a file."""


def configuration(rank: int, alpha: float, targets: Sequence[str]) -> LoraConfig:
    """peft's configuration: B is initialised with zeros and A with gaussian noise, so a new adapter changes nothing."""
    # peft accepts any number for alpha, although it declares an int.
    return LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(targets), init_lora_weights="gaussian")  # type: ignore[arg-type]


def attach(module: Any, config: LoraConfig) -> None:
    """Put a trainable float32 LoRA on `module`."""
    names = [f".{name}" for name, _ in module.named_modules()]
    for target in config.target_modules or ():
        if not any(name.endswith(f".{target}") for name in names):
            raise UserError(f"lora_targets: {target} names no layer of {type(module).__name__}; to_q names its queries")
    try:
        inject_adapter_in_model(config, module, NAME)
    except ValueError as error:
        raise UserError(f"lora_targets: {str(error).splitlines()[0]}") from error
    for _, parameter in parameters(module):
        parameter.data = parameter.data.float()


def parameters(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """The adapter's weights by name, in the module's order."""
    return [(name, parameter) for name, parameter in module.named_parameters() if f".{NAME}." in name]


def layers(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Name and module of each layer that has an adapter."""
    return ((name, layer) for name, layer in module.named_modules() if isinstance(layer, LoraLayer))


def enable(module: nn.Module, enabled: bool) -> None:
    """Switch the adapter on or off."""
    for _, layer in layers(module):
        layer.enable_adapters(enabled)


def merged_weight(layer: Any) -> Tensor:
    """W + alpha / rank * B A, summed in float32 and returned in W's dtype."""
    weight = layer.get_base_layer().weight
    return (weight.float() + layer.get_delta_weight(NAME)).to(weight.dtype)


@torch.no_grad()
def merge(module: Any) -> None:
    """Add the adapter to the base weights and remove it."""
    for _, layer in layers(module):
        layer.get_base_layer().weight.copy_(merged_weight(layer))
    recurse_remove_peft_layers(module)
    module._hf_peft_config_loaded = False  # else `save_pretrained` of transformers would write only an adapter


class MergedCopy:
    """A copy of a network with the adapter merged. It shares all weights without an adapter with the original."""

    def __init__(self, original: Any) -> None:
        """Make the copy before the adapter is attached."""
        shared = {id(parameter): parameter for parameter in original.parameters()}
        self.original, self.network = original, copy.deepcopy(original, shared)

    @torch.no_grad()
    def refresh(self) -> None:
        """Merge again in place from the base weights, so that no error accumulates and compiled code stays valid."""
        for name, layer in layers(self.original):
            target = self.network.get_submodule(name)
            if target.weight is layer.get_base_layer().weight:
                target.weight = nn.Parameter(target.weight.clone(), requires_grad=False)
            target.weight.copy_(merged_weight(layer))


def save(directory: Path, parts: dict[str, Any]) -> None:
    """Write a LoRA file with which other programs draw the same images.

    These are diffusers 0.35 and later with peft 0.17 and later, and programs that read only the weights, such as
    diffusers 0.29 or ComfyUI.

    parts: the modules that have an adapter, by name.  Equal adapters give equal bytes: safetensors writes several
    metadata entries in arbitrary order, so there is only one, and it contains no set and no path.
    """
    read = {}
    for part, module in parts.items():
        state = get_peft_model_state_dict(module, adapter_name=NAME, save_embedding_layers=False)
        read[part] = module.peft_config[NAME], {_stored_name(module, key): tensor for key, tensor in state.items()}
    weights, description = file_content(read)
    directory.mkdir(parents=True, exist_ok=True)
    with replacing(directory / ADAPTER_FILE) as temporary:
        save_file(weights, temporary, {METADATA: description})


def file_content(parts: Mapping[str, tuple[LoraConfig, Mapping[str, Tensor]]]) -> tuple[dict[str, Tensor], str]:
    """The weights of an adapter's file and its metadata entry.  parts: name -> configuration and weights.

    Readers that do not read alpha assume that it equals the rank. So B is stored multiplied by alpha / rank, with the
    rank as alpha.
    """
    weights: dict[str, Tensor] = {}
    description: dict[str, Any] = {}
    for part, (config, state) in parts.items():
        settings = config.to_dict() | {"lora_alpha": config.r}
        scaled = _scale_b(state, config.lora_alpha / config.r)
        weights |= {f"{part}.{key}": tensor.contiguous() for key, tensor in scaled.items()}
        description |= {f"{part}.{name}": settings[name] for name in WRITTEN}
    return weights, json.dumps(description, sort_keys=True, default=sorted)


def _scale_b(weights: Mapping[str, Tensor], factor: float) -> dict[str, Tensor]:
    """The weights with every B, and hence every update B A, multiplied by `factor`; exact for a power of two."""
    return {key: tensor.float() * factor if ".lora_B." in key else tensor for key, tensor in weights.items()}


def _stored_name(module: Any, key: str) -> str:
    """The name, in adapter files, of a weight that `module` calls `key`."""
    unwrapped = isinstance(module, CLIPTextModel) and not hasattr(module, "text_model")
    return WRAPPER + key if unwrapped else key


def _own_name(module: Any, key: str) -> str:
    """The name, in `module`, of a weight that an adapter file of any version calls `key`."""
    bare = key.removeprefix(WRAPPER)
    return WRAPPER + bare if hasattr(module, "text_model") else bare


def read(directory: Path, parts: Sequence[str] | None = None) -> dict[str, tuple[LoraConfig, dict[str, Tensor]]]:
    """Read a file that `save` wrote: part -> its configuration and weights.

    parts: the parts of the generator; None means the parts in the file.
    """
    path = adapter_file(directory, str(directory))
    try:
        with safe_open(path, framework="pt") as file:
            description = (file.metadata() or {}).get(METADATA, "{}")
            metadata = read_json(description, dict[Name, Any], f"{path}, {METADATA}", "write the adapter again")
            weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise UserError(f"{path} is damaged ({error}); write it again") from error
    if not metadata:
        raise UserError(f"{path} does not say its rank and alpha; give an adapter written by lbgen")
    parts = sorted({key.split(".")[0] for key in weights}) if parts is None else parts
    unknown = [key for key in weights if key.split(".")[0] not in parts]
    if unknown or not weights:
        found = unknown[0] if unknown else "no weight"
        raise UserError(f"{path} holds {found}, of neither {' nor '.join(parts)}; give an adapter written by lbgen")
    _refuse_unusable(weights, path)
    return {
        part: (_read_configuration(_part(metadata, part), f"{path}, {part}"), _part(weights, part))
        for part in parts
        if _part(weights, part)
    }


def _read_configuration(values: dict[str, Any], source: str) -> LoraConfig:
    """A new configuration with the file's rank, alpha and targets; no other setting of the file reaches peft.

    Settings that only describe the adapter's origin are ignored; any other that differs from peft's default is refused.
    """
    rank, alpha, targets = (values.get(name) for name in ("r", "lora_alpha", "target_modules"))
    if type(rank) is not int or not 1 <= rank <= LARGEST_RANK:
        raise UserError(f"{source}: its rank is {rank!r:.40}, not a number from 1 to {LARGEST_RANK}; write it again")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 < abs(alpha) <= LARGEST_ALPHA:
        wanted = f"not a number other than 0 from -{LARGEST_ALPHA:g} to {LARGEST_ALPHA:g}"
        raise UserError(f"{source}: its alpha is {alpha!r:.40}, {wanted}; write it again")
    if not isinstance(targets, list) or not targets or not all(isinstance(target, str) for target in targets):
        raise UserError(f"{source}: its target_modules are {targets!r:.40}, not a list of names; write it again")
    defaults = LoraConfig().to_dict()
    for name, value in values.items():
        if name not in READ and value != defaults.get(name) and value not in (None, False, {}, []):
            raise UserError(f"{source} sets {name!r:.40}, which lbgen does not read; give an adapter written by lbgen")
    return configuration(rank, alpha, targets)


def _refuse_unusable(weights: dict[str, Tensor], path: Path) -> None:
    """Refuse weights that are not floating-point or not finite: every image would be black."""
    for key, tensor in weights.items():
        if tensor.dtype not in DTYPES:
            raise UserError(f"{path}: {key} is of {tensor.dtype}; give an adapter in float32, float16 or bfloat16")
        if not torch.isfinite(tensor).all():
            raise UserError(f"{path}: {key} is not finite; give an earlier checkpoint's adapter, or train it again")


def _part(entries: dict[str, Any], part: str) -> dict[str, Any]:
    return {key.removeprefix(f"{part}."): value for key, value in entries.items() if key.startswith(f"{part}.")}


def restore(module: Any, config: LoraConfig, weights: dict[str, Tensor]) -> None:
    """Attach an adapter that was read, or load its values into the attached adapter, which keeps its own alpha.

    Raises ValueError with the first weight whose presence or shape differs between module and adapter.
    """
    if not any(layers(module)):
        attach(module, config)
    weights = {_own_name(module, key): tensor for key, tensor in weights.items()}
    own = get_peft_model_state_dict(module, adapter_name=NAME, save_embedding_layers=False)
    for key in sorted(own.keys() | weights.keys()):
        ours, theirs = (list(state[key].shape) if key in state else None for state in (own, weights))
        if ours != theirs:
            raise ValueError(f"{key} is {theirs or 'missing'} in the adapter and {ours or 'missing'} in the generator")
    own_alpha = module.peft_config[NAME].lora_alpha  # the ranks are equal, because the shapes are
    if config.lora_alpha != own_alpha:
        weights = _scale_b(weights, config.lora_alpha / own_alpha)
    set_peft_model_state_dict(module, weights, adapter_name=NAME)
