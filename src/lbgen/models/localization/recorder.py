"""Localizing the category in an image from quantities that the network computes during sampling.

1. Attention: how much each image patch attends to chosen tokens of the prompt, enlarged and averaged over layers, heads
   and steps (DAAM, arXiv 2210.04885).
2. Change: how much the prompt changes the prediction, which guidance computes anyway (DiffEdit, arXiv 2210.11427).
3. For prompts with N names: how much each name changes the prediction; the network is called without it at a few steps.
Only sums are stored, one per layer size.  Shapes: B images, Q image patches in a layer, K tokens of a prompt.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from lbgen.errors import UserError
from lbgen.models.families.family import Conditioning, TextAttention
from lbgen.models.generator import Generator, Prediction

AT_ONCE = 2**26
"""Number of attention weights in memory at a time."""


class Recorder(TorchFunctionMode):
    """Records what a generator computes while it is attached; changes nothing."""

    def __init__(
        self,
        attention: TextAttention,
        tokens: Sequence[Sequence[int]],
        grid: tuple[int, int],
        first_step: int = 0,
        without: Sequence[Conditioning] = (),
        compared_steps: Collection[int] = (),
    ) -> None:
        """tokens: positions of the relevant tokens in each of the B prompts.  grid: rows and columns of latents.

        first_step: first recorded step; before it the image has no layout yet.  without: for each of N names, the B
        prompts without it.  compared_steps: the steps at which the network is also called for these prompts.
        """
        super().__init__()
        self.attention, self.tokens, self.grid, self.first_step = attention, tokens, grid, first_step
        self._attention: dict[tuple[int, int], tuple[Tensor, int]] = {}
        """Rows and columns of the patches -> attention sum, (B, rows, columns), and number of calls."""
        self._chosen: dict[int, Tensor] = {}
        """K -> (B, K), 1 at the relevant tokens, 0 at others."""
        self._changed: Tensor | None = None
        """(B, h, w) sum of squared changes by the prompt; None without guidance."""
        self.without, self.compared_steps = without, compared_steps
        self._changed_by_names: Tensor | None = None
        """(B, N, h, w) sum of squared changes by each name, divided by the step's mean."""
        self._generator: Generator | None = None
        self._step, self._comparing = 0, False

    def maps(self) -> Tensor:
        """(B, h, w), not negative: the attention; with guidance multiplied by the root of the change by the prompt."""
        return self.paid() if self._changed is None else self.paid() * self._changed.sqrt().sqrt()

    def parts(self) -> Tensor | None:
        """(B, N, h, w), not negative: how much each name changes the prediction; None without `without`."""
        return self._changed_by_names

    def paid(self) -> Tensor:
        """(B, h, w) share of attention on the relevant tokens, in [0, 1].

        The layers of a UNet with the fewest patches are left out. Raises UserError if another library than torch
        computed the attention.
        """
        if not self._attention:
            raise UserError("--localize: the attention was not computed by torch; unset DIFFUSERS_ATTN_BACKEND")
        fine = sorted(self._attention)[1:] or [*self._attention]
        calls = sum(self._attention[shape][1] for shape in fine)
        enlarged = [F.interpolate(self._attention[s][0][:, None], self.grid, mode="bicubic")[:, 0] for s in fine]
        return (torch.stack(enlarged).sum(dim=0) / calls).clamp(0, 1)  # a cubic spline overshoots

    @contextmanager
    def attached(self, generator: Generator) -> Iterator[None]:
        """Record one trajectory within the context. The torch function mode is active only within the layers."""
        self._generator = generator
        with ExitStack() as stack:
            stack.enter_context(generator.observed(self._end_step))
            for name, layer in generator.family.network.named_modules():
                if re.search(self.attention.layers, name):
                    stack.callback(layer.register_forward_pre_hook(self._enter).remove)
                    stack.callback(layer.register_forward_hook(self._leave, always_call=True).remove)
            yield

    def _end_step(self, prediction: Prediction) -> None:
        if self._step >= self.first_step and prediction.unconditional is not None:
            squares = _squares(prediction.conditional - prediction.unconditional)
            self._changed = squares if self._changed is None else self._changed + squares
        if self.without and self._step in self.compared_steps:
            self._compare(prediction)
        self._step += 1

    def _compare(self, prediction: Prediction) -> None:
        """Call the network once for each name."""
        assert self._generator is not None, "attached"
        latents, timestep, conditional, _ = prediction
        self._comparing = True
        others = [self._generator.predict_unguided(latents, timestep, each) for each in self.without]
        self._comparing = False
        squares = torch.stack([_squares(conditional - other) for other in others], dim=1)  # (B, N, h, w)
        shares = squares / squares.mean(dim=(1, 2, 3), keepdim=True).clamp_min(1e-12)
        self._changed_by_names = shares if self._changed_by_names is None else self._changed_by_names + shares

    def _enter(self, *_: Any) -> None:
        self.__enter__()

    def _leave(self, *_: Any) -> None:
        self.__exit__(None, None, None)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        counts = self._step >= self.first_step and not self._comparing
        if func is F.scaled_dot_product_attention and counts:
            self._record(*args, **kwargs or {})
        return func(*args, **kwargs or {})

    def _record(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *_: Any, **options: Any
    ) -> None:
        """query, key: (rows, heads, length, D); the last B rows belong to the prompts.

        attn_mask: (rows, heads or 1, any, length of key), equal for all heads and queries.
        """
        batch, scale = len(self.tokens), options.get("scale") or query.shape[-1] ** -0.5
        places, words, shape = self._slices(query.shape[2], key.shape[2])
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
        before, calls = self._attention.get(shape, (0, 0))
        self._attention[shape] = (before + paid, calls + 1)

    def _chosen_of(self, length: int, device: torch.device) -> Tensor:
        if length not in self._chosen:
            chosen = torch.zeros(len(self.tokens), length)
            for row, tokens in zip(chosen, self.tokens, strict=True):
                row[list(tokens)] = 1
            self._chosen[length] = chosen.to(device)
        return self._chosen[length]

    def _slices(self, queries: int, keys: int) -> tuple[slice, slice, tuple[int, int]]:
        """The queries that are image patches, the keys that are tokens, and the rows and columns of the patches."""
        height, width = self.grid
        if self.attention.text == "apart":  # layers of a UNet see the latents at full size, half size and so on
            sizes = ((-(-height // side), -(-width // side)) for side in (1, 2, 3, 4, 8, 16, 32, 64))
            shape = next(size for size in sizes if size[0] * size[1] == queries)
            return slice(queries), slice(keys), shape
        shape = (height // self.attention.patch, width // self.attention.patch)
        places = shape[0] * shape[1]
        if self.attention.text == "first":
            return slice(keys - places, keys), slice(keys - places), shape
        padded = -(-places // self.attention.multiple) * self.attention.multiple
        return slice(places), slice(padded, keys), shape


def _squares(difference: Tensor) -> Tensor:
    """(B, C, h, w) to (B, h, w)."""
    return difference.float().square().sum(dim=1)


def _bias(mask: Tensor) -> Tensor:
    """The bias that a mask adds to the scores."""
    if mask.dtype != torch.bool:
        return mask.float()
    return torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, -torch.inf)
