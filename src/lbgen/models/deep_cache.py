"""DeepCache (arXiv 2312.00858): the outputs of a UNet's deep blocks change little between calls and can be reused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def is_unet(network: Any) -> bool:
    """Whether the network has the blocks of a diffusers UNet."""
    return hasattr(network, "down_blocks")


class DeepCache:
    """Replaces the forward method of every block of a diffusers UNet except the first down and the last up block.

    Without grad the blocks are computed at every `interval`-th call, and their outputs are reused at the others. Under
    grad they are always computed, and nothing is cached.
    """

    def __init__(self, unet: Any, interval: int) -> None:
        self.interval = interval
        self.reset()
        for block in (*unet.down_blocks[1:], unet.mid_block, *unet.up_blocks[:-1]):
            block.forward = self._cached(block.forward)

    def reset(self) -> None:
        """Forget all cached outputs; call this at the start of every trajectory."""
        self._outputs: dict[Callable[..., Any], Any] = {}
        self._rows, self._age = 0, 0

    def begin_call(self, rows: int) -> None:
        """Call this before each call of the UNet, with its batch size; outputs of another size are not reused."""
        self._age += 1
        if rows != self._rows or self._age == self.interval:
            self._outputs, self._rows, self._age = {}, rows, 0

    def _cached(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        def cached(*inputs: Any, **options: Any) -> Any:
            if torch.is_grad_enabled():
                return forward(*inputs, **options)
            if forward not in self._outputs:
                self._outputs[forward] = forward(*inputs, **options)
            return self._outputs[forward]

        return cached
