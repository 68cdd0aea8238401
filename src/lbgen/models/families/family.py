"""What every family of text-to-image checkpoints provides. Everything that families share is in `Generator`.

B images; latents of an image are (C, h, w), its pixels (3, H, W).
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
    """Encoded prompts: what the network is told of each image.

    Only the family looks at the tensors. All others take rows: `len(conditioning)`, `conditioning[[0, 2, 2]]`.
    """

    tensors: Mapping[str, Tensor]
    """By names that the family chooses; the first dimension of each is B."""
    unconditional: Conditioning | None = None
    """The empty prompt, once for each row, where guidance needs it."""

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def __getitem__(self, rows: Sequence[int]) -> Conditioning:
        chosen = {name: tensor[rows] for name, tensor in self.tensors.items()}
        return Conditioning(chosen, None if self.unconditional is None else self.unconditional[rows])

    def to(self, device: torch.device | str) -> Conditioning:
        """The same on a device, without `unconditional`."""
        return Conditioning({name: tensor.to(device) for name, tensor in self.tensors.items()})

    def with_unconditional(self, unconditional: Conditioning) -> Conditioning:
        """The same, with the empty prompt's conditioning for guidance."""
        assert len(unconditional) == len(self)
        return Conditioning(self.tensors, unconditional)

    def for_guidance(self) -> Conditioning:
        """2B rows for one call of the network: B times the empty prompt, then the B prompts."""
        assert self.unconditional is not None
        empty = self.unconditional.tensors
        return Conditioning({name: torch.cat([empty[name], tensor]) for name, tensor in self.tensors.items()})


@dataclass(frozen=True, eq=False)
class Schedule:
    """The timesteps of one trajectory. Every trajectory needs its own: some schedulers remember earlier predictions."""

    timesteps: Tensor
    """(calls,) on the CPU: the timestep of every network call. Some schedulers make more calls than steps."""
    noise_scale: float
    """Standard deviation that the first latents must have."""
    scheduler: Any
    """A diffusers scheduler whose timesteps are set; no other trajectory may use it."""

    def __len__(self) -> int:
        """The number of network calls."""
        return len(self.timesteps)

    def scaled(self, latents: Tensor, timestep: Tensor) -> Tensor:
        """The network's input: some schedulers divide the latents by their noise level, flow-matching ones do not."""
        scale = getattr(self.scheduler, "scale_model_input", None)
        return scale(latents, timestep) if scale else latents

    def step(
        self, prediction: Tensor, timestep: Tensor, latents: Tensor, rngs: Sequence[torch.Generator] | None = None
    ) -> Tensor:
        """The scheduler's map from latents and prediction to the next latents, (B, C, h, w). It carries gradient.

        rngs: one per image, for schedulers that add noise of their own.
        """
        takes_rngs = "generator" in inspect.signature(self.scheduler.step).parameters
        noise = {"generator": list(rngs)} if rngs is not None and takes_rngs else {}
        return self.scheduler.step(prediction, timestep, latents, return_dict=False, **noise)[0]


@dataclass(frozen=True)
class TextAttention:
    """Where a network's attention relates places of the image to tokens of the prompt."""

    layers: str
    """A regular expression of the layers' names in the network."""
    text: Literal["apart", "first", "last"] = "apart"
    """The tokens are the only keys, or joint attention has them in one sequence with the image's places."""
    patch: int = 1
    """joint attention: side of a place in latents."""
    multiple: int = 1
    """last: the image's places are padded to a multiple of this number."""


class Family(Protocol):
    """One family, loaded. It knows nothing of guidance, adapters, compilation or batches (models/generator.py).

    A family may also have:
    - `keeps_prompts = True`: its text encoders are large; prompts are encoded once and the encoders leave the device
      (kept_prompts.py), so they carry no adapter and `text_encoder_targets` is empty
    - `use_instruction()`: from now on `encode` puts the pipeline's instruction before each prompt that is not empty
    - `take_guidance(guidance)`: returns the guidance that is left to do by two network calls, for a network that reads
      the scale itself or takes none
    - `text_attention` and `tokens_at(prompt, spans)`: where the network attends to the prompt, and which tokens there
      are made of these spans of its characters, for `lbgen generate --localize`
    """

    title: str
    """What people call it, for messages."""
    network_name: str
    """The denoising network's name in a checkpoint and in an adapter file."""
    text_encoder_targets: Sequence[str]
    """The layers of the text encoders that an adapter sits on, where it is asked for there."""

    name: str
    """The checkpoint, as the user called it."""
    device: torch.device
    dtype: torch.dtype
    """Of the weights and of the network's computation."""
    network: Any
    """The denoising network."""
    text_encoders: Mapping[str, Any]
    """By their names in a checkpoint and in an adapter file."""
    vae: Any
    """The autoencoder of the latents, diffusers' AutoencoderKL."""
    default_size: tuple[int, int]
    """(H, W) that the checkpoint was trained for."""
    token_limit: int
    """Largest number of tokens of a prompt, those that mark its ends included."""

    def __init__(
        self, name: str, where: str, *, dtype: torch.dtype, device: torch.device, scheduler: str | None
    ) -> None:
        """Load the checkpoint.  where: its folder or hub id.  scheduler: by name; None is the checkpoint's own."""

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(C, h, w) of the latents of an image of `height` x `width` pixels; UserError where they do not fit."""

    def count_tokens(self, prompt: str) -> int:
        """Tokens of `prompt`, those that mark its ends included."""

    def token_ids(self, prompt: str) -> tuple[tuple[int, ...], ...]:
        """What each text encoder is given of `prompt`. Prompts of equal tokens give equal images."""

    def encode(self, prompts: list[str]) -> Conditioning:
        """Embed prompts that fit the token limit, without `unconditional`."""

    def timesteps(self, steps: int, latent_shape: tuple[int, int, int]) -> Schedule:
        """A new schedule; nothing in the family changes. UserError for more steps than it was trained on."""

    def noise_level(self, timestep: Tensor) -> float:
        """Standard deviation of the noise in the latents at a timestep, divided by the scale of the signal."""

    def predict(self, network: Any, latents: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
        """One call of `network`, which is `self.network`, a copy or a compiled form of it.  (B, C, h, w)."""

    def to_decoder(self, latents: Tensor) -> Tensor:
        """Latents (B, C, h, w) in the scale, shift and layout that the autoencoder reads."""


# ---- tokens of a prompt ----

Spans = Sequence[tuple[int, int]]
"""Begin and end of parts of a text, in characters."""


def token_positions(tokenizer: Any, text: str, spans: Spans) -> tuple[int, ...]:
    """The positions of a text's tokens, those that mark its ends counted, that share a character with a span."""
    offsets = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    return tuple(
        position
        for position, (begin, end) in enumerate(offsets)
        if any(begin < last and first < end for first, last in spans)
    )


def clip_positions(tokenizer: Any, text: str, spans: Spans) -> tuple[int, ...]:
    """The same for CLIP, with the token that marks the end, and with those that fill the text up to its limit.

    Each of its tokens knows those before it. The places of the object attend to these last ones more than to the name
    (docs/localize.md).
    """
    end = len(tokenizer(text).input_ids) - 1
    return (*token_positions(tokenizer, text, spans), *range(end, tokenizer.model_max_length))
