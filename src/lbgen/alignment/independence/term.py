"""The independence term's state: the rest of an image, the base generator's bank of it, recent images.

B images, K directions of the rest, C categories, D feature channels, L of a look (feature and thumbnail), M remembered
images, N images of the bank.
"""

import torch
from torch import Tensor, nn

from lbgen.alignment import losses
from lbgen.alignment.config import AlignConfig
from lbgen.alignment.independence.residual import Residual, fit_residual, looks

SMOOTHING = 0.1
"""Of the mean distance between two texts: how far apart like categories may be to share their images' statistics."""


class Independence(nn.Module):
    """What the term needs between updates; the same in every process."""

    directions: Tensor
    centre: Tensor
    scale: Tensor
    bank: Tensor
    memory: Tensor
    memory_rows: Tensor
    seen: Tensor
    """How many images were remembered so far."""
    texts: Tensor

    def __init__(
        self, config: AlignConfig, text_features: Tensor, looks: Tensor, rows: Tensor, images_per_update: int
    ) -> None:
        """text_features: (C, D).  looks, rows: (N, L), (N,) of the bank.  images_per_update: of all processes."""
        super().__init__()
        self.config, self.images_per_update = config, images_per_update
        residual = fit_residual(
            text_features.float().cpu(), looks, rows,
            span=config.independence_span, variance=config.independence_variance,
        )  # fmt: skip
        self.parts_of_rest = [part for part in (residual.features, len(residual.scale) - residual.features) if part]
        for name in ("directions", "centre", "scale"):
            self.register_buffer(name, getattr(residual, name))
        self.register_buffer("bank", residual.of(looks))  # (N, K)
        remembered = config.independence_memory * images_per_update
        self.register_buffer("memory", torch.zeros(remembered, len(residual.directions)))  # (M, K)
        self.register_buffer("memory_rows", torch.zeros(remembered, dtype=torch.long))
        self.register_buffer("seen", torch.tensor(0))
        texts = text_features.float().cpu()
        self.register_buffer("texts", texts, persistent=False)  # (C, D)
        self.text_width = SMOOTHING * (1 - float(texts.mean(dim=0).square().sum()))

    def looks(self, features: Tensor, images: Tensor) -> Tensor:
        """(B, D), (B, 3, H, W) -> (B, L) float32."""
        return looks(features.float(), images, self.config.independence_thumbnail)

    def rest(self, looks: Tensor) -> Tensor:
        """(B, L) -> (B, K)."""
        return Residual(self.directions, self.centre, self.scale, self.parts_of_rest[0]).of(looks)

    def value(self, looks: Tensor, rows: Tensor) -> Tensor:
        """The term for images of categories `rows` (B,), from their looks (B, L).

        That of the feature's directions and that of the thumbnail's are added: the discrepancy of the sum of two
        kernels is the sum of theirs.
        """
        rest = self.rest(looks)
        shares = self.shares(rows)
        parts = (part.split(self.parts_of_rest, dim=1) for part in (rest, self.memory[: shares.shape[1]], self.bank))
        values = [
            losses.conditional_mismatch(own, memory, shares, bank, bank.var(dim=0).sum())
            for own, memory, bank in zip(*parts, strict=True)
        ]
        return torch.stack(values).sum()

    def shares(self, rows: Tensor) -> Tensor:
        """How much each remembered image counts for one of categories `rows`: (B,) -> (B, M).

        Rows of sum 1, or 0 while no earlier update is remembered.

        The newest update is that of the images themselves and counts nothing: an image in its own crowd would hold a
        part of it that pushes nowhere. Part of the rest goes to images of like texts, however old, and part to all of
        the update before: what the generator draws as a whole is known at once, what it draws of one category only
        over several updates, and before it is known all categories would run to the same place (docs/independence.md).
        """
        filled = min(int(self.seen), len(self.memory))
        age = (self.seen - 1 - torch.arange(filled, device=rows.device)) % len(self.memory)
        earlier = age >= self.images_per_update
        if not earlier.any():
            return torch.zeros(len(rows), filled, device=rows.device)
        likeness = self.texts[rows] @ self.texts[self.memory_rows[:filled]].T  # (B, M)
        own = torch.softmax((likeness / self.text_width).masked_fill(~earlier, -torch.inf), dim=-1)
        before = (earlier & (age < 2 * self.images_per_update)).to(own)
        marginal = self.config.independence_marginal
        return (own + marginal * before / before.sum()) / (1 + marginal)

    def remember(self, looks: Tensor, rows: Tensor) -> None:
        """Keep an update's images of all processes, (B, L) and (B,), in place of the oldest.

        An update with a look that is not finite, as where fp16 overflows, is not remembered: it would spoil all that
        meet it.
        """
        if not torch.isfinite(looks).all():
            return
        places = (self.seen + torch.arange(len(rows), device=rows.device)) % len(self.memory)
        self.memory[places], self.memory_rows[places] = self.rest(looks), rows
        self.seen += len(rows)

    def load_checkpoint_state(self, state: dict[str, Tensor]) -> None:
        """Take over what a checkpoint holds; buffers that only an earlier version had are passed over."""
        self.load_state_dict({name: state[name] for name in self.state_dict()})
