"""The interface of a family of text-to-image checkpoints. Code that all families share is in `Generator`.

Shapes: B images; the latents of an image are (C, h, w), its pixels (3, H, W).
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Conditioning:
    """Encoded prompts, the network's input besides latents and timestep.

    Only the family reads the tensors. Other code selects rows: `len(conditioning)`, `conditioning[[0, 2, 2]]`.
    """

    tensors: Mapping[str, Tensor]
    """Name, chosen by the family -> tensor whose first dimension is B."""
    unconditional: Conditioning | None = None
    """The empty prompt, once per row, if guidance needs it."""

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def __getitem__(self, rows: Sequence[int]) -> Conditioning:
        chosen = {name: tensor[rows] for name, tensor in self.tensors.items()}
        return Conditioning(chosen, None if self.unconditional is None else self.unconditional[rows])

    def to(self, device: torch.device | str) -> Conditioning:
        """The conditioning on a device, without `unconditional`."""
        return Conditioning({name: tensor.to(device) for name, tensor in self.tensors.items()})

    def with_unconditional(self, unconditional: Conditioning) -> Conditioning:
        """The conditioning together with the empty prompt's, for guidance."""
        assert len(unconditional) == len(self)
        return Conditioning(self.tensors, unconditional)

    def for_guidance(self) -> Conditioning:
        """2B rows for one call of the network: the empty prompt B times, then the B prompts."""
        assert self.unconditional is not None
        empty = self.unconditional.tensors
        return Conditioning({name: torch.cat([empty[name], tensor]) for name, tensor in self.tensors.items()})


@dataclass(frozen=True, eq=False)
class Schedule:
    """The timesteps of a trajectory. Make a new one for each trajectory, because some schedulers store predictions."""

    timesteps: Tensor
    """(calls,) on the CPU: the timestep of every network call. Some schedulers make more calls than steps."""
    noise_scale: float
    """Required standard deviation of the first latents."""
    scheduler: Any
    """A diffusers scheduler whose timesteps are set; no other trajectory may use it."""

    def __len__(self) -> int:
        """The number of network calls."""
        return len(self.timesteps)

    def scaled(self, latents: Tensor, timestep: Tensor) -> Tensor:
        """The network's input: some schedulers scale the latents by the noise level, flow-matching ones do not."""
        scale = getattr(self.scheduler, "scale_model_input", None)
        return scale(latents, timestep) if scale else latents

    def step(
        self, prediction: Tensor, timestep: Tensor, latents: Tensor, rngs: Sequence[torch.Generator] | None = None
    ) -> Tensor:
        """The scheduler's map from latents and prediction to the next latents, (B, C, h, w). It is differentiable.

        rngs: one per image, for schedulers that add noise of their own.
        """
        takes_rngs = "generator" in inspect.signature(self.scheduler.step).parameters
        noise = {"generator": list(rngs)} if rngs is not None and takes_rngs else {}
        return self.scheduler.step(prediction, timestep, latents, return_dict=False, **noise)[0]


@dataclass(frozen=True)
class TextAttention:
    """Where a network's attention relates image patches to tokens of the prompt."""

    layers: str
    """Regular expression for the layers' names in the network."""
    text: Literal["apart", "first", "last"] = "apart"
    """apart: cross-attention, whose only keys are the tokens. first, last: joint attention over one sequence, in which
    the tokens come before or after the image patches."""
    patch: int = 1
    """Joint attention: side of an image patch in latents."""
    multiple: int = 1
    """last: the number of image patches is padded to a multiple of this number."""


class Family(Protocol):
    """A loaded checkpoint of one family. Guidance, adapters, compilation and batches are in models/generator.py.

    A family may also have:
    - `keeps_prompts = True`: for large text encoders. Prompts are encoded once and the encoders then leave the device
      (kept_prompts.py), so they have no adapter and `text_encoder_targets` is empty
    - `use_instruction()`: afterwards `encode` puts the pipeline's instruction before each prompt that is not empty
    - `take_guidance(guidance)`: for a network that reads the scale as an input or allows no guidance; returns the
      guidance that remains to be done by two network calls
    - `text_attention` and `tokens_at(prompt, spans)`: for `lbgen generate --localize`; where the network attends to the
      prompt, and the positions there of the tokens in these spans of characters
    """

    title: str
    """The family's usual name, for messages."""
    network_name: str
    """The denoising network's name in a checkpoint and in an adapter file."""
    text_encoder_targets: Sequence[str]
    """The layers of the text encoders that get an adapter, if the user asks for one there."""

    name: str
    """The checkpoint, as the user called it."""
    device: torch.device
    dtype: torch.dtype
    """Type of the weights and of the network's computation."""
    network: Any
    """The denoising network."""
    text_encoders: Mapping[str, Any]
    """Name in a checkpoint and in an adapter file -> text encoder."""
    vae: Any
    """The autoencoder of the latents, diffusers' AutoencoderKL."""
    default_size: tuple[int, int]
    """(H, W) that the checkpoint was trained for."""
    token_limit: int
    """Largest number of tokens of a prompt, including the start and end tokens."""

    def __init__(
        self, name: str, where: str, *, dtype: torch.dtype, device: torch.device, scheduler: str | None
    ) -> None:
        """Load the checkpoint.  where: its folder or hub id.  scheduler: by name; None is the checkpoint's own."""

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(C, h, w) of the latents of an image of `height` x `width` pixels; UserError if the size is not possible."""

    def count_tokens(self, prompt: str) -> int:
        """Number of tokens of `prompt`, including the start and end tokens."""

    def token_ids(self, prompt: str) -> tuple[tuple[int, ...], ...]:
        """The tokens of `prompt` for each text encoder. Prompts with equal tokens give equal images."""

    def encode(self, prompts: list[str]) -> Conditioning:
        """Embed prompts that fit the token limit, without `unconditional`."""

    def timesteps(self, steps: int, latent_shape: tuple[int, int, int]) -> Schedule:
        """A new schedule; nothing in the family changes. UserError for more steps than it was trained on."""

    def noise_level(self, timestep: Tensor) -> float:
        """Standard deviation of the noise in the latents at a timestep, divided by the signal's scale."""

    def predict(self, network: Any, latents: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
        """One call of `network`, which is `self.network`, a copy or a compiled form of it.  (B, C, h, w)."""

    def to_decoder(self, latents: Tensor) -> Tensor:
        """Latents (B, C, h, w) in the scale, shift and layout that the autoencoder reads."""


# ---- tokens of a prompt ----

Spans = Sequence[tuple[int, int]]
"""(begin, end) of parts of a text, in characters."""


def token_positions(tokenizer: Any, text: str, spans: Spans) -> tuple[int, ...]:
    """Positions of the tokens that share a character with a span; start and end tokens are counted."""
    offsets = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    return tuple(
        position
        for position, (begin, end) in enumerate(offsets)
        if any(begin < last and first < end for first, last in spans)
    )


def clip_positions(tokenizer: Any, text: str, spans: Spans) -> tuple[int, ...]:
    """Token positions for CLIP, with the end token and the padding tokens after it.

    CLIP's text encoder is causal, so these last tokens have seen the whole prompt, and the object's image patches
    attend to them more than to the name (docs/localize.md).
    """
    end = len(tokenizer(text).input_ids) - 1
    return (*token_positions(tokenizer, text, spans), *range(end, tokenizer.model_max_length))
