"""The independence term: its state between updates, and its value.

B images, K directions of the residual, C categories, D feature channels, L descriptor channels, M remembered images,
N images of the bank.
"""

import torch
from torch import Tensor, nn

from lbgen.alignment import losses
from lbgen.alignment.config import AlignConfig
from lbgen.alignment.independence.residual import ResidualMap, fit_residual, image_descriptors

SMOOTHING = 0.1
"""Squared width of the kernel over texts, as a share of the mean of 1 - cosine over all pairs of texts."""
NAMES_IN_CHECKPOINTS = {"memory_categories": "memory_rows", "remembered": "seen"}
"""Tensors with another name in checkpoints -> that name."""


class Independence(nn.Module):
    """The bank of the base generator's residuals and a memory of recent residuals; equal in every process."""

    directions: Tensor
    centre: Tensor
    scale: Tensor
    bank: Tensor
    memory: Tensor
    memory_categories: Tensor
    remembered: Tensor
    """Number of images remembered since the start; the memory is a ring buffer."""
    text_features: Tensor

    def __init__(
        self,
        config: AlignConfig,
        text_features: Tensor,
        descriptors: Tensor,
        category_indices: Tensor,
        images_per_update: int,
    ) -> None:
        """text_features: (C, D).  descriptors (N, L), category_indices (N,): of the bank.

        images_per_update: in all processes together.
        """
        super().__init__()
        self.config, self.images_per_update = config, images_per_update

        # The linear map from descriptors to residuals, and its parts.
        text_features = text_features.float().cpu()
        fitted = fit_residual(
            text_features, descriptors, category_indices,
            span=config.independence_span, variance=config.independence_variance,
        )  # fmt: skip
        sizes = (fitted.feature_directions, len(fitted.scale) - fitted.feature_directions)
        self.part_sizes = [size for size in sizes if size > 0]
        """Directions of the feature and of the thumbnail."""
        for name in ("directions", "centre", "scale"):
            self.register_buffer(name, getattr(fitted, name))

        # The base generator's residuals, and the memory, still empty.
        self.register_buffer("bank", fitted.apply(descriptors))  # (N, K)
        capacity = config.independence_memory * images_per_update
        self.register_buffer("memory", torch.zeros(capacity, len(fitted.directions)))  # (M, K)
        self.register_buffer("memory_categories", torch.zeros(capacity, dtype=torch.long))  # (M,)
        self.register_buffer("remembered", torch.tensor(0))

        # Texts, for the similarity of categories.
        self.register_buffer("text_features", text_features, persistent=False)  # (C, D)
        self.text_width = SMOOTHING * (1 - float(text_features.mean(dim=0).square().sum()))

    def descriptors(self, features: Tensor, images: Tensor) -> Tensor:
        """(B, D), (B, 3, H, W) -> (B, L), float32."""
        return image_descriptors(features.float(), images, self.config.independence_thumbnail)

    def residuals(self, descriptors: Tensor) -> Tensor:
        """(B, L) -> (B, K)."""
        return ResidualMap(self.directions, self.centre, self.scale, self.part_sizes[0]).apply(descriptors)

    def value(self, descriptors: Tensor, category_indices: Tensor) -> Tensor:
        """The term for images with these descriptors (B, L) and categories (B,); a scalar.

        It is the sum of the term on the feature's directions and the term on the thumbnail's directions, that is, the
        squared discrepancy for the sum of two kernels.
        """
        weights = self.memory_weights(category_indices)
        tensors = (self.residuals(descriptors), self.memory[: weights.shape[1]], self.bank)
        parts = (tensor.split(self.part_sizes, dim=1) for tensor in tensors)
        values = [
            losses.conditional_mismatch(residuals, memory, weights, bank, bank.var(dim=0).sum())
            for residuals, memory, bank in zip(*parts, strict=True)
        ]
        return torch.stack(values).sum()

    def memory_weights(self, category_indices: Tensor) -> Tensor:
        """Weight of each remembered image for an image of each of these categories: (B,) -> (B, M).

        Every row sums to 1, or to 0 as long as no earlier update is remembered. A row is a mixture of two parts: images
        of the same or similar texts of any age, and all images of the previous update. The second part reacts at once
        to a common change of all images, whereas images of one category accumulate over several updates; without it,
        all categories would meanwhile drift to the same point (docs/independence.md).

        The newest update is left out: it holds the current batch itself, and k(r, r) is constant and has no gradient.
        """
        filled = min(int(self.remembered), len(self.memory))
        slots = torch.arange(filled, device=category_indices.device)
        age = (self.remembered - 1 - slots) % len(self.memory)  # (M,), 0 for the newest image
        earlier = age >= self.images_per_update
        if not earlier.any():
            return torch.zeros(len(category_indices), filled, device=category_indices.device)
        texts, memory_texts = (
            self.text_features[indices] for indices in (category_indices, self.memory_categories[:filled])
        )
        similarity = texts @ memory_texts.T  # (B, M)
        conditional = torch.softmax((similarity / self.text_width).masked_fill(~earlier, -torch.inf), dim=-1)
        update_before = (earlier & (age < 2 * self.images_per_update)).to(conditional)
        marginal = self.config.independence_marginal
        return (conditional + marginal * update_before / update_before.sum()) / (1 + marginal)

    def remember(self, descriptors: Tensor, category_indices: Tensor) -> None:
        """Replace the oldest images by an update's images of all processes, (B, L) and (B,).

        An update with a non-finite descriptor, for instance after an overflow in fp16, is skipped: it would make every
        later value infinite or NaN.
        """
        if not torch.isfinite(descriptors).all():
            return
        images = torch.arange(len(category_indices), device=category_indices.device)
        slots = (self.remembered + images) % len(self.memory)
        self.memory[slots], self.memory_categories[slots] = self.residuals(descriptors), category_indices
        self.remembered += len(category_indices)

    def checkpoint_state(self) -> dict[str, Tensor]:
        """The tensors that a checkpoint holds, by their names there."""
        return {NAMES_IN_CHECKPOINTS.get(name, name): tensor for name, tensor in self.state_dict().items()}

    def load_checkpoint_state(self, saved: dict[str, Tensor]) -> None:
        """Load what `checkpoint_state` returned; additional tensors in checkpoints of earlier versions are ignored."""
        self.load_state_dict({name: saved[NAMES_IN_CHECKPOINTS.get(name, name)] for name in self.state_dict()})
