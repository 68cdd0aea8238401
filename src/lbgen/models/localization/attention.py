"""How much each place of an image attends to chosen tokens of its prompt, added up while the image is sampled.

Diffusion attentive attribution maps (DAAM, arXiv 2210.04885): the attention of the tokens, enlarged, averaged over
layers, heads and calls of the network. Only the sums are kept, one for each size of layer.
B images, Q places of the image in a layer, K tokens of a prompt.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from lbgen.models.families.family import TextAttention

AT_ONCE = 2**26
"""Attention weights that are in memory at a time."""


class AttentionRecorder(TorchFunctionMode):
    """Sees the inputs of the attention of a network's chosen layers while it is attached, and changes nothing."""

    def __init__(self, attention: TextAttention, tokens: Sequence[Sequence[int]], grid: tuple[int, int]) -> None:
        """tokens: of each of the B prompts, the positions of those that count.  grid: rows and columns of latents."""
        super().__init__()
        self.attention, self.tokens, self.grid = attention, tokens, grid
        self._sums: dict[tuple[int, int], Tensor] = {}
        """By rows and columns of the places, (B, rows, columns)."""
        self._chosen: dict[int, Tensor] = {}
        """By K, (B, K): 1 at the tokens that count, 0 at others."""
        self._calls = 0

    def maps(self) -> Tensor:
        """(B, h, w) share of the attention that is paid to the tokens, in [0, 1]."""
        assert self._sums, f"no attention of a layer called {self.attention.layers} was seen"
        enlarged = [F.interpolate(each[:, None], self.grid, mode="bicubic")[:, 0] for each in self._sums.values()]
        return (torch.stack(enlarged).sum(dim=0) / self._calls).clamp(0, 1)  # a cubic spline overshoots

    @contextmanager
    def attached(self, network: Any) -> Iterator[None]:
        """Within the context every call of the network is recorded. The mode is on within the layers alone."""
        with ExitStack() as stack:
            for name, layer in network.named_modules():
                if re.search(self.attention.layers, name):
                    stack.callback(layer.register_forward_pre_hook(self._enter).remove)
                    stack.callback(layer.register_forward_hook(self._leave, always_call=True).remove)
            yield

    def _enter(self, *_: Any) -> None:
        self.__enter__()

    def _leave(self, *_: Any) -> None:
        self.__exit__(None, None, None)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            self._record(*args, **kwargs or {})
        return func(*args, **kwargs or {})

    def _record(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *_: Any, **options: Any
    ) -> None:
        """query and key: (rows, heads, length, D); the last B rows are those of prompts.

        attn_mask: (rows, heads or 1, any, length of key), the same for all heads and queries.
        """
        batch, scale = len(self.tokens), options.get("scale") or query.shape[-1] ** -0.5
        places, words, shape = self._parts(query.shape[2], key.shape[2])
        query, key = query[-batch:, :, places], key[-batch:, :, words]  # (B, heads, Q, D), (B, heads, K, D)
        masked = None if attn_mask is None else _bias(attn_mask[-batch:, :1, :1, words])  # (B, 1, 1, K)
        chosen = self._chosen_of(key.shape[2], key.device)
        size = max(1, AT_ONCE // (query.shape[1] * query.shape[2] * key.shape[2]))
        found = []
        for start in range(0, batch, size):
            rows = slice(start, start + size)
            scores = (query[rows] @ key[rows].transpose(-1, -2)).float() * scale  # (b, heads, Q, K)
            weights = (scores if masked is None else scores + masked[rows]).softmax(dim=-1).mean(dim=1)
            found.append(weights @ chosen[rows, :, None])  # (b, Q, 1)
        paid = torch.cat(found).view(batch, *shape)
        self._sums[shape] = self._sums[shape] + paid if shape in self._sums else paid
        self._calls += 1

    def _chosen_of(self, length: int, device: torch.device) -> Tensor:
        if length not in self._chosen:
            chosen = torch.zeros(len(self.tokens), length)
            for row, tokens in zip(chosen, self.tokens, strict=True):
                row[list(tokens)] = 1
            self._chosen[length] = chosen.to(device)
        return self._chosen[length]

    def _parts(self, queries: int, keys: int) -> tuple[slice, slice, tuple[int, int]]:
        """Which queries are places of the image, which keys tokens, and how many rows and columns the places have."""
        height, width = self.grid
        if self.attention.text == "apart":  # some layers of a UNet see the latents in half their size, and so on
            sizes = ((-(-height // side), -(-width // side)) for side in (1, 2, 3, 4, 8, 16, 32, 64))
            shape = next(size for size in sizes if size[0] * size[1] == queries)
            return slice(queries), slice(keys), shape
        shape = (height // self.attention.patch, width // self.attention.patch)
        places = shape[0] * shape[1]
        if self.attention.text == "first":
            return slice(keys - places, keys), slice(keys - places), shape
        padded = -(-places // self.attention.multiple) * self.attention.multiple
        return slice(places), slice(padded, keys), shape


def _bias(mask: Tensor) -> Tensor:
    """What a mask adds to the scores."""
    if mask.dtype != torch.bool:
        return mask.float()
    return torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, -torch.inf)
