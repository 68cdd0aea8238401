"""Caching the prompts of large text encoders: each is encoded once, and the encoders leave the device for sampling."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from lbgen.models.families.family import Conditioning, Family

LARGEST = 4 * 2**30
"""Bytes cached in memory, about 1,000 prompts of FLUX.1; further prompts are cached in files."""


class KeptPrompts:
    """A cache of conditionings on the CPU. Each prompt is encoded alone, so that it does not depend on others."""

    def __init__(self, family: Family, largest: int = LARGEST) -> None:
        self.family, self.largest, self.bytes = family, largest, 0
        self._kept: dict[str, Conditioning | Path] = {}
        self._files: tempfile.TemporaryDirectory[str] | None = None

    def rows(self, prompts: Sequence[str]) -> Conditioning:
        """The prompts' conditioning on the family's device, one row each."""
        self.encode(prompts)
        found = {prompt: self._read(prompt) for prompt in dict.fromkeys(prompts)}
        names = found[prompts[0]]
        tensors = {name: torch.cat([found[prompt][name] for prompt in prompts]) for name in names}
        return Conditioning(tensors).to(self.family.device)

    def encode(self, prompts: Iterable[str]) -> None:
        """Encode the prompts that are not in the cache."""
        missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._kept]
        if not missing:
            return
        # Autocast is off: the same prompt has the same conditioning in training, evaluation and generation.
        with self._encoders_on_device(), torch.no_grad(), torch.autocast(self.family.device.type, enabled=False):
            for prompt in missing:
                self._keep(prompt, self.family.encode([prompt]).to("cpu"))

    def clear(self) -> None:
        """Empty the cache, for callers whose prompts rarely recur."""
        if self._files is not None:
            self._files.cleanup()
        self._kept, self._files, self.bytes = {}, None, 0

    @contextmanager
    def _encoders_on_device(self) -> Iterator[None]:
        encoders = self.family.text_encoders.values()
        for encoder in encoders:
            encoder.to(self.family.device)
        try:
            yield
        finally:
            for encoder in encoders:
                encoder.to("cpu")

    def _keep(self, prompt: str, conditioning: Conditioning) -> None:
        tensors = dict(conditioning.tensors)
        size = sum(tensor.nbytes for tensor in tensors.values())
        if self.bytes + size <= self.largest:
            self._kept[prompt] = conditioning
            self.bytes += size
            return
        if self._files is None:
            self._files = tempfile.TemporaryDirectory(prefix="lbgen-prompts-")
        path = Path(self._files.name, f"{len(self._kept)}.safetensors")
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
        self._kept[prompt] = path

    def _read(self, prompt: str) -> dict[str, torch.Tensor]:
        kept = self._kept[prompt]
        return load_file(kept) if isinstance(kept, Path) else dict(kept.tensors)
