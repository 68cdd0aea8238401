"""The terms of the objective: pure functions of features, scores or images (lbGen, arXiv 2412.10831).

B images, D feature channels. Every function returns a scalar: the mean over the batch.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def entire_alignment(fake_logits: Tensor) -> Tensor:
    """-log D(f_im): the generator's side of L_en, as the discriminator takes image features for text features.

    The paper's L_en = log D(f_cj) + log(1 - D(f_im)) is a minimax game; this is its non-saturating form, with the same
    fixed point and a gradient that does not vanish while D wins.  fake_logits: (B,) of the images.
    """
    return F.softplus(-fake_logits).mean()


def discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """-L_en = -log D(f_cj) - log(1 - D(f_im)): the discriminator tells texts ("real") from images ("fake").

    real_logits: (B,) of texts, fake_logits: (B,) of images.  2 log 2 when it cannot tell them apart.
    """
    return F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean()


def individual_alignment(image_features: Tensor, text_features: Tensor) -> Tensor:
    """1 - cosine of each image with its own category's text (L_in).

    Both (B, D) with unit norm, row i of one belonging to row i of the other.  Returns a scalar in [0, 2].
    """
    return 1 - (image_features * text_features).sum(dim=-1).mean()


def quality_assurance(scores: Tensor) -> Tensor:
    """1 - Q/5 (L_q).  scores: (B,) in [1, 5].  Returns a scalar in [0, 0.8]."""
    return 1 - scores.mean() / 5


def base_pull(images: Tensor, base_images: Tensor) -> Tensor:
    """Mean squared distance to the base model's images of the same noise: keeps the generator near what it was.

    Ours, against reward hacking. In pixels, not in features: a distance in the space of the other terms would only
    weaken them. Zero, and so is its gradient, as long as the adapter is.  Both (B, 3, H, W) nominally in [0, 1].
    """
    return F.mse_loss(images, base_images)


def conditional_mismatch(rest: Tensor, memory: Tensor, shares: Tensor, bank: Tensor, width: Tensor) -> Tensor:
    """How much closer images are to others of their category than to the base's: their rest should say nothing of it.

    The squared maximum mean discrepancy (Gretton et al., JMLR 2012) between p(r | c) and p_base(r) is
    E k(r, r') - 2 E k(r, b) + E k(b, b'). With n images r_j of the category, its slope in one of them, r_i, is 2/n
    times that of the witness function at r_i,
        w(r_i) = sum_j s_ij k(r_i, r_j) - mean_b k(r_i, b),
    which is all this returns: every image is pushed away from its own category's crowd, towards what is rare there and
    common in the base generator's images. s_ij is the weight of image j for the category of image i, smoothed over
    like categories (kernel regression): it serves vocabularies that are larger than the memory. Where s_ij also holds
    an equal part of all images, the slope is that of the same discrepancy for p(r) of all categories together, added.

    rest: (B, K) with gradient; memory: (M, K) other, recent ones; shares: (B, M), rows of sum 1 (0 with no memory);
    bank: (N, K).  width: () squared kernel width.  Returns a scalar in [-1, 1], 0 in the mean where the two are alike.
    """
    crowd = (shares * mixed_gaussian_kernel(rest, memory, width)).sum(dim=-1)
    return (crowd - mixed_gaussian_kernel(rest, bank, width).mean(dim=-1)).mean()


def mixed_gaussian_kernel(a: Tensor, b: Tensor, width: Tensor) -> Tensor:
    """Mean of exp(-|a - b|^2 / 2 s) for s = 1/4, 1 and 4 widths: near and far both pull.  (B, K), (N, K) -> (B, N)."""
    squares = a.square().sum(dim=-1).unsqueeze(1) + b.square().sum(dim=-1) - 2 * a @ b.T  # (B, N)
    return torch.stack([torch.exp(-squares / (2 * factor * width)) for factor in (0.25, 1.0, 4.0)]).mean(dim=0)
