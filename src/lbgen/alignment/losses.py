"""The terms of the objective: pure functions of features, scores or images (lbGen, arXiv 2412.10831).

B images, D feature channels. Every function returns a scalar: the mean over the batch.
"""

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
