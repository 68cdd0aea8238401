"""The licences of the generators with a short name, and what they say of images as training data.

A summary of the model cards and licences for orientation; it is no legal advice, and licences change.
"""

from __future__ import annotations

from typing import NamedTuple


class Licence(NamedTuple):
    name: str
    """As the model card names it."""
    training_data: str
    """Whether the images may train other models: "yes" or "with limits", then the conditions."""

    def __str__(self) -> str:
        return f"{self.name}; images as training data: {self.training_data}"


UNKNOWN = "not known to lbgen; read the model card, also on images as training data"
"""What is shown of all other generators."""

_RAIL = "yes, for what its use restrictions do not forbid"
_STABILITY = "with limits: not for foundational generative models; above 1M USD of yearly revenue by contract only"
_FLUX_DEV = "with limits: not for models that compete with FLUX.1 dev; the weights are for non-commercial use"
_SANA = "with limits: not for commercial use; the terms of Gemma apply to its text encoder"

LICENCES = {
    "microworld": Licence("Apache-2.0", "yes"),
    "microworld-flow": Licence("Apache-2.0", "yes"),
    "stable-diffusion-v1-5/stable-diffusion-v1-5": Licence("CreativeML OpenRAIL-M", _RAIL),
    "stabilityai/stable-diffusion-xl-base-1.0": Licence("CreativeML OpenRAIL++-M", _RAIL),
    "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS": Licence("OpenRAIL++", _RAIL),
    "stabilityai/stable-diffusion-3-medium-diffusers": Licence("Stability AI Community License", _STABILITY),
    "stabilityai/stable-diffusion-3.5-medium": Licence("Stability AI Community License", _STABILITY),
    "stabilityai/stable-diffusion-3.5-large": Licence("Stability AI Community License", _STABILITY),
    "black-forest-labs/FLUX.1-dev": Licence("FLUX.1 [dev] Non-Commercial License", _FLUX_DEV),
    "black-forest-labs/FLUX.1-schnell": Licence("Apache-2.0", "yes"),
    "black-forest-labs/FLUX.2-klein-base-4B": Licence("Apache-2.0", "yes"),
    "black-forest-labs/FLUX.2-klein-4B": Licence("Apache-2.0", "yes"),
    "Efficient-Large-Model/Sana_600M_1024px_diffusers": Licence("NVIDIA License (NSCL v2-custom)", _SANA),
    "Efficient-Large-Model/Sana_1600M_1024px_BF16_diffusers": Licence("NVIDIA License (NSCL v2-custom)", _SANA),
    "Tongyi-MAI/Z-Image": Licence("Apache-2.0", "yes"),
    "Tongyi-MAI/Z-Image-Turbo": Licence("Apache-2.0", "yes"),
}
"""Short name of what comes with lbgen, or hub id -> its licence."""
