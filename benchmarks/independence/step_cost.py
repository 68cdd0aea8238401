"""Cost of the independence term in an update, by categories and bank: `python benchmarks/independence/step_cost.py`.

At the sizes of Stable Diffusion 1.5 and CLIP ViT-L/14: 32 images of 512 x 512 an update (8 GPUs of 4), features of 768
channels. Its work is counted and compared with the 110 TFLOP of one training image (benchmarks/speed/flops.py); its
time is this machine's.
"""

from __future__ import annotations

import resource
import statistics
import sys
from itertools import product
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.measuring import DEVICE, flags_parser, heading, markdown, seconds_of
from benchmarks.updates import new_term, term_value
from lbgen.alignment.config import AlignConfig
from lbgen.alignment.independence.term import Independence

IMAGES, CHANNELS = 32, 768
IMAGE_TFLOP = 110
"""TFLOP of one training image with Stable Diffusion 1.5; see benchmarks/speed/flops.py."""


def random_term(categories: int, bank: int) -> Independence:
    """Random unit texts and features, with ten directions of shared variation strong enough to be kept."""
    rng = torch.Generator().manual_seed(0)
    texts = F.normalize(torch.randn(categories, CHANNELS, generator=rng), dim=-1)
    features = texts[torch.arange(bank) % categories] + 0.1 * torch.randn(bank, CHANNELS, generator=rng)
    features += torch.randn(bank, 10, generator=rng) @ torch.randn(10, CHANNELS, generator=rng) / 30
    features = F.normalize(features, dim=-1)
    config = AlignConfig(independence_weight=1.0, independence_bank=bank)
    thumbnails = torch.rand(bank, 3 * config.independence_thumbnail**2, generator=rng)
    descriptors = torch.cat([features, thumbnails], dim=1)  # (N, L)
    return new_term(config, texts, descriptors, torch.arange(bank) % min(categories, bank // 8), IMAGES).to(DEVICE)


def step(term: Independence, features: Tensor, images: Tensor, category_indices: Tensor) -> None:
    """The term's work in an update: remember the images, compute the term, and propagate its gradient to them."""
    value = term_value(term, term.descriptors(features, images), category_indices)
    torch.autograd.grad(value, (features, images))


def measured_line(categories: int, bank: int, side: int, repeats: int) -> list[str]:
    """The cells of one line of the table.  side: of an image, in pixels."""
    made: list[Independence] = []
    start = seconds_of(lambda: made.append(random_term(categories, bank)))
    term = made[0]
    features = F.normalize(torch.randn(IMAGES, CHANNELS), dim=-1).to(DEVICE).requires_grad_()
    images = torch.rand(IMAGES, 3, side, side, device=DEVICE).requires_grad_()
    inputs = term, features, images, torch.arange(IMAGES, device=DEVICE) % categories
    # The memory is full from here on.
    for _ in range(20):
        step(*inputs)
    with FlopCounterMode(display=False) as counter:
        step(*inputs)
    times = [seconds_of(lambda: step(*inputs)) for _ in range(repeats)]
    state = sum(each.numel() * each.element_size() for each in (*term.parameters(), *term.buffers()))
    tflop = counter.get_total_flops() / 1e12
    return [
        f"{categories:,}", f"{bank:,}", f"{len(term.directions)}", f"{start:.2f}",
        f"{1e3 * statistics.median(times):.1f}", f"{state / 1e6:.1f}", f"{1e3 * tflop:.3f}",
        f"{tflop / (IMAGE_TFLOP * IMAGES):.1e}",
    ]  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    parser = flags_parser(__doc__)
    parser.add_argument("--categories", type=int, nargs="+", default=[2, 12, 1000, 21_000])
    parser.add_argument("--banks", type=int, nargs="+", default=[512, 2048], help="images of the base generator")
    parser.add_argument("--side", type=int, default=512, help="of an image, in pixels (default: 512)")
    parser.add_argument("--repeats", type=int, default=20, help="updates measured (default: 20)")
    arguments = parser.parse_args(argv)
    print(heading())
    lines = [["categories", "bank", "directions", "start, s", "step, ms", "state, MB", "GFLOP", "share of work"]]
    for categories, bank in product(arguments.categories, arguments.banks):
        lines.append(measured_line(categories, bank, arguments.side, arguments.repeats))
    print(markdown(lines))
    print(f"peak memory of the process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")


if __name__ == "__main__":
    main()
