"""Statistics of an image's pixels.  images: (B, 3, H, W), nominally in [0, 1]."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lbgen.metrics.information import bits, entropy
from lbgen.metrics.near_duplicates import LUMA

EDGE_THRESHOLD = 0.1
"""Change of brightness per pixel above which a pixel counts as an edge."""
COLOUR_LEVELS = 8
"""Levels per channel of the colour histogram, which therefore has 512 bins."""

BLUR_WIDTH = 11
"""Width in pixels of the blur in `sharpness`."""
COARSER, LEAST_SIDE = 4, 48
"""`sharpness` also uses the image averaged over COARSER pixels if its side is then at least the second number."""


def brightness(images: Tensor) -> Tensor:
    """Mean brightness of each image, (B,) in [0, 1]."""
    return _grey(images).mean(dim=(1, 2, 3))


def sharpness(images: Tensor) -> Tensor:
    """Share of the differences between neighbouring pixels that is lost when the image is blurred, (B,) in [0, 1].

    It is near 0 for a blurred image, which loses little: one minus the blur metric of Crete et al. 2007, in the worse
    direction. The minimum over the image and a coarser version is used, because in a strongly blurred image
    neighbouring pixels differ only by rounding.
    """
    grey = _grey(images)
    found = _lost_by_blurring(grey)
    if min(grey.shape[2:]) >= COARSER * LEAST_SIDE:
        found = torch.minimum(found, _lost_by_blurring(F.avg_pool2d(grey, COARSER)))
    return found


def _lost_by_blurring(grey: Tensor) -> Tensor:
    """grey: (B, 1, H, W)."""
    shares = []
    for axis, window in ((2, (BLUR_WIDTH, 1)), (3, (1, BLUR_WIDTH))):
        half = BLUR_WIDTH // 2
        padding = (0, 0, half, half) if axis == 2 else (half, half, 0, 0)
        blurred = F.avg_pool2d(F.pad(grey, padding, mode="replicate"), window, stride=1)
        before, after = grey.diff(dim=axis).abs(), blurred.diff(dim=axis).abs()
        lost = (before - after).clamp_min(0).sum(dim=(1, 2, 3))
        shares.append(lost / before.sum(dim=(1, 2, 3)).clamp_min(1e-9))
    return torch.stack(shares).amin(dim=0)


def _grey(images: Tensor) -> Tensor:
    """(B, 1, H, W) brightness."""
    return (images.clamp(0, 1) * images.new_tensor(LUMA).view(1, 3, 1, 1)).sum(dim=1, keepdim=True)


def edge_density(images: Tensor) -> Tensor:
    """Share of the inner pixels whose brightness gradient (Sobel) exceeds EDGE_THRESHOLD.  (B,) in [0, 1]."""
    sobel = images.new_tensor([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]]) / 8
    gradients = F.conv2d(_grey(images), torch.stack([sobel, sobel.T]).unsqueeze(1))  # (B, 2, H-2, W-2)
    return (gradients.norm(dim=1) > EDGE_THRESHOLD).float().mean(dim=(1, 2))


def colour_entropy(images: Tensor) -> Tensor:
    """Entropy in bits of each image's colour histogram, COLOUR_LEVELS equal levels per channel.

    Returns (B,) float64: 0 for one flat colour, at most 9.
    """
    levels = (images.clamp(0, 1) * COLOUR_LEVELS).long().clamp_max(COLOUR_LEVELS - 1)
    red, green, blue = levels.flatten(2).unbind(dim=1)  # (B, H*W) each
    colours = (red * COLOUR_LEVELS + green) * COLOUR_LEVELS + blue
    counts = torch.stack([torch.bincount(row, minlength=COLOUR_LEVELS**3) for row in colours])  # (B, 512)
    return torch.from_numpy(bits(entropy(counts.cpu().numpy())))
