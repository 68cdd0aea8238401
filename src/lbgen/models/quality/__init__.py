"""Image quality scorers: their interface, the table of those that lbgen has, and loading one.

A new scorer is one file beside antonyms.py and one line in SCORERS.
"""

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from lbgen.errors import UserError
from lbgen.models.quality.antonyms import AntonymQuality
from lbgen.models.quality.joint import JointQuality
from lbgen.models.registry import q_align_location
from lbgen.models.semantics import SemanticSpace
from lbgen.models.spaces.joint import JointSpace


class QualityScorer(Protocol):
    """Frozen; gradients reach the images."""

    def score(self, images: Tensor, features: Tensor | None = None) -> Tensor:
        """Images (B, 3, H, W) in about [0, 1] to scores (B,) in [1, 5], differentiable.

        features: (B, D), unit norm, of the same images in the semantic space that the scorer was loaded with. Given
        features save time and change nothing else.
        """


SCORERS: dict[str, Callable[[SemanticSpace], QualityScorer]] = {"antonyms": AntonymQuality}
"""Name -> scorer, made with the run's semantic space."""


def load_quality(name: str, semantics: SemanticSpace) -> QualityScorer | None:
    """The scorer of this name, q-align:DIR for the Q-Align or DeQA-Score in a folder; "none" for no scorer.

    It computes on the device and in the precision of `semantics`.
    """
    if name == "none":
        return None
    if (where := q_align_location(name)) is not None:
        from lbgen.models.quality.q_align import QAlign  # late: the other scorers need no language model

        return QAlign(where, semantics.device, semantics.dtype)
    if isinstance(semantics, JointSpace):
        return JointQuality(semantics, [load_quality(name, part) for part in semantics.parts])
    if name not in SCORERS:
        raise UserError(f"quality {name!r} is not known; choose {', '.join(SCORERS)}, q-align, q-align:DIR or none")
    return SCORERS[name](semantics)
