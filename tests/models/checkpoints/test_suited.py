"""Generators that were distilled to sample without guidance, and say so by their names alone."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from miniatures import write_stable_diffusion, write_stable_diffusion_3, write_stable_diffusion_xl, write_z_image

from lbgen.errors import UserError
from lbgen.models.checkpoints.suited import ensure_suited, suited_settings
from lbgen.models.generator import load_generator

WITHOUT_GUIDANCE = {"scheduler": "native", "guidance_scale": 1.0}


@pytest.mark.parametrize(
    ("write", "distilled", "guided", "own"),
    [
        (write_stable_diffusion, ["sd-turbo", "models--stabilityai--sd-turbo/snapshots/b261"], "turbo-anime-sd", {}),
        (write_stable_diffusion_xl, ["sdxl-turbo", "sd_xl_turbo_1.0_fp16"], "dreamshaper-xl-turbo", {}),
        (
            write_stable_diffusion_3,
            ["stable-diffusion-3.5-large-turbo", "sd3.5_large_turbo"],
            "stable-diffusion-3.5-large",
            {"scheduler": "native"},
        ),
        (write_z_image, ["Z-Image-Turbo", "z_image_turbo_bf16"], "Z-Image", {"scheduler": "native"}),
    ],
)
def test_distilled_checkpoints_are_told_by_their_makers_names(
    write: Callable[[Path], Path], distilled: list[str], guided: str, own: dict[str, str], tmp_path: Path
) -> None:
    folder = write(tmp_path / guided)
    assert suited_settings(str(folder)) == own
    assert load_generator(str(folder), guidance_scale=3.5).encode(["fish"]).unconditional is not None
    for name in distilled:
        turbo = str(shutil.copytree(folder, tmp_path / name))
        assert suited_settings(turbo) == WITHOUT_GUIDANCE
        with pytest.raises(UserError, match="3.5: it was distilled to sample without guidance; give 1"):
            load_generator(turbo, guidance_scale=3.5)
        assert load_generator(turbo).encode(["fish"]).unconditional is None


@pytest.mark.parametrize(
    ("hub_id", "settings"),
    [
        ("stabilityai/sdxl-turbo", WITHOUT_GUIDANCE),
        ("stabilityai/sd-turbo", WITHOUT_GUIDANCE),
        ("stabilityai/stable-diffusion-3.5-large-turbo", WITHOUT_GUIDANCE),
        ("black-forest-labs/FLUX.1-schnell", WITHOUT_GUIDANCE),
        ("black-forest-labs/FLUX.2-klein-4B", WITHOUT_GUIDANCE),
        ("Tongyi-MAI/Z-Image-Turbo", WITHOUT_GUIDANCE),
        ("black-forest-labs/FLUX.1-dev", {"scheduler": "native", "guidance_scale": 3.5}),
        ("black-forest-labs/FLUX.2-klein-base-4B", {"scheduler": "native"}),
        ("Tongyi-MAI/Z-Image", {"scheduler": "native"}),
        ("stabilityai/stable-diffusion-xl-base-1.0", {}),
    ],
)
def test_a_hub_id_has_its_settings_before_anything_is_downloaded(hub_id: str, settings: dict[str, Any]) -> None:
    assert suited_settings(hub_id) == settings
    if settings == WITHOUT_GUIDANCE:
        with pytest.raises(UserError, match="--guidance-scale 2: it was distilled"):
            ensure_suited(hub_id, None, "native", 2.0)
