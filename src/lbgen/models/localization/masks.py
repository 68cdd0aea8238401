"""From a coarse map of an image's category to a mask, and a score of how well defined the mask is.

The map has a low resolution. A guided filter (He et al., TPAMI 2013) approximates it in each window by a linear
function of the image's colours, which aligns its edges with the image. Otsu's threshold (1979) then gives the mask.
Shapes: B images.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SIDE = 64
"""Side in pixels at which the filter's coefficients are computed (fast guided filter, arXiv 1505.00996)."""
RADIUS = 16
"""Radius of the filter's windows at that size."""
SMOOTHNESS = 1e-3
"""Regularisation: variances of colours in [0, 1] below this are treated as flat."""
LEVELS = 256
LEAST_CONTRAST = 0.05
"""Contrast below which the map counts as constant, so that the mask is empty."""
OFFSET = 20
"""Levels by which a threshold is raised and lowered to test how much the mask depends on it."""


def segmented(
    coarse: Tensor, pixels: Tensor, stored_size: tuple[int, int] | None = None, parts: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The object at each pixel, (B, H, W) bytes from 1 to N, 0 for none; scores of the N objects' masks, (B, N).

    All masks of an image are empty, with score 0, if the contrast (i - o) / (i + o) of the map's means inside and
    outside the masks is below LEAST_CONTRAST. Otherwise the score is the stability of Segment Anything (arXiv
    2304.02643): the IoU of the masks at thresholds OFFSET above and below the midpoint of the means inside and outside.
    A mask that is not empty can also have score 0.

    coarse: (B, h, w), not negative, map of all objects.  pixels: (B, 3, H', W') bytes.  stored_size: (H, W), by default
    the size of `pixels`.  parts: (B, N, h, w), not negative, map of each object; None for one object.
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
    """(B, N, H, W) bool: the object to which each pixel would belong.

    Each map is divided by its mean within the masks, and the object with the largest value at a pixel is chosen. The
    maps are smoothed, and their relative values are aligned with the image's edges.

    parts: (B, N, h, w) map of each object.  masks: (B, H, W) mask of all objects.
    """
    smooth = F.avg_pool2d(F.pad(parts, (2,) * 4, mode="replicate"), 5, 1)
    inside = F.interpolate(masks[:, None].float(), parts.shape[2:], mode="area")
    multiples = smooth / ((smooth * inside).mean(dim=(2, 3), keepdim=True) / inside.mean(dim=(2, 3), keepdim=True))
    shares = multiples / multiples.sum(dim=1, keepdim=True)
    soft = torch.stack([refined(share, pixels, scaled=False) for share in shares.nan_to_num().unbind(dim=1)], dim=1)
    chosen = F.interpolate(soft, masks.shape[1:], mode="bilinear", antialias=True).argmax(dim=1)
    return F.one_hot(chosen, parts.shape[1]).bool().permute(0, 3, 1, 2)


def _means(values: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """(B,) means inside and outside the masks, 0 if there are no pixels.  values, masks: (B, H, W)."""
    inside, outside = ((values * part).sum((1, 2)) / part.sum((1, 2)).clamp_min(1) for part in (masks, ~masks))
    return inside, outside


def refined(coarse: Tensor, pixels: Tensor, scaled: bool = True) -> Tensor:
    """(B, H, W) the map with edges aligned to the image.  coarse: (B, h, w); pixels: (B, 3, H, W) bytes.

    scaled: scale each map to [0, 1] first.
    """
    image = pixels.float() / 255
    small = F.interpolate(image, (SIDE, SIDE), mode="area")
    enlarged = F.interpolate(coarse[:, None].float(), (SIDE, SIDE), mode="bicubic")
    gain, bias = _linear_fits(small, _scaled(enlarged[:, 0])[:, None] if scaled else enlarged)
    gain, bias = (F.interpolate(each, image.shape[-2:], mode="bilinear") for each in (gain, bias))
    return ((gain * image).sum(dim=1, keepdim=True) + bias)[:, 0]


def _linear_fits(image: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Slopes (B, 3, h, w) and intercepts (B, 1, h, w) of each pixel, averaged over the windows that contain it.

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
    """Mean over each pixel's window, mirrored at the edges, by cumulative sums.  (B, C, h, w)."""
    side, means = 2 * RADIUS + 1, F.pad(values, (RADIUS,) * 4, mode="reflect").double()
    for axis, before in ((2, (0, 0, 1, 0)), (3, (1, 0))):
        sums = F.pad(means.cumsum(axis), before)
        count = sums.shape[axis] - side
        means = (sums.narrow(axis, side, count) - sums.narrow(axis, 0, count)) / side
    return means.to(values.dtype)


def _scaled(values: Tensor) -> Tensor:
    """(B, h, w) scaled to [0, 1] in each image; 0 if all its values are equal."""
    lowest, highest = values.amin((1, 2), keepdim=True), values.amax((1, 2), keepdim=True)
    return (values - lowest) / (highest - lowest).clamp_min(1e-12)


def _levels(values: Tensor) -> Tensor:
    """(B, h, w) integers from 0 to LEVELS - 1."""
    return (_scaled(values) * (LEVELS - 1)).round().long()


def otsu(levels: Tensor) -> Tensor:
    """(B,) Otsu's threshold, the highest level of the background: it maximises the variance between both classes.

    levels: (B, h, w) integers below LEVELS.
    """
    flat = levels.flatten(1)
    counts = torch.zeros(len(flat), LEVELS, dtype=torch.long, device=flat.device)
    counts = counts.scatter_add_(1, flat, torch.ones_like(flat)).double() / flat.shape[1]  # integer sums are exact
    share = counts.cumsum(dim=1)  # share of the background
    moment = (counts * torch.arange(LEVELS, device=flat.device)).cumsum(dim=1)
    between = (moment[:, -1:] * share - moment) ** 2 / (share * (1 - share)).clamp_min(1e-12)
    return between.argmax(dim=1)
