"""The terms of the objective: pure functions of features, scores or images (lbGen, arXiv 2412.10831).

B images, D feature channels. Every function returns a scalar, the mean over the batch.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def entire_alignment(fake_logits: Tensor) -> Tensor:
    """-log D(f_im): the generator's side of L_en; low if the discriminator takes image features for text features.

    The paper's L_en = log D(f_cj) + log(1 - D(f_im)) is a minimax game. This is its non-saturating form: it has the
    same fixed point, and its gradient does not vanish while D wins.  fake_logits: (B,) of the images.
    """
    return F.softplus(-fake_logits).mean()


def discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """-L_en = -log D(f_cj) - log(1 - D(f_im)): the discriminator tells texts ("real") from images ("fake").

    real_logits: (B,) of texts, fake_logits: (B,) of images.  2 log 2 if it cannot tell them apart.
    """
    return F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean()


def individual_alignment(image_features: Tensor, text_features: Tensor) -> Tensor:
    """1 - cosine of each image with its own category's text (L_in).

    Both (B, D) with unit norm; row i of one belongs to row i of the other.  Returns a scalar in [0, 2].
    """
    return 1 - (image_features * text_features).sum(dim=-1).mean()


def quality_assurance(scores: Tensor) -> Tensor:
    """1 - Q/5 (L_q).  scores: (B,) in [1, 5].  Returns a scalar in [0, 0.8]."""
    return 1 - scores.mean() / 5


def base_pull(images: Tensor, base_images: Tensor) -> Tensor:
    """Mean squared distance to the base model's images of the same noise; keeps the generator close to the base model.

    This term is ours, against reward hacking. The distance is in pixels, because a distance in the feature space of the
    other terms would only weaken them. Value and gradient are zero as long as the adapter is zero.
    Both (B, 3, H, W), nominally in [0, 1].
    """
    return F.mse_loss(images, base_images)


def conditional_mismatch(residuals: Tensor, memory: Tensor, weights: Tensor, bank: Tensor, width: Tensor) -> Tensor:
    """How much closer images are to other images of their category than to the base generator's images.

    The aim is p(r | c) = p_base(r): the residual r says nothing about the category c. The squared maximum mean
    discrepancy of the two (Gretton et al., JMLR 2012) is E k(r, r') - 2 E k(r, b) + E k(b, b'). For n images r_j of the
    category, its gradient in one of them, r_i, is 2/n times the gradient of the witness function at r_i,
        w(r_i) = sum_j s_ij k(r_i, r_j) - mean_b k(r_i, b).
    This function returns the mean of w, so every image moves away from the other images of its category, towards what
    is rare there and common among the base generator's images. s_ij is the weight of image j for the category of image
    i, smoothed over similar categories (kernel regression), for vocabularies larger than the memory. If s_ij also gives
    equal weight to all images, the gradient of the same discrepancy for p(r) of all categories together is added.

    residuals: (B, K) with gradient.  memory: (M, K) of other, recent images.  weights: (B, M), each row sums to 1, or
    to 0 without memory.  bank: (N, K).  width: () squared kernel width.
    Returns a scalar in [-1, 1] whose expectation is 0 if the two distributions are equal.
    """
    to_category = (weights * mixed_gaussian_kernel(residuals, memory, width)).sum(dim=-1)  # (B,)
    to_base = mixed_gaussian_kernel(residuals, bank, width).mean(dim=-1)  # (B,)
    return (to_category - to_base).mean()


def mixed_gaussian_kernel(a: Tensor, b: Tensor, width: Tensor) -> Tensor:
    """Mean of exp(-|a - b|^2 / 2 s) over s = 1/4, 1 and 4 widths, so that near and far points have a gradient.

    (B, K), (N, K) -> (B, N).
    """
    squares = a.square().sum(dim=-1).unsqueeze(1) + b.square().sum(dim=-1) - 2 * a @ b.T  # (B, N)
    return torch.stack([torch.exp(-squares / (2 * factor * width)) for factor in (0.25, 1.0, 4.0)]).mean(dim=0)
