"""The independence term's state: the rest of an image, the base generator's bank of it, recent images, an opponent.

B images, K directions of the rest, C categories, D feature channels, L of a look (feature and thumbnail), M remembered
images, N images of the bank.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lbgen.alignment import losses
from lbgen.alignment.config import AlignConfig
from lbgen.alignment.discriminator import PairDiscriminator
from lbgen.alignment.independence.residual import Residual, fit_residual, looks
from lbgen.metrics.zero_shot import label_agreement
from lbgen.models.noise import derived_seed

REPLAYED = 3
"""Remembered pairs that the opponent sees for each new one."""
SMOOTHING = 0.1
"""Of the mean distance between two texts: how far apart like categories may be to share their images' statistics."""
LOWERED, RAISED, LEAST_SHARE = 0.8, 1.05, 0.01
"""Factors on the weight's share after an update below and above the floor of label agreement, and the least share."""
AGREEMENT_DECAY = 0.998
"""Of the running mean of label agreement, per image: some 500 images, so that chance alone seldom meets the floor."""


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
    mean_text: Tensor
    base_agreement: Tensor
    agreement: Tensor
    share: Tensor
    """Of the term's weight, in [0, 1]."""

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
        self.register_buffer("mean_text", texts.mean(dim=0), persistent=False)  # (D,)
        agreement = label_agreement(looks[:, : texts.shape[1]], texts, rows)
        self.register_buffer("base_agreement", torch.tensor(agreement))
        self.register_buffer("agreement", self.base_agreement.clone())
        self.register_buffer("share", torch.tensor(1.0))
        self.text_width = SMOOTHING * (1 - float(self.mean_text.square().sum()))
        self.opponent: PairDiscriminator | None = None
        if config.independence_form == "adversarial":
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(derived_seed(config.seed, "independence"))
                self.opponent = PairDiscriminator(self.bank.shape[1], texts.shape[1], config.independence_hidden)
            self.optimizer = torch.optim.AdamW(
                self.opponent.parameters(), config.independence_learning_rate, config.discriminator_betas,
                weight_decay=config.weight_decay,
            )  # fmt: skip

    def looks(self, features: Tensor, images: Tensor) -> Tensor:
        """(B, D), (B, 3, H, W) -> (B, L) float32."""
        return looks(features.float(), images, self.config.independence_thumbnail)

    def rest(self, looks: Tensor) -> Tensor:
        """(B, L) -> (B, K)."""
        return Residual(self.directions, self.centre, self.scale, self.parts_of_rest[0]).of(looks)

    def value(self, looks: Tensor, rows: Tensor) -> Tensor:
        """The term for images of categories `rows` (B,), from their looks (B, L).

        In kernel form that of the feature's directions and that of the thumbnail's are added: the discrepancy of the
        sum of two kernels is the sum of theirs.
        """
        rest = self.rest(looks)
        if self.opponent is not None:
            return losses.independence(self.opponent(rest, self.embeddings(rows)))
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

    def embeddings(self, rows: Tensor) -> Tensor:
        """What sets the categories' texts apart, unit norm.  (B,) -> (B, D)."""
        return F.normalize(self.texts[rows] - self.mean_text, dim=-1)

    def update(self, looks: Tensor, rows: Tensor, draw: int) -> dict[str, float]:
        """Take in an update's images of all processes, (B, L) and (B,), and return what the log shows.

        One step of the opponent, where there is one; then they are remembered, and the weight's share follows them.

        A function of (seed, draw) and of the state, so that every process does the same. An update with a look that is
        not finite, as where fp16 overflows, is not remembered: it would spoil all that meet it.
        """
        rest = self.rest(looks)
        shown = {}
        if self.opponent is not None:
            parameters = list(self.opponent.parameters())
            loss = self.opponent_loss(rest, rows, draw)
            for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
                parameter.grad = gradient
            norm = torch.nn.utils.clip_grad_norm_(parameters, self.config.discriminator_max_grad_norm)
            if torch.isfinite(norm):
                self.optimizer.step()
            shown["independence_opponent"] = loss.item()
        if torch.isfinite(looks).all():
            self._remember(rest, rows)
            if self.config.independence_agreement > 0:
                self._steer(looks[:, : self.texts.shape[1]], rows)
        if self.config.independence_agreement > 0:
            shown |= {"label_agreement": self.agreement.item(), "independence_share": self.share.item()}
        return shown

    def parts(self) -> dict[str, Any]:
        """What a checkpoint keeps, by name."""
        optimizer = {"independence_optimizer": self.optimizer} if self.opponent is not None else {}
        return {"independence": self, **optimizer}

    def _steer(self, features: Tensor, rows: Tensor) -> None:
        """Lower the weight while the images' label agreement is below its floor, raise it again while it is above."""
        agreement = label_agreement(features, self.texts, rows)
        self.agreement.lerp_(torch.as_tensor(agreement).to(self.agreement), 1 - AGREEMENT_DECAY ** len(rows))
        holds = self.agreement >= self.config.independence_agreement * self.base_agreement
        self.share.mul_(RAISED if holds else LOWERED).clamp_(LEAST_SHARE, 1)

    def _remember(self, rest: Tensor, rows: Tensor) -> None:
        places = (self.seen + torch.arange(len(rows), device=rows.device)) % len(self.memory)
        self.memory[places], self.memory_rows[places] = rest, rows
        self.seen += len(rows)

    def opponent_loss(self, rest: Tensor, rows: Tensor, draw: int) -> Tensor:
        """On an update's pairs, REPLAYED times as many remembered ones, and as many real ones.  (B, K), (B,).

        R1 (Mescheder et al., arXiv 1801.04406) is half the mean squared norm of the opponent's slope at real pairs.
        """
        assert self.opponent is not None
        rng = torch.Generator().manual_seed(derived_seed(self.config.seed, "independence", draw))
        filled = min(int(self.seen), len(self.memory))
        old = _draws(filled, REPLAYED * len(rows) if filled else 0, rng, rows.device)
        fake = torch.cat([rest, self.memory[old]]), torch.cat([rows, self.memory_rows[old]])
        real = self.bank.detach().requires_grad_()[_draws(len(self.bank), len(fake[0]), rng, rows.device)]
        any_rows = _draws(len(self.texts), len(real), rng, rows.device)
        real_logits = self.opponent(real, self.embeddings(any_rows))
        loss = losses.discriminator_loss(real_logits, self.opponent(fake[0], self.embeddings(fake[1])))
        (slope,) = torch.autograd.grad(real_logits.sum(), real, create_graph=True)
        return loss + self.config.independence_r1 / 2 * slope.square().sum(dim=1).mean()


def _draws(below: int, count: int, rng: torch.Generator, device: torch.device) -> Tensor:
    return torch.randint(max(below, 1), (count,), generator=rng).to(device)
