"""Which settings of sampling suit a generator, by its class and its files, without torch."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lbgen.errors import UserError
from lbgen.models.checkpoints import forms
from lbgen.models.checkpoints.known import CLASSES, FLOW_MATCHING, FLUX, KLEIN, SD, SD3, SDXL, Z_IMAGE
from lbgen.models.registry import GENERATORS, generator_class, resolve
from lbgen.runs.model_folder import INDEX, cached_config

_EDITION = r"([-_.](v?1|v?1\.0|fp16|fp8|bf16))*"
DISTILLED = {
    SD: r"sd[-_]turbo" + _EDITION,
    SDXL: r"(sdxl|sd_xl)[-_]turbo" + _EDITION,
    SD3: r"(stable-diffusion-3\.5-large|sd3\.5_large|sd35-large)[-_]turbo" + _EDITION,
    FLUX: r".*schnell.*",
    KLEIN: r"(?!.*base).*klein.*",
    Z_IMAGE: r".*turbo.*",
}
"""Pipeline -> names, in small letters, of checkpoints that were distilled to sample without guidance.

Nothing in the files of the first three and the last says so. Of Stable Diffusion only the names that Stability AI gave
count, because others that are called turbo are used with a little guidance.
"""
FLOW_SCHEDULERS = ("dpm++",)
"""Schedulers of those that match flows, by name, besides the checkpoint's own."""
DIFFUSION_SCHEDULERS, WITHOUT_ZERO_SNR = ("ddpm", "ddim", "dpm++"), ("pndm",)
"""Schedulers of diffusions that can begin at pure noise, and that cannot."""


ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
"""The layers that an adapter sits on by default, by the end of their names: the attention of every block."""
KLEIN_ATTENTION = (*ATTENTION, "to_qkv_mlp_proj")
"""The same of FLUX.2 klein, whose blocks of one stream have one layer for queries, keys, values and more."""


def suited_targets(generator: str, revision: str | None = None) -> dict[str, Any]:
    """The default of `lora_targets` where another than lbgen's reaches every block of this generator."""
    return {"lora_targets": KLEIN_ATTENTION} if _kind(generator, revision)[0] == KLEIN else {}


def suited_settings(generator: str, revision: str | None = None) -> dict[str, Any]:
    """The defaults that take the place of lbgen's for this generator; nothing is downloaded.

    Where neither the name nor a folder nor the hub's cache says what it is, the family refuses what does not suit it.
    """
    kind, distilled = _kind(generator, revision)
    if distilled:
        return {"scheduler": "native", "guidance_scale": 1.0}
    if kind == FLUX:
        return {"scheduler": "native", "guidance_scale": 3.5}
    return {"scheduler": "native"} if kind in FLOW_MATCHING else {}


def ensure_suited(generator: str, revision: str | None, scheduler: str, guidance_scale: float) -> None:
    """Refuse settings that the family would refuse once its weights are loaded."""
    kind, distilled = _kind(generator, revision)
    if kind in FLOW_MATCHING:
        refuse_scheduler(generator, scheduler)
    elif scheduler in WITHOUT_ZERO_SNR:
        where = forms.pipeline_folder(resolve(os.path.expanduser(generator), GENERATORS))
        if cached_config(where, "scheduler/scheduler_config.json", revision).get("rescale_betas_zero_snr"):
            raise drops_zero_snr(generator, scheduler, DIFFUSION_SCHEDULERS)
    if distilled:
        refuse_guidance(generator, guidance_scale)


def is_distilled(generator: str, revision: str | None) -> bool:
    """Whether it was distilled to sample without guidance, as far as its files or its name say so."""
    return _kind(generator, revision)[1]


def pipeline_of(generator: str, revision: str | None) -> str | None:
    """The class of its pipeline, of some generators also before their files are on this machine; None if not known."""
    return generator_class(generator, revision) or CLASSES.get(resolve(generator, GENERATORS))


def refuse_scheduler(checkpoint: str, scheduler: str) -> None:
    """Refuse the scheduler of a diffusion for a network that matches flows."""
    if scheduler not in ("native", *FLOW_SCHEDULERS):
        choices = ", ".join(("native", *FLOW_SCHEDULERS))
        raise UserError(
            f"generator {checkpoint}: {scheduler} cannot sample from a network that matches flows; choose --scheduler "
            f"{choices}"
        )


def drops_zero_snr(checkpoint: str, scheduler: str, able: Iterable[str]) -> UserError:
    """The refusal of a scheduler that cannot end at pure noise (arXiv 2305.08891).  able: those that can."""
    return UserError(
        f"generator {checkpoint}: {scheduler} would drop rescale_betas_zero_snr, with which it was trained; choose "
        f"--scheduler {', '.join(able)}, and for a dataset or a run that was begun with another, a new --output"
    )


def refuse_guidance(checkpoint: str, scale: float) -> None:
    """Refuse a scale above 1 for a network that was distilled."""
    if scale > 1:
        raise UserError(
            f"generator {checkpoint}: --guidance-scale {scale:g}: it was distilled to sample without guidance; give 1, "
            "and for a dataset or a run that was begun with another, a new --output (its files or its name say so)"
        )


def _kind(generator: str, revision: str | None) -> tuple[str | None, bool]:
    """The pipeline's class, and whether it was distilled: by its files, and where they do not say it, by its name."""
    generator = os.path.expanduser(generator)
    kind = pipeline_of(generator, revision)
    where = forms.pipeline_folder(resolve(generator, GENERATORS))
    if kind == FLUX and (config := cached_config(where, "transformer/config.json", revision)):
        return kind, not config.get("guidance_embeds", False)
    if kind == KLEIN and (index := cached_config(where, INDEX, revision)):
        return kind, bool(index.get("is_distilled"))
    name = _last_name(generator).lower().removesuffix(".safetensors")
    return kind, re.fullmatch(DISTILLED.get(str(kind), "(?!)"), name) is not None


def _last_name(generator: str) -> str:
    """Of a folder, file or hub id; of a snapshot in the hub's cache, whose name is its commit, that of the model."""
    path = Path(os.path.abspath(generator) if os.path.exists(generator) else generator)
    cached = next((part for part in path.parts if part.startswith("models--")), None)
    return cached.rpartition("--")[2] if cached and path.parent.name == "snapshots" else path.name
