"""The generators with a short name: their location, pipeline class and what their licences say about training data.

The licences are summarised from the model cards for orientation; this is no legal advice, and licences change.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

MICROWORLD = Path(__file__).parents[2] / "microworld" / "weights"
"""The models that come with lbgen (lbgen/microworld)."""


class Licence(NamedTuple):
    name: str
    """Name in the model card."""
    training_data: str
    """Whether generated images may be used to train other models: "yes" or "with limits", then the conditions."""

    def __str__(self) -> str:
        return f"{self.name}; images as training data: {self.training_data}"


class KnownGenerator(NamedTuple):
    place: str
    """A diffusers folder or hub id."""
    pipeline: str
    """The `_class_name` of its pipeline."""
    licence: Licence


UNKNOWN = "not known to lbgen; read the model card, also on images as training data"
"""Text shown as the licence of any other generator."""

SD, SDXL, SD3 = "StableDiffusionPipeline", "StableDiffusionXLPipeline", "StableDiffusion3Pipeline"
PIXART, FLUX, KLEIN = "PixArtSigmaPipeline", "FluxPipeline", "Flux2KleinPipeline"
SANA, Z_IMAGE = "SanaPipeline", "ZImagePipeline"
FLOW_MATCHING = (SD3, FLUX, KLEIN, SANA, Z_IMAGE)
"""Pipeline classes of flow-matching generators, which are sampled with their own scheduler."""
PIPELINES = (SD, SDXL, PIXART, *FLOW_MATCHING)
"""The classes whose families come with lbgen: the keys of FAMILIES (models/families)."""

_APACHE = Licence("Apache-2.0", "yes")
_RAIL = "yes, for what its use restrictions do not forbid"
_STABILITY = Licence(
    "Stability AI Community License",
    "with limits: not for foundational generative models; above 1M USD of yearly revenue by contract only",
)
_FLUX_DEV = Licence(
    "FLUX.1 [dev] Non-Commercial License",
    "with limits: not for models that compete with FLUX.1 dev; the weights are for non-commercial use",
)
_NVIDIA = Licence(
    "NVIDIA License (NSCL v2-custom)",
    "with limits: not for commercial use; the terms of Gemma apply to its text encoder",
)

KNOWN = {
    "microworld": KnownGenerator(str(MICROWORLD / "generator"), SD, _APACHE),
    "microworld-flow": KnownGenerator(str(MICROWORLD / "flow"), Z_IMAGE, _APACHE),
    "microworld-pairs": KnownGenerator(str(MICROWORLD / "pairs"), SD, _APACHE),
    "sd15": KnownGenerator("stable-diffusion-v1-5/stable-diffusion-v1-5", SD, Licence("CreativeML OpenRAIL-M", _RAIL)),
    "sdxl": KnownGenerator("stabilityai/stable-diffusion-xl-base-1.0", SDXL, Licence("CreativeML OpenRAIL++-M", _RAIL)),
    "pixart-sigma": KnownGenerator("PixArt-alpha/PixArt-Sigma-XL-2-1024-MS", PIXART, Licence("OpenRAIL++", _RAIL)),
    "sd3-medium": KnownGenerator("stabilityai/stable-diffusion-3-medium-diffusers", SD3, _STABILITY),
    "sd35-medium": KnownGenerator("stabilityai/stable-diffusion-3.5-medium", SD3, _STABILITY),
    "sd35-large": KnownGenerator("stabilityai/stable-diffusion-3.5-large", SD3, _STABILITY),
    "flux-dev": KnownGenerator("black-forest-labs/FLUX.1-dev", FLUX, _FLUX_DEV),
    "flux-schnell": KnownGenerator("black-forest-labs/FLUX.1-schnell", FLUX, _APACHE),
    "flux2-klein-base-4b": KnownGenerator("black-forest-labs/FLUX.2-klein-base-4B", KLEIN, _APACHE),
    "flux2-klein-4b": KnownGenerator("black-forest-labs/FLUX.2-klein-4B", KLEIN, _APACHE),
    "sana-600m": KnownGenerator("Efficient-Large-Model/Sana_600M_1024px_diffusers", SANA, _NVIDIA),
    "sana-1600m": KnownGenerator("Efficient-Large-Model/Sana_1600M_1024px_BF16_diffusers", SANA, _NVIDIA),
    "z-image": KnownGenerator("Tongyi-MAI/Z-Image", Z_IMAGE, _APACHE),
    "z-image-turbo": KnownGenerator("Tongyi-MAI/Z-Image-Turbo", Z_IMAGE, _APACHE),
}
"""Short name -> generator."""

CLASSES = {known.place: known.pipeline for known in KNOWN.values()} | {
    "stabilityai/sd-turbo": SD,
    "stabilityai/sdxl-turbo": SDXL,
    "stabilityai/stable-diffusion-3.5-large-turbo": SD3,
}
"""Folder or hub id -> pipeline class, known before its files are downloaded."""
