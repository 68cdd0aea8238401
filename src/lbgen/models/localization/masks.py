"""From a coarse map of where an image's category is to a mask, and how well that mask is defined.

The map has few places. A guided filter (He et al., TPAMI 2013) fits it, window by window, by a linear function of the
image's colours, so that its edges become those of the image. Otsu's threshold (1979) then divides it.
B images.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SIDE = 64
"""Pixels to a side at which the filter's coefficients are computed (fast guided filter, arXiv 1505.00996)."""
RADIUS = 16
"""Of its windows at that size."""
SMOOTHNESS = 1e-3
"""Variance of a colour in [0, 1] that counts as none."""
LEVELS = 256
LEAST_CONTRAST = 0.05
"""Below it the map is taken to be the same everywhere, and the mask is empty."""
OFFSET = 20
"""Levels by which a threshold is raised and lowered to see whether the mask depends on it."""


def segmented(
    coarse: Tensor, pixels: Tensor, stored_size: tuple[int, int] | None = None, parts: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Which of N objects is at each pixel, (B, H, W) bytes from 1 to N, 0 for none; scores of their masks, (B, N).

    All masks of an image are empty, and their scores 0, if the contrast (i - o) / (i + o) of the map's means inside and
    outside of them is below LEAST_CONTRAST. Otherwise a score is the stability of Segment Anything (arXiv 2304.02643):
    the IoU of the masks at thresholds OFFSET above and below the middle of both sides' means; it can be 0 for a mask
    that is there.

    coarse: of all objects, (B, h, w), not negative.  pixels: (B, 3, H', W') bytes.  stored_size: (H, W), by default
    that of pixels.  parts: of each object, (B, N, h, w), not negative; None for one object.
    """
    size = stored_size or (pixels.shape[2], pixels.shape[3])
    soft = refined(coarse, pixels)[:, None]
    levels = _levels(F.interpolate(soft, size, mode="bilinear", antialias=True)[:, 0])
    masks = levels > otsu(levels)[:, None, None]
    inside, outside = _means(F.interpolate(coarse[:, None], size, mode="bilinear")[:, 0], masks)
    stands_out = (inside - outside) / (inside + outside).clamp_min(1e-12) >= LEAST_CONTRAST

    own = torch.ones_like(masks)[:, None] if parts is None else _assigned(parts, masks, pixels)  # (B, N, H, W)
    above, below = _means(levels, masks)
    middle = ((above + below) / 2)[:, None, None]
    smaller, larger = (((levels > middle + offset)[:, None] & own).sum((2, 3)) for offset in (OFFSET, -OFFSET))
    objects = (masks & stands_out[:, None, None])[:, None] & own
    numbers = torch.arange(1, 1 + own.shape[1], dtype=torch.uint8, device=masks.device)
    scores = smaller / larger.clamp_min(1) * objects.any(dim=3).any(dim=2)
    return (objects * numbers[:, None, None]).sum(dim=1, dtype=torch.uint8), scores


def _assigned(parts: Tensor, masks: Tensor, pixels: Tensor) -> Tensor:
    """(B, N, H, W) which of several objects each pixel would belong to.

    It is the one whose map there is the largest multiple of its mean within the masks; the maps are smoothed, and their
    shares get the image's edges.

    parts: (B, N, h, w) of each object.  masks: (B, H, W) of all together.
    """
    smooth = F.avg_pool2d(F.pad(parts, (2,) * 4, mode="replicate"), 5, 1)
    inside = F.interpolate(masks[:, None].float(), parts.shape[2:], mode="area")
    multiples = smooth / ((smooth * inside).mean(dim=(2, 3), keepdim=True) / inside.mean(dim=(2, 3), keepdim=True))
    shares = multiples / multiples.sum(dim=1, keepdim=True)
    soft = torch.stack([refined(share, pixels, scaled=False) for share in shares.nan_to_num().unbind(dim=1)], dim=1)
    chosen = F.interpolate(soft, masks.shape[1:], mode="bilinear", antialias=True).argmax(dim=1)
    return F.one_hot(chosen, parts.shape[1]).bool().permute(0, 3, 1, 2)


def _means(values: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """(B,) inside and outside of the masks, 0 where there is nothing.  Both (B, H, W)."""
    inside, outside = ((values * part).sum((1, 2)) / part.sum((1, 2)).clamp_min(1) for part in (masks, ~masks))
    return inside, outside


def refined(coarse: Tensor, pixels: Tensor, scaled: bool = True) -> Tensor:
    """(B, H, W) the map with the edges of the image.  coarse: (B, h, w); pixels: (B, 3, H, W) bytes.

    scaled: each map to [0, 1] before.
    """
    image = pixels.float() / 255
    small = F.interpolate(image, (SIDE, SIDE), mode="area")
    enlarged = F.interpolate(coarse[:, None].float(), (SIDE, SIDE), mode="bicubic")
    gain, bias = _linear_fits(small, _scaled(enlarged[:, 0])[:, None] if scaled else enlarged)
    gain, bias = (F.interpolate(each, image.shape[-2:], mode="bilinear") for each in (gain, bias))
    return ((gain * image).sum(dim=1, keepdim=True) + bias)[:, 0]


def _linear_fits(image: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Of each pixel the coefficients (B, 3, h, w) and (B, 1, h, w), averaged over the windows that it lies in.

    image: (B, 3, h, w), target: (B, 1, h, w).
    """
    mean, mean_target = _window_mean(image), _window_mean(target)
    covariance = _window_mean(image * target) - mean * mean_target  # (B, 3, h, w)
    products = _window_mean((image[:, :, None] * image[:, None]).flatten(1, 2)).unflatten(1, (3, 3))
    variance = products - mean[:, :, None] * mean[:, None]  # (B, 3, 3, h, w)
    system = variance.permute(0, 3, 4, 1, 2) + SMOOTHNESS * torch.eye(3, device=image.device)
    gain = torch.linalg.solve(system, covariance.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    bias = mean_target - (gain * mean).sum(dim=1, keepdim=True)
    return _window_mean(gain), _window_mean(bias)


def _window_mean(values: Tensor) -> Tensor:
    """Of each pixel's window, mirrored at the edges, by sums up to each pixel.  (B, C, h, w)."""
    side, means = 2 * RADIUS + 1, F.pad(values, (RADIUS,) * 4, mode="reflect").double()
    for axis, before in ((2, (0, 0, 1, 0)), (3, (1, 0))):
        sums = F.pad(means.cumsum(axis), before)
        count = sums.shape[axis] - side
        means = (sums.narrow(axis, side, count) - sums.narrow(axis, 0, count)) / side
    return means.to(values.dtype)


def _scaled(values: Tensor) -> Tensor:
    """(B, h, w) from 0 to 1 in each image; 0 where all values of it are equal."""
    lowest, highest = values.amin((1, 2), keepdim=True), values.amax((1, 2), keepdim=True)
    return (values - lowest) / (highest - lowest).clamp_min(1e-12)


def _levels(values: Tensor) -> Tensor:
    """(B, h, w) whole numbers from 0 to LEVELS - 1."""
    return (_scaled(values) * (LEVELS - 1)).round().long()


def otsu(levels: Tensor) -> Tensor:
    """(B,) the level up to which pixels are background: the variance between both classes is largest.

    levels: (B, h, w) whole numbers below LEVELS.
    """
    flat = levels.flatten(1)
    counts = torch.zeros(len(flat), LEVELS, dtype=torch.long, device=flat.device)
    counts = counts.scatter_add_(1, flat, torch.ones_like(flat)).double() / flat.shape[1]  # whole sums are exact
    share = counts.cumsum(dim=1)  # of the background
    moment = (counts * torch.arange(LEVELS, device=flat.device)).cumsum(dim=1)
    between = (moment[:, -1:] * share - moment) ** 2 / (share * (1 - share)).clamp_min(1e-12)
    return between.argmax(dim=1)
