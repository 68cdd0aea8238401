"""Which settings of sampling suit a generator, by its class and its files, without torch."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lbgen.errors import UserError
from lbgen.models.checkpoints import forms
from lbgen.models.checkpoints.known import FLOW_MATCHING, FLUX, KLEIN, KNOWN, Z_IMAGE
from lbgen.models.registry import GENERATORS, generator_class, resolve
from lbgen.runs.model_folder import INDEX, cached_config

TURBO = "turbo"
"""In the name of a Z-Image that was distilled to sample without guidance; nothing in its files says so."""
FLOW_SCHEDULERS = ("dpm++",)
"""Schedulers of those that match flows, by name, besides the checkpoint's own."""
DIFFUSION_SCHEDULERS, WITHOUT_ZERO_SNR = ("ddpm", "ddim", "dpm++"), ("pndm",)
"""Schedulers of diffusions that can begin at pure noise, and that cannot."""


def suited_settings(generator: str, revision: str | None = None) -> dict[str, Any]:
    """The defaults that take the place of lbgen's for this generator; nothing is downloaded.

    Where neither the name nor a folder nor the hub's cache says what it is, the family refuses what does not suit it.
    """
    kind, distilled = _kind(generator, revision)
    if kind not in FLOW_MATCHING:
        return {}
    settings: dict[str, Any] = {"scheduler": "native"}
    if distilled:
        settings["guidance_scale"] = 1.0
    elif kind == FLUX:
        settings["guidance_scale"] = 3.5
    return settings


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


def pipeline_of(generator: str, revision: str | None) -> str | None:
    """The class of its pipeline, also of a short name whose files are not on this machine yet; None if not known."""
    known = KNOWN.get(generator)
    return generator_class(generator, revision) or (known and known.pipeline)


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
            f"generator {checkpoint}: --guidance-scale {scale:g}: it was distilled to sample without guidance; give 1"
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
    mark = {FLUX: "schnell", KLEIN: "klein", Z_IMAGE: TURBO}.get(str(kind))
    name = Path(generator).name.lower()
    return kind, mark is not None and mark in name and "base" not in name
