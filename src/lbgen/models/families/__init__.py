"""The families of text-to-image checkpoints: the table of those that lbgen reads, and loading one.

A new family of generators is one file beside stable_diffusion.py and its name in PIPELINES and FAMILIES.
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
"""`_class_name` in model_index.json -> the family, as file:class: the models of all would take long to import."""
MEMBERS = [*Family.__annotations__, *(name for name, member in vars(Family).items() if inspect.isfunction(member))]
"""What a family has: attributes and methods."""


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

    The model_index.json says of which family it is.  revision: of a hub id.  variant: of the weights.
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
        return family


def _family_of(kind: object, where: str) -> type[Family]:
    family = _imported(extensions.find("families", kind, FAMILIES)) if isinstance(kind, str) else None
    if family is None:
        refuse_other_use(str(kind), where)
        known = ", ".join(f"{pipeline} ({_imported(family).title})" for pipeline, family in FAMILIES.items())
        raise UserError(f"generator {where} is a {kind}, which lbgen cannot read; give one of: {known}")
    return family


def _imported(family: Any) -> Any:
    """The class that an entry of FAMILIES names; anything else as it is."""
    if not isinstance(family, str):
        return family
    file, _, name = family.partition(":")
    return getattr(import_module(f"{__name__}.{file}"), name)


def _refuse_foreign_code(index: dict[str, Any], where: str) -> None:
    """Every part must be a class of diffusers or transformers, because no code from a checkpoint is ever run."""
    for part, described in index.items():
        if isinstance(described, list) and not _is_library_class(described):
            raise UserError(
                f"generator {where}, model_index.json: {part} is no class of diffusers or transformers, "
                "and lbgen runs no other code; give a checkpoint without it"
            )


def _is_library_class(described: list[Any]) -> bool:
    """Of [library, class]; an optional part that is not there has neither.

    Two kinds of classes are not accepted. transformers' Auto classes may run code of the checkpoint, and a pipeline
    inside the pipeline has a model_index.json of its own, which nothing here has read.
    """
    match described:
        case [_, None]:
            return True
        case ["diffusers" | "transformers" | "stable_diffusion" as library, str(kind)]:
            return "Pipeline" not in kind and not (library == "transformers" and kind.startswith("Auto"))
    return False
