"""Judged sets of images whose figures are known because they are built to have them."""

import torch

from lbgen.quickstart.comparison import Judged

HOME = torch.tensor([0, 1, 2, 3, 0, 1, 2, 3])
LABELS = torch.arange(8).repeat_interleave(24)
EVERYWHERE = torch.arange(4).repeat(len(LABELS) // 4)


def judged(scene: torch.Tensor, right: float = 1.0, directions: int = 12) -> Judged:
    """192 images; in each category the last share of 1 - right shows the next one, and the features have so many
    directions, all orthogonal."""
    position = torch.arange(len(LABELS)) % 24
    seen = torch.where(position < round(24 * right), LABELS, (LABELS + 1) % 8)
    flat = torch.full((len(LABELS),), 3.0)
    return Judged(LABELS, seen, scene, torch.eye(24)[position % directions], flat, flat / 30, flat)
