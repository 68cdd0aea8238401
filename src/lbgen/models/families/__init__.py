"""The families of text-to-image checkpoints that lbgen reads: their table, and loading a checkpoint.

A new family of generators is one file beside stable_diffusion.py, with an entry in PIPELINES and FAMILIES.
"""

import inspect
from importlib import import_module
from typing import Any

import torch
from diffusers import DiffusionPipeline

from lbgen.configuration import extensions
from lbgen.errors import UserError
from lbgen.models.checkpoints.forms import refuse_other_use
from lbgen.models.checkpoints.located import located
from lbgen.models.families.family import Family
from lbgen.models.loading import one_line
from lbgen.models.registry import GENERATORS, resolve

FAMILIES: dict[str, str | type[Family]] = {
    "StableDiffusionPipeline": "stable_diffusion:StableDiffusion",
    "StableDiffusionXLPipeline": "stable_diffusion_xl:StableDiffusionXL",
    "PixArtSigmaPipeline": "pixart_sigma:PixArtSigma",
    "StableDiffusion3Pipeline": "stable_diffusion_3:StableDiffusion3",
    "FluxPipeline": "flux:Flux",
    "Flux2KleinPipeline": "flux_2_klein:Flux2Klein",
    "SanaPipeline": "sana:Sana",
    "ZImagePipeline": "z_image:ZImage",
}
"""`_class_name` in model_index.json -> the family, as file:class, because importing all of them would be slow."""
MEMBERS = [*Family.__annotations__, *(name for name, member in vars(Family).items() if inspect.isfunction(member))]
"""The attributes and methods that a family must have."""


def load_family(
    name: str,
    *,
    dtype: torch.dtype,
    device: torch.device,
    scheduler: str | None,
    revision: str | None = None,
    variant: str | None = None,
) -> Family:
    """Load a checkpoint by registry name, folder, hub id or single file.

    The model_index.json determines the family.  revision: of a hub id.  variant: of the weights.
    """
    where = located(resolve(name, GENERATORS), revision, variant)
    with one_line("generator", where):
        index = DiffusionPipeline.load_config(where)
        if not isinstance(index, dict):
            raise UserError(f"generator {where}, model_index.json: not a table of parts; restore it")
        family_class = _family_of(index.get("_class_name"), where)
        _refuse_foreign_code(index, where)
        family = family_class(name, where, dtype=dtype, device=device, scheduler=scheduler)
        if lacking := [member for member in MEMBERS if not hasattr(family, member)]:
            raise UserError(f"generator {where}: {family_class.__name__} has no {lacking[0]}, which a Family has")
        _refuse_unfit_tokenizers(getattr(family, "pipeline", None), where)
        return family


def _family_of(kind: object, where: str) -> type[Family]:
    family = _imported(extensions.find("families", kind, FAMILIES)) if isinstance(kind, str) else None
    if family is None:
        refuse_other_use(str(kind), where)
        known = ", ".join(f"{pipeline} ({_imported(family).title})" for pipeline, family in FAMILIES.items())
        raise UserError(f"generator {where} is a {kind}, which lbgen cannot read; give one of: {known}")
    return family


def _imported(family: Any) -> Any:
    """The class that an entry of FAMILIES names; any other object unchanged."""
    if not isinstance(family, str):
        return family
    file, _, name = family.partition(":")
    return getattr(import_module(f"{__name__}.{file}"), name)


def _refuse_unfit_tokenizers(pipeline: Any, where: str) -> None:
    """Refuse a tokenizer that cannot pad, or that gives its encoder unknown tokens or positions."""
    for suffix in ("", "_2", "_3"):
        tokenizer, encoder = (
            getattr(pipeline, f"tokenizer{suffix}", None),
            getattr(pipeline, f"text_encoder{suffix}", None),
        )
        if tokenizer is None or encoder is None:
            continue
        limit, config = tokenizer.model_max_length, encoder.config
        of_clip = getattr(config, "model_type", "").startswith("clip")  # other encoders get a limit from their family
        fault = ""
        if tokenizer.pad_token_id is None:
            fault = "pad_token: none"
        elif len(tokenizer) > config.get_text_config().vocab_size:
            fault = f"{len(tokenizer):,} tokens, more than its encoder's {config.get_text_config().vocab_size:,}"
        elif of_clip and not (type(limit) is int and 0 < limit <= config.max_position_embeddings):
            fault = f"model_max_length: {str(limit)!r:.40} is not in 1 to {config.max_position_embeddings}"
        if fault:
            file = f"tokenizer{suffix}/tokenizer_config.json"
            raise UserError(f"generator {where}, {file}: {fault}; copy the folder from the model's repository")


def _refuse_foreign_code(index: dict[str, Any], where: str) -> None:
    """Refuse parts that are not classes of diffusers or transformers, because code in a checkpoint is never run."""
    for part, described in index.items():
        if isinstance(described, list) and not _is_library_class(described):
            raise UserError(
                f"generator {where}, model_index.json: {part} is not a class of diffusers or transformers, "
                "and lbgen runs no other code; give a checkpoint without it"
            )


def _is_library_class(described: list[Any]) -> bool:
    """Whether [library, class] is a class of diffusers or transformers; both are null for an absent optional part.

    Two kinds of classes are not accepted: transformers' Auto classes, which may run code of the checkpoint, and
    pipelines inside the pipeline, whose own model_index.json has not been checked.
    """
    match described:
        case [_, None]:
            return True
        case ["diffusers" | "transformers" | "stable_diffusion" as library, str(kind)]:
            return "Pipeline" not in kind and not (library == "transformers" and kind.startswith("Auto"))
    return False
