"""A family of generators that draws nothing: an image is its noise, enlarged. For `speed/fourteen_million.py` alone.

With it `lbgen generate` does everything but the work of the networks: it plans, makes noise, encodes, writes.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lbgen.models.families.family import Conditioning, Schedule

PIPELINE = "NothingPipeline"
SCALE = 2
"""Pixels of an image for a value of its noise."""
DISTRIBUTION = "lbgen_rehearsal-1.0.dist-info"


class Keep:
    """A scheduler whose step keeps the latents."""

    def step(self, prediction: Tensor, timestep: Tensor, latents: Tensor, return_dict: bool = False) -> tuple[Tensor]:
        return (latents,)


class Enlarge(nn.Module):
    """An autoencoder without weights."""

    dtype = torch.float32

    def decoder(self, latents: Tensor) -> Tensor:
        return latents.repeat_interleave(SCALE, dim=2).repeat_interleave(SCALE, dim=3)


class Nothing:
    """The members of lbgen.models.families.family.Family."""

    title = "a stub that draws nothing"
    network_name = "unet"
    text_encoder_targets: Sequence[str] = ()
    token_limit = 77
    default_size = (16, 16)

    def __init__(self, name: str, where: str, *, dtype: torch.dtype, device: torch.device, scheduler: str | None):
        self.name, self.device, self.dtype = name, device, dtype
        self.network, self.vae = nn.Module(), Enlarge()
        self.text_encoders: dict[str, Any] = {}

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        return 3, height // SCALE, width // SCALE

    def count_tokens(self, prompt: str) -> int:
        return len(prompt.split()) + 2

    def token_ids(self, prompt: str) -> tuple[tuple[int, ...], ...]:
        return (tuple(prompt.encode()),)

    def encode(self, prompts: list[str]) -> Conditioning:
        return Conditioning({"nothing": torch.zeros(len(prompts), 1)})

    def timesteps(self, steps: int, latent_shape: tuple[int, int, int]) -> Schedule:
        return Schedule(torch.arange(steps).flip(0), 1.0, Keep())

    def noise_level(self, timestep: Tensor) -> float:
        return 1.0

    def predict(self, network: Any, latents: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
        return latents

    def to_decoder(self, latents: Tensor) -> Tensor:
        return latents


def install(folder: Path) -> Path:
    """Write the metadata of a distribution with this family; returns the folder, for sys.path and PYTHONPATH."""
    information = folder / DISTRIBUTION
    information.mkdir(parents=True)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: lbgen-rehearsal\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(f"[lbgen.families]\n{PIPELINE} = {__name__}:Nothing\n")
    return folder


def write_checkpoint(folder: Path) -> str:
    """The folder of a checkpoint of this family; it has no weights."""
    folder.mkdir(parents=True)
    (folder / "model_index.json").write_text(json.dumps({"_class_name": PIPELINE}))
    return str(folder)
