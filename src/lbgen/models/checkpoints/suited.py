"""Which sampling settings suit a generator, judged by its class and its files, without torch."""

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
"""Pipeline -> names, in lower case, of checkpoints that were distilled to sample without guidance.

The files of the first three and of the last do not record this. For Stable Diffusion only the names by Stability AI
count, because other checkpoints called turbo are used with a little guidance.
"""
FLOW_SCHEDULERS = ("dpm++",)
"""Names of the schedulers for flow-matching generators, besides the checkpoint's own."""
DIFFUSION_SCHEDULERS, WITHOUT_ZERO_SNR = ("ddpm", "ddim", "dpm++"), ("pndm",)
"""Schedulers for diffusion models that can start at pure noise, and those that cannot."""


ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
"""Suffixes of the layers that have an adapter by default: the attention of every block."""
KLEIN_ATTENTION = (*ATTENTION, "to_qkv_mlp_proj")
"""The same for FLUX.2 klein, whose single-stream blocks have one layer for queries, keys, values and more."""


def suited_targets(generator: str, revision: str | None = None) -> dict[str, Any]:
    """The default of `lora_targets` for a generator that needs other targets than lbgen's to reach every block."""
    return {"lora_targets": KLEIN_ATTENTION} if _kind(generator, revision)[0] == KLEIN else {}


def suited_settings(generator: str, revision: str | None = None) -> dict[str, Any]:
    """The defaults that replace lbgen's own for this generator; nothing is downloaded.

    If neither the name, a folder nor the hub's cache identifies the generator, its family later refuses unsuitable
    settings.
    """
    kind, distilled = _kind(generator, revision)
    if distilled:
        return {"scheduler": "native", "guidance_scale": 1.0}
    if kind == FLUX:
        return {"scheduler": "native", "guidance_scale": 3.5}
    return {"scheduler": "native"} if kind in FLOW_MATCHING else {}


def ensure_suited(generator: str, revision: str | None, scheduler: str, guidance_scale: float) -> None:
    """Refuse settings that the family would otherwise refuse only after loading the weights."""
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
    """Whether the generator was distilled to sample without guidance, as far as its files or name tell."""
    return _kind(generator, revision)[1]


def pipeline_of(generator: str, revision: str | None) -> str | None:
    """The generator's pipeline class, for known generators also before they are downloaded; None if unknown."""
    return generator_class(generator, revision) or CLASSES.get(resolve(generator, GENERATORS))


def refuse_scheduler(checkpoint: str, scheduler: str) -> None:
    """Refuse a diffusion scheduler for a flow-matching network."""
    if scheduler not in ("native", *FLOW_SCHEDULERS):
        choices = ", ".join(("native", *FLOW_SCHEDULERS))
        raise UserError(
            f"generator {checkpoint}: {scheduler} cannot sample from a flow-matching network; choose --scheduler "
            f"{choices}"
        )


def drops_zero_snr(checkpoint: str, scheduler: str, able: Iterable[str]) -> UserError:
    """The error for a scheduler that does not support zero terminal SNR (arXiv 2305.08891).  able: those that do."""
    return UserError(
        f"generator {checkpoint}: {scheduler} would drop rescale_betas_zero_snr, with which it was trained; choose "
        f"--scheduler {', '.join(able)}, and for a dataset or a run that was begun with another, a new --output"
    )


def refuse_guidance(checkpoint: str, scale: float) -> None:
    """Refuse a guidance scale above 1 for a network that was distilled."""
    if scale > 1:
        raise UserError(
            f"generator {checkpoint}: --guidance-scale {scale:g}: it was distilled to sample without guidance; give 1, "
            "and for a dataset or a run that was begun with another, a new --output (its files or its name say so)"
        )


def _kind(generator: str, revision: str | None) -> tuple[str | None, bool]:
    """The pipeline class, and whether it was distilled, from its files or, if they do not tell, from its name."""
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
    """Last part of a folder, file or hub id; for a snapshot in the hub's cache, the name of its model."""
    path = Path(os.path.abspath(generator) if os.path.exists(generator) else generator)
    cached = next((part for part in path.parts if part.startswith("models--")), None)
    return cached.rpartition("--")[2] if cached and path.parent.name == "snapshots" else path.name
