"""What the transformer families have in common: loading, sizes, tokens, refusals. See `Family`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from lbgen.errors import UserError
from lbgen.models.families.family import Conditioning, Schedule, Spans, token_positions
from lbgen.models.loading import load_model, read_config

TEXT_MODEL_TYPES = {
    "CLIPTextModel": ("clip", "clip_text_model"),
    "CLIPTextModelWithProjection": ("clip", "clip_text_model"),
    "T5EncoderModel": ("t5",),
    "Gemma2Model": ("gemma2",),
    "Qwen3ForCausalLM": ("qwen3",),
    "Qwen3Model": ("qwen3",),
}
"""Class of a text encoder -> the `model_type`s that its config.json may have."""
ANY_PROMPT = "\ue000"
"""A test prompt that does not occur in the text of any chat template."""

Config = Mapping[str, Any]


class TransformerFamily:
    """Large text encoders, a transformer over patches of latents, an autoencoder. Subclasses are families."""

    title: str
    network_name = "transformer"
    text_encoder_targets: Sequence[str] = ()
    keeps_prompts = True
    pipeline_class: Any
    models: Mapping[str, Any]
    """The parts of a checkpoint that hold weights."""
    optional: Sequence[str] = ()
    """The parts that a checkpoint may omit."""
    absent: Mapping[str, Any] = {}
    """Arguments of the pipeline for parts that are not loaded."""
    other_names: Mapping[str, Sequence[str]] = {}
    """Part -> other classes, with the same weights, that its config.json may name."""
    widths: Mapping[str, Sequence[tuple[str, str]]] = {}
    """Setting of the transformer -> parts and settings of the text encoders whose widths sum to its value."""
    packs = 1
    """Side of the patches into which latents are packed before the network, which may have its own patches."""
    limits: Mapping[str, int | None]
    """Tokenizer -> most tokens that the pipeline gives to its encoder; None means the tokenizer's own limit."""

    def __init__(
        self, name: str, where: str, *, dtype: torch.dtype, device: torch.device, scheduler: str | None
    ) -> None:
        self.name, self.device, self.dtype = name, device, dtype
        self.absences = self._absences(where)
        self.refuse_other_parts(where)
        self.refuse_scheduler(scheduler, read_config(where, "scheduler", "scheduler_config.json"))
        self.pipeline = self._load(where, dtype)
        self.network, self.vae = self.pipeline.transformer.to(device), self.pipeline.vae.to(device)
        self.patch_size = self.side_of_patch()
        # Not every transformer's configuration has the size that it was trained for.
        latents = self.network.config.get("sample_size")
        side = int(latents * self.pipeline.vae_scale_factor if latents else self.vae.config.sample_size)
        self.default_size = (side, side)
        self.text_encoders: Mapping[str, Any] = {
            part: getattr(self.pipeline, part) for part in self.models if "text" in part and part not in self.absences
        }
        self.scheduler = self.scheduler_called(scheduler)
        self._limits = {
            each: limit or getattr(self.pipeline, each).model_max_length
            for each, limit in self.limits.items()
            if getattr(self.pipeline, each) is not None
        }
        self.token_limit = min(self._limits.values())
        # Faults of a damaged configuration show here, where errors become one line.
        self.count_tokens("")
        self.timesteps(1, self.latent_shape(*self.default_size))

    # ---- sizes and tokens ----

    def side_of_patch(self) -> int:
        """Side, in latents, of the patch that is one token of the transformer."""
        return self.packs * self.network.config.patch_size

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        factor = self.pipeline.vae_scale_factor
        multiple = factor * self.patch_size
        if height % multiple or width % multiple:
            raise UserError(f"image size {height}x{width}: height and width must be multiples of {multiple}")
        return self.network.config.in_channels // self.packs**2, height // factor, width // factor

    def count_tokens(self, prompt: str) -> int:
        """Tokens, relative to the smallest limit, in the encoder that has the fewest tokens left."""
        counts = zip(self.token_ids(prompt), self._limits.values(), strict=True)
        return self.token_limit + max(len(ids) - limit for ids, limit in counts)

    def token_ids(self, prompt: str) -> tuple[tuple[int, ...], ...]:
        if hasattr(self.pipeline, "_text_preprocessing"):  # lower case, for example
            (prompt,) = self.pipeline._text_preprocessing(prompt)
        return tuple(tuple(getattr(self.pipeline, each)(prompt).input_ids) for each in self._limits)

    def chat_ids(self, prompt: str, *, enable_thinking: bool) -> tuple[int, ...]:
        """Token ids of a prompt as a user's message to a chat model."""
        return tuple(self.pipeline.tokenizer(self.chat_text(prompt, enable_thinking=enable_thinking)).input_ids)

    def chat_text(self, prompt: str, *, enable_thinking: bool) -> str:
        text: str = self.pipeline.tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}],
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=enable_thinking,
        )
        return text

    def tokens_at(self, prompt: str, spans: Spans) -> tuple[int, ...]:
        """Token positions in the text encoder to whose tokens the network attends."""
        if hasattr(self.pipeline, "_text_preprocessing"):  # strips it and makes it lower case
            stripped = len(prompt) - len(prompt.lstrip())
            (prompt,) = self.pipeline._text_preprocessing(prompt)
            spans = [(begin - stripped, end - stripped) for begin, end in spans]
        return token_positions(getattr(self.pipeline, [*self.limits][-1]), prompt, spans)

    def chat_tokens_at(self, prompt: str, spans: Spans, *, enable_thinking: bool) -> tuple[int, ...]:
        """Token positions for a prompt as a user's message to a chat model."""
        text = self.chat_text(prompt, enable_thinking=enable_thinking)
        first = self.chat_text(ANY_PROMPT, enable_thinking=enable_thinking).find(ANY_PROMPT)
        if first < 0 or not text[first:].startswith(prompt):
            raise UserError(f"generator {self.name}: its chat template changes the prompt; leave --localize out")
        return token_positions(self.pipeline.tokenizer, text, [(first + begin, first + end) for begin, end in spans])

    # ---- methods of a subclass ----

    def encode(self, prompts: list[str]) -> Conditioning:
        raise NotImplementedError

    def timesteps(self, steps: int, latent_shape: tuple[int, int, int]) -> Schedule:
        raise NotImplementedError

    def noise_level(self, timestep: Tensor) -> float:
        raise NotImplementedError

    def predict(self, network: Any, latents: Tensor, timestep: Tensor, conditioning: Conditioning) -> Tensor:
        raise NotImplementedError

    def refuse_scheduler(self, name: str | None, config: Config) -> None:
        """Refuse a scheduler before the weights are loaded.  config: of the checkpoint's own scheduler."""
        raise NotImplementedError

    def scheduler_called(self, name: str | None) -> Any:
        """The scheduler of this name; None is the checkpoint's own."""
        raise NotImplementedError

    def to_decoder(self, latents: Tensor) -> Tensor:
        config = self.vae.config
        shift = getattr(config, "shift_factor", None) or 0.0
        return latents / config.scaling_factor + shift

    # ---- loading ----

    def _absences(self, where: str) -> dict[str, Any]:
        """`absent`, with the optional parts that this checkpoint omits."""
        index = self.pipeline_class.load_config(where)
        lacking = [part for part in self.optional if (index.get(part) or [None])[0] is None]
        return {**self.absent, **dict.fromkeys(lacking)}

    def refuse_other_parts(self, where: str) -> None:
        """Refuse parts of other classes and a transformer with other inputs, according to their configurations."""
        configs = {part: read_config(where, part) for part in self.models if part not in self.absences}
        for fault in self.faults(configs):
            raise UserError(f"generator {where}: {fault}; give a text-to-image checkpoint of {self.title}")

    def faults(self, configs: Mapping[str, Config]) -> Iterator[str]:
        """Evidence in the parts' configurations that the checkpoint is for another use."""
        yield from self._wrong_classes(configs)
        read, latents = configs["transformer"].get("in_channels"), configs["vae"].get("latent_channels")
        if isinstance(latents, int) and read not in (None, latents * self.packs**2):
            yield (
                f"transformer has in_channels {read!r:.40}, latents need {latents * self.packs**2} "
                "(it may be for inpainting, editing or depth)"
            )
        for setting, sources in self.widths.items():
            read = configs["transformer"].get(setting)
            given = [_setting(configs[part], key) for part, key in sources if part in configs]
            if isinstance(read, int) and given and all(isinstance(each, int) for each in given) and sum(given) != read:
                parts, widths = " and ".join(part for part, _ in sources), " + ".join(map(str, given))
                yield f"transformer reads texts of {read} channels ({setting}), {parts} give {widths}"

    def _wrong_classes(self, configs: Mapping[str, Config]) -> Iterator[str]:
        for part, config in configs.items():
            expected = self.models[part].__name__
            types = TEXT_MODEL_TYPES.get(expected)
            if types is not None and (kind := config.get("model_type")) not in (None, *types):
                yield f"{part} is of type {kind!r:.40}, not {types[-1]}"
            known = (None, expected, *self.other_names.get(part, ()))
            if types is None and (kind := config.get("_class_name")) not in known:
                yield f"{part} is of class {kind!r:.40}, not {expected}"

    def _load(self, where: str, dtype: torch.dtype) -> Any:
        """diffusers' pipeline, with the autoencoder in float32 if it overflows in half precision."""
        kinds = {part: kind for part, kind in self.models.items() if part not in self.absences}
        parts = {part: load_model(kind, where, dtype, subfolder=part) for part, kind in kinds.items()}
        if dtype == torch.float16 and getattr(parts["vae"].config, "force_upcast", False):
            parts["vae"] = load_model(AutoencoderKL, where, torch.float32, subfolder="vae")
        return self.pipeline_class.from_pretrained(where, use_safetensors=True, **self.absences, **parts)


def _setting(config: Config, name: str) -> Any:
    """A setting of a text encoder; its configuration may be nested in that of a whole CLIP."""
    return (config.get("text_config") or config).get(name)
