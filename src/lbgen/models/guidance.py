"""Classifier-free guidance: the prediction is moved away from the prediction for the empty prompt.

Predictions are (B, C, h, w).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lbgen.errors import UserError


@dataclass(frozen=True)
class Guidance:
    """Scale (arXiv 2207.12598), rescale (arXiv 2305.08891) and interval (arXiv 2404.07724)."""

    scale: float = 2.0
    """1 or less: no guidance."""
    rescale: float = 0.0
    """In [0, 1]; 0 is off."""
    true_scale: float = 1.0
    """Scale of guidance by two network calls, for FLUX.1, which reads `scale` as an input; others accept only 1."""
    interval: tuple[float, float] | None = None
    """Guidance acts only at noise levels above the first and up to the second; None: at all levels."""

    @property
    def is_on(self) -> bool:
        return self.scale > 1

    def without_true_scale(self, checkpoint: str) -> Guidance:
        """This guidance, unchanged; UserError if `true_scale` is above 1."""
        if self.true_scale > 1:
            raise UserError(
                f"generator {checkpoint}: --true-cfg-scale {self.true_scale:g} is for generators whose network reads "
                "the guidance scale, such as FLUX.1 dev; give --guidance-scale alone"
            )
        return self

    def covers(self, noise_level: float) -> bool:
        """Whether the noise level lies in the interval."""
        return self.interval is None or self.interval[0] < noise_level <= self.interval[1]

    def combine(self, unconditional: Tensor, conditional: Tensor) -> Tensor:
        """The guided prediction, from the predictions for the empty prompt and for the prompt."""
        guided = unconditional + self.scale * (conditional - unconditional)
        return rescaled(guided, conditional, self.rescale) if self.rescale > 0 else guided


def rescaled(guided: Tensor, conditional: Tensor, rescale: float) -> Tensor:
    """Rescale towards the standard deviation of the prediction without guidance (arXiv 2305.08891, section 3.4)."""
    ratio = conditional.std(dim=(1, 2, 3), keepdim=True) / guided.std(dim=(1, 2, 3), keepdim=True)
    return guided * (rescale * ratio + 1 - rescale)
