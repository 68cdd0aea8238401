"""What every text-to-image family offers, and the one way to load any of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
"""By the name that configs give them."""


@dataclass(frozen=True)
class Conditioning:
    """Encoded prompts and, row for row, the empty prompt guidance contrasts them with. Both (B, T, D)."""

    positive: Tensor
    negative: Tensor


class Generator(ABC):
    """Text to image, differentiable where asked. Latents are float32; the network computes in `dtype`."""

    device: torch.device
    dtype: torch.dtype
    guidance_scale: float
    guidance_rescale: float
    guidance_interval: tuple[float, float] | None
    default_size: tuple[int, int]
    """(H, W) in pixels the checkpoint was trained for."""
    fixed_batch: int = 0
    """Compiled networks are given smaller batches filled up to this one, so that they are compiled for no other."""
    token_limit: int
    """Tokens a prompt may have, the two that mark its ends included."""

    @abstractmethod
    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(C, h, w) of the latents of an image of `height` x `width` pixels."""

    @abstractmethod
    def count_tokens(self, prompt: str) -> int:
        """Tokens of `prompt`, the two that mark its ends included."""

    @abstractmethod
    def encode(self, prompts: list[str]) -> Conditioning:
        """Embed prompts; under grad the gradient reaches a text-encoder adapter."""

    @abstractmethod
    def set_scheduler(self, name: str | None) -> None:
        """Choose the scheduler by name; None is the checkpoint's own."""

    @abstractmethod
    def timesteps(self, steps: int) -> Tensor:
        """Start a trajectory: the timestep of every network call. Some schedulers make more calls than steps."""

    @property
    @abstractmethod
    def noise_scale(self) -> float:
        """Standard deviation the scheduler expects of the starting noise, once `timesteps` has been called."""

    @abstractmethod
    def predict(self, latents: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
        """The network's prediction, guidance included. Latents and result (B, C, h, w)."""

    @abstractmethod
    def step(
        self, prediction: Tensor, timestep: Tensor, latents: Tensor, rngs: Sequence[torch.Generator] | None = None
    ) -> Tensor:
        """The scheduler's map from latents and prediction to the next latents, (B, C, h, w)."""

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """(B, C, h, w) to images (B, 3, H, W), float32, nominally in [0, 1], never clamped."""

    @abstractmethod
    def add_adapter(self, rank: int, alpha: float, targets: Sequence[str], text_encoder: bool = False) -> None:
        """Put a fresh trainable LoRA on the network's `targets`: float32, gaussian init from torch's global seed."""

    @abstractmethod
    def adapter_parameters(self) -> list[tuple[str, torch.nn.Parameter]]:
        """The trainable weights by name, always in the same order."""

    @abstractmethod
    def adapter_enabled(self, enabled: bool) -> AbstractContextManager[None]:
        """Within the context the adapter is on or off; off gives the base model."""

    @abstractmethod
    def refresh_sampler(self) -> None:
        """Bring the merged copy that predicts without grad up to date; to be called when the adapter has changed."""

    @abstractmethod
    def save_adapter(self, directory: Path) -> None:
        """Write the adapter as a standard LoRA file."""

    @abstractmethod
    def load_adapter(self, directory: Path) -> None:
        """Read a saved adapter back, trainable."""

    @abstractmethod
    def merge_adapter(self, directory: Path) -> None:
        """Add a saved adapter to the base weights for good."""

    @abstractmethod
    def enable_gradient_checkpointing(self) -> None:
        """Recompute activations in the backward pass instead of keeping them."""

    @abstractmethod
    def optimize(self) -> None:
        """Faster layouts for sampling without gradients; same images. After `merge_adapter`."""


def load_generator(
    name: str,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    scheduler: str | None = None,
    guidance_scale: float = 2.0,
    guidance_rescale: float = 0.0,
    guidance_interval: tuple[float, float] | None = None,
    deep_cache_interval: int = 1,
    merged_sampler: bool = False,
    compile: bool = False,
) -> Generator:
    """Load a checkpoint by registry name, folder or hub id.

    guidance_interval: guidance only at noise levels above the first and up to the second (arXiv 2404.07724).
    deep_cache_interval: compute the deep blocks at every so-many-th call without grad (arXiv 2312.00858); 1 is off.
    merged_sampler: predict without grad through a copy with the adapter merged (see `refresh_sampler`).
    compile: torch.compile the networks that predict and decode without grad.
    """
    from lbgen.models.families.stable_diffusion import StableDiffusion

    return StableDiffusion(
        name,
        dtype=dtype,
        device=torch.device(device),
        scheduler=scheduler,
        guidance_scale=guidance_scale,
        guidance_rescale=guidance_rescale,
        guidance_interval=guidance_interval,
        deep_cache_interval=deep_cache_interval,
        merged_sampler=merged_sampler,
        compile=compile,
    )
