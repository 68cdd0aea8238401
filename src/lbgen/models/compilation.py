"""torch.compile for networks that run without gradients, and padding of batches to one size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from lbgen.models.families.family import Conditioning

Rows = TypeVar("Rows", Tensor, Conditioning)


def compiled(network: Any, *, cuda_graphs: bool) -> Callable[..., Any]:
    """The whole network, compiled once for each input shape.

    cuda_graphs: on a GPU, launch the network as one CUDA graph. Each run overwrites the previous output, so outputs
    must be copied to be kept, and no activation may be reused in the next call.
    """
    function = torch.compile(network, dynamic=False, mode="reduce-overhead" if cuda_graphs else "default")

    def call(*inputs: Any, **options: Any) -> Any:
        torch.compiler.cudagraph_mark_step_begin()
        return function(*inputs, **options)

    return call


def padded(rows: Rows, batch: int) -> Rows:
    """The rows, with the last one repeated until there are `batch`."""
    count: int = len(rows)
    return rows if count >= batch else rows[[*range(count), *[count - 1] * (batch - count)]]
