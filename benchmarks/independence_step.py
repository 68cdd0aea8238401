"""What the independence term costs a step, by categories and bank: `python benchmarks/independence_step.py`.

At the sizes of Stable Diffusion 1.5 and CLIP ViT-L/14: 32 images of 512 x 512 an update (8 GPUs of 4), features of 768
channels. Its work is counted and set beside the 110 TFLOP of one training image (benchmarks/flops.py); its time is
this machine's.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time

import torch
from measuring import DEVICE, heading, markdown
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from lbgen.alignment.config import AlignConfig
from lbgen.alignment.independence.term import Independence

IMAGES, SIDE, CHANNELS = 32, 512, 768
IMAGE_TFLOP = 110
"""Of one training image with Stable Diffusion 1.5; see benchmarks/flops.py."""
CATEGORIES = (2, 12, 1000, 21_000)
BANKS = (512, 2048)
REPEATS = 20


def term(categories: int, bank: int) -> Independence:
    """Random unit texts and features, ten directions of shared variation strong enough to be the rest."""
    rng = torch.Generator().manual_seed(0)
    texts = torch.nn.functional.normalize(torch.randn(categories, CHANNELS, generator=rng), dim=-1)
    features = texts[torch.arange(bank) % categories] + 0.1 * torch.randn(bank, CHANNELS, generator=rng)
    features += torch.randn(bank, 10, generator=rng) @ torch.randn(10, CHANNELS, generator=rng) / 30
    features = torch.nn.functional.normalize(features, dim=-1)
    config = AlignConfig(independence_weight=1.0, independence_bank=bank)
    seen = torch.cat([features, torch.rand(bank, 3 * config.independence_thumbnail**2, generator=rng)], dim=1)
    return Independence(config, texts, seen, torch.arange(bank) % min(categories, bank // 8), IMAGES).to(DEVICE)


def step(independence: Independence, features: Tensor, images: Tensor, rows: Tensor) -> None:
    """All that the term does in an update: take the images in, be computed, send its gradient to them."""
    descriptors = independence.descriptors(features, images)
    independence.remember(descriptors.detach(), rows)
    torch.autograd.grad(independence.value(descriptors, rows), (features, images))


def row(categories: int, bank: int) -> list[str]:
    began = time.perf_counter()
    independence = term(categories, bank)
    start = time.perf_counter() - began
    features = torch.nn.functional.normalize(torch.randn(IMAGES, CHANNELS), dim=-1).to(DEVICE).requires_grad_()
    images = torch.rand(IMAGES, 3, SIDE, SIDE, device=DEVICE).requires_grad_()
    rows = torch.arange(IMAGES, device=DEVICE) % categories
    for _ in range(20):  # the memory is full from here on
        step(independence, features, images, rows)
    with FlopCounterMode(display=False) as counter:
        step(independence, features, images, rows)
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        step(independence, features, images, rows)
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    state = sum(t.numel() * t.element_size() for t in (*independence.parameters(), *independence.buffers()))
    tflop = counter.get_total_flops() / 1e12
    return [
        f"{categories:,}", f"{bank:,}", f"{len(independence.directions)}", f"{start:.2f}",
        f"{1e3 * statistics.median(times):.1f}", f"{state / 1e6:.1f}", f"{1e3 * tflop:.3f}",
        f"{tflop / (IMAGE_TFLOP * IMAGES):.1e}",
    ]  # fmt: skip


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    print(heading())
    columns = [
        "categories",
        "bank",
        "directions",
        "start, s",
        "step, ms",
        "state, MB",
        "GFLOP",
        "share of work",
    ]
    rows = [row(c, b) for c in CATEGORIES for b in BANKS]
    print(markdown([columns, *rows]))
    print(f"peak memory of the process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")


if __name__ == "__main__":
    main()
